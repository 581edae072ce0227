"""Whole attempts on networks that are not float32: what comes back is in the user's own dtype."""

import numpy as np
import onnx
import pytest
from onnx import version_converter
from safetensors.torch import load_file

from tests.worker.compressor.graph.dtypes import DTYPES, converted
from tests.worker.compressor.networks import compressed, export, export_fixed, inspected, pictures, trained

STEPS = [{"prune": {"target": {"macs": "50%"}}}, {"distill": {"epochs": 2, "batch_size": 40}}]
SPEC = {"task": "classification", "outputs": ["onnx", "torchscript"], "steps": STEPS}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    net = trained()
    export(net, folder)
    export_fixed(net, folder)
    model = onnx.load(folder / "net.onnx")
    newest = version_converter.convert_version(model, 22)
    newest.ir_version = 10
    for name, source, dtype, ports in [
        ("float16", model, "float16", True),
        ("mixed", model, "float16", False),
        ("fixed16", onnx.load(folder / "fixed.onnx"), "float16", True),
        ("bfloat16", newest, "bfloat16", True),
        ("float64", model, "float64", True),
        ("old", model, "bfloat16", True),
    ]:
        onnx.save(converted(source, dtype, ports=ports), folder / f"{name}.onnx")
    x, y = pictures(400, 1)
    np.savez(folder / "data.npz", x=(x.astype(np.float32) / 255 - 0.4) / 0.25, y=y)
    return folder


@pytest.mark.parametrize("name", ["float16", "mixed", "fixed16", "bfloat16", "float64"])
def test_network_comes_back_trained_in_its_own_dtype(files, tmp_path, name):
    attempt, outcome = compressed(tmp_path, files / f"{name}.onnx", files / "data.npz", SPEC)
    assert outcome["status"] == "succeeded", outcome
    result, output = outcome["result"], attempt.folder / "output"
    assert result["compressed"]["accuracy"] > 0.85 and result["ratio"]["macs"] <= 0.5
    before, after = onnx.load(files / f"{name}.onnx"), onnx.load(output / "model.onnx")
    assert list(before.graph.input) == list(after.graph.input)
    assert list(before.graph.output) == list(after.graph.output)
    weights = {tensor.data_type for tensor in after.graph.initializer}
    assert weights == {tensor.data_type for tensor in before.graph.initializer}
    dtype = {"mixed": "float16", "fixed16": "float16"}.get(name, name)
    assert DTYPES[dtype][1] in weights
    assert {str(t.dtype) for t in load_file(output / "weights.safetensors").values()} == {f"torch.{dtype}"}
    runtimes = {row["runtime"] for row in result["compressed"]["latency_ms"]}
    assert runtimes == {"onnxruntime" if dtype == "float16" else "torch"}


def test_dtype_that_the_operators_do_not_have_is_refused(files, tmp_path):
    _, outcome = inspected(tmp_path / "model", files / "old.onnx")
    assert outcome["status"] == "rejected" and outcome["error"]["code"] == "unsupported_dtype"
    assert "Conv" in outcome["error"]["detail"] and outcome["error"]["class"] == "user"
