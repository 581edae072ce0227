import numpy as np
import onnx
import pytest
import torch

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.dtypes import DTYPES, converted
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.counts import count
from worker.compressor.graph.evaluation import observe, run
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.precision import foreign_dtypes, in_float32, rounded
from worker.compressor.graph.surgery import cut
from worker.compressor.graph.training.executor import to_module

KINDS = [nets.Plain, nets.Residual, nets.Separable, nets.Permuted]


def load(kind, tmp_path, dtype, *, ports=True, **options):
    """The network in that dtype, in float32, and the file in that dtype."""
    network, path = nets.load(kind, tmp_path, **options)
    other = tmp_path / f"{dtype}.onnx"
    onnx.save(converted(onnx.load(path), dtype, ports=ports), other)
    return import_model(other, "onnx", None)[0], network, other


class TestImport:
    @pytest.mark.parametrize("ports", [True, False])
    @pytest.mark.parametrize("kind", KINDS)
    def test_half_networks_compute_what_onnxruntime_computes(self, tmp_path, kind, ports):
        network, _, path = load(kind, tmp_path, "float16", ports=ports)
        feeds = {"x": nets.samples(network)["x"].astype(np.float16 if ports else np.float32)}
        wanted, found = nets.reference(path, feeds)[0], run(network, feeds)["y"]
        assert found.dtype == wanted.dtype == feeds["x"].dtype
        assert nets.difference(wanted.astype(np.float32), found.astype(np.float32)) < 1e-2

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_counts_and_channels_are_those_of_the_float32_network(self, tmp_path, dtype):
        network, plain, _ = load(nets.Residual, tmp_path, dtype)
        shapes = plain.sample_shapes
        assert network.inputs[0].dtype == dtype
        assert count(network, shapes) == count(plain, shapes)
        found, wanted = analyse(network, shapes), analyse(plain, shapes)
        assert [group.num_units for group in found.groups] == [group.num_units for group in wanted.groups]
        assert found.kept_because == wanted.kept_because


class TestInFloat32:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("kind", KINDS)
    def test_view_computes_in_float32_what_the_weights_say(self, tmp_path, kind, dtype):
        network, plain, _ = load(kind, tmp_path, dtype)
        for name, array in plain.tensors.items():
            if array.dtype == np.float32:
                plain.tensors[name] = array.astype(DTYPES[dtype][0]).astype(np.float32)
        view, feeds = in_float32(network), nets.samples(plain)
        feeds = {name: array.astype(DTYPES[dtype][0]) for name, array in feeds.items()}
        wide = {name: array.astype(np.float32) for name, array in feeds.items()}
        found, wanted = run(view, feeds)["y"], run(plain, wide)["y"]
        assert found.dtype == np.float32 and nets.difference(wanted, found) < 1e-5
        dtypes = observe(view, view.sample_shapes).dtypes
        assert {dtypes[node.outputs[0]] for node in view.nodes} <= {"float32", "int64"}
        assert view.inputs == network.inputs and view.tensors.keys() >= network.tensors.keys()

    def test_float32_network_is_its_own_view(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path)
        assert in_float32(network) is network and not foreign_dtypes(network)

    def test_masters_are_float32_parameters(self, tmp_path):
        network, _, _ = load(nets.Plain, tmp_path, "float16")
        module = to_module(in_float32(network))
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
        loss = sum(output.square().mean() for output in module(torch.randn(3, *nets.Plain.shape).half()))
        loss.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())

    def test_cut_half_network_stays_half(self, tmp_path):
        network, _, _ = load(nets.Residual, tmp_path, "float16")
        analysis = analyse(network, network.sample_shapes)
        smaller = cut(network, analysis, nets.random_kept(analysis.groups, 0.5)).network
        assert {a.dtype.name for a in smaller.tensors.values()} <= {"float16", "int64"}
        feeds = {"x": nets.samples(network)["x"].astype(np.float16)}
        made = nets.reference(smaller.to_proto(), feeds)[0].astype(np.float32)
        assert nets.difference(run(in_float32(smaller), feeds)["y"], made) < 1e-2


class TestRounded:
    def test_numbers_beyond_the_range_become_the_largest(self):
        found = rounded(np.array([1e6, -1e6, 1.0, np.inf], np.float32), np.zeros(4, np.float16))
        assert found.dtype == np.float16 and found.tolist() == [65504.0, -65504.0, 1.0, np.inf]
