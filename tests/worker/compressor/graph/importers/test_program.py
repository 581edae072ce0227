"""Exported programs in: every weight under its own name, every figure as torch computes it from the same file."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from tests.worker.compressor.graph import nets
from worker.compressor.errors import ImportFailed
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.exporters.onnx import write_onnx
from worker.compressor.graph.exporters.program import write_program
from worker.compressor.graph.importers import import_model, load_graph
from worker.compressor.graph.surgery import cut


class Residual(nn.Module):
    """Convolutions with BatchNorm, a shortcut, in-place functions and shape arithmetic."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.Hardswish(), nn.Conv2d(12, 8, 1))
        self.head = nn.Linear(8 * 4, 5)

    def forward(self, x):
        x = self.stem(x)
        x = F.max_pool2d(x + self.body(x), 2)
        x = F.dropout(x, 0.3, self.training)
        return self.head(x.reshape(x.shape[0], -1, 4).permute(0, 2, 1).reshape(x.shape[0], -1))


class Mixed(nn.Module):
    """Tied weights, a keyword, a constant, a parameter that nothing uses, nested containers out."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.b.weight = self.a.weight
        self.spare = nn.Parameter(torch.ones(3))
        self.register_buffer("shift", torch.arange(6.0))

    def forward(self, left, factor, *, right):
        x = torch.relu(self.a(left) * factor + self.shift)
        y = torch.tanh(self.b(x) + right["more"][0])
        return {"scores": self.c(y), "rest": (x, [y])}


class Nothing(nn.Module):
    """Does what it is told on one tensor."""

    def __init__(self, function):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def exported(net, args, path, kwargs=None, shapes=None, decompose=False):
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
    program = torch.export.export(net.eval(), args, kwargs or {}, dynamic_shapes=shapes)
    torch.export.save(program.run_decompositions() if decompose else program, path)
    return path


def batch():
    return torch.export.Dim("batch")


def residual(path, **options):
    shapes = ({0: batch()},) if options.pop("free", True) else None
    size = 2 if shapes else 1
    return exported(Residual(), (torch.zeros(size, 3, 4, 4),), path, shapes=shapes, **options)


def mixed(path):
    free = batch()
    args, kwargs = (torch.zeros(2, 6), 0.5), {"right": {"more": [torch.zeros(2, 6)]}}
    shapes = {"left": {0: free}, "factor": None, "right": {"more": [{0: free}]}}
    return exported(Mixed(), args, path, kwargs, shapes)


def taken(path, signature=None):
    network, facts = import_model(path, "exported_program", signature)
    write_onnx(network, path.with_suffix(".onnx"))
    return load_graph(path.with_suffix(".onnx"), facts)


def random_cut(network):
    analysis = analyse(network, network.sample_shapes)
    return cut(network, analysis, nets.random_kept(analysis.groups, 0.5))


class TestImportProgram:
    @pytest.mark.parametrize("decompose", [False, True])
    @pytest.mark.parametrize("free", [False, True])
    def test_weights_layers_and_ports_are_the_files(self, free, decompose, tmp_path):
        network = taken(residual(tmp_path / "n.pt2", free=free, decompose=decompose))
        program = torch.export.load(tmp_path / "n.pt2")
        floats = {name for name, tensor in program.state_dict.items() if tensor.is_floating_point()}
        assert floats <= {origin.source for origin in network.origins.values()}
        assert [p.shape for p in network.inputs] == [("batch" if free else 1, 3, 4, 4)]
        assert network.outputs[0].shape == ("batch" if free else 1, 5)
        names = [node.name for node in network.nodes]
        assert {"stem.0", "stem.1", "body.0", "body.2", "head"} <= set(names)
        x = torch.randn(3 if free else 1, 3, 4, 4)
        wanted = program.module()(x).detach().numpy()
        assert nets.difference(wanted, run(network, {"x": x})["output"]) < 2e-6

    @pytest.mark.parametrize("decompose", [False, True])
    def test_a_cut_computes_what_the_masked_program_does(self, decompose, tmp_path):
        network = taken(residual(tmp_path / "n.pt2", decompose=decompose))
        result = random_cut(network)
        write_program(result.network, tmp_path / "cut.pt2")
        made, masked = torch.export.load(tmp_path / "cut.pt2"), torch.export.load(tmp_path / "n.pt2")
        assert result.weights and {row.name for row in result.weights} <= masked.state_dict.keys()
        for row in result.weights:
            for axis in map(int, row.zero):
                gone = np.setdiff1d(np.arange(masked.state_dict[row.name].shape[axis]), row.axes[str(axis)])
                masked.state_dict[row.name].data.index_fill_(axis, torch.from_numpy(gone), 0)
        for size in (1, 5):
            x = torch.randn(size, 3, 4, 4)
            wanted, got = (p.module()(x).detach().numpy() for p in (masked, made))
            assert nets.difference(wanted, got) < 2e-6
            assert nets.difference(torch.export.load(tmp_path / "n.pt2").module()(x).detach().numpy(), got) > 1e-3
        assert made.state_dict.keys() <= masked.state_dict.keys()

    def test_containers_constants_and_ties_are_kept(self, tmp_path):
        network = taken(mixed(tmp_path / "n.pt2"))
        assert [port.name for port in network.inputs] == ["left", "right_more_0"]
        assert [port.name for port in network.outputs] == ["scores", "rest_0", "rest_1_0"]
        assert sum(origin.source == "a.weight" for origin in network.origins.values()) == 1
        assert "b.weight" not in {origin.source for origin in network.origins.values()}
        write_program(network, tmp_path / "again.pt2")
        old, new = (torch.export.load(tmp_path / name) for name in ("n.pt2", "again.pt2"))
        left, right = torch.randn(3, 6), {"more": [torch.randn(3, 6)]}
        wanted, got = (p.module()(left, 0.5, right=right) for p in (old, new))
        assert pytree.tree_structure(wanted) == pytree.tree_structure(got)
        for a, b in zip(pytree.tree_leaves(wanted), pytree.tree_leaves(got), strict=True):
            assert nets.difference(a.detach().numpy(), b.detach().numpy()) < 2e-6
        assert set(new.state_dict) <= set(old.state_dict)

    @pytest.mark.parametrize(
        "function",
        [
            lambda self, x: self.fc(x).softmax(1) * x.shape[1],
            lambda self, x: self.fc(x) + torch.arange(x.shape[1])[:, None] / x.shape[1],
            lambda self, x: self.fc(x) - (x.shape[1] + 1) // 2,
        ],
    )
    def test_other_free_axes_get_names_and_sizes_also_where_these_meet_data(self, function, tmp_path):
        length = torch.export.Dim("length", min=3)
        path = exported(
            Nothing(function), (torch.zeros(2, 7, 4),), tmp_path / "n.pt2", shapes=({0: batch(), 1: length},)
        )
        network = taken(path)
        assert network.inputs[0].shape == ("batch", "dim_1", 4) and network.sample_shapes == {"x": (1, 7, 4)}
        write_program(network, tmp_path / "again.pt2")
        x = torch.randn(1, 9, 4)
        wanted, got = (torch.export.load(tmp_path / n).module()(x).detach().numpy() for n in ("n.pt2", "again.pt2"))
        assert nets.difference(wanted, got) < 2e-6

    def test_a_size_that_changes_too_rarely_to_be_seen_is_refused(self, tmp_path):
        shapes = ({0: batch(), 1: torch.export.Dim("length", min=3)},)
        net = Nothing(lambda self, x: self.fc(x) + x.shape[1] // 16)
        path = exported(net, (torch.zeros(2, 7, 4),), tmp_path / "n.pt2", shapes=shapes)
        with pytest.raises(ImportFailed) as caught:
            import_model(path, "exported_program", None)
        assert caught.value.code == "unsupported_feature" and "differs" in caught.value.detail

    def test_a_signature_may_fix_a_free_size(self, tmp_path):
        net = Nothing(lambda self, x: self.fc(x).mean(1))
        shapes = ({0: batch(), 1: torch.export.Dim("length")},)
        path = exported(net, (torch.zeros(2, 7, 4),), tmp_path / "n.pt2", shapes=shapes)
        network = taken(path, [{"name": "x", "dtype": "float32", "shape": ["batch", 21, 4]}])
        assert network.sample_shapes == {"x": (1, 21, 4)}

    def test_a_size_may_be_a_multiple_of_one_that_is_free(self, tmp_path):
        net, half = Nothing(lambda self, x: self.fc(x).mean(1)), torch.export.Dim("half", min=2, max=64)
        path = exported(net, (torch.zeros(2, 8, 4),), tmp_path / "n.pt2", shapes=({0: batch(), 1: 2 * half},))
        x = torch.randn(3, 10, 4)
        wanted = torch.export.load(path).module()(x).detach().numpy()
        assert nets.difference(wanted, run(taken(path), {"x": x})["output"]) < 2e-6

    def test_a_network_that_changes_its_input_is_taken_without_that(self, tmp_path):
        def forward(self, x):
            x -= 1
            return self.fc(x)

        for decompose in (False, True):
            path = tmp_path / f"{decompose}.pt2"
            exported(Nothing(forward), (torch.zeros(2, 4),), path, shapes=({0: batch()},), decompose=decompose)
            x = torch.randn(3, 4)
            wanted = torch.export.load(path).module()(x.clone()).detach().numpy()
            assert nets.difference(wanted, run(taken(path), {"x": x})["output"]) < 2e-6

    def test_parts_without_gradients_are_parts_like_others(self, tmp_path):
        def forward(self, x):
            with torch.no_grad():
                y = torch.relu(self.fc(x))
            return self.fc(y) + x

        path = exported(Nothing(forward), (torch.zeros(2, 4),), tmp_path / "n.pt2", shapes=({0: batch()},))
        x = torch.randn(3, 4)
        wanted = torch.export.load(path).module()(x).detach().numpy()
        assert nets.difference(wanted, run(taken(path), {"x": x})["output"]) < 2e-6

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_float_types_stay(self, dtype, tmp_path):
        net = Nothing(lambda self, x: torch.relu(self.fc(x))).to(dtype)
        path = exported(net, (torch.zeros(2, 4, dtype=dtype),), tmp_path / "n.pt2", shapes=({0: batch()},))
        network = taken(path)
        assert network.inputs[0].dtype == str(dtype).removeprefix("torch.") == network.outputs[0].dtype


class TestRefusals:
    """What cannot be taken is refused with a code, the node and the user's own line."""

    def refused(self, net, tmp_path, x=None, train=False):
        free = batch()
        x = torch.zeros(2, 4) if x is None else x
        program = torch.export.export(net.train(train), (x,), dynamic_shapes=({0: free},))
        torch.export.save(program, tmp_path / "n.pt2")
        with pytest.raises(ImportFailed) as caught:
            import_model(tmp_path / "n.pt2", "exported_program", None)
        assert caught.value.error_class == "user" and caught.value.hint
        return caught.value

    def test_an_operator_that_is_not_known(self, tmp_path):
        error = self.refused(Nothing(lambda self, x: torch.special.i0e(self.fc(x))), tmp_path)
        assert error.code == "unsupported_operator" and "special_i0e" in error.detail
        assert "test_program.py:" in error.detail

    def test_randomness(self, tmp_path):
        error = self.refused(Nothing(lambda self, x: self.fc(x) + torch.rand_like(x)), tmp_path)
        assert error.code == "unsupported_operator" and "random" in error.detail

    def test_training_mode(self, tmp_path):
        assert self.refused(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), tmp_path, train=True).code == (
            "unsupported_operator"
        )
        error = self.refused(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), tmp_path, train=True)
        assert "eval()" in error.detail + (error.hint or "")

    def test_a_memory_between_calls(self, tmp_path):
        def forward(self, x):
            self.count.add_(1)
            return self.fc(x) + self.count

        net = Nothing(forward)
        net.register_buffer("count", torch.zeros(1))
        error = self.refused(net, tmp_path)
        assert error.code == "unsupported_feature" and "'count'" in error.detail

    def test_complex_inputs(self, tmp_path):
        net = Nothing(lambda self, x: self.fc(x.abs()))
        assert self.refused(net, tmp_path, torch.zeros(2, 4, dtype=torch.complex64)).code == "unsupported_dtype"

    def test_no_tensor_comes_out(self, tmp_path):
        torch.export.save(torch.export.export(Nothing(lambda self, x: 3), (torch.zeros(2, 4),)), tmp_path / "n.pt2")
        with pytest.raises(ImportFailed) as caught:
            import_model(tmp_path / "n.pt2", "exported_program", None)
        assert caught.value.code == "unsupported_output"

    def test_a_signature_that_does_not_fit(self, tmp_path):
        path = residual(tmp_path / "n.pt2")
        with pytest.raises(ImportFailed) as caught:
            import_model(path, "exported_program", [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}])
        assert caught.value.code == "input_mismatch"
