"""Which single weights go: `weights`, `blocks` and `n:m`."""

from __future__ import annotations

import numpy as np
import pytest

from app.spec.schema import Prune
from tests.worker.compressor.graph import nets
from worker.compressor.distillation.objective import OutputKind, Scores
from worker.compressor.errors import NothingRemoved, TargetUnreachable
from worker.compressor.graph.counts import count
from worker.compressor.pruning.criteria import CRITERIA
from worker.compressor.pruning.evidence import Evidence, Samples
from worker.compressor.pruning.matrices import matrices_of
from worker.compressor.pruning.structures import structure_of
from worker.compressor.pruning.structures.n_of_m import best_of

EVERY = Prune.model_validate({"structure": "2:4"})


def structure(network, **spec):
    prune = Prune.model_validate(spec)
    samples = Samples(nets.samples(network, 16), None, "none", (OutputKind(Scores.LOGITS, 1.0),), 16, 0)
    return structure_of(prune)(
        network,
        {port.name: network.sample_shapes[port.name] for port in network.inputs},
        prune,
        lambda groups: Evidence(network, groups, "readers", network, samples),
    )


def zeros_after(network, masks):
    made = network.copy()
    for name, kept in masks.kept.items():
        made.tensors[name] = made.tensors[name] * kept
    counts = count(made, network.sample_shapes)
    return counts.num_params - counts.nonzero_params


@pytest.fixture
def network(tmp_path):
    return nets.load(nets.Residual, tmp_path)[0]


