"""What a prune step excludes leaves the job as it came, to the bit, whatever is repaired and trained around it."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tests.worker.compressor.networks import SPEC, artifact, compressed, export, trained


def tensors(path):
    """Weights by the name of the layer that reads them."""
    graph = onnx.load(path).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {node.name: [arrays[name] for name in node.input if name in arrays] for node in graph.node}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The network with its BatchNorm folded away, and with it."""
    folder = tmp_path_factory.mktemp("plain")
    net = trained()
    export(net, folder, "folded")
    torch.onnx.export(
        net, (torch.zeros(2, 1, 8, 8),), str(folder / "normalised.onnx"), dynamo=False, input_names=["image"],
        output_names=["logits"], dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}}, do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )  # fmt: skip
    return folder


def kept(folder, files, tmp_path, source, prune, *steps):
    spec = SPEC | {"steps": [{"prune": {"target": {"params": "70%"}} | prune}, *steps]}
    attempt, outcome = compressed(tmp_path, folder / f"{source}.onnx", files / "labelled.npz", spec)
    assert outcome["status"] == "succeeded", outcome
    return tensors(folder / f"{source}.onnx"), tensors(artifact(attempt, "model.onnx")), attempt


def same(before, after):
    return len(before) == len(after) and all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


class TestExclude:
    @pytest.mark.parametrize(
        ("prune", "steps"),
        [
            ({}, []),
            ({"recovery": {"distill": 10}}, []),
            ({}, [{"finetune": {"epochs": 1, "batch_size": 40}}]),
            ({"sparsity_training": {"epochs": 1, "strength": 1e-3}}, []),
            ({"structure": "weights", "target": {"sparsity": "50%"}}, [{"distill": {"epochs": 1}}]),
        ],
        ids=["refit", "distilled", "finetuned", "sparsified", "masked"],
    )
    def test_excluded_layer_leaves_as_it_came(self, plain, files, tmp_path, prune, steps):
        before, after, _ = kept(plain, files, tmp_path, "folded", {"exclude": ["/conv2*"]} | prune, *steps)
        assert same(before["/conv2/Conv"], after["/conv2/Conv"])
        assert not same(before["/fc1/Gemm"], after["/fc1/Gemm"])

    @pytest.mark.parametrize("steps", [[], [{"finetune": {"epochs": 1, "batch_size": 40}}]], ids=["refit", "finetuned"])
    def test_excluded_normalisation_keeps_its_statistics(self, plain, files, tmp_path, steps):
        before, after, _ = kept(plain, files, tmp_path, "normalised", {"exclude": ["/bn2*", "/conv2*"]}, *steps)
        for name in ("/bn2/BatchNormalization", "/conv2/Conv"):
            assert same(before[name], after[name])
        assert not same(before["/fc1/Gemm"], after["/fc1/Gemm"])

    def test_inserted_normalisation_goes_round_it(self, plain, files, tmp_path):
        step = {"distill": {"epochs": 1, "batch_size": 40, "normalisation": "insert"}}
        before, after, _ = kept(plain, files, tmp_path, "folded", {"exclude": ["/stem*"]}, step)
        assert same(before["/stem/Conv"], after["/stem/Conv"])
        assert not same(before["/conv1/Conv"], after["/conv1/Conv"])

    def test_layers_that_it_reads_stay_whole_and_say_why(self, plain, files, tmp_path):
        _, _, attempt = kept(plain, files, tmp_path, "folded", {"exclude": ["/fc2*"]})
        rows = {row["name"]: row for row in json.loads(artifact(attempt, "report.json").read_text())["layers"]}
        assert rows["/fc1/Gemm"]["kept_because"] == "read by '/fc2/Gemm', which the spec leaves out"
        assert rows["/fc1/Gemm"]["shape_after"][0] == rows["/fc1/Gemm"]["shape_before"][0]
