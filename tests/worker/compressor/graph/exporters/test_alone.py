"""Operators by themselves have the shapes that they have in their network, and runtimes take them."""

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.worker.compressor.graph.nets import Plain, Residual, Separable, Sequence, Shared, Shuffle, load, samples
from worker.compressor.graph.evaluation import observe
from worker.compressor.graph.exporters.alone import Loner
from worker.compressor.graph.operator import operator_of

BATCH = 3


def multiplying(network):
    return [node for node in network.nodes if operator_of(node).macs]


def run_alone(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    dtypes = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    return session.run(None, {p.name: np.ones(p.shape, dtypes[p.type]) for p in session.get_inputs()})


class TestWrite:
    @pytest.mark.parametrize("kind", [Plain, Residual, Separable, Shuffle, Sequence])
    def test_shapes_are_those_with_so_many_rows(self, kind, tmp_path):
        network, _ = load(kind, tmp_path)
        nodes = multiplying(network)
        found = [run_alone(Loner(network, network.sample_shapes, BATCH).write(n.outputs[0], tmp_path)) for n in nodes]
        rows = samples(network, BATCH)
        shapes = observe(network, {name: array.shape for name, array in rows.items()}).shapes
        assert nodes
        for node, outputs in zip(nodes, found, strict=True):
            assert [output.shape for output in outputs] == [shapes[name] for name in node.outputs if name in shapes]

    def test_layers_that_are_alike_have_one_file(self, tmp_path):
        network, _ = load(Shared, tmp_path)
        loner = Loner(network, network.sample_shapes, 1)
        files = [loner.write(node.outputs[0], tmp_path) for node in multiplying(network)]
        assert [files.index(file) for file in files] == [0, 1, 1, 0, 4]  # stem and last are alike, twice is used twice

    def test_weights_take_no_room(self, tmp_path):
        network, _ = load(Plain, tmp_path)
        largest = max(network.tensors, key=lambda name: network.tensors[name].nbytes)
        node = next(node for node in network.nodes if largest in node.inputs)
        path = Loner(network, network.sample_shapes, 1).write(node.outputs[0], tmp_path)
        onnx.checker.check_model(onnx.load(path), full_check=True)
        assert path.stat().st_size < network.tensors[largest].nbytes / 4
