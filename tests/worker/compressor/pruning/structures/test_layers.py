"""Which residual branches go: `layers`."""

from __future__ import annotations

import numpy as np
import pytest

from app.spec.schema import Prune
from tests.worker.compressor.graph import nets, residual_nets
from worker.compressor.distillation.objective import OutputKind, Scores
from worker.compressor.errors import DataNeeded, NothingRemoved, TargetUnreachable
from worker.compressor.graph.counts import count
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.residuals import Residuals
from worker.compressor.graph.shortening import shorten, silenced
from worker.compressor.pruning.criteria import CRITERIA
from worker.compressor.pruning.evidence import Evidence, Samples
from worker.compressor.pruning.structures.layers import Layers

SCORERS = sorted(name for name in CRITERIA if "layers" in CRITERIA.get(name).structures)


def structure(network, data=True, **spec):
    prune = Prune.model_validate({"structure": "layers", "target": {"macs": "50%"}} | spec)
    samples = Samples(nets.samples(network, 16), None, "none", (OutputKind(Scores.LOGITS, 1.0),), 16, 0)
    evidence = Evidence(network, [], "readers", network, samples) if data else Evidence(network, [])
    return Layers(network, network.sample_shapes, prune, lambda groups: evidence)


def share_of(network, share):
    return {"macs": int(count(network, network.sample_shapes).macs * share)}


@pytest.fixture
def network(tmp_path):
    return nets.load(residual_nets.PreNorm, tmp_path)[0]


class TestChoose:
    @pytest.mark.parametrize("criterion", SCORERS)
    def test_the_ceiling_is_met_by_every_criterion(self, criterion, network):
        ceilings = share_of(network, 0.6)
        skips = structure(network, criterion=criterion).choose(ceilings, np.random.default_rng(0), {})
        made = count(shorten(network, skips.removed), network.sample_shapes)
        assert 1 <= len(skips.removed) < 4 and made.macs <= ceilings["macs"]

    @pytest.mark.parametrize("number", [1, 3])
    @pytest.mark.parametrize("criterion", ["activation", "reconstruction", "l2"])
    def test_the_branch_that_does_least_goes_first(self, criterion, number, network):
        branch = Residuals(network, network.sample_shapes).branches[number]
        for node in network.nodes:
            for name in node.inputs if node.outputs[0] in branch.nodes else ():
                if name in network.tensors and network.tensors[name].dtype == np.float32:
                    network.tensors[name] = network.tensors[name] * np.float32(0.1)
        skips = structure(network, criterion=criterion).choose(share_of(network, 0.9), np.random.default_rng(0), {})
        assert [found.add for found in skips.removed] == [branch.add]

    def test_a_branch_with_a_layer_that_is_left_out_stays(self, network):
        spec = {"exclude": ["*ups.0*"], "criterion": "random"}
        skips = structure(network, **spec).choose(share_of(network, 0.5), np.random.default_rng(0), {})
        assert not any("ups.0" in layer for branch in skips.removed for layer in branch.layers)
        assert skips.kept_because["/ups.0/MatMul"] == "left out by the spec"
        assert "'/ups.0/MatMul', which the spec leaves out" in skips.kept_because["/downs.0/MatMul"]
        assert "/downs.1/MatMul" not in skips.kept_because

    def test_what_is_refused_stays_and_others_make_up_for_it(self, network):
        first = structure(network).choose(share_of(network, 0.7), np.random.default_rng(0), {})
        refused = {branch.add: "no proof" for branch in first.removed}
        second = structure(network).choose(share_of(network, 0.7), np.random.default_rng(0), refused)
        assert not {branch.add for branch in second.removed} & refused.keys()
        assert all(second.kept_because[layer] == "no proof" for branch in first.removed for layer in branch.layers)

    def test_what_a_branch_draws_does_not_depend_on_the_others(self, network):
        def removed(exclude):
            spec = {"criterion": "random", "exclude": exclude}
            skips = structure(network, **spec).choose(share_of(network, 0.8), np.random.default_rng(3), {})
            return {branch.add for branch in skips.removed}

        everything = removed([])
        others = [b for b in Residuals(network, network.sample_shapes).branches if b.add not in everything]
        assert removed([others[0].layers[0]]) == everything

    def test_layers_in_no_branch_say_why_they_stay(self, network):
        skips = structure(network).choose(share_of(network, 0.7), np.random.default_rng(0), {})
        assert "in no branch beside an identity" in skips.kept_because["/head/Gemm"]

    def test_the_ends_are_told(self, network, tmp_path):
        rng = np.random.default_rng(0)
        with pytest.raises(NothingRemoved):
            structure(network).choose(share_of(network, 1.0), rng, {})
        with pytest.raises(TargetUnreachable, match="every branch gone"):
            structure(network).choose(share_of(network, 0.0001), rng, {})
        with pytest.raises(DataNeeded):
            structure(network, data=False, criterion="activation").choose(share_of(network, 0.7), rng, {})
        none = nets.load(residual_nets.Lookalikes, tmp_path)[0]
        with pytest.raises(TargetUnreachable):
            structure(none).choose(share_of(none, 0.7), rng, {})


class TestInfluences:
    def test_turn_is_one_minus_the_cosine_of_each_token(self, network):
        branch = Residuals(network, network.sample_shapes).branches[1]
        feeds = nets.samples(network, 16)
        watched = network.copy()
        names = [next(n for n in watched.graph if n.outputs[0].name == branch.add).inputs[branch.slot].name, branch.add]
        values = {value.name: value for node in watched.graph for value in node.outputs}
        watched.graph.outputs.extend(values[name] for name in names)
        watched.changed()
        found = run(watched, feeds)
        x, y = (found[name].astype(np.float64).reshape(-1, 12) for name in names)
        cosines = [(a @ b) / np.sqrt((a @ a) * (b @ b)) for a, b in zip(x, y, strict=True)]
        score = structure(network, criterion="activation")._evidence.influences.turn(branch)
        assert score == pytest.approx(1 - np.mean(cosines), rel=1e-4) and score > 0

    def test_error_is_that_of_the_answers_without_the_branch(self, network):
        branch = Residuals(network, network.sample_shapes).branches[0]
        feeds = nets.samples(network, 16)
        whole, without = (run(each, feeds)["y"] for each in (network, silenced(network, [branch])))
        expected = np.square(whole - without).sum() / np.square(whole).sum()
        assert structure(network)._evidence.influences.error(branch) == pytest.approx(expected, rel=1e-4)
