"""Small line charts as SVG: one panel or many, all on the same axes so that they can be compared at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

Points = Sequence[tuple[float, float]]

COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700")
_WIDTH, _HEIGHT = 250, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 18, 24, 34
_LONGEST_TITLE = 38


@dataclass(frozen=True)
class Panel:
    """One chart: lines by name, each of points `(x, y)` with x in 0 to 1."""

    title: str
    lines: Mapping[str, Points]


def draw(panels: Sequence[Panel], x_label: str, y_label: str, num_columns: int, scale: float = 1.0) -> str:
    """An SVG of the panels, row by row; x is told in percent, y from the lowest to the highest value of all panels."""
    low, high = _span([y for panel in panels for points in panel.lines.values() for _, y in points])
    columns = max(1, min(num_columns, len(panels)))
    width, height = columns * _WIDTH, -(-len(panels) // columns) * _HEIGHT
    drawn = "\n".join(
        f'<g transform="translate({at % columns * _WIDTH},{at // columns * _HEIGHT})">'
        f"{_panel(panel, x_label, y_label, low, high)}</g>"
        for at, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width * scale:g}" height="{height * scale:g}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="9" fill="#24292f">\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n{drawn}\n</svg>\n'
    )


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _panel(panel: Panel, x_label: str, y_label: str, low: float, high: float) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + x * (right - _LEFT), bottom - (y - low) / (high - low) * (bottom - _TOP)

    parts = [f"<title>{_text(panel.title)}</title>", _label(8, 14, _short(panel.title), weight="bold")]
    for share in (0.0, 0.5, 1.0):
        (x, _), (_, y) = place(share, low), place(0.0, low + share * (high - low))
        parts.append(f'<path d="M{x:.1f} {_TOP}V{bottom}M{_LEFT} {y:.1f}H{right}" stroke="#d0d7de" fill="none"/>')
        parts.append(_label(x, bottom + 11, f"{share:.0%}", anchor="middle"))
        parts.append(_label(_LEFT - 4, y + 3, f"{low + share * (high - low):.3g}", anchor="end"))
    parts.append(_label((_LEFT + right) / 2, bottom + 24, x_label, anchor="middle"))
    parts.append(
        f'<g transform="translate(9,{(_TOP + bottom) / 2:g}) rotate(-90)">{_label(0, 0, y_label, "middle")}</g>'
    )
    for number, (name, points) in enumerate(panel.lines.items()):
        parts += _line(name if len(panel.lines) > 1 else "", [place(*point) for point in points], number)
    return "".join(parts)


def _line(name: str, points: Points, number: int) -> list[str]:
    colour = COLOURS[number % len(COLOURS)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>']
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>' for x, y in points]
    if name:
        parts.append(
            f'<g fill="{colour}">{_label(_WIDTH - _RIGHT - 4, _HEIGHT - _BOTTOM - 6 - 11 * number, name, "end")}</g>'
        )
    return parts


def _label(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{_text(text)}</text>'


def _short(title: str) -> str:
    return title if len(title) <= _LONGEST_TITLE else f"{title[: _LONGEST_TITLE - 1]}…"


def _text(text: str) -> str:
    """Names come from other people's files: no markup, and no character that XML has no place for."""
    return escape("".join(character if character.isprintable() else "?" for character in text))
