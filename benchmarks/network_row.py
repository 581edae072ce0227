"""One row of the coverage table: `python benchmarks/network_row.py FILE ROW.json --inputs '[…]'`.

Takes one network through everything that a job would do with it and writes what was found after every stage, so that a
time limit or a crash leaves what came before it. `coverage.py` starts it, in a process for each network.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.corpus_inputs import Feeds, give_random_weights, make_feeds, signature
from worker.compressor.errors import CompressorError
from worker.compressor.graph.channels.analysis import Analysis, analyse
from worker.compressor.graph.counts import count, is_layer, sources_of_constants
from worker.compressor.graph.description import describe
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.exporters.onnx import write_onnx
from worker.compressor.graph.exporters.program import write_program
from worker.compressor.graph.exporters.torchscript import write_torchscript
from worker.compressor.graph.importers import import_model, load_graph, load_module
from worker.compressor.graph.network import Network
from worker.compressor.graph.operator import operator_of
from worker.compressor.graph.proof import SATURATING, prove
from worker.compressor.graph.surgery import cut, masked
from worker.compressor.graph.training.batch import free_batch, has_free_batch
from worker.compressor.graph.training.executor import to_module

FORMATS = {".onnx": "onnx", ".pt": "torchscript", ".jit": "torchscript", ".pt2": "exported_program"}
SAMPLES, TRAINED, STEPS = 2, 8, 16
RATES = (1e-3, 1e-4, 1e-5)
REMOVED = (0.3, 0.6)


class Row:
    """What is known so far, written to the file at every change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, Any] = {"errors": {}, "seconds": {}}
        self.write()

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> bool:
        """Whether the stage went through; its findings or its error are in the row."""
        self.facts["stage"] = name
        self.write()
        start = time.perf_counter()
        try:
            self.facts |= work()
        except Exception as error:  # whatever it is, it is this row's finding
            code = error.code if isinstance(error, CompressorError) else type(error).__name__
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{str(error).strip()[:400]} (at {Path(where.filename).name}:{where.lineno} {where.name})"
            self.facts["errors"][name] = {"code": code, "detail": text}
        self.facts["seconds"][name] = round(time.perf_counter() - start, 2)
        self.facts.pop("stage")
        self.write()
        return name not in self.facts["errors"]

    def write(self) -> None:
        self.path.write_text(json.dumps(self.facts, indent=1))


