"""Garbage goes, everything that a row names stays."""

from __future__ import annotations

import datetime as dt

from app.storage.garbage import collect_garbage
from app.tables import IdempotencyRow, ModelRow
from tests.app.service import ONNX, Service, npz


class TestCollectGarbage:
    def test_only_what_no_row_names_goes(self, service: Service):
        storage = service.app.state.services.storage
        job = service.job(service.ready_model(), dataset=service.ready_dataset())
        service.end(job["id"], model_onnx=b"artifact")
        graph, orphan = storage.begin(), storage.begin()
        graph.write(b"graph")
        orphan.write(b"orphan")
        with service.sessions.begin() as session:
            session.get_one(ModelRow, job["model"]).graph_sha256 = graph.commit().sha256
        kept, gone = set(storage.digests()), orphan.commit().sha256
        assert collect_garbage(service.sessions, storage) == 0, "what is young may still get its row"
        assert collect_garbage(service.sessions, storage, grace_seconds=0) == 1
        assert set(storage.digests()) == kept and gone not in kept and len(kept) == 4

    def test_a_deleted_models_bytes_go(self, service: Service):
        storage = service.app.state.services.storage
        job = service.job()
        service.end(job["id"], model_onnx=b"artifact")
        service.delete(f"/v1/models/{job['model']}")
        assert collect_garbage(service.sessions, storage, grace_seconds=0) == 1
        service.delete(f"/v1/jobs/{job['id']}")
        assert collect_garbage(service.sessions, storage, grace_seconds=0) == 1
        assert list(storage.digests()) == []

    def test_a_model_made_of_an_artifact_keeps_its_bytes(self, service: Service):
        job = service.job()
        service.end(job["id"], model_onnx=b"\x08\x08artifact")
        made = service.post("/v1/models", json={"job_id": job["id"], "artifact": "model.onnx"}).json()
        service.delete(f"/v1/jobs/{job['id']}")
        collect_garbage(service.sessions, service.app.state.services.storage, grace_seconds=0)
        assert service.get(f"/v1/models/{made['id']}/content").content == b"\x08\x08artifact"

    def test_many_blobs_go_in_batches(self, service: Service):
        for i in range(250):
            writer = service.app.state.services.storage.begin()
            writer.write(str(i).encode())
            writer.commit()
        assert collect_garbage(service.sessions, service.app.state.services.storage, grace_seconds=0) == 250

    def test_keys_of_yesterday_go(self, service: Service):
        service.post("/v1/datasets", files={"file": ("a.npz", npz())}, headers={"Idempotency-Key": "old"})
        service.post("/v1/models", files={"file": ("a.onnx", ONNX)}, headers={"Idempotency-Key": "new"})
        with service.sessions.begin() as session:
            session.get_one(IdempotencyRow, ("default", "old", "POST /v1/datasets")).created_at -= dt.timedelta(
                hours=25
            )
        collect_garbage(service.sessions, service.app.state.services.storage)
        with service.sessions() as session:
            assert [row.key for row in session.query(IdempotencyRow)] == ["new"]
