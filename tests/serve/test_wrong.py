"""What is wrong with a request is said in one sentence and OpenAI's shape, and the server goes on."""

from __future__ import annotations

import time

import pytest

from tests.serve.conftest import LONG, started, upload

httpx = pytest.importorskip("httpx", reason="httpx is not installed")
hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
st = hypothesis.strategies

SAID = [{"role": "user", "content": "Why?"}]
CHAT, CONTEXTS = "/v1/chat/completions", "/v1/contexts"
WRONG = [
    (CHAT, b"{", 400, "JSON"),
    (CHAT, b"\xff\xfe", 400, ""),
    (CHAT, b"[" * 100_000, 400, "nested"),
    (CHAT, b'{"messages": ' + b'{"a":' * 50_000, 400, "nested"),
    (CHAT, b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1e999}', 400, "temperature"),
    (CHAT, b'{"messages": [{"role": "user", "content": "a"}], "seed": -1' + b"0" * 999 + b"}", 400, "seed"),
    (CHAT, b'{"messages": [{"role": "user", "content": "a"}], "seed": 1' + b"0" * 9999 + b"}", 400, ""),
    (CHAT, b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 1}', 400, ""),
    (CHAT, b'{"messages": [{"role": "user", "content": "a"}], "stop": "\\udfff", "max_tokens": 1}', 400, "stop"),
    ("/v1/map", {"messages": SAID}, 400, "nothing to map"),
    ("/v1/map", {"messages": SAID, "answer": 9}, 400, "answer"),
    ("/v1/map", {"messages": SAID, "context": "ctx_../../x"}, 404, "context"),
    (CHAT, [], 400, "body"),
    (CHAT, {}, 400, "messages"),
    (CHAT, {"messages": []}, 400, "messages"),
    (CHAT, {"messages": "Why?"}, 400, "messages"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "messages.0.content"),
    (CHAT, {"messages": [{"role": "robot", "content": "a"}]}, 400, "messages.0.role"),
    (CHAT, {"messages": [{"role": "user", "content": " "}]}, 400, "empty"),
    (CHAT, {"messages": SAID, "max_tokens": -1}, 400, "max_tokens"),
    (CHAT, {"messages": SAID, "max_tokens": 10**9}, 400, "max_tokens"),
    (CHAT, {"messages": SAID, "max_tokens": 900_000}, 400, "max_tokens"),
    (CHAT, {"messages": SAID, "max_tokens": "9"}, 400, "max_tokens"),
    (CHAT, {"messages": SAID, "max_tokens": True}, 400, "max_tokens"),
    (CHAT, {"messages": SAID, "temperature": -0.1}, 400, "temperature"),
    (CHAT, {"messages": SAID, "temperature": 1e308}, 400, "temperature"),
    (CHAT, {"messages": SAID, "max_completion_tokens": 900_000}, 400, "max_completion_tokens is 900000"),
    (CHAT, {"messages": SAID, "temperature": "0.7"}, 400, "temperature"),
    (CHAT, {"messages": SAID, "temperature": True}, 400, "temperature"),
    (CHAT, {"messages": SAID, "top_p": "1"}, 400, "top_p"),
    (CHAT, {"messages": SAID, "top_p": -0.1}, 400, "top_p"),
    (CHAT, {"messages": [{"role": "user", "content": None}]}, 400, "messages.0.content is missing"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content"),
    (CHAT, {"messages": SAID, "tools": [{}], "tool_choice": "auto"}, 400, "tools"),
    (CHAT, {"messages": SAID, "functions": [{"name": "f"}], "function_call": {"name": "f"}}, 400, "functions"),
    ("/v1/completions", {"prompt": "a", "suffix": "b"}, 400, "suffix"),
    ("/v1/completions", {"prompt": "a", "best_of": 4}, 400, "best_of"),
    ("/v1/completions", {"prompt": "a", "n": 2, "best_of": 3}, 400, "best_of"),
    ("/v1/completions", {"prompt": "a", "best_of": "x"}, 400, "best_of"),
    (CHAT, {"messages": SAID, "n": 99}, 400, "n is 99"),
    (CHAT, {"messages": SAID, "seed": 2**64}, 400, "seed"),
    (CHAT, {"messages": SAID, "stop": ["a"] * 9}, 400, "stop"),
    (CHAT, {"messages": SAID, "stream": "yes"}, 400, "stream"),
    (CHAT, {"messages": SAID, "tools": [{}]}, 400, "tools"),
    (CHAT, {"messages": SAID, "frequency_penalty": 1}, 400, "frequency_penalty"),
    (CHAT, {"messages": SAID, "model": "gpt-9"}, 404, "gpt-9"),
    (CHAT, {"messages": SAID, "context": "ctx_" + "0" * 32}, 404, "context"),
    (CHAT, {"messages": SAID, "context": "../../etc/passwd"}, 404, "context"),
    ("/v1/completions", {"prompt": [-1]}, 400, "prompt"),
    ("/v1/completions", {"prompt": [299, 300]}, 400, "token ids"),
    ("/v1/completions", {"prompt": ""}, 400, "prompt"),
    ("/v1/completions", {"prompt": []}, 400, "prompt"),
    ("/v1/completions", {"prompt": [""]}, 400, "prompt"),
    ("/v1/completions", {"prompt": ["a", "b"]}, 400, "one by one"),
    ("/v1/completions", {"prompt": [[1], [2]]}, 400, "one by one"),
    ("/v1/completions", {"prompt": [[[1]]]}, 400, "prompt"),
    ("/v1/completions", {"prompt": [1, "a"]}, 400, "prompt"),
    ("/v1/completions", {"prompt": ["a"] * 3_000_000}, 400, "one by one"),
    ("/v1/completions", {"prompt": [[*"abc"] * 500_000]}, 400, "prompt"),
    ("/v1/completions", {"prompt": [-1] * 3_000_000}, 400, "prompt"),
    (CHAT, {"messages": SAID, "logit_bias": {"5": 1}}, 400, "logit_bias"),
    (CHAT, {"messages": SAID, "logit_bias": dict.fromkeys(map(str, range(300_000)), "much")}, 400, "logit_bias"),
    (CHAT, {"messages": [{"role": "user", "content": [{}] * 1000}] * 500}, 400, "messages.0.content"),
    (CONTEXTS, {"file": "text"}, 400, "file"),
]


@pytest.mark.parametrize(("path", "body", "status", "words"), WRONG)
def test_wrong_requests(http, path, body, status, words):
    sent = (
        {"content": body, "headers": {"Content-Type": "application/json"}}
        if isinstance(body, bytes)
        else {"json": body}
    )
    assert_refused(http.post(path, **sent), status, words)


@pytest.mark.parametrize("temperature", [0, 5e-324, 1e-40, 1e-9, 1e-3])
def test_any_temperature_in_range_is_answered(http, temperature):
    body = {"messages": SAID, "max_tokens": 3, "temperature": temperature, "seed": 1}
    said, cold = http.post(CHAT, json=body), http.post(CHAT, json={**body, "temperature": 0})
    assert said.status_code == 200, said.text
    assert said.json()["choices"] == cold.json()["choices"]


def test_wrong_lists_do_not_hold_the_server_up(http):
    sent = {"prompt": [-1] * 3_000_000}
    started = time.perf_counter()
    http.post("/v1/completions", json={**sent, "prompt": [0] * 3_000_000, "model": "gpt-9"})
    right = time.perf_counter() - started
    started = time.perf_counter()
    assert_refused(http.post("/v1/completions", json=sent), 400, "prompt")
    assert time.perf_counter() - started < 3 * right + 1, "every wrong item is told"


def test_a_row_that_fails_fails_alone(http, served, monkeypatch):
    from sharedllm.serve.sampling import Sampler

    choose, chosen = Sampler.choose, []

    def failing(self, logits):
        time.sleep(0.01)  # so that the other is still being written
        chosen.append(self.sampling.seed)
        if self.sampling.seed == 13 and chosen.count(13) > 3:
            raise RuntimeError("secret")
        return choose(self, logits)

    monkeypatch.setattr(Sampler, "choose", failing)
    body = {"messages": SAID, "max_tokens": 150, "stream": True}
    with (
        http.stream("POST", CHAT, json={**body, "seed": 1}) as well,
        httpx.stream("POST", f"{served.url}{CHAT}", json={**body, "seed": 13}, timeout=60) as ill,
    ):
        failed, ended = [*ill.iter_lines()], [*well.iter_lines()]
    assert chosen.index(13) < len(chosen) - 1 - chosen[::-1].index(1), "both were written at the same time"
    assert "internal_error" in "".join(failed) and "secret" not in "".join(failed)
    assert "[DONE]" in "".join(ended) and "error" not in "".join(ended)


def test_a_late_prompt_lets_go_of_its_work_at_once(served):
    from sharedllm.serve.sampling import Sampling
    from sharedllm.serve.task import Task

    told, closed = [], []

    def context():
        try:
            while True:
                yield
        finally:
            closed.append(True)

    task = Task([1], None, context, Sampling(), 1, 1, (), told.append, time.monotonic() + 60)
    work = served.service.engine._prepare(task)
    next(work)
    task.deadline = 0
    assert next(work, "ended") == "ended"
    assert told[0].status == 504 and closed == [True]


def test_what_was_not_foreseen_is_refused_counted_and_carries_the_headers(http, served, monkeypatch):
    def failing(_name):
        raise RuntimeError("secret")

    monkeypatch.setattr(served.service, "check_model", failing)
    answer = http.get("/v1/models/any")
    assert_refused(answer, 500, "its log has the reason")
    assert "secret" not in answer.text
    assert answer.headers["X-Request-Id"] and "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert 'sharedllm_requests_total{route="/v1/models/{model:path}",status="500"} 1.0' in http.get("/metrics").text


@pytest.mark.parametrize("name", ["ctx_../x", "..%2f..%2fetc", "ctx_" + "g" * 32, "ctx_" + "0" * 32, "%00", "prompt"])
@pytest.mark.parametrize(
    ("method", "end"), [("GET", ""), ("DELETE", ""), ("POST", ""), ("GET", "/events"), ("GET", "/text")]
)
def test_ids_cannot_name_a_path(http, method, end, name):
    sent = {"files": {"file": ("a.txt", LONG.encode())}} if method == "POST" else {}
    assert_refused(http.request(method, f"{CONTEXTS}/{name}{end}", **sent), 404, "")


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b"\x00\x01\x02", "binary"),
        ("a.pdf", b"%PDF-1.7 broken", "a.pdf"),
        ("a.html", b"<html></html>", "no text"),
    ],
)
def test_files_that_have_no_text(http, name, raw, words):
    assert_refused(http.post(CONTEXTS, files={"file": (name, raw)}), 400, words)


