"""One ONNX file through onnxsim's structured pruning and the engine: `python benchmarks/onnxsim_row.py FILE|NETWORK ROW.json`.

`dependency_peers.py` starts it, in a process for each file; a network of `peer_networks.py` is exported first, as exporters
do it (BatchNorm folded). Both are asked for 30 % of the channels. onnxsim does not say which it removed: it is read off the
weights that are left, and the file whose removed channels are set to zero is the reference.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxsim
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.corpus_inputs import Feeds, give_random_weights, inputs_of, make_feeds, signature
from benchmarks.peer_networks import NETWORKS, build, export
from benchmarks.removed import REMOVED, constants, random_kept, set_to_zero
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.counts import count
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.proof import prove
from worker.compressor.graph.surgery import cut

SAMPLES = 2


def ours(file: Path, feeds: Feeds) -> dict[str, Any]:
    """What the engine removes of the file, and its proof."""
    network, _ = import_model(file, "onnx", signature(file, inputs_of(file)))
    analysis = analyse(network, network.sample_shapes)
    whole = count(network, network.sample_shapes)
    result = cut(network, analysis, random_kept(analysis, REMOVED))
    left = count(result.network, network.sample_shapes)
    named = dict(zip([port.name for port in network.inputs], feeds.values(), strict=True))
    proof = prove(network, result, analysis, named)
    return {
        "macs": whole.macs,
        "params": whole.num_params,
        "macs_left": left.macs / whole.macs,
        "params_left": left.num_params / whole.num_params,
        "error": proof.error,
        "control": proof.control,
    }


def theirs(file: Path, feeds: Feeds, folder: Path) -> dict[str, Any]:
    """What onnxsim removes, whether its file runs, and whether it computes what it should."""
    model = onnx.load(str(file))
    pruned = onnxsim.apply_structured_pruning(onnx.load(str(file)), sparsity=REMOVED)
    found: dict[str, Any] = {"params_left": _num_elements(pruned) / _num_elements(model)}
    if found["params_left"] == 1:
        return found
    written = folder / "pruned.onnx"
    onnx.save(pruned, str(written))
    found |= _tried("runs", lambda: {"outputs": len(run(written, feeds))})
    found |= _tried("counted", lambda: {"macs": _macs(written, file)})
    if "outputs" in found:
        masked = folder / "masked.onnx"
        reference = set_to_zero(model, pruned)
        if reference is not None:
            onnx.save(reference, str(masked))
            got = run(written, feeds)
            found |= {"error": _difference(run(masked, feeds), got), "control": _difference(run(file, feeds), got)}
    return found


def run(file: Path, feeds: Feeds) -> list[np.ndarray]:
    """The outputs in onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    return [np.asarray(a) for a in session.run(None, dict(zip(names, feeds.values(), strict=True)))]


def _macs(pruned: Path, file: Path) -> int:
    network, _ = import_model(pruned, "onnx", signature(file, inputs_of(file)))
    return count(network, network.sample_shapes).macs


def _num_elements(model: onnx.ModelProto) -> int:
    """Elements of all float constants."""
    tensors = constants(model).values()
    return sum(numpy_helper.to_array(tensor).size for tensor in tensors if tensor.data_type == onnx.TensorProto.FLOAT)


def _difference(expected: list[np.ndarray], got: list[np.ndarray]) -> float:
    """The largest difference over all outputs, relative to the spread of each."""
    worst = 0.0
    for a, b in zip(expected, got, strict=True):
        if a.shape != b.shape:
            return float("inf")
        spread = max(float(np.ptp(a)), 1e-3 * float(np.abs(a).max()), 1e-12)
        worst = max(worst, float(np.abs(a.astype(np.float64) - b).max()) / spread)
    return worst


def _tried(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return work()
    except Exception as error:  # whatever it is, it is this row's finding
        return {f"{name}_failed": f"{type(error).__name__}: {' '.join(str(error).split())[-160:]}"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("subject")
    parser.add_argument("row", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.subject in NETWORKS:
            file = export(*build(arguments.subject), folder / f"{arguments.subject}.onnx", folded=True)
        else:
            file = give_random_weights(Path(arguments.subject), folder)
        feeds = make_feeds(file, inputs_of(file), SAMPLES, np.random.default_rng(7))
        row: dict[str, Any] = {
            "ours": _tried("cut", lambda: ours(file, feeds)),
            "theirs": {"cut_failed": "not finished in time"},
        }
        arguments.row.write_text(json.dumps(row))
        row["theirs"] = _tried("cut", lambda: theirs(file, feeds, folder))
        arguments.row.write_text(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
