"""Requests made from the server's own OpenAPI schema: whatever is sent, the answer is not that the server failed."""

from __future__ import annotations

import os

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from tests.serve.conftest import upload  # noqa: E402

EXAMPLES = int(os.environ.get("EXAMPLES", "4"))  # of each operation; EXAMPLES=100 looks harder


def test_no_request_of_the_schema_breaks_the_server(http, served):
    key = upload(http)
    schema = schemathesis.openapi.from_dict(http.get("/openapi.json").json())
    paths = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        paths.add(operation.path)
        if operation.path.endswith("/events"):
            continue  # follows a reading; the other tests do
        _try(operation, served.url)
    assert {"/v1/chat/completions", "/v1/completions", "/v1/map", "/v1/contexts", "/v1/contexts/{name}"} <= paths
    assert http.get("/ready").status_code == 200 and http.get(f"/v1/contexts/{key}").status_code == 200


def _try(operation, url: str) -> None:
    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate],
    )  # fmt: skip
    @hypothesis.given(operation.as_strategy())
    def one(case) -> None:
        if isinstance(case.body, dict) and "messages" in case.body:
            case.body["max_tokens"] = 1
        answer = case.call(base_url=url, timeout=60)
        assert answer.status_code < 500, f"{operation.method} {operation.path}: {answer.text}"

    one()
