"""Residual branches: which there are, what is left without them, and what the report says of it."""

import itertools

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.worker.compressor.graph import nets, residual_nets
from worker.compressor.errors import GraphError
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.counts import count, sources_of_constants, weights_of
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.exporters.onnx import write_onnx
from worker.compressor.graph.proof import prove_shortened
from worker.compressor.graph.residuals import Residuals
from worker.compressor.graph.shortening import shorten, silenced
from worker.compressor.graph.surgery import cut, weight_cuts


def silent_upload(path, rows):
    """The plain second version: the uploaded file, with the tensors of which the report says so set to zero."""
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    alias = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Identity" and n.input[0] in tensors}
    for number, row in enumerate(row for row in rows if row.zero):
        assert row.axes["0"] == [] and row.zero == ("0",)
        zeros = np.zeros_like(numpy_helper.to_array(tensors[row.name]))
        if row.nodes is None:
            tensors[row.name].CopyFrom(numpy_helper.from_array(zeros, row.name))
            continue
        model.graph.initializer.append(numpy_helper.from_array(zeros, f"zeros{number}"))
        for node in model.graph.node:
            for slot, name in enumerate(node.input):
                if node.name in row.nodes and alias.get(name, name) == row.name:
                    node.input[slot] = f"zeros{number}"
    return model


def loaded(kind, folder, **options):
    network, path = nets.load(kind, folder, **options)
    return network, path, Residuals(network, network.sample_shapes)


class TestBranches:
    @pytest.mark.parametrize("kind", [*residual_nets.ALL, residual_nets.Lookalikes], ids=lambda kind: kind.__name__)
    @pytest.mark.parametrize("keep_batchnorm", [False, True])
    def test_those_beside_an_identity_are_found(self, kind, keep_batchnorm, tmp_path):
        _, _, residuals = loaded(kind, tmp_path, keep_batchnorm=keep_batchnorm)
        assert len(residuals.branches) == kind.sums

    def test_a_branch_takes_its_normalisation_along(self, tmp_path):
        _, _, residuals = loaded(residual_nets.PreNorm, tmp_path)
        layers = residuals.branches[1].layers
        assert [name.split("/")[-1] for name in layers] == ["LayerNormalization", "MatMul", "Add", "MatMul", "Add"]

    def test_what_lies_in_no_branch_is_a_layer_all_the_same(self, tmp_path):
        _, _, residuals = loaded(residual_nets.Convolutions, tmp_path)
        outside = set(residuals.layers) - {layer for branch in residuals.branches for layer in branch.layers}
        assert {"/stem/Conv", "/b/Conv", "/skip/Conv", "/head/Gemm"} == outside


