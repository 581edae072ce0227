"""Scaled dot product attention (Vaswani et al. 2017, arXiv 1706.03762) with all that ONNX lets it do on the way.

Shape letters: B batch, H query heads, G key and value heads, S queries, T keys with those of the past, D, E head sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, CutView, Operator, Rewrites, Shapes, register
from worker.compressor.graph.walk import Walk

_PRECISIONS = {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}
_MASK, _PAST_KEY, _PAST_VALUE, _NUM_VALID = 3, 4, 5, 6


def _attention(call: Call) -> Any:
    """Y, the keys and values with those of the past, and the scores, as far as the node has these outputs."""
    q = _heads(call, 0, "q_num_heads")
    k, v = _heads(call, 1, "kv_num_heads"), _heads(call, 2, "kv_num_heads")
    if call.has(_PAST_KEY):
        k, v = torch.cat([call.tensor(_PAST_KEY), k], 2), torch.cat([call.tensor(_PAST_VALUE), v], 2)
    gives_scores = len(call.node.outputs) > 3 and call.node.outputs[3] != ""
    plain = not gives_scores and not call.attribute("softcap", 0.0) and "softmax_precision" not in call.node.attributes
    y, scores = (_fused(call, q, k, v), None) if plain else _by_steps(call, q, k, v)
    if call.rank(0) == 3:
        y = torch.flatten(torch.transpose(y, 1, 2), 2)
    return (y, k, v, scores)[: len(call.node.outputs)]


def _heads(call: Call, slot: int, attribute: str) -> Any:
    """An input as [B, heads, length, size]."""
    x = call.tensor(slot)
    if call.rank(slot) == 4:
        return x
    return torch.transpose(torch.unflatten(x, 2, [call.attribute(attribute), -1]), 1, 2)


def _group_size(call: Call) -> int:
    """How many query heads share a key head (grouped queries: Ainslie et al. 2023, arXiv 2305.13245)."""
    if call.rank(0) == 3:
        return int(call.attribute("q_num_heads") // call.attribute("kv_num_heads"))
    return call.shape_of_constant(0)[1] // call.shape_of_constant(1)[1]


def _fused(call: Call, q: Any, k: Any, v: Any) -> Any:
    causal = bool(call.attribute("is_causal", 0)) and not call.has(_PAST_KEY) and not call.has(_NUM_VALID)
    causal = causal and not call.has(_MASK) and not _windows(call)
    mask = None if causal else _bias(call, q, k)
    return functional.scaled_dot_product_attention(
        q, k, v, mask, 0.0, causal, scale=call.attribute("scale"), enable_gqa=_group_size(call) > 1
    )


def _by_steps(call: Call, q: Any, k: Any, v: Any) -> tuple[Any, Any]:
    """Y and the scores at the stage that `qk_matmul_output_mode` names."""
    if _group_size(call) > 1:
        k, v = torch.repeat_interleave(k, _group_size(call), 1), torch.repeat_interleave(v, _group_size(call), 1)
    scale = call.attribute("scale")
    root = math.sqrt(scale) if scale is not None else 1 / (q.size(3) ** 0.25)
    stages = [torch.matmul(q * root, torch.transpose(k * root, 2, 3))]
    cap = call.attribute("softcap", 0.0)
    stages.append(cap * torch.tanh(stages[0] / cap) if cap else stages[0])
    bias = _bias(call, q, k)
    if bias is not None and _is_boolean(call):
        bias = torch.where(bias, 0.0, -math.inf).type_as(q)
    stages.append(stages[1] if bias is None else stages[1] + bias)
    precise = stages[2].to(_PRECISIONS.get(call.attribute("softmax_precision"), call.dtype(0)))
    # a row that may look at nothing is zero, not 0 / 0
    nothing = torch.amax(precise, [3], True) == -math.inf
    stages.append(torch.softmax(precise, 3).masked_fill(nothing, 0.0).type_as(q))
    return torch.matmul(stages[3], v), stages[call.attribute("qk_matmul_output_mode", 0)]


def _windows(call: Call) -> dict[str, int]:
    """How far to the left and to the right a query may look, where that is bounded (since version 25)."""
    given = {side: call.attribute(f"{side}_window_size", -1) for side in ("left", "right")}
    return {side: size for side, size in given.items() if size >= 0}


def _is_boolean(call: Call) -> bool:
    """Whether the mask says which keys count, and is not added to the scores."""
    return not call.has(_MASK) or call.dtype(_MASK) == torch.bool


def _bias(call: Call, q: Any, k: Any) -> Any:
    """What masks, causality, windows and lengths leave: true where a key counts, or numbers to add; None for all."""
    allowed, added = _allowed(call, q, k), None
    if call.has(_MASK):
        mask = call.tensor(_MASK)
        whole = call.dtype(_MASK) == torch.bool
        length = call.shape_of_constant(_MASK)[-1]
        if length != _num_keys(call):  # keys behind the end of the mask do not count
            mask = functional.pad(mask, [0, k.size(2) - mask.size(-1)], value=0 if whole else -math.inf)
        if whole:
            allowed = mask if allowed is None else torch.logical_and(allowed, mask)
        else:
            added = mask.type_as(q)
    if added is None:
        return allowed
    return added if allowed is None else added.masked_fill(torch.logical_not(allowed), -math.inf)


def _num_keys(call: Call) -> int:
    axis = 1 if call.rank(1) == 3 else 2
    past = call.shape_of_constant(_PAST_KEY)[2] if call.has(_PAST_KEY) else 0
    return call.shape_of_constant(1)[axis] + past


def _allowed(call: Call, q: Any, k: Any) -> Any:
    """Which keys count by their place alone."""
    windows = _windows(call)
    if call.attribute("is_causal", 0):
        windows["right"] = min(windows.get("right", 0), 0)
    allowed, valid = None, None
    keys = torch.arange(k.size(2), device=q.device)
    if call.has(_NUM_VALID):
        valid = torch.reshape(call.tensor(_NUM_VALID), [-1, 1, 1, 1])
        allowed = keys < valid
    if windows:
        places = torch.arange(q.size(2), device=q.device).unsqueeze(1)
        if call.has(_PAST_KEY):
            places = places + call.tensor(_PAST_KEY).size(2)
        elif valid is not None:
            places = places + (valid - q.size(2))
        for side, size in windows.items():
            near = keys <= places + size if side == "right" else keys >= places - size
            allowed = near if allowed is None else torch.logical_and(allowed, near)
    return allowed


def _attention_channels(walk: Walk, node: Node) -> None:
    walk.attend(node, _num_heads(node, walk.shape))


def _num_heads(node: Node, shape: Callable[[str], tuple[int, ...]]) -> tuple[int, int]:
    """Of the queries, and of keys and values."""
    counts = []
    for name, attribute in zip(node.inputs[:2], ("q_num_heads", "kv_num_heads"), strict=True):
        counts.append(shape(name)[1] if len(shape(name)) == 4 else node.attributes[attribute])
    return counts[0], counts[1]


def _attention_rewrite(view: CutView, node: Node) -> Rewrites:
    """Where the scale follows from the size of a head, it stays that of the whole head."""
    query = node.inputs[0]
    before = view.shape(query)[-1]
    if "scale" in node.attributes or view.shape_now(query)[-1] == before:
        return {}
    heads = 1 if len(view.shape(query)) == 4 else node.attributes["q_num_heads"]
    return {"scale": 1 / math.sqrt(before // heads)}


def _attention_macs(node: Node, shapes: Shapes) -> int:
    """Of the products with keys and with values; keys of a past are not counted."""
    q, k, v = (shapes[name] for name in node.inputs[:3])
    if len(q) == 3:
        return 2 * math.prod(q) * k[-2]
    return math.prod(q) * k[-2] + math.prod(q[:-1]) * k[-2] * v[-1]


def _rotate(call: Call) -> Any:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864): pairs of elements turned by an angle per position."""
    x = _heads(call, 0, "num_heads")
    cosine, sine = _angles(call, 1), _angles(call, 2)
    size = call.attribute("rotary_embedding_dim", 0)
    rest = None
    if size:
        rest, x = torch.narrow(x, 3, size, x.size(3) - size), torch.narrow(x, 3, 0, size)
    if call.attribute("interleaved", 0):
        pairs = torch.unflatten(x, 3, [-1, 2])
        a, b = torch.select(pairs, 4, 0), torch.select(pairs, 4, 1)
        turned = torch.flatten(torch.stack([cosine * a - sine * b, sine * a + cosine * b], 4), 3)
    else:
        a, b = torch.chunk(x, 2, 3)
        turned = torch.cat([cosine * a - sine * b, sine * a + cosine * b], 3)
    y = turned if rest is None else torch.cat([turned, rest], 3)
    return y if call.rank(0) == 4 else torch.flatten(torch.transpose(y, 1, 2), 2)


def _angles(call: Call, slot: int) -> Any:
    """Cosines or sines as [B, 1, S, pairs]: by position from a table, or given for each token."""
    table = call.tensor(slot)
    return (functional.embedding(call.tensor(3), table) if call.has(3) else table).unsqueeze(1)


def _rotate_channels(walk: Walk, node: Node) -> None:
    shape = walk.shape(node.inputs[0])
    walk.rotate(node, shape[1] if len(shape) == 4 else node.attributes["num_heads"])


def _rotate_rewrite(view: CutView, node: Node) -> Rewrites:
    """Where a part of each head is turned, the pairs that are left say how much."""
    turned = node.attributes.get("rotary_embedding_dim", 0)
    now = 2 * view.shape_wanted(node.inputs[1])[-1]
    return {"rotary_embedding_dim": [now]} if turned and now != turned else {}


register(
    Operator(
        op="Attention",
        versions=(23, 24, 25),
        run=_attention,
        channels=_attention_channels,
        macs=_attention_macs,
        rewrite=_attention_rewrite,
    )
)
register(
    Operator(op="RotaryEmbedding", versions=(23,), run=_rotate, channels=_rotate_channels, rewrite=_rotate_rewrite)
)
