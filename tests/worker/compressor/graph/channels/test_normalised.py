"""Channels that a normalisation mixes: exact where whole blocks can go, else cut only for a recovery to mend."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.channels import normed_nets
from tests.worker.compressor.graph.test_surgery import compare
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.proof import prove
from worker.compressor.graph.surgery import cut


class TestCut:
    @pytest.mark.parametrize("kind", normed_nets.ALL, ids=lambda kind: kind.__name__)
    @pytest.mark.parametrize("share", [0.7, 0.3])
    def test_exact_groups_compute_the_masked_upload(self, kind, share, tmp_path):
        network, path = nets.load(kind, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        result = cut(network, analysis, nets.random_kept([g for g in analysis.groups if g.exact], share))
        error, control = compare(path, result.network, result.weights, nets.samples(network), tmp_path)
        assert error < 1e-5 and control > 1e-3, (error, control)
        assert not prove(network, result, analysis, nets.samples(network)).vacuous

    @pytest.mark.parametrize("kind", normed_nets.ALL, ids=lambda kind: kind.__name__)
    def test_all_groups_cut_at_once_still_run(self, kind, tmp_path):
        network, path = nets.load(kind, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        result = cut(network, analysis, nets.random_kept(analysis.groups, 0.3))
        compare(path, result.network, [], nets.samples(network, 7), tmp_path)
        assert result.exact == all(group.exact for group in analysis.groups)

    def test_short_blocks_are_units_and_long_ones_get_narrower(self, tmp_path):
        short, long, single, layer, few = (
            {g.num_units: g for g in analyse(network, network.sample_shapes).groups}
            for network in (nets.load(kind, tmp_path)[0] for kind in normed_nets.ALL[:5])
        )
        assert short[4].exact and len(short[4].partition.sizes) == 1
        assert not long[40].exact and long[40].partition.sizes.tolist() == [20, 20]
        assert single[24].exact and len(single[24].partition.sizes) == 1
        assert not layer[16].exact and "LayerNormalization" in layer[16].inexact_because and layer[24].exact
        assert not few[24].exact and few[24].partition.sizes.tolist() == [12, 12]

    @pytest.mark.parametrize("kind", [normed_nets.NormedHeads, normed_nets.RootMeanHeads])
    def test_heads_that_all_have_to_stay_get_narrower(self, kind, tmp_path):
        network, _ = nets.load(kind, tmp_path)
        groups = {layer: group for group in analyse(network, network.sample_shapes).groups for layer in group.layers}
        assert groups["/q/MatMul"] is groups["/k/MatMul"] and groups["/v/MatMul"].exact
        assert not groups["/q/MatMul"].exact and groups["/q/MatMul"].num_units == 8  # all heads share one scale


def one_node(op, opset, inputs, constants, folder, **attributes):
    """A convolution, the operator, and a convolution that reads it."""
    rng = np.random.default_rng(0)
    channels, width = inputs
    arrays = {
        "w": rng.standard_normal((channels, 3, 1, 1)).astype(np.float32),
        "v": rng.standard_normal((5, channels, 1, 1)).astype(np.float32),
        **{name: rng.standard_normal(shape).astype(np.float32) + 1 for name, shape in constants.items()},
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"),
        helper.make_node(op, ["a", *constants], ["b"], name="norm", **attributes),
        helper.make_node("Conv", ["b", "v"], ["y"], name="last"),
    ]
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", c, width, width]) for n, c in (("x", 3), ("y", 5))
    ]
    graph = helper.make_graph(
        nodes, "g", ports[:1], ports[1:], [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    )
    path = folder / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return import_model(path, "onnx", None)[0], path


CASES = [
    ("GroupNormalization", 21, (32, 4), {"s": (32,), "t": (32,)}, {"num_groups": 4}),
    ("GroupNormalization", 21, (40, 4), {"s": (40,), "t": (40,)}, {"num_groups": 2}),
    ("GroupNormalization", 21, (12, 4), {"s": (12,), "t": (12,)}, {"num_groups": 1}),
    ("InstanceNormalization", 7, (12, 4), {"s": (12,), "t": (12,)}, {"epsilon": 1e-3}),
    ("LayerNormalization", 17, (12, 4), {"s": (12, 4, 4), "t": (12, 4, 4)}, {"axis": 1}),
    ("LayerNormalization", 17, (12, 4), {"s": (4,)}, {"axis": -1}),
    ("LayerNormalization", 17, (12, 4), {"s": (12, 1, 1), "t": (1,)}, {"axis": 1}),
    ("RMSNormalization", 23, (12, 4), {"s": (12, 4, 4)}, {"axis": 1}),
    ("RMSNormalization", 23, (12, 4), {"s": (4,)}, {}),
]


class TestOperators:
    @pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[2][0]}")
    def test_computes_what_onnxruntime_does_and_is_cut(self, case, tmp_path):
        op, opset, inputs, constants, attributes = case
        network, path = one_node(op, opset, inputs, constants, tmp_path, **attributes)
        feeds = nets.samples(network)
        assert nets.difference(nets.reference(path, feeds)[0], run(network, feeds)["y"]) < 1e-5
        analysis = analyse(network, network.sample_shapes)
        (group,) = analysis.groups
        result = cut(network, analysis, nets.random_kept([group], 0.5))
        error, _ = compare(path, result.network, result.weights if group.exact else [], feeds, tmp_path)
        assert not group.exact or error < 1e-5