class TestShorten:
    @pytest.mark.parametrize("kind", residual_nets.ALL, ids=lambda kind: kind.__name__)
    @pytest.mark.parametrize("keep_batchnorm", [False, True])
    def test_every_choice_computes_the_silent_upload(self, kind, keep_batchnorm, tmp_path):
        network, path, residuals = loaded(kind, tmp_path, keep_batchnorm=keep_batchnorm)
        feeds = nets.samples(network)
        whole, before = nets.reference(path, feeds)[0], {name: a.copy() for name, a in network.tensors.items()}
        for size in range(1, len(residuals.branches) + 1):
            for removed in itertools.combinations(residuals.branches, size):
                made = shorten(network, removed)
                write_onnx(made, tmp_path / "short.onnx")
                got = nets.reference(tmp_path / "short.onnx", feeds)[0]
                assert nets.difference(nets.reference(silent_upload(path, weight_cuts(made)), feeds)[0], got) < 1e-5
                assert nets.difference(whole, got) > 1e-3
                counts, cost = count(made, network.sample_shapes), residuals.cost(removed)
                assert (counts.macs, counts.num_params) == (cost.macs, cost.params)
                gone = {layer for branch in removed for layer in branch.layers}
                assert not gone & {row.name for row in counts.layers}
        assert all((network.tensors[name] == array).all() for name, array in before.items())

    @pytest.mark.parametrize("kind", residual_nets.ALL, ids=lambda kind: kind.__name__)
    def test_the_rows_name_every_weight_that_went(self, kind, tmp_path):
        network, path, residuals = loaded(kind, tmp_path)
        rng = np.random.default_rng(0)  # vectors that are equal by chance would count once
        for name, array in network.tensors.items():
            if array.ndim == 1 and array.dtype == np.float32:
                network.tensors[name] = rng.random(array.shape, np.float32)
        made = shorten(network, residuals.branches)
        uploaded = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
        rows = {(row.name, row.nodes): row for row in weight_cuts(made)}
        assert all(row.axes == {"0": []} and row.name in uploaded for row in rows.values())
        sources, lost = sources_of_constants(network), 0
        for tensor in {name for node in network.nodes for _, name in weights_of(node, sources, network)}:
            origin = network.origins[tensor]
            lost += network.tensors[tensor].size if (origin.source, origin.nodes) in rows else 0
        counts = [count(each, network.sample_shapes).num_params for each in (network, made)]
        assert counts[0] - counts[1] == lost > 0

    def test_a_shared_matrix_is_lost_for_the_nodes_that_went(self, tmp_path):
        network, _, residuals = loaded(residual_nets.Tied, tmp_path)
        made = shorten(network, residuals.branches[:2])
        rows = weight_cuts(made)
        assert len(rows) == 1 and rows[0].nodes == tuple(branch.layers[0] for branch in residuals.branches[:2])
        assert made.tensors.keys() >= {branch.silencers[0].tensor for branch in residuals.branches}

    def test_after_a_cut_of_channels_the_rows_refer_to_the_upload(self, tmp_path):
        network, path, _ = loaded(residual_nets.Convolutions, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        group = next(g for g in analysis.groups if g.layers and "/a1/Conv" in g.layers)
        narrow = cut(network, analysis, {group.id: [0, 2, 3]}).network
        first = next(b for b in Residuals(narrow, network.sample_shapes).branches if "/a1/Conv" in b.layers)
        made = shorten(narrow, [first])
        uploaded = {t.name: list(t.dims) for t in onnx.load(path).graph.initializer}
        rows = weight_cuts(made)
        assert all(row.axes["0"] == [] for row in rows)
        assert any(row.axes.get("1") == [0, 2, 3] and uploaded[row.name][1] == 6 for row in rows)

    def test_an_output_that_is_a_sum_keeps_its_name(self, tmp_path):
        network, path = nets.load(residual_nets.Nested, tmp_path)
        model = onnx.load(path)
        total = next(n.output[0] for n in reversed(model.graph.node) if n.op_type == "Add")
        network.graph.outputs.append(next(n.outputs[0] for n in network.graph if n.outputs[0].name == total))
        network.changed()
        made = shorten(network, Residuals(network, network.sample_shapes).branches)
        assert [port.name for port in made.outputs] == [port.name for port in network.outputs]
        assert total in run(made, nets.samples(network))


class TestProveShortened:
    def test_a_mistake_is_found(self, tmp_path):
        network, _, residuals = loaded(residual_nets.PreNorm, tmp_path)
        first, second = residuals.branches[:2]
        feeds, made = nets.samples(network), shorten(network, [first])
        proof = prove_shortened(network, made, silenced(network, [first]), [first.add], feeds)
        assert proof.error < 1e-6 and not proof.vacuous
        with pytest.raises(GraphError, match="differs from the masked original"):
            prove_shortened(network, made, silenced(network, [second]), [first.add], feeds)

    def test_a_branch_that_does_nothing_proves_nothing(self, tmp_path):
        network, _, residuals = loaded(residual_nets.PostNorm, tmp_path)
        first = residuals.branches[0]
        dead = silenced(network, [first])
        again = Residuals(dead, network.sample_shapes).branches[0]
        proof = prove_shortened(
            dead, shorten(dead, [again]), silenced(dead, [again]), [again.add], nets.samples(network)
        )
        assert proof.vacuous
