"""The files that a job gives back: the network in each format that was asked for, and its weights alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from worker.compressor.errors import CompressorError, ExportError
from worker.compressor.graph.exporters.assembled import put_together
from worker.compressor.graph.exporters.onnx import write_onnx
from worker.compressor.graph.exporters.program import write_program
from worker.compressor.graph.exporters.torchscript import write_torchscript
from worker.compressor.graph.exporters.weights import write_weights
from worker.compressor.graph.folding import flush_subnormals, fold_normalisations
from worker.compressor.graph.network import Network
from worker.compressor.outcome import Artifact, Format

FILES = {"onnx": "model.onnx", "torchscript": "model.pt", "exported_program": "model.pt2"}
WEIGHTS = "weights.safetensors"
_WRITERS: dict[str, Callable[[Network, Path], None]] = {
    "onnx": lambda network, path: write_onnx(put_together(network), path),
    "torchscript": write_torchscript,
    "exported_program": write_program,
}

_log = logging.getLogger(__name__)


@dataclass
class Delivery:
    """What was written: the networks by format, the weights, and why anything else was not."""

    networks: dict[str, Path] = field(default_factory=dict)
    weights: Path | None = None
    error: CompressorError | None = None

    @property
    def artifacts(self) -> list[Artifact]:
        """The files as artifacts, in the order in which they were asked for."""
        found = [
            Artifact(path.name, "model", cast(Format, name), f"output/{path.name}")
            for name, path in self.networks.items()
        ]
        if self.weights is not None:
            found.append(Artifact(WEIGHTS, "weights", "safetensors", f"output/{WEIGHTS}"))
        return found


def outgoing(network: Network, *, fold_batchnorm: bool) -> Network:
    """The network as it leaves: BatchNorm folded if asked for, subnormal weights zero. All formats are written from it."""
    return flush_subnormals(fold_normalisations(network) if fold_batchnorm else network)


def deliver(network: Network, formats: list[str], output: Path) -> Delivery:
    """Write every format and the weights; what cannot be written is said in `error`, and the rest is written all the same."""
    delivery = Delivery()
    for name in formats:
        path = output / FILES[name]
        if (error := _attempt(name, _WRITERS[name], network, path)) is None:
            delivery.networks[name] = path
        else:
            delivery.error = delivery.error or error
    path = output / WEIGHTS
    if (error := _attempt("safetensors", write_weights, network, path)) is None:
        delivery.weights = path
    else:
        delivery.error = delivery.error or error
    return delivery


def write(network: Network, form: str, folder: Path) -> Path:
    """One format of a network that is on its way out; raises what its writer raises."""
    path = folder / FILES[form]
    _WRITERS[form](network, path)
    return path


def rehearse(network: Network, formats: list[str], folder: Path) -> None:
    """Write the formats once and throw them away: a network that cannot leave as asked is told before it is trained.

    Raises:
        CompressorError: what `deliver` would have found at the end.
    """
    with TemporaryDirectory(dir=folder) as scratch:
        for name in formats:
            if name != "onnx" and (error := _attempt(name, _WRITERS[name], network, Path(scratch) / FILES[name])):
                error.hint = error.hint or f"leave '{name}' out of 'outputs'"
                raise error


def _attempt(name: str, write: Callable[[Network, Path], None], network: Network, path: Path) -> CompressorError | None:
    try:
        write(network, path)
    except MemoryError:
        raise
    except CompressorError as error:
        path.unlink(missing_ok=True)
        return error
    except Exception as error:  # whatever a serialiser raises, the other files are still worth having
        _log.exception("the %s file could not be written", name)
        path.unlink(missing_ok=True)
        return ExportError(f"the {name} file cannot be written: {type(error).__name__}: {str(error)[:300]}")
    return None
