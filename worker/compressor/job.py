"""The state of one compression: the original, its data and answers, and the network as it is now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from worker.compressor.checkpoints import Checkpoints
from worker.compressor.context import Context
from worker.compressor.data.dataset import Dataset, Rows
from worker.compressor.distillation.objective import Task
from worker.compressor.errors import InputMismatch, NothingToCompress
from worker.compressor.evaluation.footprint import affordable
from worker.compressor.evaluation.judge import Judge, module_runner
from worker.compressor.evaluation.original import Original
from worker.compressor.evaluation.reopened import job_dataset
from worker.compressor.evaluation.runtime import open_onnx
from worker.compressor.graph.counts import Counts, count
from worker.compressor.graph.importers import load_graph
from worker.compressor.graph.network import Network
from worker.compressor.graph.precision import in_float32, rounded
from worker.compressor.graph.training.batch import fixed_batch, free_batch, has_free_batch, in_pieces
from worker.compressor.graph.training.executor import to_module
from worker.compressor.pruning.selection import excluded_tensors

Shapes = dict[str, tuple[int, ...]]
Feeds = dict[str, np.ndarray]
#: What the values of a network may take while it is judged.
JUDGING_BYTES = 1 << 30


@dataclass
class Proven:
    """What the prune steps did so far: each cut, and the tensors that have zeros which training must leave in place.

    A cut is `{"units": {group: kept}}`, or `{"skips": [sum]}` where only the skip is left of sums. `removed_in`: the units
    of work that removed something.
    """

    cuts: list[dict[str, Any]] = field(default_factory=list)
    kept_because: dict[str, str] = field(default_factory=dict)
    inexact: list[dict[str, Any]] = field(default_factory=list)
    masked: list[str] = field(default_factory=list)
    removed_in: list[int] = field(default_factory=list)


@dataclass
class Job:
    """Everything that the stages work on. `network` is replaced, never changed, by each step that succeeds; `studies` are
    the findings of steps that change nothing. Without a data set (`has_data`) the rows of `data` are synthesised
    (`is_synthetic`), else noise.
    """

    context: Context
    graph: Path
    facts: dict[str, Any]
    original: Network
    network: Network
    counts: Counts
    shapes: Shapes
    data: Dataset
    has_data: bool
    answers: Original
    checkpoints: Checkpoints
    proven: Proven = field(default_factory=Proven)
    studies: list[dict[str, Any]] = field(default_factory=list)
    baseline: dict[str, Any] = field(default_factory=dict)
    is_synthetic: bool = False
    _views: WeakKeyDictionary[Network, Network | None] = field(default_factory=WeakKeyDictionary)

    @property
    def task(self) -> Task:
        """The task as completed from the data."""
        return self.context.spec.task or "none"

    @property
    def formats(self) -> list[str]:
        """What the network leaves as."""
        return list(self.context.spec.outputs or ["onnx"])

    @cached_property
    def untouched(self) -> frozenset[str]:
        """The tensors of layers that a prune step excludes: nothing in the job changes them."""
        steps = [step.prune for step in self.context.spec.steps if step.prune]
        return excluded_tensors(self.original, [glob for prune in steps for glob in prune.exclude])

    @property
    def uploaded(self) -> tuple[str, int]:
        """Format and bytes of the uploaded file."""
        source = self.facts["source"]
        return source["format"], source["size_bytes"]

    @property
    def weighed_format(self) -> str:
        """The format whose size a target is about: that of the upload, or the first one where the network leaves as others."""
        return self.uploaded[0] if self.uploaded[0] in self.formats else self.formats[0]

    def view(self, network: Network) -> Network | None:
        """The network in float32 with a free batch, its tensors under their own names; None where its batch is fixed for good.

        It is `network` itself where nothing had to be changed; `taken_back` brings weights from a view to their network.
        """
        if network not in self._views:
            wide = in_float32(network)
            self._views[network] = wide if has_free_batch(wide) else free_batch(wide)
        return self._views[network]

    def runner(self, network: Network) -> Callable[[tuple[np.ndarray, ...]], tuple[np.ndarray, ...]]:
        """The network in inference on numpy batches: all rows at once, or in pieces where its batch is fixed for good."""
        view = self.view(network)
        module = to_module(view or in_float32(network), trainable=False).eval().to(self.context.device)
        size = fixed_batch(network)
        call = module if view is not None or size is None else in_pieces(module, size)
        return module_runner(call, self.context.device)

    def judge(self) -> Judge:
        """What chooses between networks on the way."""
        return Judge(self.data.val, self.answers, self.task, self.context.spec.seed)

    def feeds(self, rows: Rows, count: int, stream: int) -> Feeds:
        """Prepared inputs by name of up to `count` seeded rows."""
        return self.named(rows.sample(count, self.context.rng(stream)))

    def named(self, rows: Rows) -> Feeds:
        """Prepared inputs by name of all these rows."""
        names = [port.name for port in self.original.inputs]
        return dict(zip(names, rows.feeds(slice(None)), strict=True))


def taken_back(network: Network, view: Network) -> Network:
    """A copy of `network` with the weights of a view of it, in its own dtypes and with its own batch axis.

    Tensors that the view did not change stay as they are to the bit.
    """
    result = network.copy()
    for name, array in network.tensors.items():
        found = view.tensors.get(name)
        if found is not None and not np.array_equal(found, array.astype(found.dtype)):
            result.tensors[name] = rounded(found, array)
    return result


def open_job(context: Context) -> Job:
    """Read graph and data and see that they fit together.

    Raises:
        CompressorError: `nothing_to_compress`, `input_mismatch`, or what is wrong with the data.
    """
    request = context.request
    assert request.graph is not None and context.spec.inputs is not None
    facts = json.loads(request.graph.facts.read_text())
    network = load_graph(request.graph.file, facts)
    shapes: Shapes = {port.name: tuple(network.sample_shapes[port.name]) for port in network.inputs}
    data = job_dataset(request, shapes)
    if request.dataset is not None:
        shapes = _shapes_of(data, network, shapes)
    for warning in data.warnings:
        context.warn(warning)
    runner = open_onnx(request.graph.file, request.threads)
    if runner.runtime != "onnxruntime":
        context.warn("onnxruntime cannot run this network in its data types, so it is judged and timed in torch")
    answers = Original(runner, identity(context), answers_file(context))
    runner.most_rows = affordable(network, shapes, JUDGING_BYTES)
    runner.run_rows(data.train.feeds(slice(0, 1)))
    counts = count(network, shapes)
    if counts.num_params == 0:
        raise NothingToCompress("the network has no weights", hint="send a trained network")
    return Job(
        context, request.graph.file, facts, network, network, counts, shapes, data, request.dataset is not None,
        answers, Checkpoints(request.checkpoints),
    )  # fmt: skip


def identity(context: Context) -> str:
    """What the original's answers depend on: the graph's bytes, the data's, and the preprocessing."""
    request = context.request
    assert request.graph is not None
    graph = hashlib.sha256(request.graph.file.read_bytes()).hexdigest()
    spec = context.spec.as_json()
    data = request.dataset.sha256 if request.dataset else f"noise {context.spec.seed}"
    return json.dumps([graph, data, spec["preprocess"], spec["inputs"]], sort_keys=True)


def answers_file(context: Context) -> Path:
    """Where the original's answers are kept: for other jobs too, where the worker gave a place."""
    return context.request.baseline_cache or context.request.folder / "answers.npz"


def _shapes_of(data: Dataset, network: Network, known: Shapes) -> Shapes:
    """One sample's shapes: free dimensions as in the data."""
    found: Shapes = {}
    for port, array in zip(network.inputs, data.train.arrays, strict=True):
        rest = array.shape[1:]
        fits = len(port.shape) == len(array.shape) and all(
            not isinstance(size, int) or size == given for size, given in zip(port.shape[1:], rest, strict=True)
        )
        if port.shape and not fits:
            detail = f"the input '{port.name}' is {list(port.shape)}, a sample of the data {list(rest)}"
            raise InputMismatch(detail, hint="store one row per sample, in the shape that the network takes")
        found[port.name] = (known[port.name][0], *rest) if known[port.name] else (1, *rest)
    return found
