"""Fourier transforms and what goes with them: DFT, STFT, windows and the weights of mel spectrograms.

A complex number is a last axis of two, its real and its imaginary part, as ONNX has it; a last axis of one is real.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Known, Operator, register
from worker.compressor.graph.walk import Walk

#: The axis that a DFT transforms where it does not say.
_FIRST_AXIS = {17: 1, 20: -2}


def _transform(call: Call) -> Any:
    axis, length = _axis(call), call.ints(1)[0] if call.has(1) else None
    inverse, one_sided = bool(call.attribute("inverse", 0)), bool(call.attribute("onesided", 0))
    x = _numbers(call, call.tensor(0), real=one_sided and not inverse)
    if one_sided and inverse:
        return torch.unsqueeze(torch.fft.irfft(x, length, axis), -1)
    function = torch.fft.rfft if one_sided else torch.fft.ifft if inverse else torch.fft.fft
    return torch.view_as_real(torch.resolve_conj(function(x, length, axis)))  # the inverse of real numbers is lazy


def _axis(call: Call) -> int:
    """The transformed axis, counted without the last one, which holds the parts of a number."""
    given = call.ints(2)[0] if call.has(2) else call.attribute("axis", _FIRST_AXIS[call.node.since_version])
    return int(given % call.rank(0))


def _numbers(call: Call, x: Any, *, real: bool = False) -> Any:
    """The last axis put together: real numbers where they are asked for or nothing else is there, else complex ones."""
    if real or _is_real(call):
        return torch.select(x, -1, 0)
    return torch.complex(torch.select(x, -1, 0), torch.select(x, -1, 1))


def _is_real(call: Call) -> bool:
    return call.observed(call.node.inputs[0])[-1] == 1


def _short_time(call: Call) -> Any:
    """Frames of the signal, each times the window, transformed by themselves."""
    x, step, window = call.tensor(0), call.ints(1)[0], call.tensor(2)
    length = call.ints(3)[0] if call.has(3) else window.size(0) if call.has(2) else x.size(1)
    frames = _numbers(call, x).unfold(1, length, step)
    frames = frames if window is None else frames * window
    one_sided = _is_real(call) and call.attribute("onesided", 1)
    return torch.view_as_real((torch.fft.rfft if one_sided else torch.fft.fft)(frames, dim=-1))


def _close_spectrum(walk: Walk, node: Node) -> None:
    rank = len(walk.shape(node.inputs[0]))
    if node.op == "STFT":
        walk.pin(node, f"STFT '{node.name}' takes them as a signal")
        return
    is_given = len(node.inputs) > 2 and node.inputs[2]
    axes = walk.numbers(node, 2) if is_given else [node.attributes.get("axis", _FIRST_AXIS[node.since_version])]
    if axes is None:
        walk.pin(node, f"DFT '{node.name}' takes its axis from data")
    else:
        walk.close(node, [axes[0] % rank, rank - 1], f"DFT '{node.name}' mixes them")


def _cosines(*weights: float) -> Known:
    """A window `Σ (-1)^k w_k cos(2πkn / N)` (Harris 1978); N is one less than the length where it is symmetric."""

    def known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray | None:
        if arrays[0].dtype == object:
            return None
        length = int(arrays[0].item())
        period = length if node.attributes.get("periodic", 1) else length - 1
        angles = 2 * math.pi * np.arange(length) / max(period, 1)
        terms = [(-1) ** k * weight * np.cos(k * angles) for k, weight in enumerate(weights)]
        return np.sum(terms, 0).astype(_dtype(node))

    return known


def _mel(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    """Triangles over the bins of a spectrum, evenly apart on the mel scale `2595 log10(1 + f / 700)`."""
    if any(array.dtype == object for array in arrays):
        return None
    num_bands, length, rate, lowest, highest = (array.item() for array in arrays)
    ends = 2595 * np.log10(1 + np.array([lowest, highest]) / 700)
    edges = ends[0] + np.arange(num_bands + 2) * (ends[1] - ends[0]) / (num_bands + 2)
    bins = ((length + 1) * 700 * (10 ** (edges / 2595) - 1) // rate).astype(int)
    weights = np.zeros((length // 2 + 1, num_bands))
    for band, (start, middle, end) in enumerate(zip(bins, bins[1:], bins[2:], strict=False)):
        rising = np.arange(start, middle + 1)
        weights[rising, band] = (rising - start) / (middle - start) if middle > start else 1
        falling = np.arange(middle, end)
        weights[falling, band] = (end - falling) / (end - middle)
    return weights.astype(_dtype(node))


def _dtype(node: Node) -> np.dtype[Any]:
    return onnx.helper.tensor_dtype_to_np_dtype(node.attributes.get("output_datatype", onnx.TensorProto.FLOAT))


def _constant(op: str, known: Known) -> None:
    """An operator of sizes alone, which are known before the network runs."""

    def run(call: Call) -> Any:
        given = [call.known(slot) for slot in range(len(call.node.inputs))]
        made = known(call.node, [array for array in given if array is not None])
        if made is None or any(array is None for array in given):
            raise call.refuse("takes its sizes from data, or from free sizes")
        return torch.from_numpy(made)

    register(Operator(op=op, versions=(17,), run=run, channels=lambda walk, node: None, known=known, data=()))


register(Operator(op="DFT", versions=(17, 20), run=_transform, channels=_close_spectrum, data=(0,)))
register(Operator(op="STFT", versions=(17,), run=_short_time, channels=_close_spectrum, data=(0, 2)))
_constant("HannWindow", _cosines(0.5, 0.5))
_constant("HammingWindow", _cosines(25 / 46, 21 / 46))
_constant("BlackmanWindow", _cosines(0.42, 0.5, 0.08))
_constant("MelWeightMatrix", _mel)
