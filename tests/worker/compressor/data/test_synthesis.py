"""Inputs made up from BatchNorm statistics: against plain formulas, and for what they are worth on a trained network."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.worker.compressor.graph import nets
from tests.worker.compressor.networks import export, pictures, trained
from worker.compressor.data.synthesis.inputs import Effort, can_synthesise, synthesise
from worker.compressor.data.synthesis.start import fitting_size, smooth_noise
from worker.compressor.data.synthesis.statistics import Statistics, distance, statistics_of
from worker.compressor.data.synthetic import keep_synthetic, synthetic_dataset
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.surgery import cut
from worker.compressor.pruning.reconstruction.lockstep import reconstruct

SIGNATURE = [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]
CPU = torch.device("cpu")
LIKE = {"image": np.zeros((4, 1, 8, 8), np.float32)}


def loaded(net, folder, signature=SIGNATURE):
    torch.jit.script(net).save(str(folder / "net.pt"))
    return import_model(folder / "net.pt", "torchscript", signature)[0]


@pytest.fixture(scope="module")
def original():
    return trained()


@pytest.fixture(scope="module")
def network(original, tmp_path_factory):
    return loaded(original, tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="module")
def made(network):
    return synthesise(network, LIKE, Effort(rows=96, batch=50, steps=60), 0, CPU)


class TestStatisticsOf:
    def test_trained_network_has_what_its_modules_measured(self, original, network):
        found = statistics_of(network)
        norms = [module for module in original.modules() if isinstance(module, nn.BatchNorm2d)]
        assert len(found) == len(norms) == 3
        for statistics, norm in zip(found, norms, strict=True):
            torch.testing.assert_close(statistics.mean, norm.running_mean)
            torch.testing.assert_close(statistics.variance, norm.running_var)

    def test_folded_file_has_none(self, original, tmp_path):
        export(original, tmp_path)
        assert not can_synthesise(import_model(tmp_path / "net.onnx", "onnx", None)[0], LIKE)

    def test_statistics_that_are_computed_from_the_data_are_none(self, tmp_path):
        onnx.save(nets.row_normalised(), tmp_path / "m.onnx")
        assert statistics_of(import_model(tmp_path / "m.onnx", "onnx", None)[0]) == []


class TestDistance:
    def test_it_is_the_divergence_of_normal_distributions(self):
        rng = np.random.default_rng(0)
        value, mean, variance = rng.normal(1, 2, (7, 3, 5)), rng.normal(size=3), rng.uniform(0.5, 2, 3)
        wanted = Statistics("v", torch.from_numpy(mean), torch.from_numpy(variance), 0.0)
        terms = []
        for channel in range(3):
            m, v = value[:, channel].mean(), value[:, channel].var()
            shift = (m - mean[channel]) ** 2 / variance[channel]
            terms.append(0.5 * (np.log(variance[channel] / v) + v / variance[channel] + shift - 1))
        found = distance([torch.from_numpy(value)], [wanted])
        np.testing.assert_allclose(float(found), np.mean(terms), rtol=1e-9)

    def test_constant_channel_is_far_but_finite(self):
        wanted = Statistics("v", torch.zeros(2), torch.ones(2), 1e-5)
        assert 1 < float(distance([torch.zeros(4, 2)], [wanted])) < 100


class TestStart:
    def test_neighbours_are_alike_and_every_sample_is_standard(self):
        noise = smooth_noise((8, 2, 20, 24), torch.Generator().manual_seed(0))
        torch.testing.assert_close(noise.std((1, 2, 3)), torch.ones(8), rtol=1e-4, atol=1e-4)
        for a, b in ((noise[..., 1:], noise[..., :-1]), (noise[..., 1:, :], noise[..., :-1, :])):
            assert (a * b).mean() > 0.8
        assert (noise[:, 0] * noise[:, 1]).mean().abs() < 0.2

    def test_features_without_positions_are_plain_noise(self):
        noise = smooth_noise((500, 6), torch.Generator().manual_seed(0))
        assert (noise[:, 1:] * noise[:, :-1]).mean().abs() < 0.1

    def test_the_size_nearest_by_is_taken(self):
        assert fitting_size(lambda scale, offset: abs(scale - 70) + abs(offset - 90)) == (100.0, 100.0)


class TestSynthesise:
    def test_what_enters_each_normalisation_has_its_statistics(self, original, made):
        seen = []
        norms = [module for module in original.modules() if isinstance(module, nn.BatchNorm2d)]
        hooks = [norm.register_forward_pre_hook(lambda _, x: seen.append(x[0])) for norm in norms]
        with torch.no_grad():
            original(torch.from_numpy(made.feeds["image"]))
            values, noise = list(seen), seen.clear()
            original(smooth_noise((96, 1, 8, 8), torch.Generator().manual_seed(1)))
            values, noise = values, list(seen)
        for hook in hooks:
            hook.remove()

        def off(value, norm):
            spread = norm.running_var.sqrt()
            means = (value.mean((0, 2, 3)) - norm.running_mean).abs() / spread
            return float(means.mean()), float((value.std((0, 2, 3)) / spread - 1).abs().mean())

        for value, plain, norm in zip(values, noise, norms, strict=True):
            found, before = off(value, norm), off(plain, norm)
            assert found[0] < 0.1 and found[1] < 0.1
            assert sum(found) < sum(before) / 3
        assert made.after < made.before / 10

    def test_seed_decides(self, network, made):
        again = synthesise(network, LIKE, Effort(rows=96, batch=50, steps=60), 0, CPU)
        other = synthesise(network, LIKE, Effort(rows=10, batch=5, steps=1), 1, CPU)
        np.testing.assert_array_equal(made.feeds["image"], again.feeds["image"])
        assert not np.allclose(other.feeds["image"], made.feeds["image"][:10])

    def test_network_that_takes_bytes_gets_bytes(self, original, tmp_path):
        class OfBytes(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = original

            def forward(self, x):
                return self.net((x / 255 - 0.4) / 0.25)

        found = synthesise(loaded(OfBytes().eval(), tmp_path), LIKE, Effort(32, 32, 30), 0, CPU)
        assert found.feeds["image"].std() > 20 and 40 < found.feeds["image"].mean() < 200

    def test_whole_numbers_stay_as_they_are(self, tmp_path):
        class Pair(nn.Module):
            def __init__(self):
                super().__init__()
                self.table, self.norm, self.head = nn.Embedding(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

            def forward(self, which: torch.Tensor, x: torch.Tensor):
                return self.head(self.norm(self.table(which) + x))

        signature = [
            {"name": "which", "dtype": "int64", "shape": ["batch"]},
            {"name": "x", "dtype": "float32", "shape": ["batch", 4]},
        ]
        feeds = {"which": np.array([3, 1, 4]), "x": np.zeros((3, 4), np.float32)}
        found = synthesise(loaded(Pair().eval(), tmp_path, signature), feeds, Effort(8, 8, 5), 0, CPU)
        assert found.feeds["which"].tolist() == [3, 1, 4, 3, 1, 4, 3, 1] and found.feeds["x"].shape == (8, 4)
        assert not can_synthesise(found and loaded(Pair().eval(), tmp_path, signature), {"which": feeds["which"]})

    def test_refit_on_them_brings_back_what_a_cut_lost(self, network, made):
        analysis = analyse(network, network.sample_shapes)
        narrow = cut(network, analysis, nets.random_kept(analysis.groups, 0.35, 1)).network
        fitted, _ = reconstruct(network, narrow, made.feeds, refit=True, batchnorm=True)
        x, _ = pictures(300, 7)
        feeds = {"image": (x.astype(np.float32) / 255 - 0.4) / 0.25}
        want, raw, mended = (next(iter(run(each, feeds).values())).argmax(-1) for each in (network, narrow, fitted))
        assert (mended == want).mean() > 0.9 > (raw == want).mean() + 0.3


class TestSyntheticDataset:
    def test_rows_to_judge_on_are_not_repaired_on(self, tmp_path):
        inputs = [type("Entry", (), {"name": "image", "dtype": "float32"})()]
        keep_synthetic(tmp_path, [np.arange(12, dtype=np.float32)[:, None]])
        data = synthetic_dataset(tmp_path, inputs)
        train, held_out = (set(rows.feeds(slice(None))[0][:, 0]) for rows in (data.train, data.val))
        assert len(train) == 9 and len(held_out) == 3 and not train & held_out
        keep_synthetic(tmp_path, [np.ones((12, 1), np.float32)])
        assert synthetic_dataset(tmp_path, inputs).val.split != data.val.split
