"""Case 4: before IR version 4 every initializer was listed among the inputs too; a caller never fed them."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveInitializersFromInputsPass


def apply(model: ir.Model) -> None:
    """Take initializers out of the inputs. The exporter lists them again where the IR version asks for it."""
    RemoveInitializersFromInputsPass()(model)
