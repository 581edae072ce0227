import numpy as np
import pytest
import torch

from tests.worker.compressor.graph import nets
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.training.batch import free_batch, has_free_batch, in_pieces


class TestFreeBatch:
    def test_a_batch_of_one_baked_into_reshapes_is_freed(self, tmp_path):
        network, _ = nets.load(nets.Shuffle, tmp_path, free=False)
        assert not has_free_batch(network)
        freed = free_batch(network)
        assert freed is not None and has_free_batch(freed)
        feeds = nets.samples(network, 5)
        single = [run(network, {"x": feeds["x"][i : i + 1]})["y"] for i in range(5)]
        assert nets.difference(np.concatenate(single), run(freed, feeds)["y"]) < 1e-6

    def test_the_files_own_ports_stay_as_they_are(self, tmp_path):
        network, _ = nets.load(nets.Shuffle, tmp_path, free=False)
        free_batch(network)
        assert network.inputs[0].shape[0] == 1

    def test_weights_keep_their_names(self, tmp_path):
        network, _ = nets.load(nets.Nhwc, tmp_path, free=False)
        freed = free_batch(network)
        weights = {name for name, array in network.tensors.items() if array.dtype.kind == "f"}
        assert freed is not None and weights <= freed.tensors.keys()


class TestInPieces:
    @pytest.mark.parametrize(("rows", "size"), [(7, 1), (7, 3), (6, 3), (2, 3)])
    def test_rows_come_in_order_and_none_twice(self, rows, size):
        seen = []

        def call(x):
            seen.append(len(x))
            return x * 2, x.reshape(-1, 1).repeat_interleave(2, 0)

        x = torch.arange(rows * 2.0).reshape(rows, 2)
        double, each = in_pieces(call, size)(x)
        assert set(seen) == {size} and torch.equal(double, x * 2)
        assert torch.equal(each[:, 0], x.reshape(-1).repeat_interleave(2)[: len(each)]) and len(each) == rows * 4
