"""What was counted: totals before and after, and layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from worker.compressor.graph.counts import Counts, LayerCount


def totals(counts: Counts) -> dict[str, int]:
    """The three counts of a network."""
    return {"num_params": counts.num_params, "nonzero_params": counts.nonzero_params, "macs": counts.macs}


def layer_rows(before: Counts, after: Counts, kept_because: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row per layer of the original, in graph order, with what became of it."""
    now = {row.name: row for row in after.layers}
    return [_row(row, now.get(row.name), kept_because.get(row.name)) for row in before.layers]


def pins(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each reason to keep layers costs: `{why, layers, macs, share}`, `share` of all MACs, the dearest first."""
    total, found = sum(row["macs_before"] for row in rows), dict[str, dict[str, Any]]()
    for row in rows:
        if row["kept_because"]:
            pin = found.setdefault(row["kept_because"], {"why": row["kept_because"], "layers": [], "macs": 0})
            pin["layers"].append(row["name"])
            pin["macs"] += row["macs_after"]
    ordered = sorted(found.values(), key=lambda pin: -pin["macs"])
    return [pin | {"share": pin["macs"] / total if total else 0.0} for pin in ordered]


def _row(before: LayerCount, after: LayerCount | None, kept_because: str | None) -> dict[str, Any]:
    return {
        "name": before.name,
        "op": before.op,
        "shape_before": list(before.shape),
        "shape_after": list(after.shape) if after else None,
        "params_before": before.params,
        "params_after": after.params if after else 0,
        "macs_before": before.macs,
        "macs_after": after.macs if after else 0,
        "kept_because": kept_because,
    }
