"""The states of a job, and which may follow which. Everything that writes a status writes it under `WHERE status=…`."""

from __future__ import annotations

#: What may follow each state. A running job goes back to `queued` when its worker is lost or hands it over.
TRANSITIONS: dict[str, frozenset[str]] = {
    "queued": frozenset({"running", "failed", "cancelled"}),
    "running": frozenset({"queued", "succeeded", "failed", "infeasible", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "infeasible": frozenset(),
    "cancelled": frozenset(),
}
#: States that nothing follows.
TERMINAL = frozenset(status for status, following in TRANSITIONS.items() if not following)
#: What a client may see and filter by.
SHOWN = (*TRANSITIONS, "cancelling")


def shown_status(status: str, *, cancel_requested: bool) -> str:
    """The status as the API tells it: a running job that was asked to end is `cancelling`."""
    return "cancelling" if status == "running" and cancel_requested else status
