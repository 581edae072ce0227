import numpy as np
import pytest

from app.spec.inputs import Preprocess
from app.spec.schema import Spec
from worker.compressor.data.dataset import load_dataset
from worker.compressor.data.preprocess import Preparation
from worker.compressor.errors import CompressorError

RNG = np.random.default_rng(0)


def spec(**keys):
    return Spec.model_validate({"inputs": [{"name": "image", "shape": ["batch", 2]}], **keys})


def load(tmp_path, wanted=None, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return load_dataset(tmp_path / "a.npz", "npz", wanted or spec())


def numbered(count):
    return np.stack([np.arange(count), np.arange(count)], 1).astype(np.float32)


def ids(rows):
    return rows.feeds(slice(None))[0][:, 0].astype(int).tolist()


class TestSplits:
    def test_given_splits_are_kept_and_val_is_a_tenth_of_train(self, tmp_path):
        data = load(tmp_path, x_train=numbered(200), x_test=numbered(30) + 1000)
        assert len(data.train) == 180 and len(data.val) == 20 and ids(data.test) == list(range(1000, 1030))
        assert sorted(ids(data.train) + ids(data.val)) == list(range(200)) and not data.warnings

    def test_without_test_a_fifth_is_held_out_first(self, tmp_path):
        data = load(tmp_path, x=numbered(200), y=np.arange(200) % 3)
        assert (len(data.train), len(data.val), len(data.test)) == (144, 16, 40)
        assert sorted(ids(data.train) + ids(data.val) + ids(data.test)) == list(range(200))
        assert (data.test.targets() == np.array(ids(data.test)) % 3).all()

    def test_the_seed_decides(self, tmp_path):
        one, same, other = (load(tmp_path, spec(seed=s), x=numbered(200)) for s in (1, 1, 2))
        assert ids(one.test) == ids(same.test) != ids(other.test)

    def test_too_few_rows_serve_everything_and_warn(self, tmp_path):
        data = load(tmp_path, x=numbered(16))
        assert ids(data.train) == ids(data.val) == ids(data.test) == list(range(16)) and len(data.warnings) == 1

    def test_rows_to_report_alone_serve_everything_and_warn(self, tmp_path):
        data = load(tmp_path, x_test=numbered(100))
        assert len(data.train) == len(data.test) == 100 and "no training rows" in data.warnings[0]

    def test_a_sample_of_the_test_rows_is_seeded(self, tmp_path):
        wanted = spec(evaluation={"max_samples": 7})
        assert len(ids(load(tmp_path, wanted, x_train=numbered(60), x_test=numbered(50)).test)) == 7


class TestRefusals:
    def test_arrays_of_other_names(self, tmp_path):
        with pytest.raises(CompressorError, match="image") as caught:
            load(tmp_path, a=numbered(4), b=numbered(4))
        assert caught.value.code == "input_mismatch"

    @pytest.mark.parametrize("labels", [np.zeros(60), RNG.random(60), np.full(60, -1)])
    def test_labels_that_do_not_fit_the_task(self, tmp_path, labels):
        with pytest.raises(CompressorError) as caught:
            load(tmp_path, spec(task="classification"), x=numbered(60), y=labels)
        assert caught.value.code == "invalid_labels"

    def test_one_class_only(self, tmp_path):
        with pytest.raises(CompressorError, match="same class"):
            load(tmp_path, spec(task="classification"), x=numbered(60), y=np.zeros(60, int))


class TestPreparation:
    def test_it_is_the_formula_in_float32(self):
        x = RNG.integers(0, 256, (5, 3, 4, 4)).astype(np.uint8)
        recipe = Preprocess(scale=1 / 255, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])
        want = np.empty(x.shape, np.float32)
        for channel in range(3):
            want[:, channel] = (
                x[:, channel].astype(np.float32) * np.float32(1 / 255) - np.float32(recipe.mean[channel])
            ) / np.float32(recipe.std[channel])
        got = Preparation("x", "float32", recipe)(x)
        assert got.dtype == np.float32 and (got == want).all()
        turned = Preparation("x", "float32", recipe.model_copy(update={"layout": "NHWC"}))(x.transpose(0, 2, 3, 1))
        assert (turned == want.transpose(0, 2, 3, 1)).all()

    def test_without_a_recipe_rows_are_cast(self):
        got = Preparation("x", "float32", None)(np.array([[3, 255]], np.uint8))
        assert got.dtype == np.float32 and got.tolist() == [[3.0, 255.0]]

    def test_means_that_do_not_fit_are_refused(self):
        with pytest.raises(CompressorError) as caught:
            Preparation("x", "float32", Preprocess(mean=[0.1, 0.2])).check((5, 3, 4, 4))
        assert caught.value.code == "invalid_preprocess"
