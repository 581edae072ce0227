"""What samples say of units, against finite differences and against brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from app.spec.schema import Prune
from tests.worker.compressor.graph import nets
from worker.compressor.data.mixing import filled_up
from worker.compressor.distillation.objective import OutputKind, Scores
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.evaluation import run
from worker.compressor.pruning import activations
from worker.compressor.pruning.activations import observe_costs, observe_inputs
from worker.compressor.pruning.criteria import CRITERIA
from worker.compressor.pruning.elimination import FixedReader, RefittedReader, eliminated
from worker.compressor.pruning.evidence import Evidence, Samples
from worker.compressor.pruning.gradients import BATCH_ROWS, unit_gradients
from worker.compressor.pruning.matrices import matrices_of
from worker.compressor.pruning.reconstruction.layers import linear_layer
from worker.compressor.pruning.reconstruction.least_squares import RIDGE

PRUNE = Prune.model_validate({"structure": "2:4"})


def looked_at(kind, folder, *, labels=None, **options):
    network, _ = nets.load(kind, folder, **options)
    feeds = nets.samples(network, 2 * BATCH_ROWS)
    task = "none" if labels is None else "classification"
    samples = Samples(feeds, labels, task, (OutputKind(Scores.LOGITS, 1.0),), 2 * BATCH_ROWS, 0)
    groups = analyse(network, network.sample_shapes).groups
    return network, groups, samples


def loss(network, feeds, labels, scale=None):
    """Cross-entropy, with the slices that read one unit of one group times `scale`."""
    made = network.copy()
    if scale is not None:
        group, unit, factor = scale
        for part in group.slices:
            array = made.tensors[part.tensor]
            if part.role == "consumes" and array.ndim > 1:
                units = np.atleast_2d(part.units)
                changed = array.astype(np.float32).copy().reshape(len(units), -1, *array.shape[1:])
                for row, piece in zip(units, changed, strict=True):
                    where = (slice(None),) * part.axis + (row == unit,)
                    piece[where] *= factor
                made.tensors[part.tensor] = changed.reshape(array.shape)
    output = next(iter(run(made, feeds).values()))
    return float(F.cross_entropy(torch.from_numpy(output).double(), torch.from_numpy(labels)))


@pytest.mark.parametrize("kind", [nets.Residual, nets.Shuffle])
def test_gates_are_the_derivative_by_a_factor_on_all_that_read_a_unit(kind, tmp_path):
    labels = np.arange(2 * BATCH_ROWS) % 3
    network, groups, samples = looked_at(kind, tmp_path, labels=labels)
    found = unit_gradients(network, groups, samples, "readers")
    group = max(groups, key=lambda g: len(g.slices))
    step, first = 1e-2, {name: feed[:BATCH_ROWS] for name, feed in samples.feeds.items()}
    for unit in range(0, group.num_units, 3):
        higher, lower = (loss(network, first, labels[:BATCH_ROWS], (group, unit, 1 + s)) for s in (step, -step))
        assert found[group.id].gates[0, unit] == pytest.approx((higher - lower) / (2 * step), abs=2e-4, rel=0.02)
    assert found[group.id].gates.shape == (2, group.num_units)
    assert (found[group.id].curvatures >= 0).all() and found[group.id].curvatures.any()


class Stopped(Exception):
    """The run was told to."""


@pytest.mark.parametrize("what", ["gradients", "moments", "activations", "inputs", "costs"])
def test_looking_ends_where_the_run_is_told_to_stop(what, tmp_path):
    network, groups, samples = looked_at(nets.Residual, tmp_path)
    calls = iter(range(1000))

    def check():
        if next(calls) == 1:
            raise Stopped

    evidence = Evidence(network, groups, "readers", network, replace(samples, check=check))
    with pytest.raises(Stopped):
        getattr(evidence, what)
    assert next(calls) == 2


def test_elimination_ends_between_two_rounds_where_the_run_is_told_to_stop():
    rounds = []

    def check():
        rounds.append(1)
        if len(rounds) == 3:
            raise Stopped

    reader = RefittedReader(torch.eye(6).double(), torch.ones(6, 2).double(), np.arange(6))
    with pytest.raises(Stopped):
        eliminated([reader], np.full(6, np.nan), check)
    assert len(rounds) == 3 and len(reader.costs(6).nonzero()[0]) == 4


def test_drawn_labels_follow_the_seed(tmp_path):
    network, groups, samples = looked_at(nets.Residual, tmp_path)
    one, same = (unit_gradients(network, groups, samples, "readers")[0].gates for _ in range(2))
    assert np.array_equal(one, same) and np.abs(one).max() > 0


@pytest.mark.parametrize("kind", [nets.Plain, nets.Shuffle, nets.Nhwc])
@pytest.mark.parametrize("refit", [True, False])
def test_a_cost_is_what_the_layer_loses_when_the_cheapest_units_have_gone_before(refit, kind, tmp_path):
    network, groups, samples = looked_at(kind, tmp_path)
    nodes = {node.name: node for node in network.nodes}
    group = next(g for g in groups if sum(p.role == "consumes" for p in g.slices) == 1)
    part = next(p for p in group.slices if p.role == "consumes")
    layer = linear_layer(nodes[part.node], network)
    feeds = filled_up(samples.feeds, samples.pass_rows, np.random.default_rng(samples.seed))
    rows = layer.unfold(torch.from_numpy(values(network, feeds, layer.node.inputs[0]))).double()
    if refit and layer.bias is not None:
        rows = rows - rows.mean(1, keepdim=True)
    weight = layer.matrix(torch.from_numpy(network.tensors[layer.weight])).double()
    inner = torch.bmm(rows.transpose(1, 2), rows) / rows.shape[1]
    energy = float(((inner @ weight) * weight).sum())
    damping = RIDGE * refit * inner.diagonal(dim1=1, dim2=2).mean(1)
    inner = inner + damping[:, None, None] * torch.eye(inner.shape[1])
    units = np.repeat(np.atleast_2d(part.units), layer.num_inputs // np.atleast_2d(part.units).shape[1], axis=1)

    def lost(gone):
        """By the whole layer, refitted to the inputs that are left or as it is."""
        total = 0.0
        for row in range(layer.num_groups):
            there, h, w = torch.from_numpy(~np.isin(units[row], gone)), inner[row], weight[row]
            change = torch.where(there[:, None], 0.0, w)
            if refit:
                change[there] -= torch.linalg.solve(h[there][:, there], h[there] @ change)
            total += float((change * (h @ change)).sum())
        return total / energy

    found, gone, highest = observe_costs(network, groups, samples, refit=refit)[group.id], [], 0.0
    while len(gone) < group.num_units:
        left = [unit for unit in range(group.num_units) if unit not in gone]
        more = {unit: lost([*gone, unit]) - lost(gone) for unit in left}
        cheapest = min(more, key=more.get)
        highest = max(highest, more[cheapest])
        assert cheapest == min(left, key=lambda unit: found[unit])
        assert found[cheapest] == pytest.approx(highest, rel=1e-4, abs=1e-12)
        gone.append(cheapest)


@pytest.mark.parametrize("kind", [nets.Plain, nets.Residual])
def test_a_layer_too_wide_for_an_inverse_is_summed_up_without_its_matrix(kind, tmp_path, monkeypatch):
    network, _, samples = looked_at(kind, tmp_path)
    whole = observe_inputs(network, samples)
    monkeypatch.setattr(activations, "MAX_INPUTS", 0)
    found = observe_inputs(network, samples)
    feeds = filled_up(samples.feeds, samples.pass_rows, np.random.default_rng(samples.seed))
    for node in network.nodes:
        if (layer := linear_layer(node, network)) is not None:
            rows = layer.rows(torch.from_numpy(values(network, feeds, node.outputs[0]))).double()
            energy = (rows.var(1, correction=0) if layer.bias is not None else rows.square().mean(1)).sum()
            wide = found[layer.weight]
            np.testing.assert_allclose(wide.norms, whole[layer.weight].norms, rtol=1e-4, atol=1e-7)
            np.testing.assert_allclose(wide.costs, wide.norms**2 / float(energy), rtol=1e-3, atol=1e-9)


def test_of_two_units_that_say_the_same_one_can_be_spared():
    inner = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    inverse = torch.linalg.inv(inner + 1e-6 * torch.eye(3))
    weight = torch.tensor([[1.0], [1.0], [0.5]], dtype=torch.float64)
    first, alone, last = eliminated([RefittedReader(inverse, weight, np.array([0, 2, 1]))], np.full(4, np.nan))[
        [0, 1, 2]
    ]
    assert first < 1e-5 and alone == pytest.approx(0.25, rel=1e-4) and last == pytest.approx(4, rel=1e-4)


def test_where_nothing_is_refitted_two_units_go_together_that_cancel_out():
    inner = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 0.5]], dtype=torch.float64)
    weight = torch.tensor([[1.0], [-0.8], [0.9]], dtype=torch.float64)
    found = eliminated([FixedReader(inner, weight, np.array([0, 1, 2]), 3)], np.full(3, np.nan))
    assert found[2] == pytest.approx(0.405) and found[1] == pytest.approx(0.64) and found[0] == pytest.approx(0.64)
    pair = eliminated([FixedReader(inner, weight, np.array([0, 1, 2]), 3)], np.array([np.nan, np.nan, 0.3]))
    assert pair[1] == pytest.approx(0.64) and pair[0] == pytest.approx(0.64) and pair[2] == pytest.approx(0.705)


def test_wide_groups_go_several_units_at_once():
    rng = np.random.default_rng(0)
    inverse = torch.linalg.inv(torch.from_numpy(np.cov(rng.standard_normal((200, 400)))))
    weight, others = torch.from_numpy(rng.standard_normal((200, 3))), np.full(201, np.nan)
    others[200] = 0.0  # what no reader reads, but a layer too wide for one does
    found = eliminated([RefittedReader(inverse, weight, np.arange(200))], others)
    assert len(set(found)) == 201 and found.argmin() == 200 and np.isfinite(found).all()


def values(network, feeds, name):
    """A value inside the network."""
    from worker.compressor.graph.evaluation import Stepper, as_tensor

    stepper = Stepper(network, {key: as_tensor(feed) for key, feed in feeds.items()}, keep=frozenset([name]))
    with torch.no_grad():
        while stepper.peek():
            stepper.step()
    return stepper.value(name).numpy()


@pytest.mark.parametrize("name", sorted(CRITERIA))
@pytest.mark.parametrize("kind", [nets.Residual, nets.Separable, nets.Shuffle, nets.Sequence])
def test_every_criterion_scores_every_group(kind, name, tmp_path):
    network, groups, samples = looked_at(kind, tmp_path)
    evidence = Evidence(network, groups, "readers", network, samples)
    for group in groups:
        found = CRITERIA.get(name)().scores(group, evidence, np.random.default_rng(0))
        assert found.shape == (group.num_units,) and np.isfinite(found).all() and (found >= 0).all()
        assert found.any()


def test_a_folded_batchnorm_leaves_its_scale_in_the_spread_of_the_values(tmp_path):
    kept, folded = (looked_at(nets.Plain, tmp_path, keep_batchnorm=keep_batchnorm) for keep_batchnorm in (True, False))
    scores = [
        CRITERIA.get("bn_scale")().scores(groups[0], Evidence(network, groups, "readers", network, samples), None)
        for network, groups, samples in (kept, folded)
    ]
    assert np.corrcoef(scores)[0, 1] > 0.5


class TestWeightScores:
    def test_wanda_ranks_within_the_row_of_an_output(self, tmp_path):
        network, groups, samples = looked_at(nets.Plain, tmp_path)
        evidence = Evidence(network, groups, "readers", network, samples)
        matrix = next(m for m in matrices_of(network, PRUNE)[0] if m.node.op == "Conv" and m.node.inputs[0] != "x")
        x = values(network, samples.feeds, matrix.node.inputs[0])
        layer = linear_layer(matrix.node, network)
        rows = layer.unfold(torch.from_numpy(x))[0].double()
        rows = rows - rows.mean(0) if layer.bias is not None else rows
        sizes = rows.square().mean(0).sqrt().numpy()
        weight = np.abs(network.tensors[matrix.tensor]).reshape(len(network.tensors[matrix.tensor]), -1) * sizes
        found = CRITERIA.get("wanda")().weight_scores(matrix, evidence, None).reshape(weight.shape)
        for row, scores in zip(weight, found, strict=True):
            assert (np.argsort(row) == np.argsort(scores)).mean() > 0.95 and scores.max() == 1

    def test_a_reconstruction_score_is_what_the_best_refit_without_the_weight_loses(self, tmp_path):
        network, groups, samples = looked_at(nets.Plain, tmp_path)
        evidence = Evidence(network, groups, "readers", network, samples)
        matrix = next(m for m in matrices_of(network, PRUNE)[0] if m.node.op == "Conv" and m.node.inputs[0] != "x")
        layer = linear_layer(matrix.node, network)
        rows = layer.unfold(torch.from_numpy(values(network, samples.feeds, matrix.node.inputs[0])))[0].double()
        rows = rows - rows.mean(0) if layer.bias is not None else rows
        weight = layer.matrix(torch.from_numpy(network.tensors[matrix.tensor]))[0].double()
        inner = rows.T @ rows / len(rows)
        energy = float(((inner @ weight) * weight).sum())
        inner = inner + RIDGE * inner.diagonal().mean() * torch.eye(len(inner))
        found = layer.matrix(torch.from_numpy(CRITERIA.get("reconstruction")().weight_scores(matrix, evidence, None)))[
            0
        ]
        for d, o in [(0, 0), (3, 1), (len(weight) - 1, weight.shape[1] - 1)]:
            others = torch.arange(len(weight)) != d
            change = weight[:, o].clone()
            change[others] -= torch.linalg.solve(inner[others][:, others], inner[others] @ weight[:, o])
            assert float(found[d, o]) == pytest.approx(float(change @ inner @ change) / energy, rel=1e-4)

    def test_moments_are_those_of_the_gradients(self, tmp_path):
        labels = np.arange(2 * BATCH_ROWS) % 3
        network, groups, samples = looked_at(nets.Residual, tmp_path, labels=labels)
        moments = Evidence(network, groups, "readers", network, samples).moments
        matrix = matrices_of(network, PRUNE)[0][1]
        first = {name: feed[:BATCH_ROWS] for name, feed in samples.feeds.items()}
        second = {name: feed[BATCH_ROWS:] for name, feed in samples.feeds.items()}
        index, step, slopes = (0,) * network.tensors[matrix.tensor].ndim, 1e-2, []
        for feeds, own in ((first, labels[:BATCH_ROWS]), (second, labels[BATCH_ROWS:])):
            found = []
            for sign in (1, -1):
                made = network.copy()
                made.tensors[matrix.tensor] = made.tensors[matrix.tensor].copy()
                made.tensors[matrix.tensor][index] += sign * step
                found.append(loss(made, feeds, own))
            slopes.append((found[0] - found[1]) / (2 * step))
        assert moments[matrix.tensor].size[index] == pytest.approx(np.abs(slopes).mean(), rel=0.02, abs=2e-4)
        assert moments[matrix.tensor].square[index] == pytest.approx(np.square(slopes).mean(), rel=0.04, abs=2e-4)
