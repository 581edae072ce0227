"""ONNX files with external data, sent as a zip: taken where they are sound, refused with a code where they are not."""

import stat
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper

from tests.worker.compressor.graph import nets
from worker.compressor.errors import ImportFailed
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.exporters.onnx import write_onnx
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.importers.bundle import open_bundle


def bundle(tmp_path, *, threshold=0, edit=None, compression=zipfile.ZIP_STORED, prefix="", one_file=True, **extra):
    """A network saved with external data, as a zip, and the plain file; `edit` changes the model before it is zipped."""
    path = nets.export(nets.build(nets.Residual), tmp_path / "plain.onnx")
    folder = tmp_path / "files"
    folder.mkdir()
    model = onnx.load(path)
    external_data_helper.convert_model_to_external_data(model, one_file, "weights.bin", threshold)
    onnx.save(model, folder / "model.onnx")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    if edit is not None:
        edit(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
    target = tmp_path / "model.zip"
    with zipfile.ZipFile(target, "w", compression) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, prefix + file.name)
        for name, data in extra.items():
            archive.writestr(name.replace("-", "."), data)
    return target, path


def entries(tensor, **values):
    kept = {entry.key: entry.value for entry in tensor.external_data} | values
    del tensor.external_data[:]
    for key, value in kept.items():
        tensor.external_data.add(key=key, value=str(value))


def external(model):
    return [tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]


def refused(path, code):
    with pytest.raises(ImportFailed) as caught:
        import_model(path, "onnx", None)
    assert caught.value.code == code and caught.value.hint, caught.value.detail
    return caught.value.detail


class TestSound:
    @pytest.mark.parametrize("options", [
        {}, {"threshold": 1024}, {"compression": zipfile.ZIP_DEFLATED}, {"prefix": "net/v1/"}, {"one_file": False},
        {"__MACOSX/-model-onnx": b"junk", "README-md": b"hello"},
    ])  # fmt: skip
    def test_network_computes_what_the_plain_file_does(self, tmp_path, options):
        path, plain = bundle(tmp_path, **options)
        network, _ = import_model(path, "onnx", None)
        feeds = nets.samples(network)
        assert nets.difference(nets.reference(plain, feeds)[0], run(network, feeds)["y"]) < 1e-5

    def test_what_is_written_holds_its_weights_inside(self, tmp_path):
        path, plain = bundle(tmp_path)
        network, _ = import_model(path, "onnx", None)
        write_onnx(network, tmp_path / "out.onnx")
        made = onnx.load(tmp_path / "out.onnx", load_external_data=False)
        assert not external(made) and not any(tensor.external_data for tensor in made.graph.initializer)
        feeds = nets.samples(network)
        assert nets.difference(nets.reference(plain, feeds)[0], nets.reference(made, feeds)[0]) < 1e-6

    def test_tied_tensors_may_lie_in_one_place(self, tmp_path):
        def tie(model):
            first, second = [t for t in external(model) if list(t.dims) == [6, 8, 3, 3] or list(t.dims) == [8, 6, 3, 3]]
            places = {entry.key: entry.value for entry in first.external_data}
            entries(second, **places)

        path, _ = bundle(tmp_path, edit=tie)
        import_model(path, "onnx", None)

    def test_only_what_is_named_is_unpacked(self, tmp_path):
        path, _ = bundle(tmp_path, **{"other-bin": b"x" * 100})
        open_bundle(path, tmp_path / "out")
        assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["model.onnx", "weights.bin"]