class Subject:
    """One file on its way through the engine."""

    def __init__(self, file: Path, inputs: list[dict[str, Any]], folder: Path) -> None:
        self.file, self.format, self.folder = file, FORMATS[file.suffix], folder
        self.inputs = inputs
        self.rng = np.random.default_rng(7)
        self.network: Network
        self.analysis: Analysis
        self.feeds: Feeds = {}
        self.half: Network

    def bring_in(self) -> dict[str, Any]:
        """The upload's inspection, and the graph read back as a job reads it."""
        self.file = give_random_weights(self.file, self.folder) if self.format == "onnx" else self.file
        network, facts = import_model(self.file, self.format, signature(self.file, self.inputs))
        described = describe(network, None)
        graph = self.folder / "graph.onnx"
        write_onnx(network, graph)
        self.network = load_graph(graph, facts)
        self.feeds = make_feeds(self.file, self.inputs, SAMPLES, self.rng)
        return {"num_params": described["num_params"], "macs": described["macs"], "opset": described["opset"]}

    def compare_before(self) -> dict[str, Any]:
        """Our evaluation against the uploaded file in its own runtime."""
        return {"parity_before": self._error(self._reference(), list(run(self.network, self._named()).values()))}

    def train(self) -> dict[str, Any]:
        """Steps of Adam towards random targets: does the loss fall, and does every weight have a gradient?"""
        view = self.network if has_free_batch(self.network) else free_batch(self.network)
        feeds = self.feeds if view is None else make_feeds(self.file, self.inputs, TRAINED, self.rng, free=True)
        given = [torch.from_numpy(np.asarray(feed)) for feed in feeds.values()]
        for rate in RATES:
            losses, without = _descend(view or self.network, given, rate)
            if min(losses[-3:]) < losses[0]:
                break
        return {"loss": [losses[0], min(losses[-3:])], "free_batch": view is not None, "no_gradient": without}

    def analyse(self) -> dict[str, Any]:
        """How far the layers that do not write an output can be narrowed, and by how many units each is decided."""
        shapes = self.network.sample_shapes
        self.analysis = analyse(self.network, shapes)
        before = {row.name: row.macs for row in count(self.network, shapes).layers if row.macs}
        writing = _writes_an_output(self.network)
        inner = {name for name in before if name not in writing}
        smallest = cut(self.network, self.analysis, self._kept(0.0, self.analysis)).network
        after = {row.name: row.macs for row in count(smallest, shapes).layers}
        total = sum(before[name] for name in inner)
        left = {name: after.get(name, 0) for name in inner}
        units, layer = self._fewest_units(writing)
        return {
            "narrowest": sum(left.values()) / total if total else None,
            "stays": [
                [name, left[name] / total, self.analysis.kept_because.get(name)]
                for name in sorted(left, key=left.__getitem__, reverse=True)[:4]
                if total and left[name] / total > 0.01
            ],
            "units": units,
            "units_layer": layer,
            "groups": len(self.analysis.groups),
            "inexact": sum(1 for group in self.analysis.groups if not group.exact),
        }

    def _fewest_units(self, writing: set[str]) -> tuple[float | None, str | None]:
        """Units per channel in the layer that has the fewest, among those that multiply and write no output."""
        found: dict[str, float] = {}
        units: dict[str, int] = {}
        for group in self.analysis.groups:
            for piece in group.slices:
                if piece.role == "produces":
                    number = len(np.unique(piece.units[piece.units >= 0]))
                    units[piece.node] = max(units.get(piece.node, 0), number)
        sources = sources_of_constants(self.network)
        for node in self.network.nodes:
            is_counted = is_layer(node, sources, self.network)
            if operator_of(node).macs is None or not is_counted or node.name in writing:
                continue
            channels = _channels(self.analysis, node.outputs[0], node.op)
            depthwise = (
                node.op in ("Conv", "ConvTranspose") and node.attributes.get("group", 1) > 1 and node.name not in units
            )
            if not depthwise and channels > 1:
                found[node.name] = units.get(node.name, 0) / channels
        if not found:
            return None, None
        layer = min(found, key=found.__getitem__)
        return found[layer], layer

    def prove_cuts(self) -> dict[str, Any]:
        """Random units removed from every exact group: the engine's proof, and the same in onnxruntime."""
        found = {}
        for removed in REMOVED:
            kept = self._kept(1 - removed, self.analysis, exact=True)
            if not kept:
                return {"proof": {}, "unproven": "every group that can be cut is inexact, or there is none"}
            result = cut(self.network, self.analysis, kept)
            proof = prove(self.network, result, self.analysis, self._named())
            written, whole = self.folder / "cut.onnx", self.folder / "masked.onnx"
            write_onnx(result.network, written)
            write_onnx(masked(self.network, self.analysis, result.kept), whole)
            outside = self._error(_run_onnx(whole, self._named()), _run_onnx(written, self._named()))
            found[str(removed)] = {
                "error": proof.error,
                "control": proof.control,
                "vacuous": proof.vacuous,
                "onnxruntime": outside,
            }
        return {"proof": found}

    def write_cut(self) -> dict[str, Any]:
        """Half of every group goes, inexact ones too: the written file in onnxruntime against our evaluation."""
        self.half = cut(self.network, self.analysis, self._kept(0.5, self.analysis)).network
        written = self.folder / "half.onnx"
        write_onnx(self.half, written)
        made = list(run(self.half, self._named()).values())
        return {"parity_after": self._error(_run_onnx(written, self._named()), made)}

    def write_torchscript(self) -> dict[str, Any]:
        """The TorchScript form of the cut network, loaded again."""
        written = self.folder / "half.pt"
        write_torchscript(self.half, written)
        with torch.no_grad():
            answers = torch.jit.load(str(written))(*(torch.from_numpy(np.asarray(x)) for x in self._named().values()))
        return {"torchscript": self._error(list(run(self.half, self._named()).values()), _flat(answers))}

    def write_program(self) -> dict[str, Any]:
        """The `.pt2` form of the cut network, loaded again."""
        written = self.folder / "half.pt2"
        write_program(self.half, written)
        loaded = torch.export.load(str(written)).module()
        with torch.no_grad():
            answers = loaded(*(torch.from_numpy(np.asarray(x)) for x in self._named().values()))
        return {"program": self._error(list(run(self.half, self._named()).values()), _flat(answers))}

    def _kept(self, share: float, analysis: Analysis, *, exact: bool = False) -> dict[int, np.ndarray]:
        """Random units of each group."""
        groups = [group for group in analysis.groups if group.exact or not exact]
        return {group.id: group.partition.draw(share, self.rng) for group in groups}

    def _named(self) -> Feeds:
        return dict(zip([port.name for port in self.network.inputs], self.feeds.values(), strict=True))

    def _error(self, wanted: list[np.ndarray], got: list[np.ndarray]) -> float:
        """The largest difference of all outputs; those of a saturation are rounded as numbers about 1, however small."""
        bounded = {output for node in self.network.nodes if node.op in SATURATING for output in node.outputs}
        least = [1.0 if port.name in bounded else 1e-12 for port in self.network.outputs]
        return max(map(_difference, wanted, got, least), default=0.0)

    def _reference(self) -> list[np.ndarray]:
        if self.format == "onnx":
            return _run_onnx(self.file, self.feeds)
        given = {name: torch.from_numpy(np.asarray(feed)) for name, feed in self.feeds.items()}
        whole = [row["value"] if "value" in row else given[row["name"]] for row in self.inputs]
        module = torch.export.load(str(self.file)).module() if self.format == "exported_program" else None
        with torch.no_grad():
            return _flat((module or load_module(self.file))(*whole))


