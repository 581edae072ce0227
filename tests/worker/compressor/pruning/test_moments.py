"""Bias and variance correction: what comes out of each layer, computed by itself, has the original's mean and variance."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.worker.compressor.graph import nets
from tests.worker.compressor.networks import export, pictures, trained
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.surgery import cut
from worker.compressor.pruning.reconstruction.lockstep import reconstruct

SHARE, SEED = 0.5, 1


class OverAxes(nn.Module):
    """Linear layers over three axes, which ONNX writes as MatMul and Add, and one without a bias."""

    shape = (6, 8)

    def __init__(self):
        super().__init__()
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3, bias=False)

    def forward(self, x):
        return self.head(torch.relu(self.down(torch.relu(self.up(x)))))


def narrowed(network):
    analysis = analyse(network, network.sample_shapes)
    kept = nets.random_kept(analysis.groups, SHARE, SEED)
    return cut(network, analysis, kept).network


def seen(network, names, feeds):
    """The tensors of these names, `[N, C, …]` or channels last."""
    made = network.copy()
    values = {value.name: value for node in made.graph for value in node.outputs}
    made.graph.outputs.clear()
    made.graph.outputs.extend(values[name] for name in names)
    made.changed()
    return run(made, feeds)


def moments(value, axis):
    rows = np.moveaxis(value.astype(np.float64), axis, -1).reshape(-1, value.shape[axis])
    return rows.mean(0), rows.std(0)


@pytest.fixture
def folded(tmp_path):
    export(trained(), tmp_path)
    return import_model(tmp_path / "net.onnx", "onnx", None)[0]


def pictured(count, seed):
    return {"image": (pictures(count, seed)[0].astype(np.float32) / 255 - 0.4) / 0.25}


class TestCorrection:
    def test_each_layer_has_the_mean_and_variance_of_the_original(self, folded):
        feeds, narrow = pictured(200, 1), narrowed(folded)
        corrected, repair = reconstruct(folded, narrow, feeds, refit=False, batchnorm=True)
        layers = [node for node in narrow.nodes if node.name in repair.corrected]
        assert len(layers) >= 4 and repair.refitted == [] and repair.measured == []
        names = [node.outputs[0] for node in layers]
        want, raw, found = (seen(each, names, feeds) for each in (folded, narrow, corrected))
        analysis = analyse(folded, folded.sample_shapes)
        kept = nets.random_kept(analysis.groups, SHARE, SEED)
        for name in names:
            mean, spread = moments(want[name], 1)
            if want[name].shape != found[name].shape:
                candidates = [units for units in kept.values() if len(units) == found[name].shape[1]]
                fits = [np.allclose(moments(found[name], 1)[0], mean[units], atol=1e-3) for units in candidates]
                units = candidates[fits.index(True)]
                mean, spread = mean[units], spread[units]
            np.testing.assert_allclose(moments(found[name], 1)[0], mean, atol=1e-3)
            np.testing.assert_allclose(moments(found[name], 1)[1], spread, rtol=1e-2)
            assert not np.allclose(moments(raw[name], 1)[0], mean, atol=1e-2)

    def test_it_is_worth_something(self, folded):
        narrow, held_out = narrowed(folded), pictured(300, 5)
        corrected, _ = reconstruct(folded, narrow, pictured(200, 1), refit=False, batchnorm=True)
        want, raw, found = (next(iter(run(each, held_out).values())) for each in (folded, narrow, corrected))
        assert np.square(found - want).mean() < 0.7 * np.square(raw - want).mean()

    def test_bias_in_an_add_is_shifted_and_a_layer_without_one_is_left(self, tmp_path):
        network, _ = nets.load(OverAxes, tmp_path)
        feeds, narrow = nets.samples(network, 64), narrowed(network)
        corrected, repair = reconstruct(network, narrow, feeds, refit=False, batchnorm=True)
        assert any("down" in name for name in repair.corrected)
        assert not any("head" in name for name in repair.corrected)
        add = next(node for node in narrow.nodes if node.op == "Add" and "down" in node.name)
        want, found = (seen(each, [add.outputs[0]], feeds)[add.outputs[0]] for each in (network, corrected))
        got = moments(found, -1)
        every = np.stack(moments(want, -1), 1)
        for pair in np.stack(got, 1):
            assert np.abs(every - pair).sum(1).min() < 1e-3

    def test_without_its_switch_nothing_is_corrected(self, folded):
        _, repair = reconstruct(folded, narrowed(folded), pictured(20, 1), refit=False, batchnorm=False)
        assert repair.corrected == []
