"""Running ONNX files in onnxruntime, TorchScript files and exported programs in torch, over any number of rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from worker.compressor.errors import InputMismatch

Feeds = tuple[np.ndarray, ...]
Outputs = tuple[np.ndarray, ...]


class Runner(ABC):
    """Computes a network; `batch_size` is the only number of rows it takes, None where that is free.

    `most_rows` is how many of a free batch go through at once, None where there is no such limit.
    """

    batch_size: int | None = None
    most_rows: int | None = None
    runtime = "torch"

    @abstractmethod
    def run(self, feeds: Feeds) -> Outputs:
        """All outputs for one batch, inputs in the network's order."""

    def run_rows(self, feeds: Feeds) -> Outputs:
        """All outputs for any number of rows: in pieces, where the batch is fixed or too many rows come at once.

        The last piece of a fixed batch is filled up and cut back.
        """
        size = self.batch_size or self.most_rows
        count = len(feeds[0]) if feeds and feeds[0].ndim else 0
        if size is None or not count or count == size or (self.batch_size is None and count < size):
            return self.run(feeds)
        parts = []
        for at in range(0, count, size):
            end = at + size if self.batch_size is not None else min(at + size, count)
            rows = np.minimum(np.arange(at, end), count - 1)
            given = min(size, count - at)
            outputs = self.run(tuple(feed[rows] for feed in feeds))
            parts.append(tuple(output[: len(output) * given // size] for output in outputs))
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

    def run_all(self, batches: Iterable[Feeds]) -> Iterator[Outputs]:
        """`run_rows` over batches."""
        for feeds in batches:
            yield self.run_rows(feeds)


class OnnxRunner(Runner):
    """An ONNX file (or its bytes) in onnxruntime on the CPU."""

    runtime = "onnxruntime"

    def __init__(self, source: Path | bytes, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # Idle threads that spin starve every other job of the machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path_or_bytes = str(source) if isinstance(source, Path) else source
        self._session = ort.InferenceSession(path_or_bytes, options, providers=["CPUExecutionProvider"])
        self.inputs = [port.name for port in self._session.get_inputs()]
        shapes = [port.shape for port in self._session.get_inputs() if port.shape]
        self.batch_size = shapes[0][0] if shapes and isinstance(shapes[0][0], int) else None

    def run(self, feeds: Feeds) -> Outputs:
        """See `Runner.run`; raises `InputMismatch` where the network does not run on these inputs."""
        try:
            outputs = self._session.run(None, dict(zip(self.inputs, feeds, strict=True)))
        except (state.InvalidArgument, state.RuntimeException, state.Fail) as error:
            given = zip(self.inputs, feeds, strict=True)
            told = ", ".join(f"{name} {feed.dtype.name} {list(feed.shape)}" for name, feed in given)
            raise InputMismatch(f"the network does not run on inputs like {told}: {str(error)[:500]}") from None
        return tuple(np.atleast_1d(np.asarray(output)) for output in outputs)


class TorchRunner(Runner):
    """A TorchScript file or an exported program in torch on the CPU; nested outputs are flattened in order.

    Opens only files that we wrote: `torch.export.load` runs what a file tells it to.
    """

    def __init__(self, path: Path, threads: int, batch_size: int | None = None) -> None:
        import torch

        torch.set_num_threads(threads)
        if path.suffix == ".pt2":
            from worker.compressor.graph.programs import caller

            self._call = caller(torch.export.load(path))
        else:
            module = torch.jit.load(str(path), map_location="cpu").eval()
            self._call = lambda tensors: module(*tensors)
        self.batch_size = batch_size

    def run(self, feeds: Feeds) -> Outputs:
        """See `Runner.run`."""
        import torch

        from worker.compressor.graph.evaluation import shared_tensor

        with torch.inference_mode():
            output = self._call([shared_tensor(np.ascontiguousarray(feed)) for feed in feeds])
        return tuple(_flat(output))


def _flat(output: object) -> Iterator[np.ndarray]:
    import torch

    if isinstance(output, torch.Tensor):
        tensor = output.float() if output.dtype is torch.bfloat16 else output
        yield np.atleast_1d(tensor.numpy())
    elif isinstance(output, dict):
        for value in output.values():
            yield from _flat(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _flat(value)


def open_onnx(path: Path, threads: int) -> Runner:
    """The file in onnxruntime, or in our own evaluation where onnxruntime has no kernels for it."""
    try:
        return OnnxRunner(path, threads)
    except Exception as error:
        if _has_no_kernels(error):
            return _in_engine(path, threads)
        raise


def open_as(other: Runner, path: Path, threads: int) -> Runner:
    """The file in what runs `other`, which `open_onnx` opened."""
    return OnnxRunner(path, threads) if isinstance(other, OnnxRunner) else _in_engine(path, threads)


def _in_engine(path: Path, threads: int) -> Runner:
    # Our evaluation brings torch, which takes a fresh process two seconds; most files do without.
    from worker.compressor.evaluation.engine import EngineRunner

    return EngineRunner(path, threads)


def _has_no_kernels(error: Exception) -> bool:
    """Whether onnxruntime refused a sound network for want of kernels: it takes bfloat16 for invalid in older operators."""
    return isinstance(error, state.NotImplemented) or (
        isinstance(error, state.InvalidGraph) and "bfloat16" in str(error)
    )
