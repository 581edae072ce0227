"""What a sensitivity step found, as `sensitivity.json` and two plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worker.compressor.outcome import Artifact, Format
from worker.compressor.report.documents import write_json
from worker.compressor.report.plots import Panel, Points, draw

_COLUMNS = 4
_LARGE = 2.0


def write_studies(studies: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], folder: Path) -> list[Artifact]:
    """The files of all sensitivity steps, numbered from the second on; `facts` say what they are about."""
    artifacts = []
    for number, study in enumerate(studies, start=1):
        suffix = "" if number == 1 else f"-{number}"
        write_json(folder / f"sensitivity{suffix}.json", {**facts, **study})
        artifacts.append(_artifact(f"sensitivity{suffix}.json", "json"))
        for name, svg in (("sensitivity", _groups_chart(study)), ("tradeoff", _tradeoff_chart(study))):
            if svg is not None:
                (folder / f"{name}{suffix}.svg").write_text(svg, encoding="utf-8")
                artifacts.append(_artifact(f"{name}{suffix}.svg", "svg"))
    return artifacts


def _artifact(name: str, file_format: Format) -> Artifact:
    return Artifact(name, "sensitivity", file_format, f"output/{name}")


def _groups_chart(study: Mapping[str, Any]) -> str | None:
    """A panel for each group: the metric against the share of units that went."""
    metric, panels = study["metric"], []
    for group in study["groups"]:
        more = f" and {len(group['layers']) - 1} more" if len(group["layers"]) > 1 else ""
        removed = [(1 - point["num_kept"] / group["num_units"], point[metric]) for point in group["points"]]
        points = _drawable([(0.0, study["whole"][metric]), *removed])
        panels.append(Panel(f"{group['layers'][0]}{more} ({group['num_units']})", {metric: points}))
    return draw(panels, "units removed", metric, _COLUMNS) if panels else None


def _tradeoff_chart(study: Mapping[str, Any]) -> str | None:
    """One chart of the metric, and of the agreement where that is another share, against the MACs that are kept."""
    reached = [row for row in study["tradeoff"] if "error" not in row]
    names = [study["metric"], *(["agreement"] if study["metric"] == "accuracy" else [])]
    lines = {name: _drawable([(row["macs_share"], row[name]) for row in reached]) for name in names}
    if not reached:
        return None
    return draw([Panel("cut and refitted, not trained", lines)], "MACs kept", " / ".join(names), 1, scale=_LARGE)


def _drawable(points: Sequence[tuple[float, float | None]]) -> Points:
    return [(x, y) for x, y in points if y is not None]
