"""Running an ONNX file in our own evaluation, for networks that onnxruntime has no kernels for.

onnxruntime 1.32 on a CPU was asked for each of 16 common operators: it runs all of them in float16, in bfloat16 none but
Concat and LayerNormalization, in float64 neither Conv, ConvTranspose nor GlobalAveragePool.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from worker.compressor.errors import InputMismatch
from worker.compressor.evaluation.runtime import Feeds, Outputs, Runner
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.importers import load_graph


class EngineRunner(Runner):
    """An ONNX file that we wrote, node by node in torch and in its own dtypes; bfloat16 outputs come as float32."""

    runtime = "torch"

    def __init__(self, path: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self._network = load_graph(path, None)
        self._inputs = [port.name for port in self._network.inputs]
        first = next((port.shape[0] for port in self._network.inputs if port.shape), None)
        self.batch_size = first if isinstance(first, int) else None

    def run(self, feeds: Feeds) -> Outputs:
        """See `Runner.run`; raises `InputMismatch` where the network does not run on these inputs."""
        try:
            outputs = run(self._network, dict(zip(self._inputs, feeds, strict=True)))
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise InputMismatch(f"the network does not run on these inputs: {str(error)[:500]}") from None
        return tuple(np.atleast_1d(output) for output in outputs.values())
