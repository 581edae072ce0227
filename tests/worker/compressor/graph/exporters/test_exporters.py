import onnx
import pytest
import torch

from tests.worker.compressor.graph import nets
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.exporters.onnx import write_onnx
from worker.compressor.graph.exporters.torchscript import write_torchscript
from worker.compressor.graph.importers import import_model, load_graph
from worker.compressor.graph.importers.facts import write_facts
from worker.compressor.graph.surgery import cut, weight_cuts


class TestWriteOnnx:
    @pytest.mark.parametrize("kind", nets.ALL, ids=lambda kind: kind.__name__)
    def test_unchanged_network_comes_back_as_it_was(self, kind, tmp_path):
        network, path = nets.load(kind, tmp_path)
        write_onnx(network, tmp_path / "again.onnx")
        old, new = onnx.load(path), onnx.load(tmp_path / "again.onnx")
        assert (old.graph.input, old.graph.output) == (new.graph.input, new.graph.output)
        assert [entry.version for entry in old.opset_import] == [entry.version for entry in new.opset_import]
        assert old.ir_version == new.ir_version and old.producer_name == new.producer_name
        constants = ("Constant", "Identity")
        names = lambda model: [n.name for n in model.graph.node if n.op_type not in constants]  # noqa: E731
        # a shuffle of channels leaves as a Gather, under the name of the last node of the old one
        gone = set(names(old)) - set(names(new)) if kind.__name__.startswith("Shuffle") else set()
        assert [name for name in names(old) if name not in gone] == names(new)
        assert {t.name for t in old.graph.initializer} <= {t.name for t in new.graph.initializer} | {
            n.input[0] for n in old.graph.node if n.op_type == "Identity"
        }
        feeds = nets.samples(network)
        for a, b in zip(nets.reference(path, feeds), nets.reference(tmp_path / "again.onnx", feeds), strict=True):
            assert nets.difference(a, b) < 1e-6

    @pytest.mark.parametrize("opset", [9, 11, 13, 17])
    def test_opset_is_kept(self, opset, tmp_path):
        network, _ = nets.load(nets.Residual, tmp_path, opset=opset)
        analysis = analyse(network, network.sample_shapes)
        result = cut(network, analysis, nets.random_kept(analysis.groups, 0.5))
        write_onnx(result.network, tmp_path / "cut.onnx")
        assert onnx.load(tmp_path / "cut.onnx").opset_import[0].version == opset
        nets.reference(tmp_path / "cut.onnx", nets.samples(network))

    def test_ir_3_lists_initializers_among_the_inputs(self, tmp_path):
        _, path = nets.load(nets.Plain, tmp_path, opset=9)
        model = onnx.load(path)
        model.ir_version = 3
        model.graph.input.extend(
            onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
        )
        onnx.save(model, tmp_path / "old.onnx")
        network, _ = import_model(tmp_path / "old.onnx", "onnx", None)
        assert [port.name for port in network.inputs] == ["x"]
        write_onnx(network, tmp_path / "again.onnx")
        again = onnx.load(tmp_path / "again.onnx")
        onnx.checker.check_model(again, full_check=True)
        assert again.ir_version == 3 and len(again.graph.input) == len(model.graph.input)

    def test_metadata_is_kept(self, tmp_path):
        _, path = nets.load(nets.Plain, tmp_path)
        model = onnx.load(path)
        entry = model.metadata_props.add()
        entry.key, entry.value = "author", "somebody"
        model.doc_string = "made in autumn"
        onnx.save(model, path)
        network, _ = import_model(path, "onnx", None)
        write_onnx(network, tmp_path / "again.onnx")
        again = onnx.load(tmp_path / "again.onnx")
        assert again.metadata_props[0].value == "somebody" and again.doc_string == "made in autumn"


class TestLoadGraph:
    @pytest.mark.parametrize("kind", [nets.Plain, nets.Shared, nets.Dense])
    def test_graph_and_facts_give_the_network_back(self, kind, tmp_path):
        network, path = nets.load(kind, tmp_path)
        write_onnx(network, tmp_path / "graph.onnx")
        loaded = load_graph(tmp_path / "graph.onnx", write_facts(network))
        assert loaded.sample_shapes == network.sample_shapes and loaded.nodes[0].name == network.nodes[0].name
        feeds = nets.samples(network)
        for a, b in zip(run(network, feeds).values(), run(loaded, feeds).values(), strict=True):
            assert nets.difference(a, b) < 1e-6
        analysis = analyse(loaded, loaded.sample_shapes)
        rows = cut(loaded, analysis, nets.random_kept(analysis.groups, 0.5)).weights
        names = {t.name for t in onnx.load(path).graph.initializer}
        assert rows and all(row.name in names for row in rows)
        assert weight_cuts(loaded) == []


class TestWriteTorchscript:
    @pytest.mark.parametrize("kind", nets.ALL, ids=lambda kind: kind.__name__)
    @pytest.mark.parametrize("keep_batchnorm", [False, True])
    def test_runs_in_plain_torch_at_any_batch(self, kind, keep_batchnorm, tmp_path):
        network, _ = nets.load(kind, tmp_path, keep_batchnorm=keep_batchnorm)
        write_torchscript(network, tmp_path / "m.pt")
        module = torch.jit.load(str(tmp_path / "m.pt"))
        assert not module.training
        for batch in (1, 6):
            feeds = nets.samples(network, batch)
            with torch.no_grad():
                made = module(torch.from_numpy(feeds["x"]))
            made = [made] if isinstance(made, torch.Tensor) else list(made)
            for a, b in zip(run(network, feeds).values(), made, strict=True):
                assert nets.difference(a, b.numpy()) < 2e-6

    def test_goes_in_again(self, tmp_path):
        network, _ = nets.load(nets.Residual, tmp_path, keep_batchnorm=True)
        write_torchscript(network, tmp_path / "m.pt")
        signature = [{"name": "x", "dtype": "float32", "shape": ["batch", *nets.Residual.shape]}]
        again, _ = import_model(tmp_path / "m.pt", "torchscript", signature)
        feeds = nets.samples(network)
        assert nets.difference(run(network, feeds)["y"], next(iter(run(again, feeds).values()))) < 2e-6
