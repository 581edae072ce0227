"""Single operators on the clock, the widths of a layer in turn, by the shortest times; the machine is held for a layer at a time.

What it takes to run nothing is taken off: a network pays it once, not for every layer.
Question: `{layers: [[file…]…], threads}`; answer: `{seconds: [[…]…], alone}`, None for a file that does not run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from worker.compressor.errors import CompressorError
from worker.compressor.evaluation.isolated import answer
from worker.compressor.evaluation.latency import interleaved, machine_lock
from worker.compressor.evaluation.runtime import OnnxRunner, open_onnx

SECONDS, MAX_SECONDS = 0.2, 4.0
#: No operator is done sooner.
LEAST = 1e-7


def measure(question: dict[str, Any]) -> dict[str, Any]:
    """The shortest time of every file."""
    rows, was_alone, nothing = [], True, _nothing(question["threads"])
    for files in question["layers"]:
        calls = [_call(Path(file), question["threads"]) for file in files]
        with machine_lock() as is_alone:
            idle, *times = interleaved([nothing, *filter(None, calls)], SECONDS, MAX_SECONDS)
        found = iter(times)
        rows.append([max(min(next(found)) - min(idle), LEAST) if call else None for call in calls])
        was_alone &= is_alone
    return {"seconds": rows, "alone": was_alone}


def _nothing(threads: int) -> Callable[[], object]:
    """A network that hands one number on."""
    port = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "nothing", port[:1], port[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    return partial(OnnxRunner(model.SerializeToString(), threads).run, (np.zeros(1, np.float32),))


def _call(file: Path, threads: int) -> Callable[[], object] | None:
    """One forward pass on random values; None where the runtime refuses the operator by itself."""
    rng = np.random.default_rng(0)
    feeds = tuple(_random(port, rng) for port in onnx.load(file).graph.input)
    try:
        runner = open_onnx(file, threads)
        runner.run(feeds)
    except CompressorError:
        return None
    except Exception as error:
        if type(error).__module__.startswith("onnxruntime"):
            return None
        raise
    return partial(runner.run, feeds)


def _random(port: onnx.ValueInfoProto, rng: np.random.Generator) -> np.ndarray:
    tensor = port.type.tensor_type
    shape = [dim.dim_value for dim in tensor.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return np.asarray(rng.standard_normal(shape)).astype(dtype) if dtype.kind not in "iub" else np.zeros(shape, dtype)


if __name__ == "__main__":
    answer(measure)