class TestBroken:
    @pytest.mark.parametrize(("place", "code"), [
        ({"location": "../weights.bin"}, "external_data_path"), ({"location": "/etc/passwd"}, "external_data_path"),
        ({"location": ""}, "external_data_path"), ({"location": "."}, "external_data_path"),
        ({"location": "a\\b"}, "external_data_path"), ({"location": "other.bin"}, "external_data_missing"),
        ({"offset": 1 << 62}, "external_data_range"), ({"offset": -16}, "external_data_range"),
        ({"length": 1 << 62}, "external_data_range"), ({"length": 4}, "invalid_tensor"),
        ({"offset": 1 << 20}, "external_data_range"), ({"offset": 4}, "external_data_range"),
    ])  # fmt: skip
    def test_place_that_is_none(self, tmp_path, place, code):
        path, _ = bundle(tmp_path, edit=lambda model: entries(external(model)[-1], **place))
        refused(path, code)

    def test_data_file_that_was_not_sent(self, tmp_path):
        path, _ = bundle(tmp_path)
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "less.zip", "w") as less:
            less.writestr("model.onnx", archive.read("model.onnx"))
        assert "weights.bin" in refused(tmp_path / "less.zip", "external_data_missing")

    def test_data_file_that_is_too_short(self, tmp_path):
        path, _ = bundle(tmp_path)
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "less.zip", "w") as less:
            less.writestr("model.onnx", archive.read("model.onnx"))
            less.writestr("weights.bin", archive.read("weights.bin")[:-64])
        refused(tmp_path / "less.zip", "external_data_range")

    def test_plain_file_with_external_data(self, tmp_path):
        bundle(tmp_path)
        alone = tmp_path / "alone"
        alone.mkdir()
        (alone / "m.onnx").write_bytes((tmp_path / "files" / "model.onnx").read_bytes())
        refused(alone / "m.onnx", "external_data_missing")

    @pytest.mark.parametrize("name", ["../weights.bin", "/weights.bin", "a\\weights.bin"])
    def test_entry_that_leads_out(self, tmp_path, name):
        path, _ = bundle(tmp_path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"x")
        refused(path, "malformed_archive")

    def test_link(self, tmp_path):
        path, _ = bundle(tmp_path)
        with zipfile.ZipFile(path, "a") as archive:
            info = zipfile.ZipInfo("link")
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
        refused(path, "external_data_path")

    def test_two_networks(self, tmp_path):
        path, _ = bundle(tmp_path, **{"second-onnx": b"x"})
        assert "second.onnx" in refused(path, "malformed_archive")

    def test_no_network(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("weights.bin", b"x")
        refused(tmp_path / "a.zip", "malformed_archive")

    def test_bomb(self, tmp_path):
        path, _ = bundle(tmp_path)
        data = bytearray(path.read_bytes())
        at = data.rfind(b"weights.bin") - 46  # its row of the index
        assert data[at : at + 4] == b"PK\x01\x02"
        data[at + 24 : at + 28] = (3 << 30).to_bytes(4, "little")
        path.write_bytes(data)
        refused(path, "archive_bomb")

    def test_truncated_and_damaged_archives(self, tmp_path):
        path, _ = bundle(tmp_path)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        refused(path, "malformed_archive")
        damaged = bytearray(data)
        at = data.find(b"weights.bin") + 200
        damaged[at] ^= 255
        path.write_bytes(damaged)
        (tmp_path / "again").mkdir()
        refused(path, "malformed_archive")


class TestSkimming:
    def test_weights_of_any_size_and_kind_are_found_again(self, tmp_path):
        path = nets.export(nets.build(nets.Plain), tmp_path / "a.onnx")
        model = onnx.load(path)
        rng = np.random.default_rng(0)
        for i, shape in enumerate([(), (3,), (2000,), (0, 4), (600, 3)]):
            array = rng.standard_normal(shape).astype(np.float32)
            typed = onnx.helper.make_tensor(f"typed{i}", TensorProto.FLOAT, shape, array.reshape(-1))
            model.graph.initializer.extend([typed, onnx.numpy_helper.from_array(array, f"raw{i}")])
        onnx.save(model, path)
        network, _ = import_model(path, "onnx", None)
        for tensor in model.graph.initializer:
            if tensor.name in network.tensors:
                assert np.array_equal(network.tensors[tensor.name], onnx.numpy_helper.to_array(tensor))

    def test_truncated_and_damaged_files_are_refused(self, tmp_path):
        path = nets.export(nets.build(nets.Plain), tmp_path / "a.onnx")
        data, rng = path.read_bytes(), np.random.default_rng(0)
        for _ in range(60):
            broken = bytearray(data)
            for at in rng.integers(0, len(data), 3):
                broken[at] = rng.integers(0, 256)
            path.write_bytes(broken[: rng.integers(1, len(data))] if rng.random() < 0.5 else broken)
            try:
                import_model(path, "onnx", None)
            except ImportFailed as error:
                assert error.code
