"""What clients learn of the API from itself: its schema, the methods of a path, the names of fields."""

from __future__ import annotations

import pytest

from tests.serve.test_wrong import CHAT, CONTEXTS, SAID, assert_refused

pytest.importorskip("httpx", reason="httpx is not installed")


def test_a_field_that_is_wrong_is_named_as_it_was_sent(http):
    told = http.post(CHAT, json={"messages": SAID, "max_completion_tokens": 900_000}).json()["error"]
    assert told["param"] == "max_completion_tokens"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/", {"GET", "HEAD"}),
        ("/ready", {"GET", "HEAD"}),
        ("/v1/map", {"POST"}),
        (CONTEXTS, {"GET", "POST"}),
        (f"{CONTEXTS}/ctx_{'0' * 32}", {"GET", "POST", "DELETE"}),
    ],
)
def test_a_method_that_a_path_does_not_take_is_told_with_those_that_it_does(http, path, allowed):
    answer = http.put(path)
    assert_refused(answer, 405, "no such method")
    assert set(answer.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", ["/", "/page.css", "/health", "/ready"])
def test_what_is_looked_at_to_see_whether_the_server_lives_has_a_head(http, path):
    answer = http.head(path)
    assert answer.status_code == 200 and answer.content == b"" and "X-Request-Id" in answer.headers


def test_the_schema_promises_the_errors_that_are_sent(http):
    schema = http.get("/openapi.json").json()
    kinds = schema["components"]["schemas"]
    assert not {"HTTPValidationError", "ValidationError"} & set(kinds)
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
            for status in ("4XX", "5XX"):
                kind = operation["responses"][status]["content"]["application/json"]["schema"]["$ref"]
                assert kind.endswith("/Failure"), path
    assert set(kinds["Fault"]["properties"]) == {"message", "type", "param", "code"}
    assert list(kinds["Failure"]["properties"]) == ["error"]
