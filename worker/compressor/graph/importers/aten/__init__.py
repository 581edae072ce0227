"""From torch's operators to ONNX: a table of lowerings that TorchScript graphs and exported programs share.

`Builder` collects the graph (`input`, `weight`, `finish`), `apply` takes an overload of `torch.ops.aten` with its
arguments and returns its results, `Tensor` and `Free` are what flows in between.
"""

from __future__ import annotations

from worker.compressor.graph.importers.aten.builder import OPSET, Builder
from worker.compressor.graph.importers.aten.table import apply
from worker.compressor.graph.importers.aten.values import Free, Tensor, Unsupported, Value

__all__ = ["OPSET", "Builder", "Free", "Tensor", "Unsupported", "Value", "apply"]
