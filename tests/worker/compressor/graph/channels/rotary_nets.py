"""Rotary positions (arXiv 2104.09864) as networks spell them out: which channels make a pair, and where the angles come from."""

from __future__ import annotations

import math

import torch

from tests.worker.compressor.graph.channels.attention_nets import Heads

LENGTH = 6


class Turned(Heads):
    """Queries and keys are turned before they meet."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(float(LENGTH))[:, None] * (10.0 ** -torch.arange(0, 1, 2 / self.inner))[None]
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k = self.turn(self.split(self.q(x), self.num_heads)), self.turn(self.split(self.k(x), self.num_keys))
        k, v = (
            t.repeat_interleave(self.num_heads // self.num_keys, 1) for t in (k, self.split(self.v(x), self.num_keys))
        )
        return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(self.inner), -1) @ v


class Halves(Turned):
    """Tables of half the width, and the two halves of each head."""

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * self.cos - b * self.sin, b * self.cos + a * self.sin], -1)


class Frequencies(Turned):
    """Angles are computed from frequencies and positions, as Llama does; two heads read each key."""

    num_keys = 2

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequency", 10.0 ** -torch.arange(0, 1, 2 / self.inner))

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(x.size(2))[None, None].float()
        freqs = (self.frequency[None, :, None].expand(x.size(0), -1, 1) @ positions).transpose(1, 2)
        angles = torch.cat([freqs, freqs], -1)
        cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
        half = x.shape[-1] // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Neighbours(Turned):
    """Every second channel with the one behind it, as GPT-J does."""

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack([a * self.cos - b * self.sin, b * self.cos + a * self.sin], -1).flatten(-2)


class Pairs(Turned):
    """The same, by an axis of two."""

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
        return torch.stack([a * self.cos - b * self.sin, b * self.cos + a * self.sin], -1).flatten(-2)


class Partly(Turned):
    """Only the first half of each head is turned, as GPT-NeoX does."""

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        turned, rest = x[..., :4], x[..., 4:]
        cos, sin = (torch.cat([t[:, :2], t[:, :2]], -1) for t in (self.cos, self.sin))
        other = torch.cat([-turned[..., 2:], turned[..., :2]], -1)
        return torch.cat([turned * cos + other * sin, rest], -1)


class Wholly(Turned):
    """All of each head is turned, and the rest, of which there is nothing, put behind it, as Phi-3 does."""

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        cos, sin = (torch.cat([t, t], -1) for t in (self.cos, self.sin))
        width = cos.shape[-1]
        turned, rest = x[..., :width], x[..., width:]
        other = torch.cat([-turned[..., width // 2 :], turned[..., : width // 2]], -1)
        return torch.cat([turned * cos + other * sin, rest], -1)


class FirstOf(Turned):
    """Positions along axis 1, before the heads are moved to the front, as RoFormer does."""

    def split(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        return x.view(x.size(0), x.size(1), heads, self.inner)

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        cos, sin = self.cos[None, :, None], self.sin[None, :, None]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k = self.turn(self.split(self.q(x), 4)).transpose(1, 2), self.turn(self.split(self.k(x), 4)).transpose(1, 2)
        v = self.split(self.v(x), 4).transpose(1, 2)
        return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(self.inner), -1) @ v


ALL = [Halves, Frequencies, Neighbours, Pairs, Partly, Wholly, FirstOf]
