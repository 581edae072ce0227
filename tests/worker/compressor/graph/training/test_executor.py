import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.worker.compressor.graph import nets
from worker.compressor.graph.counts import count
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.training.executor import parameter_tensors, to_module, write_back


def call(module, feeds):
    with torch.no_grad():
        return [tensor.numpy() for tensor in module(*map(torch.from_numpy, feeds.values()))]


class TestToModule:
    @pytest.mark.parametrize("kind", nets.ALL, ids=lambda kind: kind.__name__)
    @pytest.mark.parametrize("keep_batchnorm", [False, True])
    def test_computes_what_onnxruntime_does_at_any_batch(self, kind, keep_batchnorm, tmp_path):
        network, path = nets.load(kind, tmp_path, keep_batchnorm=keep_batchnorm)
        module = to_module(network).eval()
        for batch in (1, 5):
            feeds = nets.samples(network, batch)
            for wanted, *got in zip(
                nets.reference(path, feeds), call(module, feeds), run(network, feeds).values(), strict=True
            ):
                assert all(nets.difference(wanted, array) < 2e-6 for array in got)

    @pytest.mark.parametrize("kind", nets.ALL, ids=lambda kind: kind.__name__)
    def test_parameters_are_the_weights_and_all_get_gradients(self, kind, tmp_path):
        network, _ = nets.load(kind, tmp_path)
        module = to_module(network).train()
        assert sum(p.numel() for p in module.parameters()) == count(network, network.sample_shapes).num_params
        outputs = module(*map(torch.from_numpy, nets.samples(network).values()))
        sum(output.square().sum() for output in outputs).backward()
        assert all(parameter.grad is not None for parameter in module.parameters())
        assert set(parameter_tensors(module)) == dict(module.named_parameters()).keys()

    def test_the_gradient_of_a_narrow_strided_shortcut_is_right_channels_last(self, tmp_path):
        """With torch's own stride a process of its own dies of this, most of the time."""
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 16, 1, stride=2)).eval()
        net.shape, x = (3, 14, 14), torch.randn(64, 3, 14, 14)
        network, _ = import_model(nets.export(net, tmp_path / "net.onnx"), "onnx", None)
        module = to_module(network, single=True).to(memory_format=torch.channels_last)
        strides = {tuple(node.args[3]) for node in module.graph.find_nodes(op="call_function", target=torch.conv2d)}
        assert strides == {(1, 1)}
        module(x.contiguous(memory_format=torch.channels_last)).square().sum().backward()
        net(x).square().sum().backward()
        wanted, found = dict(net.named_parameters()), dict(module.named_parameters())
        for attribute, (name,) in parameter_tensors(module).items():
            torch.testing.assert_close(found[attribute].grad.contiguous(), wanted[name].grad, rtol=1e-3, atol=1e-3)
        inference = to_module(network, trainable=False)
        assert any(2 in n.args[3] for n in inference.graph.find_nodes(op="call_function", target=torch.conv2d))

    def test_scripts_with_a_free_batch(self, tmp_path):
        network, _ = nets.load(nets.Shuffle, tmp_path)
        scripted = torch.jit.script(to_module(network).eval())
        for batch in (1, 4):
            feeds = nets.samples(network, batch)
            assert nets.difference(run(network, feeds)["y"], call(scripted, feeds)[0]) < 2e-6

    def test_batchnorm_follows_the_mode_as_in_torch(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path, keep_batchnorm=True)
        eager, module = nets.build(nets.Plain), to_module(network)
        x = torch.randn(16, *nets.Plain.shape)
        eager.train()
        module.train()
        with torch.no_grad():
            assert torch.allclose(eager(x), module(x)[0], atol=1e-5)
        write_back(network, module)
        assert np.allclose(network.tensors["bn1.running_mean"], eager.bn1.running_mean.numpy(), atol=1e-6)
        assert np.allclose(network.tensors["bn1.running_var"], eager.bn1.running_var.numpy(), atol=1e-6)

    def test_fresh_statistics_that_an_exporter_merged_with_biases_train_by_themselves(self, tmp_path):
        torch.manual_seed(0)
        block = lambda i: (nn.Conv2d(i, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())  # noqa: E731
        net = nn.Sequential(*block(3), *block(8), nn.Flatten(), nn.Linear(8 * 64, 4)).eval()
        net.shape = (3, 8, 8)
        path = nets.export(net, tmp_path / "fresh.onnx", keep_batchnorm=True)
        network, _ = import_model(path, "onnx", None)
        module = to_module(network).train()
        x = torch.randn(4, 3, 8, 8)
        wanted = net.train()(x)
        got = module(x)[0]
        assert torch.allclose(got, wanted, atol=1e-5)
        got.square().sum().backward()
        write_back(network, module)
        with torch.no_grad():
            got, wanted = to_module(network).eval()(x)[0], net.eval()(x)
        assert torch.allclose(got, wanted, atol=1e-5)

    def test_momentum_can_be_set(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path, keep_batchnorm=True)
        module = to_module(network).train()
        module.batchnorm_momentum = 1.0
        x = torch.randn(8, *nets.Plain.shape)
        with torch.no_grad():
            module(x)
        write_back(network, module)
        hidden = torch.nn.functional.conv2d(x, torch.from_numpy(network.tensors["conv1.weight"]), padding=1)
        assert np.allclose(network.tensors["bn1.running_mean"], hidden.mean((0, 2, 3)).numpy(), atol=1e-5)

    def test_statistics_that_are_computed_from_data_are_no_running_ones(self, tmp_path):
        path = tmp_path / "m.onnx"
        onnx.save(nets.row_normalised(), path)
        network, _ = import_model(path, "onnx", None)
        x = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
        module = to_module(network).train()
        (y,) = module(torch.from_numpy(x))
        y[0, 0, 0].backward()
        assert nets.difference(nets.reference(path, {"x": x})[0], y.detach().numpy()) < 2e-6
        assert all(parameter.grad.isfinite().all() for parameter in module.parameters())

    def test_not_trainable_means_no_gradients(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path)
        assert not any(p.requires_grad for p in to_module(network, trainable=False).parameters())


class TestWriteBack:
    def test_trained_weights_go_into_the_network(self, tmp_path):
        network, _ = nets.load(nets.Residual, tmp_path, keep_batchnorm=True)
        module = to_module(network).train()
        optimiser = torch.optim.SGD(module.parameters(), 0.01)
        x = torch.randn(8, *nets.Residual.shape)
        for _ in range(3):
            optimiser.zero_grad()
            module(x)[0].square().mean().backward()
            optimiser.step()
        before = network.copy()
        write_back(network, module)
        feeds = {"x": x.numpy()}
        assert nets.difference(call(module.eval(), feeds)[0], run(network, feeds)["y"]) < 2e-6
        assert nets.difference(run(before, feeds)["y"], run(network, feeds)["y"]) > 1e-3, "the copy kept its weights"

    def test_tied_tensors_stay_tied(self, tmp_path):
        network, _ = nets.load(nets.Shared, tmp_path)
        module = to_module(network).train()
        tied = [names for names in parameter_tensors(module).values() if len(names) > 1]
        assert tied, "equal biases of one uploaded tensor are one parameter"
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.25)
        write_back(network, module)
        for names in tied:
            assert all((network.tensors[name] == network.tensors[names[0]]).all() for name in names)