class TestWeights:
    @pytest.mark.parametrize("scope", ["global", "layer"])
    @pytest.mark.parametrize("criterion", sorted(n for n in CRITERIA if "weights" in CRITERIA.get(n).structures))
    def test_as_many_become_zero_as_are_asked_for(self, criterion, scope, network):
        wanted = count(network, network.sample_shapes).num_params * 7 // 10
        spec = {"structure": "weights", "criterion": criterion, "scope": scope, "target": {"sparsity": "70%"}}
        masks = structure(network, **spec).choose(wanted, np.random.default_rng(0))
        assert zeros_after(network, masks) == wanted

    def test_l1_takes_the_smallest_for_their_matrix(self, network):
        spec = {"structure": "weights", "target": {"sparsity": "50%"}}
        masks = structure(network, **spec).choose(400, np.random.default_rng(0))
        arrays = {name: np.abs(network.tensors[name]) / np.abs(network.tensors[name]).mean() for name in masks.kept}
        gone = np.concatenate([arrays[name][~kept] for name, kept in masks.kept.items()])
        stay = np.concatenate([arrays[name][kept] for name, kept in masks.kept.items()])
        assert gone.max() <= stay.min()

    def test_a_layer_keeps_some_while_the_target_can_be_met_so(self, network):
        network = network.copy()
        name = next(m.tensor for m in matrices_of(network, EVERY)[0])
        faint = np.full(network.tensors[name].shape, 1e-9, np.float32)
        faint.flat[0] = 1
        network.tensors[name] = faint
        spec = {"structure": "weights", "target": {"sparsity": "50%"}}
        masks = structure(network, **spec).choose(network.tensors[name].size, np.random.default_rng(0))
        assert masks.kept[name].sum() >= int(0.02 * network.tensors[name].size) > 1

    @pytest.mark.parametrize("of", [{"structure": "weights"}, {"structure": "blocks", "block": [3, 2]}])
    @pytest.mark.parametrize("scope", ["global", "layer"])
    def test_a_floor_holds_in_every_layer(self, scope, of, network):
        spec = of | {"scope": scope, "floor": 0.4, "target": {"sparsity": "55%"}}
        with pytest.raises(TargetUnreachable) as caught:
            structure(network, **spec).choose(10**9, np.random.default_rng(0))
        for wanted in (caught.value.best, caught.value.best * 9 // 10):
            masks = structure(network, **spec).choose(wanted, np.random.default_rng(0))
            assert zeros_after(network, masks) >= wanted
            for matrix in matrices_of(network, EVERY)[0]:
                kept = masks.kept[matrix.tensor]
                parts = [tile.any() for tile in tiles(kept, matrix, *of.get("block", (1, 1)))]
                assert sum(parts) >= 0.4 * len(parts)
        with pytest.raises(TargetUnreachable):
            structure(network, **spec).choose(caught.value.best + 1, np.random.default_rng(0))

    def test_what_the_spec_leaves_out_is_not_touched(self, network):
        spec = {"structure": "weights", "target": {"sparsity": "30%"}, "exclude": ["/a*"]}
        masks = structure(network, **spec).choose(300, np.random.default_rng(0))
        kept_whole = [m for m in matrices_of(network, EVERY)[0] if m.layer.startswith("/a")]
        assert kept_whole and not {m.tensor for m in kept_whole} & set(masks.kept)
        assert {m.layer for m in kept_whole} <= set(masks.kept_because)

    def test_more_than_there_are_is_unreachable(self, network):
        spec = {"structure": "weights", "target": {"sparsity": "99%"}}
        num_params = count(network, network.sample_shapes).num_params
        with pytest.raises(TargetUnreachable) as caught:
            structure(network, **spec).choose(num_params, np.random.default_rng(0))
        assert 0 < caught.value.best < num_params

    def test_zeros_that_are_there_count(self, network):
        masks = structure(network, structure="weights", target={"sparsity": "50%"}).choose(
            400, np.random.default_rng(0)
        )
        made = network.copy()
        for name, kept in masks.kept.items():
            made.tensors[name] = made.tensors[name] * kept
        again = structure(made, structure="weights", target={"sparsity": "50%"})
        with pytest.raises(NothingRemoved):
            again.choose(400, np.random.default_rng(0))
        assert zeros_after(made, again.choose(450, np.random.default_rng(0))) == 450


def tiles(array, matrix, rows, columns):
    """The tiles of a weight one after the other, by plain loops."""
    last = np.moveaxis(array, (matrix.outputs, matrix.inputs), (-2, -1))
    for position in np.ndindex(last.shape[:-2]):
        for top in range(0, last.shape[-2], rows):
            for left in range(0, last.shape[-1], columns):
                yield last[position][top : top + rows, left : left + columns]


class TestBlocks:
    @pytest.mark.parametrize("scope", ["global", "layer"])
    @pytest.mark.parametrize("criterion", sorted(n for n in CRITERIA if "blocks" in CRITERIA.get(n).structures))
    def test_whole_tiles_become_zero_and_hardly_more_than_asked(self, criterion, scope, network):
        wanted = count(network, network.sample_shapes).num_params * 6 // 10
        spec = {"structure": "blocks", "criterion": criterion, "scope": scope, "target": {"sparsity": "60%"}}
        masks = structure(network, block=[3, 2], **spec).choose(wanted, np.random.default_rng(0))
        sizes = []
        for matrix in matrices_of(network, EVERY)[0]:
            for tile in tiles(masks.kept[matrix.tensor], matrix, 3, 2):
                assert tile.all() or not tile.any()
                sizes += [] if tile.any() else [tile.size]
        # Edges give smaller tiles: none of those that went could have stayed.
        assert 0 <= zeros_after(network, masks) - wanted < min(sizes)

    @pytest.mark.parametrize("block", [None, [2, 4], [1, 8]])
    def test_l1_takes_the_tiles_of_the_smallest_mean_for_their_matrix(self, block, network):
        spec = {"structure": "blocks", "target": {"sparsity": "50%"}} | ({} if block is None else {"block": block})
        masks = structure(network, **spec).choose(1500, np.random.default_rng(0))
        gone, stay = [], []
        for matrix in matrices_of(network, EVERY)[0]:
            size = np.abs(network.tensors[matrix.tensor]).astype(np.float64)
            pairs = zip(
                tiles(masks.kept[matrix.tensor], matrix, *(block or [4, 4])),
                tiles(size / size.mean(), matrix, *(block or [4, 4])),
                strict=True,
            )
            for flags, values in pairs:
                (stay if flags.any() else gone).append((values.mean(), values.size))
        # A smaller tile may stay for a larger one that had to go, at the very end.
        lowest = min(score for score, _ in stay)
        assert len([score for score, _ in gone if score > lowest]) <= 1

    def test_a_tile_of_one_is_a_single_weight(self, network):
        target = {"sparsity": "50%"}
        one = structure(network, structure="blocks", block=[1, 1], target=target).choose(999, np.random.default_rng(0))
        other = structure(network, structure="weights", target=target).choose(999, np.random.default_rng(0))
        assert all((one.kept[name] == kept).all() for name, kept in other.kept.items())

    def test_zeros_that_are_there_count(self, network):
        spec = {"structure": "blocks", "target": {"sparsity": "50%"}}
        made = network.copy()
        for name, kept in structure(network, **spec).choose(800, np.random.default_rng(0)).kept.items():
            made.tensors[name] = made.tensors[name] * kept
        before = count(made, made.sample_shapes)
        with pytest.raises(NothingRemoved):
            structure(made, **spec).choose(before.num_params - before.nonzero_params, np.random.default_rng(0))
        assert 0 <= zeros_after(made, structure(made, **spec).choose(1000, np.random.default_rng(0))) - 1000 < 16


class TestNOfM:
    @pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
    def test_of_every_m_inputs_the_n_largest_stay(self, pattern, network):
        n, m = map(int, pattern.split(":"))
        masks = structure(network, structure=pattern).choose(None, np.random.default_rng(0))
        assert masks.kept
        for matrix in matrices_of(network, EVERY)[0]:
            size = network.tensors[matrix.tensor].shape[matrix.inputs]
            if size % m:
                assert matrix.tensor not in masks.kept and matrix.layer in masks.kept_because
                continue
            kept = np.moveaxis(masks.kept[matrix.tensor], matrix.inputs, -1)
            assert (kept.reshape(-1, m).sum(-1) == n).all()
            values = np.moveaxis(np.abs(network.tensors[matrix.tensor]), matrix.inputs, -1).reshape(-1, m)
            flags = kept.reshape(-1, m)
            assert all(row[~f].max() <= row[f].min() for row, f in zip(values, flags, strict=True))

    def test_of_equal_scores_the_first_stay(self, network):
        matrix = next(m for m in matrices_of(network, EVERY)[0] if m.inputs == 1)
        kept = best_of(np.ones((3, 8, 1, 1)), matrix, 2, 4)
        assert kept[0, :, 0, 0].tolist() == [True, True, False, False] * 2

    def test_too_few_zeros_for_the_target_are_unreachable(self, network):
        with pytest.raises(TargetUnreachable):
            structure(network, structure="2:4", target={"sparsity": "80%"}).choose(10**6, np.random.default_rng(0))

    def test_inputs_that_do_not_divide_leave_nothing_to_remove(self, network):
        with pytest.raises(NothingRemoved, match="divide by 7"):
            structure(network, structure="2:7").choose(None, np.random.default_rng(0))
