"""The one way into the engine: a folder with a request in, `outcome.json` and artifacts out."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker.compressor.errors import RunAborted
from worker.compressor.outcome import Outcome, Status, failure, write_outcome
from worker.compressor.request import Request, read_request

Emit = Callable[[dict[str, Any]], None]
ShouldStop = Callable[[], bool]

_log = logging.getLogger(__name__)


def run(work_dir: Path, emit: Emit, should_stop: ShouldStop) -> None:
    """Do what `request.json` asks for and write `outcome.json`.

    Every error becomes an outcome (`failed`, or `rejected` for an inspection); nothing is written when `should_stop` said so.
    """
    request = read_request(work_dir)
    request.output.mkdir(exist_ok=True)
    try:
        outcome = _do(request, emit, should_stop)
    except RunAborted:
        return
    except Exception as error:
        outcome = failure(error, _failed(request))
        if outcome.error is not None and outcome.error["class"] == "internal":
            # To the worker's own log: a client is told the code, never a stack trace.
            _log.exception("attempt %s of %s failed", request.attempt, request.id)
            traceback.print_exc()
    write_outcome(work_dir, outcome)


def _do(request: Request, emit: Emit, should_stop: ShouldStop) -> Outcome:
    # The imports wait until they are needed: inspecting a data set takes neither torch nor onnx.
    if request.kind == "inspect_dataset":
        from worker.compressor.inspection import inspect_dataset

        return inspect_dataset(request)
    if request.kind == "inspect_model":
        from worker.compressor.inspection import inspect_model

        return inspect_model(request)
    from worker.compressor.pipeline import compress

    return compress(request, emit, should_stop)


def _failed(request: Request) -> Status:
    return "failed" if request.kind == "compress" else "rejected"
