"""Random networks keep the surgery proof: `pytest … --random-graphs 1000` tries so many of them (50 otherwise)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.random_builder import Step
from tests.worker.compressor.graph.random_nets import build, random_steps, shrink
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.exporters.onnx import write_onnx
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.proof import prove
from worker.compressor.graph.surgery import WeightCut, cut

TOLERANCE = 1e-4
SHARES = (0.3, 0.7)


def masked_upload(path: Path, rows: list[WeightCut]) -> onnx.ModelProto:
    """The uploaded file with what the report names set to zero, read off the report alone."""
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for number, row in enumerate(rows):
        array = numpy_helper.to_array(tensors[row.name]).copy()
        for axis in map(int, row.zero):
            kept = row.axes[str(axis)]
            parts = kept if isinstance(kept[0], list) else [kept]
            size = len(array) // len(parts)
            for part, left in enumerate(parts):
                where = [slice(None)] * array.ndim
                if len(parts) > 1:
                    where[0] = slice(part * size, (part + 1) * size)
                view = array[tuple(where)]
                gone = np.setdiff1d(np.arange(view.shape[axis]), left)
                view[(slice(None),) * axis + (gone,)] = 0
        if row.nodes is None:
            tensors[row.name].CopyFrom(numpy_helper.from_array(array, row.name))
            continue
        model.graph.initializer.append(numpy_helper.from_array(array, f"copy{number}"))
        for node in [node for node in model.graph.node if node.name in row.nodes]:
            for slot, name in enumerate(node.input):
                if name == row.name:
                    node.input[slot] = f"copy{number}"
    return model


def check(steps: list[Step], seed: int, folder: Path) -> tuple[float, int]:
    """Import, analyse, cut and compare; the control, and how many groups there are.

    Raises whatever goes wrong, AssertionError where a comparison fails.
    """
    path = folder / "random.onnx"
    onnx.save(build(steps, seed), path)
    network = import_model(path, "onnx", None)[0]
    feeds = nets.samples(network, 3)
    whole = nets.reference(path, feeds)
    for ours, theirs in zip(run(network, feeds).values(), whole, strict=True):
        assert nets.difference(theirs, ours) < TOLERANCE, "import"
    analysis = analyse(network, network.sample_shapes)
    exact = [group for group in analysis.groups if group.exact]
    control = 0.0
    for share in SHARES if exact else ():
        result = cut(network, analysis, nets.random_kept(exact, share, seed))
        prove(network, result, analysis, feeds)
        write_onnx(result.network, folder / "cut.onnx")
        wanted = nets.reference(masked_upload(path, result.weights), feeds)
        got = nets.reference(folder / "cut.onnx", feeds)
        error = max(nets.difference(a, b) for a, b in zip(wanted, got, strict=True))
        assert error < TOLERANCE, f"cut to {share}: {error:.1e}"
        control = max(control, *(nets.difference(a, b) for a, b in zip(whole, got, strict=True)))
    return control, len(exact)


def test_a_random_network_is_imported_and_cut_exactly(random_graph, tmp_path):
    steps = random_steps(random_graph)
    try:
        check(steps, random_graph, tmp_path)
    except Exception as error:
        kind = type(error)

        def fails(shorter):
            try:
                check(shorter, random_graph, tmp_path)
            except kind:
                return True
            except Exception:
                return False
            return False

        short = " ".join(map(str, shrink(steps, fails)))
        pytest.fail(f"network {random_graph}: {kind.__name__}: {str(error)[:500]}\nshortest form: {short}")


def test_the_comparison_notices_a_wrong_cut(tmp_path):
    controls = [check(random_steps(seed), seed, tmp_path) for seed in range(20)]
    assert sum(control > 100 * TOLERANCE for control, groups in controls if groups) > 15


class TestShrink:
    def test_only_what_is_needed_to_fail_is_left(self):
        steps = [Step("conv", n, 0, 0) for n in range(12)]
        assert shrink(steps, lambda s: {3, 8} <= {step.a for step in s}) == [steps[3], steps[8]]
