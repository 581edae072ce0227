"""The comparison with peers, without the peers: how groups are compared, and what the page says of them."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from benchmarks import dependency_peers
from benchmarks.couplings import compare, couplings
from benchmarks.removed import set_to_zero
from tests.worker.compressor.graph import nets
from worker.compressor.graph.channels.analysis import analyse

ROW = {
    "ours": {"groups": 2, "least": 0.01, "error": 1e-6, "control": 0.5},
    "theirs": {"groups": 2, "least": 0.02, "error": 2e-7, "control": 0.5},
    "same": 2,
    "only_ours": [],
    "only_theirs": [],
}


class TestCompare:
    def test_other_numbers_of_the_same_units_are_the_same_group(self):
        one = {("a", 0, 0): 0, ("a", 0, 1): 1, ("b", 1, 0): 0, ("b", 1, 1): 1}
        other = {place: 7 - unit for place, unit in one.items()}
        assert compare([one], [other]).same == 1

    def test_other_places_together_is_another_group(self):
        one = {("a", 0, 0): 0, ("a", 0, 1): 1, ("b", 1, 0): 0, ("b", 1, 1): 1}
        other = one | {("b", 1, 0): 1, ("b", 1, 1): 0}
        found = compare([one], [{("c", 0, 0): 0}, other])
        assert (found.same, found.only_ours, found.only_theirs) == (0, [0], [0, 1])


class TestCouplings:
    def test_a_residual_network_couples_what_its_additions_join(self, tmp_path):
        network, _ = nets.load(nets.Residual, tmp_path, keep_batchnorm=True)
        parameters = {name for name, _ in nets.build(nets.Residual).named_parameters()}
        found = couplings(network, analyse(network, network.sample_shapes), parameters)
        stem = next(coupling for coupling in found if ("stem.weight", 0, 0) in coupling)
        assert {name for name, axis, _ in stem if axis == 0} == {"stem.weight", "stem.bias", "a2.weight", "a2.bias"}
        assert all(stem["stem.weight", 0, unit] == stem["b1.weight", 1, unit] for unit in np.arange(8).tolist())

    def test_a_grouped_convolution_counts_its_inputs_through_all_groups(self, tmp_path):
        network, _ = nets.load(nets.Shuffle, tmp_path, keep_batchnorm=True)
        found = couplings(network, analyse(network, network.sample_shapes), {"b.weight"})
        read = [position for coupling in found for _, axis, position in coupling if axis == 1]
        assert network.tensors["b.weight"].shape[1] == 12 and sorted(read) == list(range(24))


class TestRender:
    def test_identical_networks_are_counted_and_need_no_reason(self):
        text = dependency_peers.render({"net": ROW}, {})
        assert "| net | 2 | 2 | all | 1.00% | 2.00% | 1e-06 | 2e-07 |" in text
        assert "in 1 of the 1 networks" in text and "Not identical" not in text

    def test_a_difference_is_listed_with_its_reason(self, monkeypatch):
        monkeypatch.setitem(dependency_peers.REASONS, "net", "because")
        group = {"units": 4, "places": 8, "parameters": ["a", "b", "c", "d", "e"]}
        text = dependency_peers.render({"net": ROW | {"same": 1, "only_ours": [group]}}, {})
        assert "in 0 of the 1 networks" in text
        assert "- `net`: because\n  - only here: 4 units in `a`, `b`, `c` and 2 more" in text

    @pytest.mark.parametrize("found", [{"error": 0.1, "control": 0.5}, {"error": 0.0, "control": 0.0}])
    def test_a_wrong_or_empty_result_is_marked(self, found):
        text = dependency_peers.render({"net": ROW | {"theirs": ROW["theirs"] | found}}, {})
        assert text.count(f"1e-06 | {dependency_peers.WRONG}") == 1

    def test_what_the_peer_raises_is_quoted(self):
        row = {
            "ours": ROW["ours"],
            "theirs": {f"{key}_failed": "ValueError: no" for key in ("groups", "least", "error")},
        }
        text = dependency_peers.render({"net": row}, {})
        assert text.count(f"{dependency_peers.WRONG} raises") == 3 and "ends with `ValueError: no`" in text

    def test_a_file_that_comes_back_as_it_was_is_untouched(self):
        ours = {"macs": 100, "params_left": 0.5, "macs_left": 0.4, "error": 1e-7, "control": 0.5}
        text = dependency_peers.render({}, {"file": {"ours": ours, "theirs": {"params_left": 1}}})
        assert "| file | 50% | untouched | 40% | untouched | 1e-07 |  |" in text
        assert "Of 1 files 1 are cut here, 1 of them shown to be right; 0 there" in text

    def test_a_file_that_one_refuses_says_so(self):
        row = {"ours": {"cut_failed": "no"}, "theirs": {"params_left": 0.9, "runs_failed": "shape"}}
        text = dependency_peers.render({}, {"file": row})
        assert f"{dependency_peers.WRONG} does not run" in text
        assert "- `file` here, cut: `no`" in text and "- `file` there, runs: `shape`" in text


def a_pruned_pair(groups):
    """Conv, Relu, Conv in groups, with inputs 1 and 3 removed of four (in each group one)."""
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((4, 3, 1, 1)), rng.standard_normal((4, 4 // groups, 1, 1))
    kept = [0, 2]
    parts = [part[:, kept[:1] if groups == 2 else kept] for part in np.split(second, groups)]
    return model(first, second, groups), model(first[kept], np.concatenate(parts), groups), second


def model(first, second, groups):
    weights = {"first": first.astype(np.float32), "second": second.astype(np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["y"], group=groups),
    ]
    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph(
        nodes, "g", ports[:1], ports[1:], [numpy_helper.from_array(a, name) for name, a in weights.items()]
    )
    return helper.make_model(graph)


class TestSetToZero:
    @pytest.mark.parametrize("groups", [1, 2])
    def test_inputs_that_are_gone_are_zero_and_nothing_else(self, groups):
        whole, pruned, second = a_pruned_pair(groups)
        result = {t.name: numpy_helper.to_array(t) for t in set_to_zero(whole, pruned).graph.initializer}
        wanted = second.astype(np.float32).copy()
        wanted[:, 1::2] = 0
        assert np.array_equal(result["second"], wanted)

    def test_weights_that_are_no_part_of_the_whole_are_not_known(self):
        whole, pruned, _ = a_pruned_pair(1)
        tensor = pruned.graph.initializer[1]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name))
        assert set_to_zero(whole, pruned) is None
