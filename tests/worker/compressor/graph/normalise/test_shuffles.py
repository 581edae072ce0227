"""Case 13: what changes the order along one axis by reshapes becomes a Gather along it."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.test_surgery import compare
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.surgery import cut


class Copies(nn.Module):
    """Channels beside copies of themselves, shuffled."""

    shape = (3, 6, 6)

    def __init__(self):
        super().__init__()
        self.stem, self.middle, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(16, 10, 1), nn.Linear(10, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = nets.interleaved(torch.cat([x, x[:, [3, 2, 1, 0, 7, 6, 5, 4]]], 1))
        return self.head(torch.relu(self.middle(x)).mean((2, 3)))


class ThreeHalvings(nn.Module):
    """As ShuffleNet v2: a width that cannot be halved as often as it is."""

    shape = (3, 6, 6)

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 20, 3, padding=1), nn.Linear(20, 3)
        self.layers = nn.ModuleList(nn.Conv2d(10, 10, 1) for _ in range(3))

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for layer in self.layers:
            stay, go = x.chunk(2, 1)
            x = nets.interleaved(torch.cat([stay, torch.relu(layer(go))], 1))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("kind", [Copies, ThreeHalvings], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_random_channels_of_what_is_shuffled_compute_the_masked_upload(kind, share, tmp_path):
    network, path = nets.load(kind, tmp_path)
    analysis = analyse(network, network.sample_shapes)
    assert list(analysis.kept_because) == ["/head/Gemm"]
    assert all(int(bundle.sizes.sum()) == 1 for group in analysis.groups for bundle in group.partition.bundles)
    result = cut(network, analysis, nets.random_kept(analysis.groups, share))
    error, control = compare(path, result.network, result.weights, nets.samples(network), tmp_path)
    assert error < 1e-5 and control > 1e-3, (error, control)


@pytest.mark.parametrize("length", [8, None])
def test_only_orders_along_a_fixed_length_are_replaced(length, tmp_path):
    nodes = [
        helper.make_node("Reshape", ["x", "pairs"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 1, 3, 2]),
        helper.make_node("Reshape", ["b", "line"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    port = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, length])  # noqa: E731
    sizes = {"pairs": [0, 0, 2, -1], "line": [0, 0, -1]}
    tensors = [numpy_helper.from_array(np.array(size), name) for name, size in sizes.items()]
    graph = helper.make_graph(nodes, "g", [port("x")], [port("y")], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    network, _ = import_model(tmp_path / "m.onnx", "onnx", None)
    assert ("Gather" in [node.op for node in network.nodes]) == (length is not None)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)}
    assert np.array_equal(nets.reference(model, feeds)[0], run(network, feeds)["y"])
    if length is not None:
        order = next(node.inputs[1] for node in network.nodes if node.op == "Gather")
        assert network.origins[order].made and network.tensors[order].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
