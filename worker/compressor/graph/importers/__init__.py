"""From a file to the one graph: untrusted uploads through `import_model`, our own re-emitted graph through `load_graph`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.importers.facts import read_facts, write_facts
from worker.compressor.graph.importers.onnx import import_onnx
from worker.compressor.graph.importers.program import import_program
from worker.compressor.graph.importers.torchscript import import_torchscript, load_module
from worker.compressor.graph.network import Network

__all__ = ["Signature", "import_model", "load_graph", "load_module"]

Signature = Sequence[Mapping[str, Any]]


def import_model(path: Path, format: str, signature: Signature | None) -> tuple[Network, dict[str, Any]]:
    """The network in an uploaded file, and the facts that ONNX cannot carry (names in the source, sample shapes).

    Opens untrusted bytes: call it in a process of its own, with limits and a deadline.

    Raises:
        ImportFailed: with a stable code, the node or part of the file that is the cause, and what to do.
    """
    if format == "onnx":
        network = import_onnx(path, signature)
    elif format == "torchscript":
        network = import_torchscript(path, signature)
    elif format == "exported_program":
        network = import_program(path, signature)
    else:
        raise ImportFailed(f"the format {format} is not supported", code="unsupported_format")
    return network, write_facts(network)


def load_graph(path: Path, facts: Mapping[str, Any] | None) -> Network:
    """The network that `import_model` made, from the graph and the facts that were kept of it."""
    return read_facts(path, facts or {})
