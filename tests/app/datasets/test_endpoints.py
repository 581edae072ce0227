"""Uploads of data sets."""

from __future__ import annotations

import pytest

from app.tables import DatasetRow
from tests.app.service import Service, npz, problem

SAFETENSORS = (8).to_bytes(8, "little") + b'{"a":{}}'


class TestCreateDataset:
    def test_the_answer_says_what_and_where(self, service: Service):
        answer = service.post("/v1/datasets", files={"file": ("data.npz", npz())})
        body = answer.json()
        assert answer.status_code == 201 and answer.headers["location"] == f"/v1/datasets/{body['id']}"
        assert (body["object"], body["format"], body["status"]) == ("dataset", "npz", "inspecting") and body[
            "fields"
        ] is None

    def test_the_same_bytes_give_the_same_id(self, service: Service):
        first = service.upload(npz(), "a.npz", "datasets")
        assert service.put("/v1/datasets/b.npz", content=npz()).json()["id"] == first["id"]

    def test_safetensors_are_known(self, service: Service):
        assert service.upload(SAFETENSORS, "a.safetensors", "datasets")["format"] == "safetensors"

    @pytest.mark.parametrize("blob", [b"a,b\n1,2\n", b"\x80\x04\x95", b"\x93NUMPY\x01\x00", b"x", bytes(9)])
    def test_anything_else_is_refused(self, service: Service, blob):
        problem(service.post("/v1/datasets", files={"file": ("data.npz", blob)}), 422, "wrong_format")

    def test_an_empty_file_is_refused(self, service: Service):
        problem(service.post("/v1/datasets", files={"file": ("data.npz", b"")}), 422, "empty_file")


class TestReadDataset:
    def test_facts_are_shown(self, service: Service):
        data = service.get(f"/v1/datasets/{service.ready_dataset()}").json()
        assert data["status"] == "ready" and data["splits"] == {"train": 100, "val": 0, "test": 0}
        assert data["fields"][0] == {"name": "x", "dtype": "float32", "shape": [100, 1, 8, 8]}

    def test_content_comes_back(self, service: Service):
        assert service.get(f"/v1/datasets/{service.ready_dataset()}/content").content == npz()


class TestDeleteDataset:
    def test_one_that_is_needed_stays(self, service: Service):
        data = service.ready_dataset()
        job = service.job(dataset=data)
        problem(service.delete(f"/v1/datasets/{data}"), 409, "in_use")
        service.end(job["id"])
        assert service.delete(f"/v1/datasets/{data}").status_code == 204
        problem(service.get(f"/v1/datasets/{data}"), 404, "not_found")
        assert service.upload(npz(), "a.npz", "datasets")["id"] != data
        with service.sessions() as session:
            assert session.get_one(DatasetRow, data).status == "deleted"
