"""Run a module of ours in a process that is started fresh, with a question as JSON in and an answer as JSON out.

A file that opens where it was made proves little: the process that made it has every module and tensor at hand.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import worker
from worker.compressor.errors import CompressorError, ErrorClass, ExportError


def ask(module: str, question: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The answer of `python -m module`; the question and the answer pass through files in `folder`.

    Where the other side is killed (for want of memory, or by an operator), so is this process: the attempt was, and may
    go better another time.

    Raises:
        CompressorError: as the other side raised it; `ExportError` where it died by itself.
    """
    path = folder / f"{module.rpartition('.')[2]}.json"
    path.write_text(json.dumps(question))
    root = str(Path(worker.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, str(path)], capture_output=True, env=environment, check=False
    )
    if done.returncode == -signal.SIGKILL:
        os.kill(os.getpid(), signal.SIGKILL)
    answer_path = path.with_suffix(".answer.json")
    if done.returncode != 0 or not answer_path.exists():
        told = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise ExportError(
            f"the exported network could not be run in a fresh process ({done.returncode}): {told[0][:300]}"
        )
    answer: dict[str, Any] = json.loads(answer_path.read_text())
    if error := answer.get("error"):
        raise _error(error)
    return answer


def answer(compute: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The other side: compute the answer to the question named on the command line."""
    path = Path(sys.argv[1])
    try:
        found = compute(json.loads(path.read_text()))
    except CompressorError as error:
        found = {"error": error.as_dict()}
    path.with_suffix(".answer.json").write_text(json.dumps(found, allow_nan=False))


def _error(plain: dict[str, Any]) -> CompressorError:
    error_class: ErrorClass = plain["class"]
    return CompressorError(plain["detail"], code=plain["code"], hint=plain["hint"], error_class=error_class)
