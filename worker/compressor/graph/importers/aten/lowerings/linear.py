"""Linear layers and matrix products."""

from __future__ import annotations

import onnx_ir as ir
import torch

from worker.compressor.graph.importers.aten.table import Call, lowers
from worker.compressor.graph.importers.aten.values import Number, Tensor, Unsupported


@lowers("linear")
def linear(to: Call, input: Tensor, weight: Tensor, bias: Tensor | None) -> ir.Value:
    """Gemm on rows; on more axes a product with the transposed weight, and the bias added."""
    if input.rank == 2:
        return to.emit("Gemm", input, weight, bias, transB=1)
    product = to.emit("MatMul", input, to.emit("Transpose", weight, perm=[1, 0]))
    return product if bias is None else to.emit("Add", product, bias)


@lowers("matmul", "mm", "bmm", "mv", "dot", "vdot")
def multiply(
    to: Call, x: Tensor, other: Tensor | None = None, mat2: Tensor | None = None, vec: Tensor | None = None,
    tensor: Tensor | None = None,
) -> ir.Value:  # fmt: skip
    """A matrix product with broadcast batch axes; numbers are real, so that a conjugate is the number itself."""
    return to.emit("MatMul", x, next(t for t in (other, mat2, vec, tensor) if t is not None))


@lowers("addmm", "addbmm", "baddbmm", "addmv")
def add_product(
    to: Call, x: Tensor, mat1: Tensor | None = None, mat2: Tensor | None = None, batch1: Tensor | None = None,
    batch2: Tensor | None = None, mat: Tensor | None = None, vec: Tensor | None = None, beta: Number = 1,
    alpha: Number = 1,
) -> ir.Value:  # fmt: skip
    """`beta * x + alpha * (a @ b)`."""
    a = next(t for t in (mat1, batch1, mat) if t is not None)
    b = next(t for t in (mat2, batch2, vec) if t is not None)
    if to.out.rank != max(a.rank, b.rank) and vec is None:
        raise Unsupported("sums over a batch of products")
    if a.rank == b.rank == 2 and mat is None:
        return to.emit("Gemm", a, b, x, alpha=float(alpha), beta=float(beta))
    product = _scaled(to, to.emit("MatMul", a, b), alpha, to.out.dtype)
    return to.emit("Add", _scaled(to, x.value, beta, to.out.dtype), product)


@lowers("einsum")
def einsum(to: Call, equation: str, tensors: list[Tensor], path: None = None) -> ir.Value:
    """A sum of products in Einstein's notation."""
    return to.emit("Einsum", *tensors, equation=equation)


def _scaled(to: Call, x: ir.Value, factor: Number, dtype: torch.dtype) -> ir.Value:
    return x if factor == 1 else to.emit("Mul", x, to.build.scalar(factor, dtype))
