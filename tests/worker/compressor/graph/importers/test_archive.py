"""Hostile and broken TorchScript files: refused from the index, the code and the pickles, without being loaded."""

import pickle
import zipfile

import pytest
import torch
from torch import nn

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.importers.archive import check_archive


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "sound.pt"
    torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()).save(str(path))
    return path


def rewritten(path, change, out, compress=zipfile.ZIP_STORED):
    """The archive with `change(name, bytes)` applied to each entry; None drops it."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w", compress) as target:
        for info in source.infolist():
            data = change(info.filename, source.read(info))
            if data is not None:
                target.writestr(info.filename, data)
    return out


def code_of(path):
    with zipfile.ZipFile(path) as archive:
        return max((name for name in archive.namelist() if name.endswith(".py")), key=lambda name: -len(name))


def refused(path):
    with pytest.raises(ImportFailed) as caught:
        check_archive(path)
    assert caught.value.error_class == "user" and len(caught.value.detail) > 15
    return caught.value.code


class TestCheckArchive:
    def test_a_sound_file_passes(self, sound):
        check_archive(sound)

    def test_a_class_from_a_module_that_is_called_ops_passes(self, sound, tmp_path):
        line = b"\n# __torch__.torchvision.ops.misc.Conv2dNormActivation\n"
        name = code_of(sound)
        check_archive(rewritten(sound, lambda n, data: data + line if n == name else data, tmp_path / "a.pt"))

    def test_a_call_without_a_tuple_of_arguments_passes(self, sound, tmp_path):
        member = b"c__torch__.layers\nLayout\nX\x04\x00\x00\x00NCHWR0"
        check_archive(
            rewritten(
                sound,
                lambda n, data: data[:2] + member + data[2:] if n.endswith("data.pkl") else data,
                tmp_path / "a.pt",
            )
        )

    @pytest.mark.parametrize("blob", [b"", b"hello", b"PK\x03\x04 not a zip", b"\x00" * 100])
    def test_no_archive(self, blob, tmp_path):
        path = tmp_path / "a.pt"
        path.write_bytes(blob)
        assert refused(path) == "malformed_archive"

    def test_truncated(self, sound, tmp_path):
        path = tmp_path / "a.pt"
        path.write_bytes(sound.read_bytes()[:-100])
        assert refused(path) == "malformed_archive"

    def test_bare_pickle_is_never_opened(self, tmp_path):
        path = tmp_path / "a.pt"
        path.write_bytes(b"\x80\x04\x95\x00cos\nsystem\n")
        assert refused(path) == "pickle_not_accepted"

    def test_eager_module(self, tmp_path):
        torch.save(nn.Linear(2, 2), tmp_path / "a.pt")
        assert refused(tmp_path / "a.pt") == "pickle_not_accepted"

    def test_state_dict(self, tmp_path):
        torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "a.pt")
        assert refused(tmp_path / "a.pt") == "architecture_missing"

    def test_exported_program(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            archive.writestr("m/archive_format", "pt2")
            archive.writestr("m/models/model.json", "{}")
        assert refused(tmp_path / "a.pt") == "unsupported_format"

    @pytest.mark.parametrize("name", ["../../x", "/etc/x", "m/../../x", "flat"])
    def test_impossible_entry(self, name, sound, tmp_path):
        path = rewritten(sound, lambda _, data: data, tmp_path / "a.pt")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"x")
        assert refused(path) == "malformed_archive"

    def test_bomb(self, sound, tmp_path):
        name = code_of(sound)
        path = rewritten(
            sound,
            lambda n, data: data + b"\n" * (30 << 20) if n == name else data,
            tmp_path / "a.pt",
            zipfile.ZIP_DEFLATED,
        )
        assert refused(path) == "archive_bomb"

    @pytest.mark.parametrize(
        "line", ["torch.save(x, '/tmp/x')", "y = torch.from_file('/etc/passwd')", "ops.aten.save(x)"]
    )
    def test_code_that_touches_files(self, line, sound, tmp_path):
        name = code_of(sound)
        path = rewritten(
            sound, lambda n, data: data + f"\n    {line}\n".encode() if n == name else data, tmp_path / "a.pt"
        )
        assert refused(path) == "forbidden_operator"

    @pytest.mark.parametrize(
        ("line", "code"),
        [
            ("ops.torchvision.nms(x)", "unknown_operator"),
            ("__torch__.torch.classes.my.Thing", "unknown_operator"),
            ("ops.quantized.linear(x)", "already_quantised"),
        ],
    )
    def test_code_of_other_libraries(self, line, code, sound, tmp_path):
        name = code_of(sound)
        path = rewritten(
            sound, lambda n, data: data + f"\n    {line}\n".encode() if n == name else data, tmp_path / "a.pt"
        )
        assert refused(path) == code

    @pytest.mark.parametrize("bomb", [b"(" * 200_000 + b")" * 200_000, b"-" * 200_000 + b"1", b"- " * 100_000 + b"1"])
    def test_code_that_is_nested_too_deep(self, bomb, sound, tmp_path):
        name = code_of(sound)
        path = rewritten(sound, lambda n, data: data + b"\n    y = " + bomb if n == name else data, tmp_path / "a.pt")
        assert refused(path) == "malformed_model"

    def test_pickle_that_is_nested_too_deep(self, sound, tmp_path):
        bomb = b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b"."
        path = rewritten(sound, lambda n, data: bomb if n.endswith("data.pkl") else data, tmp_path / "a.pt")
        assert refused(path) == "malformed_model"

    def test_pickle_that_names_foreign_code(self, sound, tmp_path):
        class Evil:
            def __reduce__(self):
                return (open, (str(tmp_path / "ran"), "w"))

        path = rewritten(
            sound, lambda n, data: pickle.dumps(Evil()) if n.endswith("data.pkl") else data, tmp_path / "a.pt"
        )
        assert refused(path) == "forbidden_pickle" and not (tmp_path / "ran").exists()

    def test_record_shorter_than_its_tensor(self, sound, tmp_path):
        path = rewritten(
            sound, lambda n, data: data[:4] if "/data/" in n and len(data) == 64 else data, tmp_path / "a.pt"
        )
        assert refused(path) == "truncated_record"

    def test_archive_without_a_model(self, sound, tmp_path):
        path = rewritten(sound, lambda n, data: None if n.endswith("data.pkl") else data, tmp_path / "a.pt")
        assert refused(path) == "malformed_archive"

    def test_safetensors_holds_no_network(self, tmp_path):
        from safetensors.torch import save

        (tmp_path / "a.pt").write_bytes(save({"w": torch.zeros(2)}))
        assert refused(tmp_path / "a.pt") == "architecture_missing"
