"""The tail of a detector: NonMaxSuppression and RoiAlign. Every channel that reaches them stays.

Shape letters: B batch, N boxes, C classes, K boxes that may be selected, R regions.
"""

from __future__ import annotations

from typing import Any

import torch

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Operator, register
from worker.compressor.graph.proxies import record
from worker.compressor.graph.walk import Walk


def _non_max_suppression(call: Call) -> Any:
    if call.has(2) and call.known(2) is None:
        raise call.refuse("takes the number of boxes from data")
    most = call.ints(2)[0] if call.has(2) else 0
    corners = not call.attribute("center_point_box", 0)
    overlap = _number(call, 3, 0.0)
    lowest = _number(call, 4, float("-inf"))
    return record(select_boxes, call.tensor(0), call.tensor(1), most, overlap, lowest, corners)


def _number(call: Call, slot: int, default: float) -> float:
    if not call.has(slot):
        return default
    known = call.known(slot)
    if known is None or known.dtype == object:
        raise call.refuse(f"takes its input {slot} from data")
    return float(known.reshape(-1)[0])


def select_boxes(
    boxes: torch.Tensor, scores: torch.Tensor, most: int, overlap: float, lowest: float, corners: bool
) -> torch.Tensor:
    """Boxes left by greedy suppression, `(selected, 3)`: batch, class and box, per class the best first.

    `boxes` are (B, N, 4), two opposite corners or centre and size; `scores` (B, C, N). A box goes that overlaps a better
    one of its class by more than `overlap` (intersection over union), or whose score is not above `lowest`.
    """
    if corners:
        low, high = torch.minimum(boxes[..., :2], boxes[..., 2:]), torch.maximum(boxes[..., :2], boxes[..., 2:])
    else:
        low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    low, high = (
        low.unsqueeze(1).expand(-1, scores.size(1), -1, -1),
        high.unsqueeze(1).expand(-1, scores.size(1), -1, -1),
    )
    areas = (high - low).prod(-1)
    left = torch.where(scores > lowest, scores.float(), torch.full_like(scores, float("-inf")).float())
    found, valid = [], []
    for _ in range(min(most, boxes.size(1))):
        best, index = left.max(-1, keepdim=True)
        corner = index.unsqueeze(-1).expand(-1, -1, -1, 2)
        inner = torch.minimum(high.gather(2, corner), high) - torch.maximum(low.gather(2, corner), low)
        common = inner.clamp(min=0).prod(-1)
        union = areas + areas.gather(2, index) - common
        gone = (common > overlap * union) & (common > 0)
        left = left.masked_fill(gone, float("-inf")).scatter(2, index, float("-inf"))
        found.append(index)
        valid.append(best > float("-inf"))
    if len(found) == 0:
        return torch.zeros([0, 3], dtype=torch.int64, device=boxes.device)
    where = torch.nonzero(torch.cat(valid, -1))
    chosen = torch.cat(found, -1)[where[:, 0], where[:, 1], where[:, 2]]
    return torch.stack([where[:, 0], where[:, 1], chosen], 1)


def _roi_align(call: Call) -> Any:
    older = call.node.since_version < 16
    half_pixel = not older and call.attribute("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    size = (call.attribute("output_height", 1), call.attribute("output_width", 1))
    ratio, scale = call.attribute("sampling_ratio", 0), call.attribute("spatial_scale", 1.0)
    if ratio == 0:
        raise call.refuse("takes as many samples as each region is large; only a fixed `sampling_ratio` is computed")
    largest = call.attribute("mode", "avg") == "max"
    x, regions, batches = call.tensor(0), call.tensor(1), call.tensor(2)
    return record(align_regions, x, regions, batches, size[0], size[1], ratio, scale, half_pixel, largest)


def align_regions(
    x: torch.Tensor,
    regions: torch.Tensor,
    batches: torch.Tensor,
    height: int,
    width: int,
    ratio: int,
    scale: float,
    half_pixel: bool,
    largest: bool,
) -> torch.Tensor:
    """Each region (R, 4) of `x` (B, C, H, W) as (R, C, height, width), by bilinear samples: Mask R-CNN's RoIAlign.

    `ratio` × `ratio` samples are averaged per cell, or the largest of their weighted corners is taken.
    """
    offset = 0.5 if half_pixel else 0.0
    box = regions * scale - offset
    extent = box[:, 2:] - box[:, :2]
    if not half_pixel:
        extent = extent.clamp(min=1.0)
    lengths, counts = [x.size(3), x.size(2)], [width, height]
    lows, highs, shares, outside = [], [], [], []
    for axis in range(2):
        steps = (torch.arange(counts[axis] * ratio, device=x.device) + 0.5) / (counts[axis] * ratio)
        at = box[:, axis : axis + 1] + extent[:, axis : axis + 1] * steps.type_as(box)
        outside.append((at < -1.0) | (at > lengths[axis]))
        at = at.clamp(0, lengths[axis] - 1)
        low = at.floor()
        lows.append(low.to(torch.int64))
        highs.append((low + 1).clamp(max=lengths[axis] - 1).to(torch.int64))
        shares.append(at - low)
    batch = batches.to(torch.int64).reshape(-1, 1, 1)
    planes = x.permute(0, 2, 3, 1)
    weight_x, weight_y = shares[0].unsqueeze(1).unsqueeze(-1), shares[1].unsqueeze(2).unsqueeze(-1)
    top, bottom = lows[1].unsqueeze(2), highs[1].unsqueeze(2)
    left, right = lows[0].unsqueeze(1), highs[0].unsqueeze(1)
    parts = torch.stack(
        [
            planes[batch, top, left] * (1 - weight_y) * (1 - weight_x),
            planes[batch, top, right] * (1 - weight_y) * weight_x,
            planes[batch, bottom, left] * weight_y * (1 - weight_x),
            planes[batch, bottom, right] * weight_y * weight_x,
        ]
    )
    beyond = (outside[1].unsqueeze(2) | outside[0].unsqueeze(1)).unsqueeze(-1)
    samples = parts.amax(0) if largest else parts.sum(0)
    samples = samples.masked_fill(beyond, 0.0).permute(0, 3, 1, 2)
    cells = samples.reshape(samples.size(0), samples.size(1), height, ratio, width, ratio)
    return cells.amax([3, 5]) if largest else cells.mean([3, 5])


def _tail(walk: Walk, node: Node) -> None:
    walk.pin(node, f"{node.op} '{node.name}' picks boxes by what the values are")


def _regions(walk: Walk, node: Node) -> None:
    walk.pin(node, f"RoiAlign '{node.name}' takes regions out of them")


register(Operator(op="NonMaxSuppression", versions=(10, 11), run=_non_max_suppression, channels=_tail, data=(0, 1)))
register(Operator(op="RoiAlign", versions=(10, 16, 22), run=_roi_align, channels=_regions))
