import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from torch import nn

from tests.worker.compressor.graph import nets
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.exporters.weights import named_weights, write_weights
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.network import Origin
from worker.compressor.graph.surgery import cut


def narrow(kind, tensors):
    """The module with layers of the widths that the tensors have, made by hand as a user would."""
    net = nets.build(kind)
    for name, module in list(net.named_modules()):
        if f"{name}.weight" not in tensors:
            continue
        out, *rest = tensors[f"{name}.weight"].shape
        parent, _, leaf = name.rpartition(".")
        owner = net.get_submodule(parent)
        if isinstance(module, nn.Conv2d):
            made = nn.Conv2d(
                rest[0] * module.groups, out, module.kernel_size, module.stride, module.padding,
                bias=module.bias is not None,
            )  # fmt: skip
        elif isinstance(module, nn.Linear):
            made = nn.Linear(rest[0], out, bias=module.bias is not None)
        else:
            made = nn.BatchNorm2d(out)
        setattr(owner, leaf, made)
    return net.eval()


class TestWriteWeights:
    @pytest.mark.parametrize("kind", [nets.Plain, nets.Residual])
    def test_narrow_module_takes_them_and_computes_the_same(self, tmp_path, kind):
        path = tmp_path / "net.pt"
        torch.jit.script(nets.build(kind)).save(str(path))
        signature = [{"name": "x", "dtype": "float32", "shape": ["batch", *kind.shape]}]
        network = import_model(path, "torchscript", signature)[0]
        analysis = analyse(network, network.sample_shapes)
        smaller = cut(network, analysis, nets.random_kept(analysis.groups, 0.5)).network
        write_weights(smaller, tmp_path / "weights.safetensors")
        tensors = load_tensors(tmp_path / "weights.safetensors")
        module = narrow(kind, tensors)
        module.load_state_dict(tensors, strict=True)
        feeds = nets.samples(network)
        with torch.no_grad():
            found = module(torch.from_numpy(feeds["x"])).numpy()
        assert nets.difference(next(iter(run(smaller, feeds).values())), found) < 1e-5

    def test_constants_that_the_conversion_made_are_not_among_them(self, tmp_path):
        path, net = tmp_path / "net.pt", nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1))
        torch.jit.script(net.eval()).save(str(path))
        network, _ = import_model(path, "torchscript", [{"name": "x", "dtype": "float32", "shape": ["batch", 3, 6, 6]}])
        assert named_weights(network).keys() == net.state_dict().keys()

    def test_names_of_an_onnx_file_are_its_initializers(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path, keep_batchnorm=True)
        write_weights(network, tmp_path / "w.safetensors")
        found = load_file(tmp_path / "w.safetensors")
        assert {"conv1.weight", "bn1.running_mean", "bn1.running_var", "fc2.bias"} <= found.keys()
        assert np.array_equal(found["fc1.weight"], network.tensors["fc1.weight"])

    def test_bfloat16_stays_bfloat16(self, tmp_path):
        import ml_dtypes

        network, _ = nets.load(nets.Plain, tmp_path)
        network.tensors["fc1.weight"] = network.tensors["fc1.weight"].astype(ml_dtypes.bfloat16)
        write_weights(network, tmp_path / "w.safetensors")
        assert load_tensors(tmp_path / "w.safetensors")["fc1.weight"].dtype is torch.bfloat16

    def test_shared_tensor_is_written_once_as_long_as_its_copies_are_equal(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path)
        bias = np.zeros(16, np.float32)
        network.tensors["fc1.bias"] = bias
        network.origins["fc1.bias"] = Origin("shared", (16,), ("fc1",))
        network.tensors["fc2.bias"] = bias.copy()
        network.origins["fc2.bias"] = Origin("shared", (16,), ("fc2",))
        assert "shared" in named_weights(network)
        network.tensors["fc2.bias"] = bias[:5]
        assert {"shared@fc1", "shared@fc2"} <= named_weights(network).keys()
