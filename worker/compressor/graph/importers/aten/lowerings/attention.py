"""Attention: torch's one operator for it, and the fused layers that its fast path records, as plain products."""

from __future__ import annotations

import math

import torch

from worker.compressor.graph.importers.aten.table import Call, lowers
from worker.compressor.graph.importers.aten.values import Tensor, Unsupported, Value


@lowers("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu")
def attention(
    to: Call, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Value:  # fmt: skip
    """`softmax(q k^T * scale + mask) v`; `[..., heads, length, width]`."""
    if dropout_p:
        raise Unsupported("is random, because it drops out; call eval() before saving")
    width = query.size(-1)
    if width is None:
        raise Unsupported("has heads whose width is free")
    if enable_gqa and query.size(-3) != key.size(-3):
        key, value = (_repeated(to, t, query.size(-3)) for t in (key, value))
    factor = 1.0 / math.sqrt(width) if scale is None else scale
    # both sides by the root of the factor, as torch does it for the sake of half precision
    root = to.build.scalar(math.sqrt(factor), query.dtype)
    order = [*range(key.rank - 2), key.rank - 1, key.rank - 2]
    scores = to.emit("MatMul", to.emit("Mul", query, root), to.emit("Mul", to.emit("Transpose", key, perm=order), root))
    if is_causal:
        scores = to.emit("Add", scores, _causal(to, query, key))
    if attn_mask is not None:
        scores = to.emit("Add", scores, _additive(to, attn_mask, query.dtype))
    return to.emit("MatMul", to.emit("Softmax", scores, axis=-1), value)


def _repeated(to: Call, x: Tensor, heads: int | None) -> Tensor:
    held = x.size(-3)
    if heads is None or held is None:
        raise Unsupported("has a number of heads that is free")
    result = to.aten("repeat_interleave.self_int", x, heads // held, x.rank - 3)
    assert isinstance(result, Tensor)
    return result


def _causal(to: Call, query: Tensor, key: Tensor) -> Value:
    rows, columns = to.build.size(query, -2), to.build.size(key, -2)
    if isinstance(rows, int) and isinstance(columns, int):
        whole = torch.full([rows, columns], float("-inf")).triu(1)
        return to.build.known(whole.to(query.dtype))
    full = to.emit("Expand", to.build.scalar(float("-inf"), query.dtype), [rows, columns])
    return to.emit("Trilu", full, to.build.scalar(1, torch.int64), upper=1)


def _additive(to: Call, mask: Tensor, dtype: torch.dtype) -> Value:
    if mask.dtype != torch.bool:
        return to.cast(mask, dtype)
    zero, low = to.build.scalar(0.0, dtype), to.build.scalar(float("-inf"), dtype)
    return to.emit("Where", mask, zero, low)


@lowers("_native_multi_head_attention")
def multi_head_attention(
    to: Call, query: Tensor, key: Tensor, value: Tensor, embed_dim: int, num_head: int, qkv_weight: Tensor,
    qkv_bias: Tensor, proj_weight: Tensor, proj_bias: Tensor, mask: Tensor | None = None, need_weights: bool = True,
    average_attn_weights: bool = True, mask_type: int | None = None,
) -> tuple[Value, ...]:  # fmt: skip
    """Self-attention with its projections; `[batch, length, width]`."""
    joined = to.aten("linear", query, qkv_weight, qkv_bias)
    parts = to.aten("chunk", joined, 3, -1)
    heads = [_heads(to, part, num_head) for part in parts]
    scores = to.aten("matmul", to.aten("mul.Scalar", heads[0], 1.0 / math.sqrt(embed_dim // num_head)),
                     to.aten("transpose.int", heads[1], -2, -1))  # fmt: skip
    if mask is not None:
        shaped = to.aten("unsqueeze", to.aten("unsqueeze", mask, 1), 1) if mask_type == 1 else mask
        scores = to.aten("masked_fill.Scalar", scores, shaped, float("-inf"))
    weights = to.aten("softmax.int", scores, -1)
    mixed = to.aten("flatten.using_ints", to.aten("transpose.int", to.aten("matmul", weights, heads[2]), 1, 2), 2, 3)
    made = to.aten("linear", mixed, proj_weight, proj_bias)
    if not need_weights:
        return (made,)
    return made, to.aten("mean.dim", weights, [1]) if average_attn_weights else weights


def _heads(to: Call, x: Tensor, num_heads: int) -> Tensor:
    split = to.aten("unflatten.int", x, -1, [num_heads, -1])
    result = to.aten("transpose.int", split, 1, 2)
    assert isinstance(result, Tensor)
    return result


@lowers("_transformer_encoder_layer_fwd")
def encoder_layer(
    to: Call, src: Tensor, embed_dim: int, num_heads: int, qkv_weight: Tensor, qkv_bias: Tensor, proj_weight: Tensor,
    proj_bias: Tensor, use_gelu: bool, norm_first: bool, eps: float, norm_weight_1: Tensor, norm_bias_1: Tensor,
    norm_weight_2: Tensor, norm_bias_2: Tensor, ffn_weight_1: Tensor, ffn_bias_1: Tensor, ffn_weight_2: Tensor,
    ffn_bias_2: Tensor, mask: Tensor | None = None, mask_type: int | None = None,
) -> Value:  # fmt: skip
    """One layer of a transformer's encoder, before or after normalisation."""

    def normal(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return to.aten("layer_norm", x, [embed_dim], weight, bias, eps)

    def attend(x: Tensor) -> Tensor:
        return to.aten(
            "_native_multi_head_attention", x, x, x, embed_dim, num_heads, qkv_weight, qkv_bias, proj_weight,
            proj_bias, mask, False, True, mask_type,
        )[0]  # fmt: skip

    def feed(x: Tensor) -> Tensor:
        hidden = to.aten("linear", x, ffn_weight_1, ffn_bias_1)
        active = to.aten("gelu", hidden) if use_gelu else to.aten("relu", hidden)
        return to.aten("linear", active, ffn_weight_2, ffn_bias_2)

    def add(a: Tensor, b: Tensor) -> Tensor:
        return to.aten("add.Tensor", a, b)

    if norm_first:
        x = add(src, attend(normal(src, norm_weight_1, norm_bias_1)))
        return add(x, feed(normal(x, norm_weight_2, norm_bias_2)))
    x = normal(add(src, attend(src)), norm_weight_1, norm_bias_1)
    return normal(add(x, feed(x)), norm_weight_2, norm_bias_2)
