"""The node tests of ONNX, run by the engine: `python benchmarks/node_tests.py [--check] [--only PART_OF_A_NAME]`.

Every case is brought to the engine's graph as an upload is, and computed three times: node by node, by the recorded
module, and by that module scripted. It passes where all three give the expected outputs within the case's own
tolerance. Writes `docs/node-tests.md`; with `--check` it compares with that page instead, and fails where they differ.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1]))
from worker.compressor.errors import ImportFailed
from worker.compressor.graph.evaluation import as_tensor, run
from worker.compressor.graph.importers.onnx import try_once
from worker.compressor.graph.importers.validation import check_model
from worker.compressor.graph.network import Network
from worker.compressor.graph.normalise import normalise
from worker.compressor.graph.operator import OPERATORS
from worker.compressor.graph.training.executor import to_module

PAGE = Path(__file__).parents[1] / "docs" / "node-tests.md"
#: Operators that only read the shape of what they are given.
_READS_SHAPES = {"Shape", "Size"}
_WRONG = "wrong"
#: Two steps of the last digit: half precision rounds between operations, and each runtime does so elsewhere.
_HALF = {"float16": 2**-9, "bfloat16": 2**-6}


@dataclass(frozen=True)
class Case:
    """One case: a network of one operator (or of what it expands to), inputs, and the outputs that they must give."""

    name: str
    operator: str
    model: onnx.ModelProto
    data: tuple[tuple[tuple[Any, ...], tuple[Any, ...]], ...]
    rtol: float
    atol: float


@dataclass(frozen=True)
class Outcome:
    """`reason` is "" for a case that passes."""

    case: str
    operator: str
    reason: str
    detail: str


@functools.cache
def cases() -> tuple[Case, ...]:
    """All node tests of the installed onnx, by name."""
    from onnx.backend.test.loader import load_model_tests  # makes all of them: seconds

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = {case.name: case for case in load_model_tests(kind="node")}
    found = []
    for name, case in sorted(loaded.items()):
        plain = loaded.get(re.sub(r"_expanded(_ver\d+)?$", "", name), case)
        operator = _operator(plain.model.graph.node)
        data = tuple((tuple(inputs), tuple(outputs)) for inputs, outputs in case.data_sets)
        found.append(Case(name, operator, case.model, data, case.rtol, case.atol))
    return tuple(found)


def _operator(nodes: Sequence[onnx.NodeProto]) -> str:
    """What a case is about: its first operator that is not there to make an input."""
    kinds = [f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in nodes]
    return next((kind for kind in kinds if kind != "Constant"), kinds[0])


def evaluate(case: Case) -> Outcome:
    """Whether the engine computes the case, and if not, why."""
    try:
        for inputs, outputs in case.data:
            _compute(case, inputs, outputs)
    except ImportFailed as error:
        return Outcome(case.name, case.operator, _reason(case, error), str(error))
    except AssertionError as error:
        return Outcome(case.name, case.operator, _WRONG, str(error))
    except Exception as error:  # what torch or Python raises in the middle of an operator: ours to mend
        return Outcome(case.name, case.operator, _WRONG, f"{type(error).__name__}: {str(error)[:300]}")
    return Outcome(case.name, case.operator, "", "")


def _compute(case: Case, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    ports = list(model.graph.input)
    plain = all(isinstance(array, np.ndarray | np.generic) for array in [*inputs, *outputs])
    inputs, outputs = [_numpy(value) for value in inputs], [_numpy(value) for value in outputs]
    given = dict(zip([port.name for port in ports], inputs, strict=True))
    if plain:
        _fix_steering(model, given)
    try:
        check_model(model)
    except ImportFailed as error:
        if error.code != "no_inputs":
            raise
    network = normalise(ir.from_proto(model))
    feeds = {port.name: given[port.name] for port in network.inputs}
    rows = [
        {"name": name, "dtype": port.dtype, "shape": list(feeds[name].shape)}
        for port in network.inputs
        for name in [port.name]
    ]
    try_once(network, rows)
    network.sample_shapes = {name: array.shape for name, array in feeds.items()}
    for kind, results in _routes(network, feeds):
        for port, expected, result in zip(network.outputs, outputs, results, strict=True):
            _compare(case, f"{kind}, output '{port.name}'", np.asarray(expected), result)


def _numpy(value: Any) -> Any:
    """Formats that numpy lacks come as protobuf."""
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _routes(network: Network, feeds: dict[str, np.ndarray]) -> Iterator[tuple[str, list[np.ndarray]]]:
    """The outputs of the network as each part of the engine computes them."""
    yield "stepped", list(run(network, feeds).values())
    with torch.no_grad():
        module = to_module(network).eval()
        given = [as_tensor(array) for array in feeds.values()]
        yield "recorded", [_array(value) for value in module(*given)]
        yield "scripted", [_array(value) for value in torch.jit.script(module)(*given)]


def _array(value: torch.Tensor) -> np.ndarray:
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _compare(case: Case, where: str, expected: np.ndarray, result: np.ndarray) -> None:
    assert expected.shape == result.shape, f"{where}: has shape {list(result.shape)}, not {list(expected.shape)}"
    rounded = expected.dtype.name == "bfloat16"
    assert rounded or expected.dtype == result.dtype, f"{where}: is {result.dtype}, not {expected.dtype}"
    if expected.dtype.kind in "biu":
        np.testing.assert_array_equal(result, expected, where)
        return
    wide = [array.astype(np.complex128 if array.dtype.kind == "c" else np.float64) for array in (result, expected)]
    rtol = max(case.rtol, _HALF.get(expected.dtype.name, 0.0))
    np.testing.assert_allclose(*wide, rtol=rtol, atol=case.atol, err_msg=where)


def _fix_steering(model: onnx.ModelProto, given: dict[str, Any]) -> None:
    """Make initializers of the inputs that steer an operator (axes, sizes): a network has those in the file."""
    steering: set[str] = set()
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    for node in reversed(model.graph.node):
        if node.op_type in _READS_SHAPES:
            continue
        if steering & set(node.output):
            steering.update(node.input)
        steering.update(node.input[slot] for slot in _steered(node, opset) if slot < len(node.input))
    for port in [port for port in model.graph.input if port.name in steering]:
        model.graph.initializer.append(numpy_helper.from_array(given[port.name], port.name))
        model.graph.input.remove(port)


def _steered(node: onnx.NodeProto, opset: int) -> list[int]:
    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, opset, ""):
        return []
    key = (node.op_type, onnx.defs.get_schema(node.op_type, opset, "").since_version)
    data = OPERATORS.get(key).data if key in OPERATORS else None
    return [] if data is None else [slot for slot in range(len(node.input)) if slot not in data]


_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
_LOSSES = {"SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"}
_FLOW = {"Loop", "Scan", "If", "SequenceMap"}
_NARROW = {kind for kind, _ in onnx.TensorProto.DataType.items() if re.fullmatch(r"FLOAT[84]E.*|U?INT[42]", kind)}
_WIDE = {"COMPLEX64", "COMPLEX128"}
#: Why a case is not computed, in the words of the page, the first that applies.
REASONS = {
    "strings": "Strings: the network computes with text.",
    "sequences": "Sequences and optionals: values that are lists of tensors, or may be absent.",
    "learned": "Training: optimisers and gradients, BatchNormalization and Dropout in training mode.",
    "loss": "Losses: they belong to training; upload the network without its loss.",
    "ml": "Classical machine learning (`ai.onnx.ml`) and images as files: trees, encoders, decoders.",
    "narrow": "Number formats of 8 bits and fewer that are no integers, and integers of 4 and 2 bits.",
    "complex": "Complex numbers as inputs or outputs.",
    "quantised": "Quantised numbers: upload the network as it was before quantisation.",
    "random": "Random numbers: a network that answers differently each time cannot be compared with its copy.",
    "flow": "Control flow: `Loop`, `Scan`, and an `If` that depends on data.",
    "operator": "An operator that the engine does not know.",
    "form": "A form of an operator that is refused; the message names it.",
    _WRONG: "**Wrong or broken: mistakes of the engine.**",
}


def _reason(case: Case, error: ImportFailed) -> str:
    kinds = {node.op_type for node in case.model.graph.node}
    domains = {node.domain for node in case.model.graph.node}
    types = _types(case.model)
    found = {
        "strings": "STRING" in types,
        "sequences": bool(types & {"sequence", "optional"}) or "equence" in case.operator,
        "learned": any("training" in domain for domain in domains) or "training mode" in str(error),
        "loss": case.operator in _LOSSES,
        "ml": "ai.onnx.ml" in domains or "ImageDecoder" in kinds,
        "narrow": bool(types & _NARROW),
        "complex": bool(types & _WIDE),
        "quantised": error.code == "already_quantised",
        "random": bool(kinds & _RANDOM),
        "flow": bool(kinds & _FLOW),
        "operator": error.code in ("unknown_operator", "unsupported_operator") and "which is not" in str(error),
        "form": error.code != "input_mismatch",
    }
    return next((reason for reason in REASONS if found.get(reason)), _WRONG)


def _types(model: onnx.ModelProto) -> set[str]:
    """Names of the number formats of ports, constants and casts; "sequence" and "optional" for ports of that kind."""
    found = set()
    for port in [*model.graph.input, *model.graph.output]:
        kind = port.type.WhichOneof("value") or "tensor_type"
        found.add(kind.removesuffix("_type"))
        if kind == "tensor_type":
            found.add(onnx.TensorProto.DataType.Name(port.type.tensor_type.elem_type))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "output_dtype"):
                found.add(onnx.TensorProto.DataType.Name(attribute.i))
    return found


def page(outcomes: Sequence[Outcome]) -> str:
    """The page for these outcomes: the same text for the same outcomes."""
    passing = [outcome for outcome in outcomes if not outcome.reason]
    lines = [
        "# The node tests of ONNX",
        "",
        f"Written by `python benchmarks/node_tests.py` with onnx {onnx.__version__}; `--check` compares.",
        "",
        f"{len(passing)} of {len(outcomes)} cases pass: computed node by node, by the recorded module and by that module",
        "scripted, all three give the expected outputs within the tolerance of the case (in half precision two steps of the",
        "last digit).",
        "",
        "Many cases pass axes, sizes and the like as inputs of the network. A network has those in its file, so the script",
        "makes constants of the inputs that steer an operator, with the values of the case.",
        "",
        "## Not computed, and why",
        "",
    ]
    for reason, text in REASONS.items():
        failing = [outcome for outcome in outcomes if outcome.reason == reason]
        if failing:
            lines += [f"### {text.rstrip('.*').lstrip('*')} ({len(failing)})", "", *_failures(reason, failing), ""]
    lines += ["## By operator", "", "| operator | pass | of | not passing |", "|---|---|---|---|"]
    by_operator: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_operator[outcome.operator].append(outcome)
    for operator, group in sorted(by_operator.items()):
        failing = [outcome.case for outcome in group if outcome.reason]
        named = "all" if len(failing) == len(group) else ", ".join(f"`{name}`" for name in failing)
        lines.append(f"| {operator} | {len(group) - len(failing)} | {len(group)} | {named} |")
    return "\n".join(lines) + "\n"


def _failures(reason: str, failing: Sequence[Outcome]) -> list[str]:
    """By message where the message tells more than the heading, else by operator."""
    groups: dict[str, list[str]] = defaultdict(list)
    for outcome in failing:
        message = _shortened(outcome.detail) if reason in ("form", _WRONG) else outcome.operator
        groups[message].append(outcome.case)
    if reason in ("form", _WRONG):
        return [f"- {message}: " + ", ".join(f"`{name}`" for name in names) for message, names in groups.items()]
    return [", ".join(f"{operator} ({len(names)})" for operator, names in sorted(groups.items()))]


def _shortened(detail: str) -> str:
    """A message without the names that differ from case to case, on one line."""
    return re.sub(r"\s+", " ", re.sub(r"^node '[^']*' ", "", detail)).replace("|", "/").strip()[:160]


def passing_cases(text: str) -> list[Case]:
    """The cases of the installed onnx that a page counts as passing."""
    failing: dict[str, set[str]] = {}
    for row in re.findall(r"^\| (\S+) \| \d+ \| \d+ \| (.*) \|$", text, re.MULTILINE):
        failing[row[0]] = set(re.findall(r"`([^`]+)`", row[1])) | ({"all"} if row[1] == "all" else set())
    return [case for case in cases() if case.operator in failing and not {"all", case.name} & failing[case.operator]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the page instead of writing it")
    parser.add_argument("--only", default="", help="run the cases whose name contains this, and print what fails")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    outcomes = [evaluate(case) for case in cases() if given.only in case.name]
    if given.only:
        for outcome in outcomes:
            print(f"{outcome.case}: {outcome.reason or 'pass'} {_shortened(outcome.detail)}")
        return
    text = page(outcomes)
    if given.check:
        sys.exit(0 if text == PAGE.read_text() else f"{PAGE.name} is stale: run python benchmarks/node_tests.py")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
