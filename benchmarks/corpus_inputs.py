"""What the networks of a corpus take: a small table by file name, and samples made from it.

A row is `{name, dtype, shape, values}`: `shape` with names for free axes, `values` one of `normal`, `uniform`, `strokes`,
`[low, high]` (whole numbers below `high`) or `ones`; `{name, value}` is an argument that is no tensor.
"""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

Feeds = dict[str, np.ndarray]
Rows = list[dict[str, Any]]


def _row(
    name: str, shape: list[Any], values: Any = "normal", dtype: str = "float32", scale: float = 1.0
) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": shape, "values": values, "scale": scale}


def _picture(size: int, name: str = "x", **more: Any) -> Rows:
    return [_row(name, ["batch", 3, size, size], **more)]


def _words(length: int = 32, high: int = 20000) -> Rows:
    return [
        _row("ids", ["batch", length], [5, high], "int64"),
        _row("mask", ["batch", length], "ones", "int64"),
    ]


#: File name pattern → inputs; the first that fits. Free axes other than the batch are given a length here.
INPUTS: dict[str, Rows] = {
    "light_*": _picture(224),
    "ch_ppocr_mobile_v2.0_cls_infer.onnx": [_row("x", ["batch", 3, 48, 192])],
    # It answers noise with about 1e-5, where onnxruntime's own sigmoid is off by a percent from one run to another.
    "ch_PP-OCRv4_det_infer.onnx": _picture(96, values="strokes"),
    "open-nsfw.onnx": [_row("input:0", ["batch", 224, 224, 3], "uniform", scale=255.0)],
    "model.onnx": [_row("bytes", ["batch", 2048], [0, 256], "int32")],
    "dnsmos_model_v8.onnx": [_row("input_1", ["batch", 900, 120])],
    "dnsmos_sig.onnx": [_row("input_1", ["batch", 901, 161])],
    "plcmos_v2.onnx": [_row("degraded_audio", ["batch", 1, 200, 257]), _row("rater_embed", ["batch", 64])],
    "silero_vad_16k_sequence.onnx": [_row("input", [3, 576]), _row("h", [1, 1, 128]), _row("c", [1, 1, 128])],
    "silero_vad_op18_ifless.onnx": [
        _row("input", ["batch", 576]),
        _row("sr", [], [16000, 16001], "int64"),
        _row("state", [2, "batch", 128]),
    ],
    "silero_vad.jit": [_row("x", ["batch", 512]), {"name": "sr", "value": 16000}],
    "crepe_tiny.*": [_row("audio", ["batch", 1024])],
    "mtcnn_rnet.*": _picture(24),
    "mtcnn_onet.*": _picture(48),
    "vgg11_bn.*": _picture(32),
    "bert_tiny.*": _words(),
    "distilbert_tiny.*": _words(),
    "*": _picture(64),
}


def inputs_of(file: Path) -> Rows:
    """The rows for this file: `NAME.inputs.json` beside it (see `describe_inputs`), else the table's."""
    import json

    beside = file.with_name(f"{file.name.split('.')[0]}.inputs.json")
    if beside.exists():
        rows: Rows = json.loads(beside.read_text())
        return rows
    return next(rows for pattern, rows in INPUTS.items() if fnmatch.fnmatch(file.name, pattern))


def signature(file: Path, inputs: Rows) -> Rows:
    """`inputs` of the API for this upload: sizes that the file fixes are the file's, names are the file's."""
    rows = []
    for name, row, shape in _matched(file, inputs):
        if "value" in row:
            rows.append({"name": name, "value": row["value"]})
        else:
            rows.append({"name": name, "dtype": row["dtype"], "shape": shape})
    return rows


def make_feeds(file: Path, inputs: Rows, count: int, rng: np.random.Generator, *, free: bool = False) -> Feeds:
    """Samples by input name; a batch that the file fixes is kept unless `free`."""
    feeds = {}
    for (name, row, shape), described in zip(_matched(file, inputs), inputs, strict=True):
        if "value" in row:
            continue
        asked = described["shape"] if free else shape
        feeds[name] = _samples(row, [count if isinstance(size, str) else size for size in asked], rng)
    return feeds


