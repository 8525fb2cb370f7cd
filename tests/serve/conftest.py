"""A real server on a real socket, with a tiny random model."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from sharedllm import SharedLLM
from tests.conftest import CONFIG, byte_tokenizer, randomize, tiny_model

LONG = " ".join(f"Item {i} is kept in a box of its own." for i in range(12))


def tiny_llm(window: int = 256) -> SharedLLM:
    model = tiny_model(max_position_embeddings=window)
    return randomize(SharedLLM.from_pretrained(model, adapter="none", config=CONFIG, tokenizer=byte_tokenizer()))


def beginning():
    """A tokenizer that puts `<s>`, 256, before a text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    return tokenizer


def started(folder, llm=None, **changes):
    """A running server: service, base address, and `stop` to end it as SIGTERM does."""
    import signal

    pytest.importorskip("fastapi", reason="the server is not installed: pip install sharedllm[serve]")

    from sharedllm.serve.run import server
    from sharedllm.serve.service import Service
    from sharedllm.serve.settings import Settings

    service = Service(llm or tiny_llm(), Settings(**{"folder": folder, "window": 96, "grace": 10.0, **changes}))
    service.engine._ends = []  # the tiny model would end its answers anywhere
    running = server(service, "127.0.0.1", 0)
    thread = threading.Thread(target=running.run)
    thread.start()
    until = time.monotonic() + 60
    while not running.started and time.monotonic() < until:
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]

    def stop() -> None:
        running.handle_exit(signal.SIGTERM, None)
        thread.join(60)  # of a busy machine
        assert not thread.is_alive(), "the server does not end"

    url = f"http://127.0.0.1:{port}"
    return SimpleNamespace(service=service, llm=service.llm, url=url, stop=stop, ended=thread)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    running = started(tmp_path_factory.mktemp("store"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(served):
    openai = pytest.importorskip("openai", reason="the client is not installed: pip install openai")
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def http(served):
    httpx = pytest.importorskip("httpx", reason="httpx is not installed")
    with httpx.Client(base_url=served.url, timeout=60) as client:
        yield client


def upload(http, text=LONG, name="items.txt") -> str:
    """Upload a text and wait until it is read; returns its id."""
    answer = http.post("/v1/contexts", files={"file": (name, text.encode())})
    assert answer.status_code == 202, answer.text
    return read(http, answer.json()["id"])


def read(http, key: str) -> str:
    until = time.monotonic() + 60
    while http.get(f"/v1/contexts/{key}").json()["status"] == "reading" and time.monotonic() < until:
        time.sleep(0.02)
    assert http.get(f"/v1/contexts/{key}").json()["status"] == "ready"
    return key
