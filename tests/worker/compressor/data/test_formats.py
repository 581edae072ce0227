"""The readers against numpy and safetensors, and against files that lie."""

import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from worker.compressor.data.checks import describe
from worker.compressor.data.formats import open_arrays
from worker.compressor.errors import DataError

ARRAYS = {
    "x_train": np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5),
    "x_test": np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32),
    "half_train": np.linspace(0, 1, 8, dtype=np.float16).reshape(2, 4),
    "y_train": np.array([0, 1], np.int64),
    "big_train": np.array([1.5, -2.5], ">f8"),
    "turned_train": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
    "flag_train": np.array([True, False]),
}


def refused(path, data_format="npz"):
    with pytest.raises(DataError) as caught:
        describe(open_arrays(path, data_format))
    assert caught.value.error_class == "user"
    return caught.value.code


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def zipped(path, members: dict[str, bytes], method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, blob in members.items():
            archive.writestr(name, blob)
    return path


class TestNpz:
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_arrays_are_those_of_numpy(self, tmp_path, save):
        save(tmp_path / "a.npz", **ARRAYS)
        found = {a.name: a for a in open_arrays(tmp_path / "a.npz", "npz")}
        assert found.keys() == ARRAYS.keys()
        for name, want in ARRAYS.items():
            assert found[name].dtype == want.dtype.name and found[name].shape == want.shape
            np.testing.assert_array_equal(found[name].array(), want)
            flat = np.concatenate(list(found[name].blocks()))
            np.testing.assert_array_equal(flat, want.ravel(order="K"))

    def test_stored_arrays_are_mapped_not_read(self, tmp_path):
        np.savez(tmp_path / "a.npz", x=np.zeros((100, 100), np.float32))
        assert isinstance(open_arrays(tmp_path / "a.npz", "npz")[0].array(), np.memmap)

    def test_object_array_is_refused_and_not_opened(self, tmp_path):
        np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object))
        assert refused(tmp_path / "a.npz") == "pickle_not_accepted"

    @pytest.mark.parametrize("blob", [pickle.dumps([1]), b"a,b\n1,2\n", b"", b"\x93NUMPY\x01\x00"])
    def test_another_file_by_that_name_is_refused(self, tmp_path, blob):
        (tmp_path / "a.npz").write_bytes(blob)
        assert refused(tmp_path / "a.npz") == "wrong_format"

    def test_bomb_is_refused_by_what_it_declares(self, tmp_path):
        zipped(tmp_path / "a.npz", {"x.npy": bytes(200 << 20)}, zipfile.ZIP_DEFLATED)
        assert refused(tmp_path / "a.npz") == "archive_bomb"

    def test_small_blank_array_is_no_bomb(self, tmp_path):
        np.savez_compressed(tmp_path / "a.npz", x=np.zeros((1000, 100), np.uint8))
        assert describe(open_arrays(tmp_path / "a.npz", "npz"))["splits"]["train"] == 1000

    @pytest.mark.parametrize(
        "shape", ["(1099511627776,)", "(-4,)", "(0, 9223372036854775808)", "(1048576, 1048576, 1048576)"]
    )
    def test_impossible_shape_is_refused(self, tmp_path, shape):
        zipped(
            tmp_path / "a.npz",
            {"x.npy": npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}", bytes(64))},
        )
        assert refused(tmp_path / "a.npz") == "invalid_array"

    @pytest.mark.parametrize("header", ["{}", "[", "{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}", "(" * 5000,
                                        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}",
                                        "{'descr': '<c8', 'fortran_order': False, 'shape': (1,)}",
                                        "{'descr': '<U3', 'fortran_order': False, 'shape': (1,)}",
                                        "{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}"])  # fmt: skip
    def test_odd_header_is_refused(self, tmp_path, header):
        zipped(tmp_path / "a.npz", {"x.npy": npy(header, bytes(8))})
        assert refused(tmp_path / "a.npz") == "invalid_array"

    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_array_shorter_than_its_header_is_refused(self, tmp_path, method):
        blob = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (100,)}", bytes(64))
        assert refused(zipped(tmp_path / "a.npz", {"x.npy": blob}, method)) == "truncated"

    @pytest.mark.parametrize("cut", [50, 500, 5])
    def test_file_cut_short_is_refused(self, tmp_path, cut):
        np.savez(tmp_path / "a.npz", x=np.ones((50, 9), np.float32))
        (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-cut])
        assert refused(tmp_path / "b.npz") == "truncated"

    def test_flipped_byte_is_found(self, tmp_path):
        np.savez(tmp_path / "a.npz", x=np.ones((50, 9), np.float32))
        blob = bytearray((tmp_path / "a.npz").read_bytes())
        blob[400] ^= 0x10
        (tmp_path / "a.npz").write_bytes(blob)
        assert refused(tmp_path / "a.npz") == "truncated"

    @pytest.mark.parametrize("member", ["x.txt", "\n.npy", ".npy"])
    def test_member_that_is_no_array_is_refused(self, tmp_path, member):
        assert refused(zipped(tmp_path / "a.npz", {member: b"hello"})) == "wrong_format"

    def test_random_damage_is_a_data_error_or_harmless(self, tmp_path):
        stream = io.BytesIO()
        np.savez_compressed(stream, x=np.arange(300, dtype=np.float32).reshape(100, 3), y=np.arange(100) % 3)
        whole, rng = stream.getvalue(), np.random.default_rng(0)
        for _ in range(300):
            blob = bytearray(whole)
            for at in rng.integers(0, len(blob), 3):
                blob[at] = rng.integers(256)
            (tmp_path / "a.npz").write_bytes(blob)
            try:
                describe(open_arrays(tmp_path / "a.npz", "npz"))
            except DataError as error:
                assert error.code != "internal_error"