@hypothesis.settings(max_examples=25, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=9),
        lambda x: st.lists(x, max_size=3),
    ),
    st.sampled_from(["messages", "max_tokens", "temperature", "top_p", "n", "seed", "stop", "context", "logprobs"]),
)
def test_no_value_of_a_field_breaks_the_server(http, value, field):
    answer = http.post(CHAT, json={"messages": SAID, "max_tokens": 1, field: value})
    assert answer.status_code in (200, 400, 404), answer.text


def test_a_client_that_goes_ends_its_work(http, served):
    body = {"messages": SAID, "max_tokens": 120, "stream": True}
    for _ in range(3):
        with httpx.stream("POST", f"{served.url}{CHAT}", json=body) as answer:
            next(answer.iter_lines())
    until = time.monotonic() + 10
    while served.service.engine._rows and time.monotonic() < until:
        time.sleep(0.01)
    assert not served.service.engine._rows
    assert http.post(CHAT, json={"messages": SAID, "max_tokens": 1}).status_code == 200


def test_limits_key_and_sites(tmp_path):
    limits = dict(api_key="a long secret", rows=1, queue=1, body_bytes=4096, hosts=("127.0.0.1",), requests_a_minute=30)
    running = started(tmp_path, **limits)
    key = {"Authorization": "Bearer a long secret"}
    try:
        with httpx.Client(base_url=running.url, timeout=60) as http:
            assert_refused(http.get("/v1/models"), 401, "key")
            assert_refused(http.get("/v1/models", headers={"Authorization": "Bearer wrong"}), 401, "key")
            lower = {"Authorization": "bearer  a long secret"}  # RFC 9110, 11.1: in any case, behind one space or more
            assert http.get("/v1/models", headers=lower).status_code == 200
            assert_refused(http.get("/metrics"), 401, "key")
            assert http.get("/health").status_code == http.get("/ready").status_code == http.get("/").status_code == 200
            assert_refused(http.get("/v1/models", headers={**key, "Host": "evil.example"}), 403, "name")
            assert_refused(http.get("/v1/models", headers={**key, "Origin": "https://evil.example"}), 403, "sites")
            assert_refused(http.get("/v1/models", headers={**key, "Host": "["}), 403, "name")
            assert_refused(http.get("/v1/models", headers={**key, "Origin": "http://["}), 403, "sites")
            long = {"messages": [{"role": "user", "content": LONG * 20}]}
            assert_refused(http.post(CHAT, json=long, headers=key), 413, "4,096")
            pieces, kind = (b"x" * 1000 for _ in range(9)), {"Content-Type": "application/json"}
            assert_refused(http.post(CHAT, content=pieces, headers={**key, **kind}), 413, "4,096")
            body = {"messages": SAID, "max_tokens": 200, "stream": True}
            with http.stream("POST", CHAT, json=body, headers=key):
                while not running.service.engine._rows:
                    time.sleep(0.001)
                with http.stream("POST", CHAT, json=body, headers=key):
                    refused = http.post(CHAT, json=body, headers=key)
            assert_refused(refused, 429, "wait")
            assert int(refused.headers["Retry-After"]) > 0
            statuses = [http.get("/v1/models", headers=key) for _ in range(40)]
            assert_refused(statuses[-1], 429, "slow")
    finally:
        running.stop()


