"""The folder of a server: one server's alone, and what of it a server with another model finds."""

from __future__ import annotations

import pytest
import torch

from sharedllm import SharedLLM
from sharedllm.errors import UsageError, WorkError
from tests.conftest import CONFIG, byte_tokenizer, randomize, tiny_model
from tests.serve.conftest import LONG, started, tiny_llm, upload
from tests.serve.test_wrong import CHAT, CONTEXTS, assert_refused

httpx = pytest.importorskip("httpx", reason="httpx is not installed")
pytest.importorskip("fastapi", reason="the server is not installed: pip install sharedllm[serve]")

LONG_PROMPT = {"messages": [{"role": "user", "content": f"{LONG * 2}\n\nWhere is item 3?"}], "max_tokens": 1}


def other_llm() -> SharedLLM:
    """As `tiny_llm`, with other weights."""
    model = tiny_model(max_position_embeddings=256)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1.0)
    return randomize(SharedLLM.from_pretrained(model, adapter="none", config=CONFIG, tokenizer=byte_tokenizer()))


def test_a_folder_is_one_servers_alone(tmp_path):
    from sharedllm.serve.folder import held

    folder = tmp_path / "new" / "store"
    with held(folder):
        assert folder.stat().st_mode & 0o077 == 0, "texts are in it in the clear"
        with pytest.raises(UsageError, match=r"another server keeps its contexts in .*store.*--store"), held(folder):
            pass
    with held(folder):
        pass


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    from sharedllm.serve.folder import held

    (tmp_path / "file").touch()
    with pytest.raises(WorkError, match=r"cannot write to .*--store"), held(tmp_path / "file" / "store"):
        pass


def test_the_command_refuses_a_folder_before_it_loads_a_model(tmp_path, monkeypatch, capsys):
    from sharedllm.cli import main
    from sharedllm.serve.folder import held

    monkeypatch.setattr("sharedllm.cli.common.load", lambda **_: pytest.fail("a model is loaded"))
    with held(tmp_path), pytest.raises(SystemExit) as ended:
        main(["serve", "--store", str(tmp_path)])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "--store" in said and said.count("\n") == 1


def test_what_another_model_read_counts_says_so_and_may_be_deleted_or_asked_by_that_model_again(tmp_path):
    first = tiny_llm()
    running = started(tmp_path, llm=first)
    try:
        with httpx.Client(base_url=running.url, timeout=60) as http:
            keys = [upload(http, LONG + str(i)) for i in range(2)]
            assert http.post(CHAT, json=LONG_PROMPT).status_code == 200
    finally:
        running.stop()
    assert len(list((tmp_path / "prompts").iterdir())) == 1
    running = started(tmp_path, llm=other_llm(), context_disk_bytes=1000)
    try:
        with httpx.Client(base_url=running.url, timeout=60) as http:
            assert not list((tmp_path / "prompts").iterdir()), "what no request can use again is removed"
            told = {about["id"]: about for about in http.get(CONTEXTS).json()["data"]}
            assert set(told) == set(keys) and told[keys[0]]["documents"] == ["items.txt"]
            for about in told.values():
                assert about["status"] == "failed" and "another model, adapter or version" in about["error"]
            assert_refused(http.post(CHAT, json={**LONG_PROMPT, "context": keys[0]}), 409, "another model")
            assert_refused(
                http.post(f"{CONTEXTS}/{keys[0]}", files={"file": ("a.txt", b"More.")}), 409, "another model"
            )
            assert_refused(http.post(CONTEXTS, files={"file": ("a.txt", b"Short.")}), 507, "delete some")
            assert http.delete(f"{CONTEXTS}/{keys[0]}").status_code == 200
    finally:
        running.stop()
    assert [place.name for place in (tmp_path / "contexts").iterdir()] == [keys[1]]
    running = started(tmp_path, llm=first)
    try:
        with httpx.Client(base_url=running.url, timeout=60) as http:
            assert http.get(f"{CONTEXTS}/{keys[1]}").json()["status"] == "ready"
    finally:
        running.stop()


def test_a_text_that_was_never_begun_is_not_read_in_the_tokens_of_another_model(tmp_path):
    from sharedllm.serve.service import Service
    from sharedllm.serve.settings import Settings

    services = [Service(llm, Settings(tmp_path)) for llm in (tiny_llm(), other_llm(), tiny_llm())]
    services[0].shelf.open()
    key = services[0].shelf.add("a.txt", services[0].llm.reader.token_ids(LONG)).id
    for service in services[1:]:  # whose engines do nothing
        service.shelf.open()
    assert "another model" in services[1].shelf.get(key).error
    assert services[2].shelf.get(key).status == "reading"


def test_a_broken_context_says_so_and_may_be_deleted(tmp_path, caplog):
    from sharedllm.serve.entry import new_id

    key = new_id()
    for name in (key, "notes"):
        (tmp_path / "contexts" / name).mkdir(parents=True)
        (tmp_path / "contexts" / name / "about.json").write_text("[]")
    running = started(tmp_path)
    try:
        with httpx.Client(base_url=running.url, timeout=60) as http:
            (about,) = http.get(CONTEXTS).json()["data"]
            assert (about["id"], about["status"], about["documents"]) == (key, "failed", [key])
            assert "delete it and upload the text again" in about["error"] and str(tmp_path) not in about["error"]
            assert http.delete(f"{CONTEXTS}/{key}").status_code == 200
    finally:
        running.stop()
    assert [place.name for place in (tmp_path / "contexts").iterdir()] == ["notes"], "what is not a context stays"


def test_servers_that_share_a_folder_leave_alone_what_is_not_all_there(tmp_path):
    from sharedllm.serve.entry import Entry, new_id
    from sharedllm.serve.folder import opened

    llm, key = tiny_llm(), new_id()
    entry = Entry(key, tmp_path / key, ["a.txt"], ids=llm.reader.token_ids(LONG))
    entry.folder.mkdir()
    entry.save_about()
    prompt = tmp_path / ("0" * 32)
    prompt.mkdir()
    assert opened(tmp_path / key, llm, shared=True) is None and opened(prompt, llm, shared=True) is None
    assert prompt.exists()
    assert opened(tmp_path / key, llm, shared=False).status == "failed"
    assert opened(prompt, llm, shared=False) is None and not prompt.exists()
