"""TorchScript out: the training graph, scripted, with a free batch and BatchNorm in inference mode."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from worker.compressor.errors import ExportError
from worker.compressor.graph.executor import to_module
from worker.compressor.graph.network import Network


def write_torchscript(network: Network, path: Path) -> None:
    """Write the network as a scripted module: positional tensors in the order of the graph's inputs.

    One output comes as a tensor, several as a tuple. Weights are named after the network's tensors.

    Raises:
        ExportError: if the graph cannot be scripted.
    """
    module = to_module(network, trainable=False, single=True).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about annotations in code that fx generates
            torch.jit.script(module).save(str(path))
    except (RuntimeError, OSError) as error:
        raise ExportError(f"the network cannot be written as TorchScript: {str(error).strip()[:300]}") from error
