"""ONNX in: checked, normalised, and tried once, so that what cannot be executed is refused at upload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.evaluation import observe
from worker.compressor.graph.importers.bundle import is_bundle, open_bundle
from worker.compressor.graph.importers.contributed import write_out
from worker.compressor.graph.importers.leniency import infer_outputs, put_right
from worker.compressor.graph.importers.samples import shape_candidates
from worker.compressor.graph.importers.stored import StoredModel
from worker.compressor.graph.importers.validation import check_model, open_file
from worker.compressor.graph.network import Network
from worker.compressor.graph.normalise import normalise, shuffles
from worker.compressor.graph.operator import operator_of


def import_onnx(path: Path, signature: Sequence[Mapping[str, Any]] | None) -> Network:
    """The network in the file; `sample_shapes` are those at which it was tried.

    Raises:
        ImportFailed: with the node or tensor that is the cause.
    """
    stored = open_bundle(path, path.parent / "unpacked") if is_bundle(path) else open_file(path)
    put_right(stored.proto, signature)
    write_out(stored.proto)
    check_model(stored.proto, stored)
    network = normalise(_deserialise(stored), signature)
    try_once(network, signature)
    infer_outputs(network)
    return network


def try_once(network: Network, signature: Sequence[Mapping[str, Any]] | None) -> None:
    """Evaluate the network on one sample of zeros, and keep the first shapes at which it runs as `sample_shapes`.

    The case of `normalise` that needs shapes is applied at these.

    Raises:
        ImportFailed: where an operator is not executable, or no shape that the ports allow is taken.
    """
    for node in network.nodes:
        operator_of(node)
    failure: ImportFailed | None = None
    for shapes in shape_candidates(network, signature):
        try:
            observe(network, shapes)
            network.sample_shapes = shapes
            shuffles.apply(network)
            return
        except ImportFailed as error:
            failure = failure or error
            if error.code != "input_mismatch":
                raise
    assert failure is not None
    raise failure


def _deserialise(stored: StoredModel) -> ir.Model:
    try:
        return stored.as_model()
    except Exception as error:  # the reader raises whatever its parts do on a file that the checker let through
        raise ImportFailed(f"the graph cannot be read: {str(error)[:300]}") from error
