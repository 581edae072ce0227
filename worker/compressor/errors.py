"""What can go wrong in the engine: facts with a stable code, told to the client as they are.

`class` says whose turn it is: `user` (this input will never work), `transient` (it may, later) or `internal` (our
fault).
"""

from __future__ import annotations

from typing import Literal

ErrorClass = Literal["user", "transient", "internal"]


class CompressorError(Exception):
    """Base of all engine errors: a stable snake_case `code`, a sentence, what to do next, and whose turn it is."""

    code: str = "engine_error"
    error_class: ErrorClass = "internal"
    hint: str | None = None

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        error_class: ErrorClass | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.code
        self.error_class = error_class or self.error_class
        self.hint = hint or self.hint

    def as_dict(self) -> dict[str, str | None]:
        """The error as it is stored on a job: `{code, detail, hint, class}`."""
        return {"code": self.code, "detail": self.detail, "hint": self.hint, "class": self.error_class}


class ImportFailed(CompressorError):
    """The uploaded network cannot be taken; names the node or the part of the file that is the cause."""

    code, error_class = "malformed_model", "user"


class GraphError(CompressorError):
    """An operation on the graph would not keep what the network computes, so it was not done."""

    code = "graph_error"


class PruningError(CompressorError):
    """Pruning could not do what the spec asks for."""

    code, error_class = "pruning_failed", "user"


class TargetUnreachable(PruningError):
    """The target lies below what the network can be cut to. `asked` and `best` are counts or shares of the original."""

    code = "target_unreachable"
    hint = "Ask for more, widen `include`, or lower `round_to`."

    def __init__(self, detail: str, *, asked: float, best: float) -> None:
        super().__init__(detail)
        self.asked = asked
        self.best = best


class NothingRemoved(PruningError):
    """A prune step left every channel in place."""

    code = "nothing_removed"
    hint = "Ask for a smaller target, or look at `kept_because` of the layers."


class OutputCollapsed(CompressorError):
    """The compressed network answers the same for every sample, or not with finite numbers."""

    code, error_class = "output_collapsed", "user"
    hint = "Ask for a milder target, or allow recovery and training."


class ExportError(CompressorError):
    """An artifact could not be written, or does not compute what the network in memory does."""

    code = "export_failed"


class PluginError(CompressorError):
    """A registry was asked for something it cannot give."""

    code = "plugin_error"


class UnknownPlugin(PluginError):
    """No entry of that name; the detail lists the known ones."""

    code, error_class = "unknown_name", "user"


class DuplicatePlugin(PluginError):
    """Two entries claim one name."""

    code = "duplicate_plugin"


class RunAborted(CompressorError):
    """The run was told to stop. Not a failure."""

    code, error_class = "cancelled", "user"


class DataError(CompressorError):
    """The data set cannot be used; names the array and what is wrong with it."""

    code, error_class = "invalid_array", "user"


class InputMismatch(CompressorError):
    """The samples do not fit the inputs of the network, or the network does not run on them."""

    code, error_class = "input_mismatch", "user"


class DataNeeded(CompressorError):
    """Something that the spec asks for looks at samples, and the job has none."""

    code, error_class = "data_needed", "user"
    hint = "Send a data set, or choose a criterion that needs none."


class NothingToCompress(CompressorError):
    """The network has no weights."""

    code, error_class = "nothing_to_compress", "user"
