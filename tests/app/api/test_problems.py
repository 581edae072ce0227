"""BAD_INPUTS A: whatever arrives, the answer is a problem document with a stable code, and never a 500."""

from __future__ import annotations

import time

import pytest

from tests.app.service import ONNX, Service, problem

JSON = {"Content-Type": "application/json"}


class TestUnknownPaths:
    def test_an_unknown_path_is_not_found(self, service: Service):
        problem(service.get("/v1/nothing"), 404, "not_found")

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("PUT", "/v1/catalog", "GET"),
            ("PATCH", "/v1/jobs", "GET, POST"),
            ("POST", "/v1/jobs/job_x", "DELETE, GET"),
            ("DELETE", "/v1/compress", "POST"),
        ],
    )
    def test_a_wrong_method_lists_all_that_are_right(self, service: Service, method, path, allowed):
        answer = service.request(method, path)
        problem(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == allowed

    @pytest.mark.parametrize(
        "path",
        [
            "/v1/jobs/{}",
            "/v1/models/{}",
            "/v1/datasets/{}",
            "/v1/jobs/{}/events",
            "/v1/jobs/{}/metrics",
            "/v1/jobs/{}/artifacts",
            "/v1/jobs/{}/artifacts/model.onnx",
            "/v1/models/{}/content",
        ],
    )
    @pytest.mark.parametrize(
        "id_", ["job_nothing", "mdl_" + "0" * 26, "x" * 10_000, "job_%00", "job_%F0%9F%92%A5", "%2e%2e", "job_%ff"]
    )
    def test_an_odd_id_is_not_found(self, service: Service, path, id_):
        problem(service.get(path.format(id_)), 404, "not_found")

    def test_an_escaped_slash_in_an_id_is_not_found(self, service: Service):
        problem(service.get("/v1/jobs/..%2f..%2fetc"), 404, "not_found")


class TestRequestId:
    def test_a_harmless_id_comes_back(self, service: Service):
        assert service.get("/livez", headers={"X-Request-Id": "abc-123"}).headers["x-request-id"] == "abc-123"

    @pytest.mark.parametrize("given", ["", "x" * 200, "a b", "a\tb", "é"])
    def test_a_harmful_id_is_replaced(self, service: Service, given):
        assert (
            service.get("/livez", headers={"X-Request-Id": given.encode()}).headers["x-request-id"].startswith("req_")
        )

    def test_every_error_carries_one(self, service: Service):
        assert service.get("/nowhere").headers["x-request-id"]


class TestJsonBodies:
    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            (b"", 422, "body_required"),
            (b"  \n", 422, "body_required"),
            (b"{", 400, "invalid_json"),
            (b"{} x", 400, "invalid_json"),
            (b'{"a":1}{"b":2}', 400, "invalid_json"),
            (b"\xff\xfe", 400, "invalid_json"),
            (b"\xef\xbb\xbf{}", 400, "invalid_json"),
            (b"[" * 200_000, 400, "invalid_json"),
            (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, 400, "invalid_json"),
            (b'{"model": "x", "metadata": {"a": ' + b"[" * 70 + b"]" * 70 + b"}}", 400, "invalid_json"),
            (b'{"model": ' + b"9" * 5_000 + b"}", 400, "invalid_json"),
            (b'{"model": "a", "model": "b"}', 400, "duplicate_key"),
            (b'{"spec": {"seed": 1, "seed": 2}}', 400, "duplicate_key"),
            (b'{"spec": NaN}', 422, "non_finite_number"),
            (b'{"spec": -Infinity}', 422, "non_finite_number"),
            (b'{"spec": 1e999}', 422, "non_finite_number"),
            (b'{"model": "\\ud800"}', 422, "invalid_string"),
            (b'{"\\ud800": 1}', 422, "invalid_string"),
            (b'{"model": "a\\u0000b"}', 422, "invalid_string"),
            (b'{"model": "x", "name": "a\\u0000b"}', 422, "invalid_string"),
            (b"null", 422, None),
            (b"[]", 422, None),
            (b'"text"', 422, None),
            (b"{}", 422, "field_required"),
            (b'{"model": 1}', 422, "wrong_type"),
            (b'{"model": "x", "modle": "y"}', 422, "unknown_field"),
            (b'{"model": "x", "spec": []}', 422, None),
            (b'{"model": "x", "spec": "text"}', 422, None),
        ],
    )
    def test_a_broken_body_is_a_client_error(self, service: Service, body, status, code):
        began = time.process_time()  # the service runs in this process, and the machine may be busy with others
        problem(service.post("/v1/jobs", content=body, headers=JSON), status, code)
        assert time.process_time() - began < 0.5

    def test_the_pointer_names_the_field_that_is_not_finite(self, service: Service):
        body = problem(service.post("/v1/jobs", content=b'{"spec": {"steps": [{"a": NaN}]}}', headers=JSON), 422)
        assert body["errors"][0]["pointer"] == "/spec/steps/0/a"

    def test_a_typo_names_the_nearest_key(self, service: Service):
        assert "'model'" in problem(service.post("/v1/jobs", json={"modle": "x"}), 422)["errors"][-1]["detail"]

    def test_what_was_sent_is_not_echoed(self, service: Service):
        assert "hunter2" not in service.post("/v1/jobs", json={"model": ["hunter2"]}).text

    def test_a_large_body_is_refused_by_its_header_alone(self, service: Service):
        problem(
            service.post("/v1/jobs", content=b"", headers={**JSON, "Content-Length": str(100 << 20)}),
            413,
            "body_too_large",
        )

    def test_a_large_body_without_a_length_is_refused_as_it_comes(self, service: Service):
        async def chunks():
            for _ in range(20):
                yield b" " * 100_000

        problem(service.post("/v1/jobs", content=chunks(), headers=JSON), 413, "body_too_large")

    @pytest.mark.parametrize("kind", ["text/plain", "", "application/xml", "application/x-www-form-urlencoded"])
    def test_another_media_type_is_told_what_is_taken(self, service: Service, kind):
        answer = service.post("/v1/jobs", content=b"{}", headers={"Content-Type": kind} if kind else {})
        problem(answer, 415, "unsupported_media_type")
        assert "application/json" in answer.headers["accept-post"]

    def test_a_content_encoding_is_refused(self, service: Service):
        answer = service.post("/v1/jobs", content=b"\x1f\x8b", headers={**JSON, "Content-Encoding": "gzip"})
        problem(answer, 415, "unsupported_content_encoding")

    def test_two_lengths_are_refused(self, service: Service):
        headers = {**JSON, "Content-Length": "2", "Transfer-Encoding": "chunked"}
        problem(service.post("/v1/jobs", content=b"{}", headers=headers), 400, "ambiguous_length")

    def test_a_wish_for_xml_gets_json(self, service: Service):
        assert (
            service.get("/v1/jobs", headers={"Accept": "application/xml"}).headers["content-type"] == "application/json"
        )


