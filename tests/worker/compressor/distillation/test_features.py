"""Where the layers of a cut network are compared with those of the original, and what the difference costs."""

import numpy as np
import pytest
import torch

from app.spec.schema import Loss
from tests.worker.compressor.graph.nets import Residual, load
from worker.compressor.distillation.features import WEIGHT, Imitation, features
from worker.compressor.distillation.objective import Objective, output_kind
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.surgery import cut, masked
from worker.compressor.graph.training.executor import to_module


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A network, its cut form, and the network with what was cut set to zero."""
    network, _ = load(Residual, tmp_path_factory.mktemp("pair"))
    feed = np.random.default_rng(0).standard_normal((3, *Residual.shape)).astype(np.float32)
    analysis = analyse(network, network.sample_shapes)
    kept = {group.id: np.arange(0, group.num_units, 2) for group in analysis.groups}
    return network, cut(network, analysis, kept).network, masked(network, analysis, kept), feed


def run(network, names, feed):
    with torch.no_grad():
        return to_module(network, also=names).eval()(torch.from_numpy(feed))


class TestFeatures:
    def test_every_layer_but_the_last_is_compared_behind_its_sum_and_activation(self, pair):
        network, small, _, _ = pair
        found = features(network, small)
        makers = {output: node.op for node in small.nodes for output in node.outputs}
        # The stem, a1, the sum with a2, b1, the sum of b2 and the projection.
        assert [makers[feature.name] for feature in found] == ["Relu"] * 5

    def test_channels_of_the_cut_network_are_those_of_the_masked_one(self, pair):
        network, small, zeroed, feed = pair
        found = features(network, small)
        names = [feature.name for feature in found]
        ours, theirs = run(small, names, feed)[1:], run(zeroed, names, feed)[1:]
        for feature, made, wanted in zip(found, ours, theirs, strict=True):
            torch.testing.assert_close(made, feature.of_teacher(wanted), rtol=1e-4, atol=1e-5)

    def test_of_an_uncut_network_all_channels_count(self, pair):
        network = pair[0]
        assert all(feature.kept is None for feature in features(network, network))


class TestImitation:
    def test_loss_is_that_of_the_outputs_and_the_mean_relative_error_inside(self, pair):
        network, small, _, feed = pair
        found = features(network, small)
        names = [feature.name for feature in found]
        ours, theirs = run(small, names, feed), run(network, names, feed)
        objective = Objective(Loss(hard=0.0, soft=1.0), "none", (output_kind(theirs[0].numpy(), "none"),))
        errors = []
        for feature, made, wanted in zip(found, ours[1:], theirs[1:], strict=True):
            aim = wanted.numpy().take(feature.kept, feature.axis)
            errors.append(((made.numpy() - aim) ** 2).mean() / (aim**2).mean())
        want = float(objective(ours[:1], theirs[:1], None)) + WEIGHT * float(np.mean(errors))
        assert float(Imitation(objective, found)(ours, theirs, None)) == pytest.approx(want, rel=1e-5)

    def test_original_itself_costs_nothing(self, pair):
        network, feed = pair[0], pair[3]
        found = features(network, network)
        answers = run(network, [feature.name for feature in found], feed)
        objective = Objective(Loss(hard=0.0, soft=1.0), "none", (output_kind(answers[0].numpy(), "none"),))
        assert float(Imitation(objective, found)(answers, answers, None)) == pytest.approx(0, abs=1e-6)
