"""Case 1: the value of a Constant node becomes an initializer of the name that its output had."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass


def apply(model: ir.Model) -> None:
    """Replace every Constant node that holds numbers; `value_ints`, `value_float`… included."""
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