def test_keys_cannot_be_tried_at_any_rate(tmp_path):
    running = started(tmp_path, api_key="a long secret", requests_a_minute=5)
    try:
        with httpx.Client(base_url=running.url, timeout=60) as http:
            tried = [
                http.get(f"/{path}", headers={"Authorization": "Bearer a"}) for path in ["v1/models", "metrics"] * 4
            ]
            assert [answer.status_code for answer in tried] == [401] * 5 + [429] * 3
            right = {"Authorization": "Bearer a long secret"}
            assert http.get("/v1/models", headers=right).status_code == 429, "it does not tell that the key is right"
            assert http.get("/metrics", headers=right).status_code == 429
            assert http.get("/health").status_code == http.get("/").status_code == 200
    finally:
        running.stop()


def test_nothing_of_a_document_or_a_question_is_run_or_logged(http, caplog):
    from sharedllm.serve.routes_operation import SCRIPTS

    page = http.get("/")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "http:" not in page.text and "https:" not in page.text and "onclick" not in page.text
    for script in SCRIPTS:
        code = http.get(f"/{script}").text
        assert code.strip() and "innerHTML" not in code and "eval(" not in code
    caplog.set_level("INFO", "sharedllm.access")
    key = upload(http, "<script>alert(1)</script> " * 9, "x.txt")
    http.post("/v1/map", json={"context": key, "messages": [{"role": "user", "content": "secret words"}]})
    assert caplog.records and "secret" not in str([vars(r) for r in caplog.records])
    text = http.get(f"{CONTEXTS}/{key}/text")
    assert text.headers["Content-Type"] == "application/json" and text.headers["X-Content-Type-Options"] == "nosniff"


def test_metrics(http):
    http.get("/v1/models")
    told = http.get("/metrics").text
    assert 'sharedllm_requests_total{route="/v1/models",status="200"}' in told


def assert_refused(answer, status: int, words: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    sentence = error["message"]
    assert words in sentence and "\n" not in sentence and sentence[-1] in ".?" and len(sentence) < 400, sentence
