"""The `result` of a job: figures before, after, and their ratios."""

from __future__ import annotations

from typing import Any

Figures = dict[str, Any]


def ratios(before: Figures, after: Figures) -> Figures:
    """compressed / baseline of every figure that both have; None where the baseline is 0."""
    found: Figures = {}
    for name, value in after.items():
        base = before.get(name)
        if name == "latency_ms":
            found[name] = [
                {"batch": new["batch"], "min": _over(new["min"], old["min"])}
                for old, new in zip(base or [], value, strict=False)
            ]
        elif isinstance(value, dict):
            found[name] = {key: _over(value[key], base[key]) for key in value if base and key in base}
        elif name != "output_error":
            found[name] = _over(value, base)
    return found


def _over(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base
