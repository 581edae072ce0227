"""Uploads of networks: by form, by PUT, from a job; C of BAD_INPUTS."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import ClassVar

import pytest

from app.tables import ModelRow
from tests.app.service import ONNX, PORTS, Service, npz, problem, torchscript

SIGNATURE = [{"name": "x", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]


def digest(blob: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(blob).digest()).decode()}:"


def stored_files(service: Service) -> int:
    storage = service.app.state.services.storage
    return len(list(storage.digests())) + sum(1 for _ in storage._incoming.iterdir())


class TestCreateModel:
    def test_the_answer_says_what_and_where(self, service: Service):
        answer = service.post("/v1/models", files={"file": ("net.onnx", ONNX)})
        body = answer.json()
        assert answer.status_code == 201 and answer.headers["location"] == f"/v1/models/{body['id']}"
        assert body["sha256"] == hashlib.sha256(ONNX).hexdigest() and body["size_bytes"] == len(ONNX)
        assert (body["object"], body["format"], body["status"], body["name"]) == (
            "model",
            "onnx",
            "inspecting",
            "net.onnx",
        )
        assert body["inputs"] is None and body["parent"] is None and body["error"] is None
        assert len(body["created_at"]) == 27 and body["created_at"].endswith("Z")

    def test_the_same_bytes_give_the_same_id(self, service: Service):
        first = service.upload()
        again = service.post("/v1/models", files={"file": ("other.onnx", ONNX)})
        assert again.status_code == 200 and again.json()["id"] == first["id"]
        assert service.put("/v1/models/third.onnx", content=ONNX).json()["id"] == first["id"]

    def test_another_signature_is_another_model(self, service: Service):
        first = service.upload(torchscript(), "net.pt")
        second = service.upload(torchscript(), "net.pt", inputs=SIGNATURE)
        assert first["id"] != second["id"] and first["format"] == "torchscript"
        assert service.upload(torchscript(), "net.pt", inputs=json.dumps(SIGNATURE, indent=3))["id"] == second["id"]

    def test_a_rejected_model_that_was_not_at_fault_is_looked_at_again(self, service: Service):
        model = service.upload()
        for error_class, status in (("transient", "inspecting"), ("user", "rejected")):
            with service.sessions.begin() as session:
                row = session.get_one(ModelRow, model["id"])
                row.status, row.error = "rejected", {"code": "x", "detail": "y", "hint": None, "class": error_class}
            assert service.upload()["status"] == status

    @pytest.mark.parametrize(
        ("name", "blob", "code"),
        [
            ("a.onnx", b"hello", "malformed_model"),
            ("a.onnx", b"", "empty_file"),
            ("a.txt", b"text", "unsupported_format"),
            ("a.pt", b"\x80\x04\x95\x00cos\nsystem\n", "pickle_not_accepted"),
            ("a.pt", torchscript("net/data.pkl", "net/data/0", "net/version"), "pickle_not_accepted"),
            ("a.safetensors", (100).to_bytes(8, "little") + b'{"a": {}}', "architecture_missing"),
        ],
    )
    def test_what_is_certainly_no_network_is_refused_and_not_kept(self, service: Service, name, blob, code):
        before = stored_files(service)
        problem(service.post("/v1/models", files={"file": (name, blob)}), 422, code)
        assert stored_files(service) == before

    @pytest.mark.parametrize(
        "names",
        [
            ("net/archive_format", "net/models/model.json", "net/data/weights/weight_0", "net/byteorder"),
            ("version", "serialized_exported_program.json", "serialized_state_dict.pt"),
        ],
    )
    def test_an_exported_program_is_told_by_what_is_in_it(self, service: Service, names):
        assert service.upload(torchscript(*names), "net.zip")["format"] == "exported_program"

    @pytest.mark.parametrize("names", [("net.onnx", "weights.bin"), ("a/net.ONNX", "a/weights.bin")])
    def test_an_archive_around_an_onnx_file_is_one(self, service: Service, names):
        assert service.upload(torchscript(*names), "net.bin")["format"] == "onnx"

    def test_a_broken_archive_is_left_to_inspection(self, service: Service):
        assert service.upload(b"PK\x03\x04 not a zip", "a.pt")["format"] == "torchscript"

    @pytest.mark.parametrize(
        ("given", "shown"),
        [
            ("../../etc/passwd", "passwd"),
            ("/etc/passwd", "passwd"),
            ("..\\..\\x.onnx", "x.onnx"),
            ("", "model"),
            ("..", "model"),
            ("a\u202egnp.onnx", "agnp.onnx"),
            ("a\x07b", "ab"),
            ("x" * 5000 + ".onnx", "x" * 250 + ".onnx"),
            ("ü 💥.onnx", "ü 💥.onnx"),
        ],
    )
    def test_a_hostile_name_is_shown_harmlessly(self, service: Service, given, shown):
        boundary = "b0undary"
        escaped = given.replace("\\", "\\\\")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{escaped}"\r\n\r\n'
        body = head.encode() + ONNX + given.encode() + f"\r\n--{boundary}--\r\n".encode()
        answer = service.post(
            "/v1/models", content=body, headers={"Content-Type": f"multipart/form-data; boundary={boundary}"}
        )
        assert answer.status_code == 201 and answer.json()["name"] == shown, answer.text
        content = service.get(f"/v1/models/{answer.json()['id']}/content")
        assert content.status_code == 200 and "\n" not in content.headers["content-disposition"]

    @pytest.mark.parametrize(
        "inputs",
        [
            "{",
            "[]",
            "{}",
            '[{"name": "x"}]',
            '[{"name": "x", "shape": [0]}]',
            "[NaN]",
            '[{"name": "x", "shape": [1], "x": 1}]',
            '[{"name": "x", "dtype": "complex64", "shape": [1]}]',
            '[{"name": "x", "shape": [4398046511104]}]',
            '[{"name": "x", "shape": ' + str([1] * 100) + "}]",
            '[{"name": "a\\u0000", "shape": [1]}]',
            '[{"name": "rate", "value": [1]}]',
            '[{"name": "rate", "value": 1, "shape": [1]}]',
        ],
    )
    def test_a_wrong_signature_is_pointed_at(self, service: Service, inputs):
        answer = service.post("/v1/models", files={"file": ("net.pt", torchscript())}, data={"inputs": inputs})
        assert answer.status_code in (400, 422), answer.text
        problem(answer, answer.status_code)
        raw = service.put("/v1/models/net.pt", params={"inputs": inputs}, content=torchscript())
        assert raw.status_code == answer.status_code and raw.json()["code"] == answer.json()["code"]

    def test_a_fixed_argument_is_part_of_the_signature(self, service: Service):
        rows = [*SIGNATURE, {"name": "rate", "value": 16000}, {"name": "mask", "value": None}]
        first = service.upload(torchscript(), "net.pt", inputs=rows)
        assert service.upload(torchscript(), "net.pt", inputs=rows)["id"] == first["id"]
        rows[1] = {"name": "rate", "value": 8000}
        assert service.upload(torchscript(), "net.pt", inputs=rows)["id"] != first["id"]

    def test_a_name_can_be_given(self, service: Service):
        answer = service.post("/v1/models", files={"file": ("x.onnx", ONNX)}, data={"name": "digits v2"})
        assert answer.json()["name"] == "digits v2"

    def test_wait_holds_until_inspection_has_ended(self, service: Service):
        model = service.post("/v1/models?wait=0.3", files={"file": ("x.onnx", ONNX)})
        assert model.status_code == 201 and model.json()["status"] == "inspecting"


class TestForms:
    HEADERS: ClassVar = {"Content-Type": "multipart/form-data; boundary=xyz"}

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"junk",
            b"--xyz\r\n",
            b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc',
            b"--other\r\n\r\n\r\n--other--\r\n",
            b"--xyz\r\nno header\r\n\r\nabc\r\n--xyz--\r\n",
        ],
    )
    def test_a_malformed_one_is_a_bad_request(self, service: Service, body):
        before = stored_files(service)
        problem(service.post("/v1/models", content=body, headers=self.HEADERS), 400, "invalid_multipart")
        assert stored_files(service) == before

    @pytest.mark.parametrize(
        "kind", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "x" * 500]
    )
    def test_a_boundary_is_needed(self, service: Service, kind):
        problem(service.post("/v1/models", content=b"--x--", headers={"Content-Type": kind}), 400, "invalid_multipart")

    def test_unknown_duplicate_and_missing_fields_are_named(self, service: Service):
        part = ("net.onnx", ONNX)
        assert (
            problem(service.post("/v1/models", files={"flie": part}), 422, "unknown_field")["errors"][0]["pointer"]
            == "/flie"
        )
        problem(service.post("/v1/models", files=[("file", part), ("file", part)]), 422, "duplicate_field")
        problem(service.post("/v1/models", files={"name": (None, "x")}), 422, "field_required")
        assert "@" in problem(service.post("/v1/models", files={"file": (None, "x")}), 422, "file_needed")["hint"]

    def test_a_text_with_nul_is_refused(self, service: Service):
        problem(
            service.post("/v1/models", files={"file": ("a.onnx", ONNX)}, data={"name": "a\0b"}), 422, "invalid_string"
        )

    def test_a_part_of_base64_is_refused(self, service: Service):
        head = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a"\r\nContent-Transfer-Encoding: base64\r\n\r\n'
        body = head + b"YWJj\r\n--xyz--\r\n"
        problem(service.post("/v1/models", content=body, headers=self.HEADERS), 400, "invalid_multipart")

    def test_a_part_has_a_digest_of_its_own(self, service: Service):
        def body(value: str) -> bytes:
            head = f'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.onnx"\r\nRepr-Digest: {value}\r\n\r\n'
            return head.encode() + ONNX + b"\r\n--xyz--\r\n"

        assert service.post("/v1/models", content=body(digest(ONNX)), headers=self.HEADERS).status_code == 201
        problem(service.post("/v1/models", content=body(digest(b"")), headers=self.HEADERS), 422, "digest_mismatch")

    @pytest.mark.parametrize("step", [1, 2, 3, 7, 64])
    def test_any_split_of_the_stream_gives_the_same_file(self, service: Service, step):
        blob = ONNX + b"\r\n--xy\r\n--xyzz\r\n\r--xyz-"
        body = (
            b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.onnx"\r\n\r\n'
            + blob
            + b"\r\n--xyz--\r\n"
        )

        async def chunks():
            for i in range(0, len(body), step):
                yield body[i : i + step]

        answer = service.post("/v1/models", content=chunks(), headers=self.HEADERS)
        assert answer.json()["sha256"] == hashlib.sha256(blob).hexdigest()


class TestUploadModel:
    def test_the_body_is_the_file(self, service: Service):
        answer = service.put("/v1/models/net.onnx", content=ONNX)
        assert answer.status_code == 201 and answer.json()["name"] == "net.onnx"
        assert service.put("/v1/models/", content=ONNX + b"1").json()["name"] == "model"

    def test_the_signature_comes_in_the_query(self, service: Service):
        answer = service.put("/v1/models/net.pt", params={"inputs": json.dumps(SIGNATURE)}, content=torchscript())
        with service.sessions() as session:
            assert session.get_one(ModelRow, answer.json()["id"]).signature == SIGNATURE

    def test_a_part_is_not_stored_as_the_whole(self, service: Service):
        answer = service.put("/v1/models/a.onnx", content=ONNX, headers={"Content-Range": "bytes 1000-1210/1211"})
        assert "curl" in problem(answer, 400, "partial_put_not_supported")["hint"]

    def test_an_empty_file_is_refused(self, service: Service):
        problem(service.put("/v1/models/a.onnx", content=b""), 422, "empty_file")

    def test_too_much_is_refused_by_the_header_alone(self, service: Service):
        answer = service.put("/v1/models/a.onnx", content=b"", headers={"Content-Length": str(10 << 40)})
        problem(answer, 413, "file_too_large")

    def test_too_much_without_a_length_is_refused_on_the_way_and_removed(self, service: Service):
        before = stored_files(service)

        async def chunks():
            yield b"\x08\x08"
            for _ in range(30):
                yield bytes(100_000)

        problem(service.put("/v1/models/a.onnx", content=chunks()), 413, "file_too_large")
        assert stored_files(service) == before

    @pytest.mark.parametrize("header", ["Content-Digest", "Repr-Digest"])
    def test_digests_are_checked(self, service: Service, header):
        before = stored_files(service)
        problem(
            service.put("/v1/models/a.onnx", content=ONNX, headers={header: digest(b"other")}), 422, "digest_mismatch"
        )
        assert stored_files(service) == before
        for value in ("sha-256=nonsense", "sha-256=:AAAA:", "sha-256=:!!!:", "x", "", "sha-256=:" + "A" * 45 + ":"):
            problem(service.put("/v1/models/a.onnx", content=ONNX, headers={header: value}), 400, "invalid_digest")
        both = f"md5=:AAAA:, {digest(ONNX)}"
        assert service.put("/v1/models/a.onnx", content=ONNX, headers={header: both}).status_code == 201
        assert service.put("/v1/models/a.onnx", content=ONNX, headers={header: "unixsum=:AAAA:"}).status_code == 200


class TestFromArtifact:
    def test_a_jobs_output_becomes_a_model_with_its_parent(self, service: Service):
        job = service.job()
        service.end(job["id"], model_onnx=b"\x08\x08smaller", report_json=b"{}")
        answer = service.post("/v1/models", json={"job_id": job["id"], "artifact": "model.onnx"})
        assert answer.status_code == 201, answer.text
        assert answer.json()["parent"] == {"job_id": job["id"], "model_id": job["model"]}
        assert service.get(f"/v1/models/{answer.json()['id']}/content").content == b"\x08\x08smaller"
        assert service.post("/v1/models", json={"job_id": job["id"], "artifact": "model.onnx"}).status_code == 200
        problem(service.post("/v1/models", json={"job_id": job["id"], "artifact": "report.json"}), 422, "not_a_model")
        problem(service.post("/v1/models", json={"job_id": job["id"], "artifact": "nothing"}), 404, "not_found")
        problem(service.post("/v1/models", json={"job_id": "job_x", "artifact": "model.onnx"}), 404, "not_found")

    def test_torchscript_takes_the_jobs_signature_along(self, service: Service):
        job = service.job(service.ready_model())
        service.end(job["id"], model_pt=torchscript())
        made = service.post("/v1/models", json={"job_id": job["id"], "artifact": "model.pt"}).json()
        with service.sessions() as session:
            assert session.get_one(ModelRow, made["id"]).signature == PORTS


class TestReadModels:
    def test_pages_are_newest_first_and_stable(self, service: Service):
        ids = [service.upload(ONNX + bytes([i]))["id"] for i in range(5)]
        page = service.get("/v1/models?limit=2").json()
        service.upload(ONNX + b"later")
        rest = service.get(f"/v1/models?limit=10&cursor={page['next_cursor']}").json()
        assert [m["id"] for m in page["data"] + rest["data"]] == ids[::-1] and rest["next_cursor"] is None

    def test_a_cursor_is_good_for_its_list_alone(self, service: Service):
        for i in range(3):
            service.upload(ONNX + bytes([i]))
        cursor = service.get("/v1/models?limit=1").json()["next_cursor"]
        problem(service.get(f"/v1/datasets?cursor={cursor}"), 400, "invalid_cursor")
        problem(service.get(f"/v1/models?cursor={cursor[:-2]}AA"), 400, "invalid_cursor")

    def test_layers_come_in_graph_order_by_page(self, service: Service):
        model = service.ready_model()
        page = service.get(f"/v1/models/{model}/layers?limit=3").json()
        rest = service.get(f"/v1/models/{model}/layers?limit=3&cursor={page['next_cursor']}").json()
        assert [row["name"] for row in page["data"] + rest["data"]] == [f"conv{i}" for i in range(5)] and rest[
            "next_cursor"
        ] is None

    def test_layers_of_an_unfinished_model_are_a_conflict(self, service: Service):
        problem(service.get(f"/v1/models/{service.upload()['id']}/layers"), 409, "model_not_ready")

    def test_content_comes_back(self, service: Service):
        answer = service.get(f"/v1/models/{service.upload()['id']}/content")
        assert answer.content == ONNX and 'filename="net.onnx"' in answer.headers["content-disposition"]


class TestDeleteModel:
    def test_a_model_that_is_needed_stays(self, service: Service):
        job = service.job()
        problem(service.delete(f"/v1/models/{job['model']}"), 409, "in_use")
        service.end(job["id"])
        assert service.delete(f"/v1/models/{job['model']}").status_code == 204
        problem(service.get(f"/v1/models/{job['model']}"), 404, "not_found")
        problem(service.delete(f"/v1/models/{job['model']}"), 404, "not_found")
        problem(service.post("/v1/jobs", json={"model": job["model"]}), 404, "not_found")
        assert service.get("/v1/models").json()["data"] == []
        assert service.get(f"/v1/jobs/{job['id']}").json()["model"] == job["model"]

    def test_the_same_bytes_are_a_new_model_afterwards(self, service: Service):
        job = service.job()
        service.end(job["id"])
        service.delete(f"/v1/models/{job['model']}")
        again = service.upload()
        assert again["id"] != job["model"] and again["status"] == "inspecting"

    def test_a_model_without_jobs_leaves_no_row(self, service: Service):
        model = service.upload()
        assert service.delete(f"/v1/models/{model['id']}").status_code == 204
        with service.sessions() as session:
            assert session.get(ModelRow, model["id"]) is None


def test_a_data_set_is_no_network(service: Service):
    answer = service.post("/v1/models", files={"file": ("data.npz", npz())})
    assert answer.status_code in (201, 422)
