"""Hostile and broken exported programs: what could run something when it is loaded never reaches torch's loader."""

import copy
import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.importers.program_archive import harmless_copy

EVIL = "__import__('pathlib').Path({!r}).touch()"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A network with a free batch, an operator of shapes, and two outputs in a dict."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            kept = self.conv(x).reshape(x.shape[0] * 2, 2, -1).mean(-1).reshape(x.shape[0], 4)
            return {"logits": self.head(kept), "kept": kept}

    torch.manual_seed(0)
    batch = torch.export.Dim("batch")
    path = tmp_path_factory.mktemp("program") / "sound.pt2"
    torch.export.save(torch.export.export(Net().eval(), (torch.zeros(2, 3, 6, 6),), dynamic_shapes=({0: batch},)), path)
    return path


def rewritten(path, change, out, add=()):
    """The archive with `change(name below the root, bytes)` applied to each entry; None drops it."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for info in source.infolist():
            data = change(info.filename.partition("/")[2], source.read(info))
            if data is not None:
                target.writestr(info.filename, data)
        for name, data in add:
            target.writestr(f"sound/{name}", data)
    return out


def with_json(path, edit, out, name="models/model.json"):
    """The archive with one of its JSON entries edited in place."""

    def change(entry, data):
        if entry != name:
            return data
        plain = json.loads(data)
        edit(plain)
        return json.dumps(plain).encode()

    return rewritten(path, change, out)


def graph(plain):
    return plain["graph_module"]["graph"]


def refused(path):
    before = set(path.parent.iterdir())
    with pytest.raises(ImportFailed) as caught, harmless_copy(path) as harmless:
        torch.export.load(harmless.path)
    assert caught.value.error_class == "user" and len(caught.value.detail) > 15
    assert set(path.parent.iterdir()) == before
    return caught.value.code


class Runs:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def stored(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


class TestHarmlessCopy:
    def test_a_sound_file_computes_the_same(self, sound):
        with harmless_copy(sound) as harmless:
            kept, lines = torch.export.load(harmless.path), harmless.lines
            x = torch.randn(3, 3, 6, 6)
            wanted, got = torch.export.load(sound).module()(x), kept.module()(x)
        assert got.keys() == wanted.keys() and all(torch.equal(got[key], wanted[key]) for key in wanted)
        assert not harmless.path.exists()
        assert lines["conv2d"].startswith("test_program_archive.py:")
        assert set(kept.state_dict) == {"conv.weight", "conv.bias", "head.weight", "head.bias"}

    def test_weights_of_another_device_come_to_the_cpu(self, sound, tmp_path):
        def edit(plain):
            for row in plain["config"].values():
                row["tensor_meta"]["device"] = {"type": "cuda", "index": 1}

        path = with_json(sound, edit, tmp_path / "a.pt2", "data/weights/model_weights_config.json")
        path = with_json(path, lambda p: self._move(graph(p)), tmp_path / "b.pt2")
        with harmless_copy(path) as harmless:
            program = torch.export.load(harmless.path)
        assert {t.device.type for t in program.state_dict.values()} == {"cpu"}
        assert program.module()(torch.zeros(1, 3, 6, 6))["logits"].shape == (1, 2)

    @staticmethod
    def _move(graph):
        for meta in graph["tensor_values"].values():
            meta["device"] = {"type": "cuda", "index": 0}

    def test_a_class_of_the_users_becomes_a_dict_of_its_fields(self, sound, tmp_path):
        def edit(plain):
            signature = plain["graph_module"]["module_call_graph"][0]["signature"]
            assert "builtins.dict" in signature["out_spec"]
            signature["out_spec"] = signature["out_spec"].replace("builtins.dict", "somebody.ModelOutput")

        with harmless_copy(with_json(sound, edit, tmp_path / "a.pt2")) as harmless:
            assert torch.export.load(harmless.path).module()(torch.zeros(1, 3, 6, 6)).keys() == {"logits", "kept"}

    def test_guards_and_samples_are_left_behind(self, sound, tmp_path):
        ran = tmp_path / "ran"
        path = with_json(
            sound, lambda plain: plain.update(guards_code=[EVIL.format(str(ran)) + " or True"]), tmp_path / "a.pt2"
        )
        with harmless_copy(path) as harmless, zipfile.ZipFile(harmless.path) as archive:
            assert archive.read("model/data/sample_inputs/model.pt") == b""
            torch.export.load(harmless.path).module()(torch.zeros(1, 3, 6, 6))
        assert not ran.exists()


class TestPickles:
    def test_sample_inputs_that_are_no_tensors(self, sound, tmp_path):
        blob = stored(((Runs(tmp_path / "ran"),), {}))
        path = rewritten(sound, lambda n, d: blob if n.startswith("data/sample") else d, tmp_path / "a.pt2")
        assert refused(path) == "forbidden_pickle" and not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("blob", [pickle.dumps({"a": 1}), b"PK\x05\x06" + bytes(18), b"x"])
    def test_sample_inputs_that_are_no_archive_of_tensors(self, blob, sound, tmp_path):
        path = rewritten(sound, lambda n, d: blob if n.startswith("data/sample") else d, tmp_path / "a.pt2")
        assert refused(path) == "forbidden_pickle"

    @pytest.mark.parametrize(
        "row",
        [
            {"path_name": "weight_0", "use_pickle": True},
            {"path_name": "custom_obj_0", "use_pickle": True, "tensor_meta": None},
            {"path_name": "opaque_obj_0", "use_pickle": False},
        ],
    )
    @pytest.mark.parametrize("folder", ["weights", "constants"])
    def test_a_pickled_weight_or_object(self, row, folder, sound, tmp_path):
        table = f"data/{folder}/model_{folder}_config.json"
        with zipfile.ZipFile(sound) as archive:
            whole = json.loads(archive.read("sound/data/weights/model_weights_config.json"))["config"]["conv.weight"]
        evil = stored(Runs(tmp_path / "ran"))
        path = with_json(sound, lambda p: p["config"].update(evil={**whole, **row}), tmp_path / "a.pt2", table)
        path = rewritten(path, lambda n, d: d, tmp_path / "b.pt2", [(f"data/{folder}/{row['path_name']}.x", evil)])
        assert refused(path) == "forbidden_pickle" and not (tmp_path / "ran").exists()

    def test_weights_in_the_old_pickled_form(self, sound, tmp_path):
        path = rewritten(
            sound, lambda n, d: None if n.endswith("weights_config.json") else d, tmp_path / "a.pt2",
            [("data/weights/model.pt", stored({"a": Runs(tmp_path / "ran")}))],
        )  # fmt: skip
        assert refused(path) == "forbidden_pickle"


class TestCode:
    """Places where the loader would evaluate text, or put it into code that it runs."""

    @pytest.mark.parametrize(
        "text", [EVIL, "().__class__", "s0.x", "[1][0]", "lambda: 1", "f(1)", "9**9**9", "2**99999", "'"]
    )
    def test_a_size_that_is_no_arithmetic(self, text, sound, tmp_path):
        def edit(plain):
            values = graph(plain)["tensor_values"]
            values["conv2d"]["sizes"][0] = {"as_expr": {"expr_str": text.format(str(tmp_path / "ran")), "hint": None}}

        assert refused(with_json(sound, edit, tmp_path / "a.pt2")) == "malformed_model"
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("text", ["x); import os; (", "a b", "a-b", "class", "é" * 2, "a" * 5000, "", "a\nb"])
    def test_a_node_whose_name_is_code(self, text, sound, tmp_path):
        def edit(plain):
            for node in graph(plain)["nodes"]:
                if node["name"] == "conv2d":
                    node["name"] = text or None
                    node["outputs"][0]["as_tensor"]["name"] = text or "1"

        assert refused(with_json(sound, edit, tmp_path / "a.pt2")) == "malformed_model"

    @pytest.mark.parametrize("text", ["a.b); x(", "a..b", "a b", "../x", ""])
    def test_a_weight_whose_name_is_code(self, text, sound, tmp_path):
        def edit(plain):
            plain["graph_module"]["signature"]["input_specs"][0]["parameter"]["parameter_name"] = text

        assert refused(with_json(sound, edit, tmp_path / "a.pt2")) == "malformed_model"

    def test_an_argument_whose_name_is_code(self, sound, tmp_path):
        def edit(plain):
            plain["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = ["x=print(1)"]

        assert refused(with_json(sound, edit, tmp_path / "a.pt2")) == "malformed_model"

    @pytest.mark.parametrize(
        ("target", "code"),
        [
            ("torch.os.system", "forbidden_operator"),
            ("torch.load", "forbidden_operator"),
            ("torch.hub.load", "forbidden_operator"),
            ("math.factorial", "forbidden_operator"),
            ("_operator.attrgetter", "forbidden_operator"),
            ("torch.ops.load_library", "forbidden_operator"),
            ("torch.ops.aten.from_file.default", "forbidden_operator"),
            ("#somebody:op", "forbidden_operator"),
            ("torch.ops.torchvision.nms.default", "unknown_operator"),
            ("torch.ops.mine.op.default", "unknown_operator"),
            ("torch.ops.quantized_decomposed.quantize_per_tensor.default", "already_quantised"),
            ("torch.ops.higher_order.while_loop", "unsupported_operator"),
        ],
    )
    def test_an_operator_that_is_none_of_torchs_own(self, target, code, sound, tmp_path):
        def edit(plain):
            next(node for node in graph(plain)["nodes"] if node["name"] == "conv2d")["target"] = target

        assert refused(with_json(sound, edit, tmp_path / "a.pt2")) == code

    def test_a_refusal_names_the_node_and_its_line(self, sound, tmp_path):
        def edit(plain):
            next(node for node in graph(plain)["nodes"] if node["name"] == "conv2d")["target"] = "torch.ops.my.op"

        path = with_json(sound, edit, tmp_path / "a.pt2")
        told = r"node 'conv2d' \(test_program_archive.py:\d+\) uses .* my::op"
        with pytest.raises(ImportFailed, match=told), harmless_copy(path):
            pass

    def test_compiled_code(self, sound, tmp_path):
        path = rewritten(sound, lambda n, d: d, tmp_path / "a.pt2", [("data/aotinductor/model/x.so", b"\x7fELF")])
        assert refused(path) == "unsupported_format"

    def test_objects_that_are_no_tensors(self, sound, tmp_path):
        def edit(plain):
            graph(plain)["custom_obj_values"] = {"a": {"name": "a", "class_fqn": "os.system"}}

        assert refused(with_json(sound, edit, tmp_path / "a.pt2")) == "unsupported_feature"


class TestBroken:
    @pytest.mark.parametrize("blob", [b"", b"hello", b"PK\x03\x04 not a zip", b"\x00" * 100])
    def test_no_archive(self, blob, tmp_path):
        path = tmp_path / "a.pt2"
        path.write_bytes(blob)
        assert refused(path) == "malformed_archive"

    @pytest.mark.parametrize(
        "name", ["models/model.json", "archive_version", "data/weights/weight_0", "archive_format"]
    )
    def test_a_part_is_missing(self, name, sound, tmp_path):
        assert (
            refused(rewritten(sound, lambda n, d: None if n == name else d, tmp_path / "a.pt2")) == "malformed_archive"
        )

    def test_a_record_that_is_too_short(self, sound, tmp_path):
        path = rewritten(sound, lambda n, d: d[:-4] if n == "data/weights/weight_0" else d, tmp_path / "a.pt2")
        assert refused(path) == "truncated_record"

    def test_a_shape_larger_than_its_record(self, sound, tmp_path):
        def edit(plain):
            plain["config"]["conv.weight"]["tensor_meta"]["sizes"][0] = {"as_int": 1 << 40}

        path = with_json(sound, edit, tmp_path / "a.pt2", "data/weights/model_weights_config.json")
        assert refused(path) == "truncated_record"

    @pytest.mark.parametrize("number", [-1, 1 << 60, 1.5, "3", None, True])
    def test_an_impossible_shape(self, number, sound, tmp_path):
        def edit(plain):
            plain["config"]["conv.weight"]["tensor_meta"]["strides"][0] = {"as_int": number}

        path = with_json(sound, edit, tmp_path / "a.pt2", "data/weights/model_weights_config.json")
        assert refused(path) == "malformed_archive"

    def test_a_bomb(self, sound, tmp_path):
        path = tmp_path / "a.pt2"
        with zipfile.ZipFile(sound) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
            for info in source.infolist():
                data = source.read(info)
                target.writestr(info.filename, data + bytes(64 << 20) if info.filename.endswith("weight_0") else data)
        assert refused(path) == "archive_bomb"

    def test_a_program_nested_too_deep(self, sound, tmp_path):
        deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
        path = rewritten(sound, lambda n, d: deep if n == "models/model.json" else d, tmp_path / "a.pt2")
        assert refused(path) == "malformed_archive"

    def test_one_nested_less_deep_but_too_deep(self, sound, tmp_path):
        path = with_json(sound, lambda p: graph(p).update(x=json.loads("[" * 500 + "]" * 500)), tmp_path / "a.pt2")
        assert refused(path) == "malformed_model"

    @pytest.mark.parametrize(
        "change", [{"schema_version": {"major": 99, "minor": 0}}, {"schema_version": {"major": 5, "minor": 1}}]
    )
    def test_another_version(self, change, sound, tmp_path):
        assert refused(with_json(sound, lambda p: p.update(change), tmp_path / "a.pt2")) == "unsupported_version"

    def test_a_file_of_an_older_torch(self, tmp_path):
        path = tmp_path / "a.pt2"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("version", "7.3")
            archive.writestr("serialized_exported_program.json", "{}")
        assert refused(path) == "unsupported_version"

    @pytest.mark.parametrize("drop", ["graph_module", "range_constraints", "opset_version"])
    def test_a_program_without_a_part(self, drop, sound, tmp_path):
        assert refused(with_json(sound, lambda p: p.pop(drop), tmp_path / "a.pt2")) == "malformed_model"

    def test_every_part_replaced_by_another_kind_is_refused_or_read(self, sound, tmp_path):
        """Walks over the whole program: no replacement may end in anything but a refusal or torch's own error."""
        with zipfile.ZipFile(sound) as archive:
            whole = json.loads(archive.read("sound/models/model.json"))
        for path in list(places(whole))[::7]:
            plain = copy.deepcopy(whole)
            holder = plain
            for step in path[:-1]:
                holder = holder[step]
            holder[path[-1]] = "x y" if not isinstance(holder[path[-1]], str) else 3
            target = rewritten(
                sound,
                lambda n, d, p=plain: json.dumps(p).encode() if n == "models/model.json" else d,
                tmp_path / "a.pt2",
            )
            try:
                with harmless_copy(target):
                    pass
            except ImportFailed as error:
                assert error.error_class == "user"


def places(plain, path=()):
    """The path of every value in a JSON document."""
    items = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))