class TestParameters:
    @pytest.mark.parametrize(
        ("query", "code"),
        [
            ("limit=0", "out_of_range"),
            ("limit=-1", "out_of_range"),
            ("limit=abc", "wrong_type"),
            ("limit=1e3", "wrong_type"),
            ("stauts=failed", "unknown_field"),
            ("status=done", "unknown_value"),
            ("limit=%00", "wrong_type"),
        ],
    )
    def test_a_wrong_one_is_pointed_at(self, service: Service, query, code):
        body = problem(service.get(f"/v1/jobs?{query}"), 422, code)
        assert body["errors"][0]["pointer"].startswith("/query/")

    @pytest.mark.parametrize("wait", ["-1", "nan", "inf", "x", "1e400"])
    def test_a_wait_has_to_be_a_number_of_seconds(self, service: Service, wait):
        problem(service.get(f"/v1/jobs/job_x?wait={wait}"), 422)

    def test_a_huge_limit_is_capped(self, service: Service):
        assert service.get("/v1/jobs?limit=1000000000").status_code == 200

    @pytest.mark.parametrize("cursor", ["nonsense", "", "AAAA", "%00", "x" * 4000, "é", "MTIzNDU2Nzg5WyJhIl0"])
    def test_a_foreign_cursor_is_refused(self, service: Service, cursor):
        if cursor == "":
            assert service.get("/v1/jobs?cursor=").status_code == 200
        else:
            problem(service.get(f"/v1/jobs?cursor={cursor}"), 400, "invalid_cursor")


class TestOpenApi:
    def test_the_document_describes_every_body_and_error(self, service: Service):
        document = service.get("/openapi.json").json()
        assert {"Problem", "Spec", "JobCreate", "JobRead", "ModelRead"} <= set(document["components"]["schemas"])
        text = str(document)
        assert "HTTPValidationError" not in text
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                assert operation["summary"], (method, path)
                assert path in ("/livez", "/readyz", "/version") or "default" in operation["responses"], (method, path)

    def test_every_reference_leads_somewhere(self, service: Service):
        document = service.get("/openapi.json").json()
        known, found = set(document["components"]["schemas"]), set()

        def walk(value):
            if isinstance(value, dict):
                if isinstance(ref := value.get("$ref"), str):
                    found.add(ref.removeprefix("#/components/schemas/"))
                for inner in value.values():
                    walk(inner)
            elif isinstance(value, list):
                for inner in value:
                    walk(inner)

        walk(document)
        assert found <= known, found - known

    def test_the_pages_answer(self, service: Service):
        assert service.get("/docs").status_code == 200


class TestUnforeseen:
    def test_an_error_of_ours_is_a_problem_without_a_trace(self, service: Service, monkeypatch):
        async def fail(*_args: object, **_kwargs: object) -> None:
            raise RuntimeError("secret detail")

        monkeypatch.setattr(service.app.state.services.database, "read", fail)
        answer = service.get("/v1/jobs")
        assert "secret" not in answer.text
        problem(answer, 500, "internal_error")


class TestUploadBodies:
    def test_a_form_is_not_taken_where_json_is_asked(self, service: Service):
        problem(service.post("/v1/compress", json={"model": "x"}), 415, "unsupported_media_type")

    def test_json_is_not_taken_for_data(self, service: Service):
        problem(service.post("/v1/datasets", json={}), 415, "unsupported_media_type")

    def test_a_form_is_not_taken_by_put(self, service: Service):
        problem(service.put("/v1/models/a.onnx", files={"file": ("a.onnx", ONNX)}), 415, "unsupported_media_type")