class TestSafetensors:
    def test_arrays_are_those_of_the_library(self, tmp_path):
        arrays = {name: np.ascontiguousarray(a) for name, a in ARRAYS.items() if a.dtype.byteorder != ">"}
        save_file(arrays, tmp_path / "a.safetensors")
        found = {a.name: a for a in open_arrays(tmp_path / "a.safetensors", "safetensors")}
        assert found.keys() == arrays.keys()
        for name, want in arrays.items():
            np.testing.assert_array_equal(found[name].array(), want)

    def test_bfloat16_is_widened(self, tmp_path):
        header = json.dumps({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
        blob = struct.pack("<Q", len(header)) + header + struct.pack("<2H", 0x3F80, 0xC000)
        (tmp_path / "a.safetensors").write_bytes(blob)
        (array,) = open_arrays(tmp_path / "a.safetensors", "safetensors")
        assert array.dtype == "bfloat16" and array.array().tolist() == [1.0, -2.0]

    @pytest.mark.parametrize(("entry", "code"), [
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "truncated"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}, "invalid_array"),
        ({"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 8]}, "invalid_array"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}, "invalid_array"),
        ({"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}, "invalid_array"),
        ({"dtype": "F32", "shape": "1", "data_offsets": [0, 8]}, "invalid_array"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}, "truncated"),
        ([], "wrong_format"),
    ])  # fmt: skip
    def test_lying_header_is_refused(self, tmp_path, entry, code):
        header = json.dumps({"x": entry}).encode()
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
        assert refused(tmp_path / "a.safetensors", "safetensors") == code

    @pytest.mark.parametrize(
        "blob", [b"", b"hello", b"\xff" * 64, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 4) + b"{a:1"]
    )
    def test_another_file_is_refused(self, tmp_path, blob):
        (tmp_path / "a.safetensors").write_bytes(blob)
        assert refused(tmp_path / "a.safetensors", "safetensors") == "wrong_format"


class TestDescribe:
    def make(self, tmp_path, **arrays):
        np.savez(tmp_path / "a.npz", **arrays)
        return tmp_path / "a.npz"

    def test_facts_of_a_sound_set(self, tmp_path):
        path = self.make(
            tmp_path,
            x_train=np.zeros((5, 3), np.uint8),
            y_train=np.arange(5),
            x_test=np.ones((2, 3), np.uint8),
            y_test=np.array([0, 6]),
        )
        facts = describe(open_arrays(path, "npz"))
        assert facts["fields"][0] == {"name": "x_train", "dtype": "uint8", "shape": [5, 3]}
        assert facts["splits"] == {"train": 5, "val": 0, "test": 2} and facts["num_classes"] == 7

    def test_not_finite_names_count_and_first_index(self, tmp_path):
        x = np.zeros((7, 2), np.float32)
        x[3, 1] = np.nan
        x[5, 0] = np.inf
        with pytest.raises(DataError, match=r"2 values.*\[3, 1\]") as caught:
            describe(open_arrays(self.make(tmp_path, x=x), "npz"))
        assert caught.value.code == "non_finite"

    @pytest.mark.parametrize("labels", [
        np.array([0, -1, 2, 0]), np.eye(4), np.eye(4, dtype=np.int64), np.array([0.0, np.nan, 1, 1]), np.zeros((4, 1), np.int64),
    ])  # fmt: skip
    def test_odd_labels_are_refused(self, tmp_path, labels):
        assert refused(self.make(tmp_path, x=np.zeros((4, 2)), y=labels)) == "invalid_labels"

    def test_real_targets_are_fine(self, tmp_path):
        facts = describe(
            open_arrays(self.make(tmp_path, x=np.zeros((4, 2)), y=np.random.default_rng(0).random((4, 3))), "npz")
        )
        assert facts["num_classes"] is None

    def test_lengths_that_differ_are_refused(self, tmp_path):
        assert refused(self.make(tmp_path, x=np.zeros((4, 2)), y=np.zeros(3))) == "length_mismatch"

    def test_no_rows_are_refused(self, tmp_path):
        assert refused(self.make(tmp_path, x=np.zeros((0, 2)), y=np.zeros(0))) == "too_small"

    def test_numbers_without_samples_are_no_rows(self, tmp_path):
        assert refused(self.make(tmp_path, x=np.float32(3))) == "too_small"
