"""A small trained network and its data, made here: what a user would upload, in seconds."""

from __future__ import annotations

import functools
import io

import numpy as np
import torch
from torch import nn

NUM_CLASSES, SIDE = 10, 8


@functools.cache
def _data() -> tuple[np.ndarray, np.ndarray]:
    """Noisy, shifted prototypes of ten classes: x [3000, 1, 8, 8] float32, y [3000] int64."""
    random = np.random.default_rng(0)
    prototypes = random.normal(size=(NUM_CLASSES, 1, SIDE, SIDE))
    y = random.integers(0, NUM_CLASSES, 3000)
    x = prototypes[y] + random.normal(scale=1.0, size=(len(y), 1, SIDE, SIDE))
    return x.astype(np.float32), y


def digits_like() -> bytes:
    """An `.npz` with training and test rows."""
    x, y = _data()
    file = io.BytesIO()
    np.savez(file, x_train=x[:2400], y_train=y[:2400], x_test=x[2400:], y_test=y[2400:])
    return file.getvalue()


@functools.cache
def small_network() -> bytes:
    """A convolutional network trained for two epochs, as ONNX."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, NUM_CLASSES),
    )  # fmt: skip
    x, y = (torch.from_numpy(a[:2400]) for a in _data())
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    for _ in range(2):
        for i in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(net(x[i]), y[i])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    file = io.BytesIO()
    axes = {"x": {0: "batch"}, "logits": {0: "batch"}}
    torch.onnx.export(
        net.eval(), (x[:1],), file, input_names=["x"], output_names=["logits"], dynamic_axes=axes, dynamo=False
    )
    return file.getvalue()