def _matched(file: Path, inputs: Rows) -> list[tuple[str, dict[str, Any], list[Any]]]:
    """Name in the file, row of the table, and shape with what the file fixes put in."""
    if file.suffix != ".onnx":
        return [(row["name"], row, row.get("shape", [])) for row in inputs]
    graph = onnx.load(str(file), load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    ports = [value for value in graph.input if value.name not in weights]
    found = []
    for port, row in zip(ports, inputs, strict=True):
        sizes = [dimension.dim_value for dimension in port.type.tensor_type.shape.dim]
        shape = [fixed if fixed > 0 else size for fixed, size in zip(sizes, row["shape"], strict=True)]
        found.append((port.name, row, shape))
    return found


def _samples(row: dict[str, Any], shape: list[int], rng: np.random.Generator) -> np.ndarray:
    values, dtype = row["values"], row["dtype"]
    if values == "ones":
        return np.ones(shape, dtype)
    if isinstance(values, list):
        return rng.integers(values[0], values[1], shape).astype(dtype)
    if values == "strokes":
        return _strokes(shape, rng).astype(dtype)
    made = rng.standard_normal(shape) if values == "normal" else rng.random(shape)
    return np.asarray(made * row["scale"]).astype(dtype)


def _strokes(shape: list[int], rng: np.random.Generator) -> np.ndarray:
    """(N, C, H, W) pictures of lines of dark upright strokes: what a network that looks for text finds."""
    rows, columns = shape[2:]
    pictures = 1 + 0.05 * rng.standard_normal(shape)
    for picture in pictures:
        for top in range(rows // 8, rows - rows // 8, rows // 4):
            left = int(rng.integers(0, columns // 8))
            while left < columns - columns // 8:
                width, height = int(rng.integers(2, 5)), int(rng.integers(6, 12))
                picture[:, top : top + height, left : left + width] -= 2
                left += width + int(rng.integers(2, 5))
    return pictures


def give_random_weights(file: Path, folder: Path) -> Path:
    """A copy whose ConstantOfShape weights are random (a network of constants computes a constant), else the file."""
    if not file.name.startswith("light_"):
        return file
    model = onnx.load(str(file))
    rng = np.random.default_rng(11)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    slots = {name: (node, slot) for node in model.graph.node for slot, name in enumerate(node.input)}
    for node in [node for node in model.graph.node if node.op_type == "ConstantOfShape" and node.input[0] in shapes]:
        array = _weight(*slots[node.output[0]], shapes[node.input[0]].tolist(), rng)
        model.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        model.graph.node.remove(node)
    used = {name for node in model.graph.node for name in node.input}
    for value in [value for value in model.graph.input if value.name not in used]:
        model.graph.input.remove(value)
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)
    listed = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.name not in listed:  # IR 3 wants them there
            model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    written = folder / file.name
    onnx.save(model, str(written))
    return written


def _weight(node: onnx.NodeProto, slot: int, shape: list[int], rng: np.random.Generator) -> np.ndarray:
    """He's normal weights; scales below one, so that sums of branches stay small; positive variances."""
    if node.op_type in ("Conv", "Gemm") and slot == 1:
        fan_in = float(np.prod(shape[1:]))
        gain = 2.0 if node.op_type == "Conv" else 0.1
        return (rng.standard_normal(shape) * np.sqrt(gain / fan_in)).astype(np.float32)
    if node.op_type == "BatchNormalization" and slot in (1, 4):
        low, high = (0.4, 0.8) if slot == 1 else (0.7, 1.3)
        return rng.uniform(low, high, shape).astype(np.float32)
    if node.op_type == "Unsqueeze":  # a scale or shift that is applied by Mul and Add
        return rng.uniform(0.3, 0.9, shape).astype(np.float32)
    return (rng.standard_normal(shape) * 0.1).astype(np.float32)