def _descend(network: Network, given: list[torch.Tensor], rate: float) -> tuple[list[float], int]:
    """The losses of a few steps at this rate, and how many weights have no finite gradient at the end."""
    module = to_module(network).eval()
    with torch.no_grad():
        scale = [_spread(output) for output in module(*given)]
    module.train()
    generator = torch.Generator().manual_seed(3)
    targets: list[torch.Tensor] = []
    parameters = [p for p in module.parameters() if p.requires_grad and p.is_floating_point()]
    optimizer = torch.optim.Adam(parameters, lr=rate)
    losses = []
    for _ in range(STEPS):
        outputs = [(o.float(), s) for o, s in zip(module(*given), scale, strict=True) if o.requires_grad]
        targets = targets or [o.detach() + s * torch.randn(o.shape, generator=generator) for o, s in outputs]
        loss = torch.stack([((o - t) / s).square().mean() for (o, s), t in zip(outputs, targets, strict=True)]).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        losses.append(float(loss.detach()))
        without = sum(p.grad is None or not bool(p.grad.isfinite().all()) for p in parameters)
        optimizer.step()
    return losses, without


def _writes_an_output(network: Network) -> set[str]:
    """Layers with multiplications from which a model output is reached without another such layer between."""
    maker = {output: node for node in network.nodes for output in node.outputs}
    open_values, seen, found = [port.name for port in network.outputs], set[str](), set[str]()
    while open_values:
        name = open_values.pop()
        if name in seen or name not in maker:
            continue
        seen.add(name)
        node = maker[name]
        if operator_of(node).macs is not None:
            found.add(node.name)
        else:
            open_values.extend(node.inputs)
    return found


def _channels(analysis: Analysis, output: str, op: str) -> int:
    """Channels that a layer makes: axis 1 of a convolution, else the last."""
    return analysis.facts.shapes[output][1 if op in ("Conv", "ConvTranspose") else -1]


def _run_onnx(path: Path, feeds: Feeds) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    return [np.asarray(a) for a in session.run(None, dict(zip(names, feeds.values(), strict=True)))]


def _flat(value: Any) -> list[np.ndarray]:
    if isinstance(value, torch.Tensor):
        return [value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()]
    parts = value.values() if isinstance(value, dict) else [] if value is None else value
    return [array for part in parts for array in _flat(part)]


def _difference(a: np.ndarray, b: np.ndarray, least: float) -> float:
    """The largest difference relative to the largest element, which counts as `least` at least."""
    if a.shape != b.shape:
        return float("inf")
    a, b = a.astype(np.float64), b.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    found = float(np.abs(a - b)[~same].max() / max(np.abs(a[np.isfinite(a)]).max(initial=0), least))
    return found if found == found else float("inf")


def _spread(output: torch.Tensor) -> float:
    return max(float(output.float().std()), 1e-3) if output.numel() > 1 else 1.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("row", type=Path)
    parser.add_argument("--inputs", type=json.loads, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    row = Row(arguments.row)
    folder = arguments.row.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    subject = Subject(arguments.file, arguments.inputs, folder)
    if row.stage("import", subject.bring_in):
        row.stage("before", subject.compare_before)
        row.stage("train", subject.train)
        if row.stage("analyse", subject.analyse):
            row.stage("proof", subject.prove_cuts)
            if row.stage("after", subject.write_cut):
                row.stage("torchscript", subject.write_torchscript)
                row.stage("program", subject.write_program)
    for path in folder.glob("*"):
        path.unlink()
    folder.rmdir()


if __name__ == "__main__":
    main()
