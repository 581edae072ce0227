"""How many samples may pass through a network at once, for the memory that its widest values take."""

from __future__ import annotations

import math
from collections.abc import Mapping

from worker.compressor.graph.evaluation import observe
from worker.compressor.graph.network import Network

#: onnxruntime took 1.4 to 5.3 times the widest value per sample: ResNet-18, a U-Net, DenseNet-121, ViT, and a convolutional
#: net on spectrograms whose widest value has 71 MiB.
_ALIVE = 4
_ELEMENT_BYTES = 4


def sample_bytes(network: Network, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes that one sample of these input shapes takes on its way through the network, by its widest value."""
    found = observe(network, shapes).shapes
    names = [name for node in network.nodes for name in node.outputs if name in found]
    widest = max((math.prod(found[name]) for name in names), default=1)
    return max(widest, 1) * _ELEMENT_BYTES * _ALIVE


def affordable(network: Network, shapes: Mapping[str, tuple[int, ...]], num_bytes: int) -> int:
    """Samples that fit into so many bytes; at least 1."""
    return max(1, num_bytes // sample_bytes(network, shapes))
