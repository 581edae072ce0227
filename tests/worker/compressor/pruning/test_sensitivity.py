"""Loss curves, and what is measured, against masks and refits made by other code."""

from __future__ import annotations

import numpy as np
import pytest

from app.spec.schema import Prune
from tests.worker.compressor.graph import nets
from worker.compressor.errors import GraphError
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.surgery import cut
from worker.compressor.pruning.evidence import Evidence
from worker.compressor.pruning.reconstruction.lockstep import reconstruct
from worker.compressor.pruning.sensitivity import Curve, Meter, Point
from worker.compressor.pruning.structures.channels import Channels


def point(num_kept, loss):
    return Point(0.0, num_kept, {"divergence": loss})


WHOLE = {"divergence": 0.0}


class TestCurve:
    def test_it_goes_through_what_was_measured(self):
        curve = Curve(10, WHOLE, [point(8, 0.01), point(4, 0.09)])
        assert [curve(kept) for kept in (10, 8, 4)] == pytest.approx([0, 0.01, 0.09])

    def test_the_root_is_linear_between_and_beyond(self):
        curve = Curve(10, WHOLE, [point(8, 0.01), point(4, 0.09)])
        assert [curve(kept) ** 0.5 for kept in (9, 6, 2)] == pytest.approx([0.05, 0.2, 0.4])

    def test_it_never_falls_as_units_go(self):
        curve = Curve(10, WHOLE, [point(8, 0.04), point(6, 0.01), point(4, 0.09)])
        assert curve(6) == curve(8) == pytest.approx(0.04)

    def test_losses_are_above_those_of_the_whole(self):
        curve = Curve(10, {"divergence": 0.05}, [point(8, 0.06), point(4, 0.14)])
        assert [curve(kept) for kept in (10, 8, 4)] == pytest.approx([0, 0.01, 0.09])

    @pytest.mark.parametrize("figures", [None, {"divergence": None}])
    def test_a_cut_that_cannot_be_or_gives_no_numbers_is_worse_than_any(self, figures):
        curve = Curve(10, WHOLE, [point(8, 0.01), Point(0.5, 5, figures)])
        assert curve(8) == pytest.approx(0.01) and curve(5) > 1e6 and curve(2) >= curve(5)

    def test_a_group_that_rounding_leaves_whole_has_no_loss(self):
        assert Curve(4, WHOLE, [point(4, 0.0)])(4) == 0.0


class Everything:
    """Keeps all figures, and counts how many were asked for in vain."""

    def __init__(self):
        self.figures, self.missed = {}, 0

    def get(self, group, units):
        found = self.figures.get((group.id, units.tobytes()))
        self.missed += found is None
        return found

    def put(self, group, units, figures):
        self.figures[group.id, units.tobytes()] = figures


@pytest.fixture
def network(tmp_path):
    return nets.load(nets.Residual, tmp_path)[0]


def structure(network, **spec):
    prune = Prune.model_validate({"target": {"macs": "50%"}, "round_to": 1, **spec})
    shapes = {port.name: network.sample_shapes[port.name] for port in network.inputs}
    return Channels(network, shapes, prune, lambda groups: Evidence(network, groups))


def meter(network, feeds, mend=lambda made, readers: made, kept=None):
    wanted = next(iter(run(network, feeds).values()))

    def examine(made):
        return {"divergence": float(np.square(next(iter(run(made, feeds).values())) - wanted).mean())}

    return Meter(network, mend, examine, {"divergence": 0.0}, kept or Everything(), lambda share: None)


class TestPoints:
    def test_a_cut_loses_what_masking_loses(self, network):
        feeds, channels = nets.samples(network, 12), structure(network)
        found = 0
        for choice in channels.candidates(np.random.default_rng(0), {}):
            group = channels.analysis.groups[choice.group]
            for told in meter(network, feeds).points(channels.analysis, choice, (0.3, 0.6)):
                masked = network.copy()
                for piece in group.slices:
                    if piece.role == "consumes":
                        gone = (piece.units >= 0) & ~np.isin(piece.units, choice.units(told.num_kept))
                        masked.tensors[piece.tensor] = masked.tensors[piece.tensor].copy()
                        np.moveaxis(masked.tensors[piece.tensor], piece.axis, 0)[gone] = 0
                want = meter(network, feeds).examine(masked)["divergence"]
                assert told.figures["divergence"] == pytest.approx(want, rel=1e-4) and want > 0
                assert told.num_kept >= (1 - told.ratio) * group.num_units > told.num_kept - 1
                found += 1
        assert found >= 4

    def test_the_readers_are_what_is_refitted(self, network):
        channels, asked = structure(network), []

        def mend(made, readers):
            asked.append(readers)
            return made

        for choice in channels.candidates(np.random.default_rng(0), {}):
            meter(network, nets.samples(network, 4), mend).points(channels.analysis, choice, (0.5,))
        nodes = {node.name: node for node in network.nodes}
        assert asked and all(nodes[name].op in ("Conv", "Gemm", "MatMul") for readers in asked for name in readers)

    def test_what_is_known_is_not_measured_again(self, network):
        feeds, channels, kept = nets.samples(network, 4), structure(network), Everything()
        choices = channels.candidates(np.random.default_rng(0), {})
        first = [meter(network, feeds, kept=kept).points(channels.analysis, c, (0.5,)) for c in choices]
        missed = kept.missed
        again = [meter(network, feeds, kept=kept).points(channels.analysis, c, (0.5,)) for c in choices]
        assert again == first and kept.missed == missed == len(choices)

    def test_a_group_that_cannot_be_cut_has_no_figures(self, network, monkeypatch):
        def refuse(*arguments):
            raise GraphError("no")

        monkeypatch.setattr("worker.compressor.graph.surgery.cut", refuse)
        channels = structure(network)
        choice = channels.candidates(np.random.default_rng(0), {})[0]
        assert meter(network, nets.samples(network, 4)).points(channels.analysis, choice, (0.5,))[0].figures is None


class TestLosses:
    def test_every_group_has_a_curve_and_progress_is_told(self, network):
        told, channels = [], structure(network)
        choices = channels.candidates(np.random.default_rng(0), {})
        one = meter(network, nets.samples(network, 8))
        losses = Meter(one.network, one.mend, one.examine, one.whole, one.kept, told.append).losses(
            channels.analysis, choices
        )
        assert losses.keys() == {choice.group for choice in choices} and told[-1] == 1 and told == sorted(told)
        for choice in choices:
            values = [losses[choice.group](kept) for kept in sorted(choice.counts, reverse=True)]
            assert values[0] == 0 and values == sorted(values) and values[-1] > 0


class TestOnly:
    def test_no_other_layer_is_refitted_and_those_become_better(self, network):
        feeds, channels = nets.samples(network, 64), structure(network)
        choice = channels.candidates(np.random.default_rng(0), {})[0]
        group = channels.analysis.groups[choice.group]
        made = cut(network, channels.analysis, {group.id: choice.units(choice.num_units // 2)}).network
        readers = frozenset(piece.node for piece in group.slices if piece.role == "consumes")
        fitted, repair = reconstruct(network, made, feeds, refit=True, batchnorm=False, only=readers)
        assert set(repair.refitted) <= readers and repair.refitted
        changed = {name for name in made.tensors if not np.array_equal(made.tensors[name], fitted.tensors[name])}
        mine = {name for node in made.nodes if node.name in readers for name in node.inputs}
        assert changed and changed <= mine
        examine = meter(network, feeds).examine
        assert examine(fitted)["divergence"] < examine(made)["divergence"]
