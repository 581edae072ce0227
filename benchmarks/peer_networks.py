"""Architectures of torchvision with random weights, for the comparison with peers that need live code."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 10
_BATCH, _PASSES = 8, 5


@dataclass(frozen=True)
class Architecture:
    """How a network is built: the function of `torchvision.models`, its arguments, and the side of its pictures."""

    function: str
    size: int = 64
    arguments: dict[str, Any] = field(default_factory=dict)


_WITHOUT_AUXILIARY = {"aux_logits": False, "init_weights": False}
_SMALL_TRANSFORMER = {
    "image_size": 64, "patch_size": 16, "num_layers": 3, "num_heads": 3, "hidden_dim": 192, "mlp_dim": 768
}  # fmt: skip

NETWORKS = {
    "resnet18": Architecture("resnet18"),
    "resnet50": Architecture("resnet50"),
    "resnext50_32x4d": Architecture("resnext50_32x4d"),
    "wide_resnet50_2": Architecture("wide_resnet50_2"),
    "regnet_x_400mf": Architecture("regnet_x_400mf"),
    "regnet_y_400mf": Architecture("regnet_y_400mf"),
    "mobilenet_v2": Architecture("mobilenet_v2"),
    "mobilenet_v3_small": Architecture("mobilenet_v3_small"),
    "mnasnet0_5": Architecture("mnasnet0_5"),
    "efficientnet_b0": Architecture("efficientnet_b0"),
    "shufflenet_v2_x1_0": Architecture("shufflenet_v2_x1_0"),
    "vgg11_bn": Architecture("vgg11_bn", size=224),
    "alexnet": Architecture("alexnet", size=224),
    "squeezenet1_1": Architecture("squeezenet1_1"),
    "densenet121": Architecture("densenet121"),
    "googlenet": Architecture("googlenet", arguments=_WITHOUT_AUXILIARY),
    "inception_v3": Architecture("inception_v3", size=96, arguments=_WITHOUT_AUXILIARY),
    "convnext_tiny": Architecture("convnext_tiny"),
    "vision_transformer": Architecture("VisionTransformer", arguments=_SMALL_TRANSFORMER),
    "swin_t": Architecture("swin_t"),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    """The network in evaluation mode, and one picture. No two parameters have equal values, so each keeps its name."""
    architecture = NETWORKS[name]
    torch.manual_seed(0)
    net: nn.Module = getattr(_torchvision_models(), architecture.function)(
        num_classes=CLASSES, **architecture.arguments
    )
    with torch.no_grad():
        for parameter in net.parameters():
            if bool((parameter == parameter.flatten()[0]).all()):  # exporters merge what is equal: zeros, ones, 1e-6
                parameter.copy_(parameter.mean().round() + 0.1 * torch.randn_like(parameter))
    picture = torch.randn(1, 3, architecture.size, architecture.size)
    return calibrate(net, picture), picture


def calibrate(net: nn.Module, picture: Tensor) -> nn.Module:
    """Give BatchNorm true statistics: with the first ones a deep network's outputs vanish, and any comparison passes."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in layers:
        layer.momentum = 0.5
    net.train()
    with torch.no_grad():
        for _ in range(_PASSES if layers else 0):
            net(torch.randn(_BATCH, *picture.shape[1:]))
    return net.eval()


def head_of(net: nn.Module) -> nn.Module:
    """The layer that writes the classes: peers are told to leave it alone, the engine knows by itself."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return next(layer for layer in reversed(layers) if layer.weight.shape[0] == CLASSES)


def export(net: nn.Module, picture: Tensor, path: Path, *, folded: bool) -> Path:
    """The network as ONNX: as exporters write it (BatchNorm folded), or with every parameter under its own name."""
    torch.backends.mha.set_fastpath_enabled(False)  # its one operator has no ONNX form
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (picture,),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
            do_constant_folding=folded,
            training=torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE,
        )
    return path


def _torchvision_models() -> Any:
    """`torchvision.models`, also where torchvision was built for another torch and its compiled operators do not load."""
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError:  # it registers a second kernel for two operators that are not there: their names are enough
        for operator in ("nms", "qnms"):
            _OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return importlib.import_module("torchvision.models")


#: What a library defines is forgotten with it.
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
