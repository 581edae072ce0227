"""Downloads: validators, ranges, and names that lead nowhere."""

from __future__ import annotations

import base64
import hashlib

import pytest

from tests.app.service import Service, problem

BLOB = bytes(range(256)) * 4


@pytest.fixture
def url(service: Service) -> str:
    job = service.job()["id"]
    service.end(job, model_onnx=BLOB, report_json=b"{}")
    return f"/v1/jobs/{job}/artifacts/model.onnx"


class TestListArtifacts:
    def test_they_are_sorted_by_name(self, service: Service, url):
        rows = service.get(url.rpartition("/")[0]).json()["data"]
        assert [r["name"] for r in rows] == ["model.onnx", "report.json"] and rows[0]["url"] == url
        assert rows[0]["sha256"] == hashlib.sha256(BLOB).hexdigest() and rows[0]["size_bytes"] == len(BLOB)
        page = service.get(url.rpartition("/")[0] + "?limit=1").json()
        rest = service.get(f"{url.rpartition('/')[0]}?limit=1&cursor={page['next_cursor']}").json()
        assert rest["data"][0]["name"] == "report.json" and rest["next_cursor"] is None


class TestDownload:
    def test_the_whole_carries_its_validators(self, service: Service, url):
        answer = service.get(url)
        digest = hashlib.sha256(BLOB)
        assert answer.status_code == 200 and answer.content == BLOB and answer.headers["content-length"] == "1024"
        assert answer.headers["etag"] == f'"{digest.hexdigest()}"' and answer.headers["accept-ranges"] == "bytes"
        assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
        assert answer.headers["content-disposition"] == 'attachment; filename="model.onnx"'

    @pytest.mark.parametrize(
        ("asked", "first", "last"),
        [
            ("bytes=100-199", 100, 199),
            ("bytes=-10", 1014, 1023),
            ("bytes=1000-", 1000, 1023),
            ("bytes=0-0", 0, 0),
            ("bytes=1000-99999", 1000, 1023),
            ("bytes=-99999", 0, 1023),
            ("Bytes=5-6", 5, 6),
        ],
    )
    def test_a_range_is_a_part(self, service: Service, url, asked, first, last):
        answer = service.get(url, headers={"Range": asked})
        assert answer.status_code == 206 and answer.content == BLOB[first : last + 1]
        assert answer.headers["content-range"] == f"bytes {first}-{last}/1024" and answer.headers[
            "content-length"
        ] == str(last - first + 1)

    @pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=999999999999-", "bytes=5-1", "bytes=-0"])
    def test_a_range_outside_is_not_satisfiable(self, service: Service, url, asked):
        answer = service.get(url, headers={"Range": asked})
        problem(answer, 416, "range_not_satisfiable")
        assert answer.headers["content-range"] == "bytes */1024"

    @pytest.mark.parametrize(
        "asked",
        [
            "items=0-1",
            "bytes=0-1,5-6",
            "bytes=" + ",".join("0-1" for _ in range(1000)),
            "bytes=a-b",
            "bytes=-",
            "bytes",
            "x",
        ],
    )
    def test_what_is_no_single_range_gets_the_whole(self, service: Service, url, asked):
        answer = service.get(url, headers={"Range": asked})
        assert answer.status_code == 200 and answer.content == BLOB

    def test_conditions(self, service: Service, url):
        etag = service.get(url).headers["etag"]
        for known in (etag, f'"x", {etag}', f"W/{etag}", "*"):
            answer = service.get(url, headers={"If-None-Match": known})
            assert answer.status_code == 304 and answer.content == b"" and answer.headers["etag"] == etag
        assert service.get(url, headers={"If-None-Match": '"x"'}).status_code == 200
        assert service.get(url, headers={"Range": "bytes=0-9", "If-Range": etag}).status_code == 206
        for other in ('"other"', f"W/{etag}", "Mon, 23 Nov 2026 20:00:00 GMT"):
            assert service.get(url, headers={"Range": "bytes=0-9", "If-Range": other}).content == BLOB
        problem(service.get(url, headers={"If-Match": '"x"'}), 412, "precondition_failed")

    def test_head_has_the_headers_alone(self, service: Service, url):
        answer = service.request("HEAD", url, headers={"Range": "bytes=0-9"})
        assert answer.status_code == 200 and answer.content == b"" and answer.headers["content-length"] == "1024"

    @pytest.mark.parametrize("name", ["nothing.bin", "..%2f..%2fsecret", "%00", "x" * 5000, "💥"])
    def test_an_unknown_name_is_not_found(self, service: Service, url, name):
        problem(service.get(f"{url.rpartition('/')[0]}/{name}"), 404, "not_found")

    def test_an_unfinished_job_has_none_yet(self, service: Service):
        job = service.job()["id"]
        problem(service.get(f"/v1/jobs/{job}/artifacts/model.onnx"), 409, "job_not_finished")

    def test_damaged_bytes_are_not_handed_out(self, service: Service, url):
        path = service.app.state.services.storage.local_path(hashlib.sha256(BLOB).hexdigest())
        path.chmod(0o644)
        path.write_bytes(b"X" + BLOB[1:])
        problem(service.get(url), 500, "artifact_corrupt")
