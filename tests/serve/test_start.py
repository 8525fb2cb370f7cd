"""How a server starts and ends: by which names it may be called, with which key, and not without its model."""

from __future__ import annotations

import logging
import socket
import threading
from contextlib import nullcontext

import pytest

from sharedllm.errors import UsageError, WorkError
from sharedllm.serve.listening import bound
from tests.serve.conftest import started, tiny_llm
from tests.serve.test_wrong import CHAT, SAID, assert_refused

httpx = pytest.importorskip("httpx", reason="httpx is not installed")
pytest.importorskip("fastapi", reason="the server is not installed: pip install sharedllm[serve]")


@pytest.fixture
def command(monkeypatch):
    """`command(*options)`: the settings with which `sharedllm serve` would start."""
    from sharedllm.cli import main

    monkeypatch.delenv("SHAREDLLM_API_KEY", raising=False)
    monkeypatch.setattr("sharedllm.cli.common.load", lambda **_: None)
    monkeypatch.setattr("sharedllm.serve.listening.bound", lambda _host, _port: nullcontext([]))
    given = []
    monkeypatch.setattr("sharedllm.cli.serve._run", lambda _llm, settings, *_: given.append(settings))

    def run(*options, folder):
        with pytest.raises(SystemExit) as ended:
            main(["serve", "--store", str(folder), *options])
        return given.pop() if ended.value.code == 0 else None

    return run


@pytest.mark.parametrize(
    ("options", "called", "not_called"),
    [
        ([], ["127.0.0.1", "LOCALHOST", "[::1]:80"], ["evil.example", "", "["]),
        (["--api-key", "a long secret"], ["localhost:8000"], ["evil.example"]),
        (["--host", "0.0.0.0"], ["192.168.0.9:8000", "[fe80::1]", "a.localhost"], ["evil.example", "10.evil.example"]),
        (["--host", "0.0.0.0", "--allow-host", "Our.Name"], ["our.name:8000", "10.0.0.1"], ["evil.example"]),
        (["--host", "0.0.0.0", "--api-key", "a long secret"], ["any.name", "10.0.0.1"], []),
        (["--host", "Our.Name"], ["our.name", "127.0.0.1"], ["evil.example"]),
    ],
)
def test_a_server_answers_to_its_own_names(command, tmp_path, options, called, not_called):
    settings = command(*options, folder=tmp_path)
    names = {"hosts": settings.hosts, "api_key": settings.api_key}
    running = started(tmp_path, **names)
    try:
        with httpx.Client(base_url=running.url, timeout=60) as http:
            for name in called:
                assert http.get("/health", headers={"Host": name}).status_code == 200, name
            for name in not_called:
                assert_refused(http.get("/health", headers={"Host": name}), 403, "--allow-host")
    finally:
        running.stop()


def test_an_empty_key_is_no_key_and_refused(command, tmp_path, monkeypatch, capsys):
    assert command("--api-key", "", folder=tmp_path) is None
    assert "the API key is empty" in capsys.readouterr().err
    monkeypatch.setenv("SHAREDLLM_API_KEY", "")
    assert command(folder=tmp_path) is None
    said = capsys.readouterr().err
    assert "the API key is empty" in said and said.count("\n") == 1
    monkeypatch.setenv("SHAREDLLM_API_KEY", "a long secret")
    assert command(folder=tmp_path).api_key == "a long secret"


@pytest.mark.parametrize("name", ["our.name:8443", "https://our.name", "our.name/", ""])
def test_a_name_that_no_request_has_is_refused(command, tmp_path, capsys, name):
    assert command("--allow-host", name, folder=tmp_path) is None
    said = capsys.readouterr().err
    assert f"--allow-host is {name!r}; give a name alone" in said and said.count("\n") == 1


@pytest.mark.parametrize("option", ["--grace", "--seconds"])
@pytest.mark.parametrize("value", ["inf", "nan", "0"])
def test_seconds_are_a_number(command, tmp_path, capsys, option, value):
    assert command(option, value, folder=tmp_path) is None
    assert f"{option[2:]} is {float(value)}; it must be a finite number above 0." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reached"),
    [
        ([], None),
        (["--api-key", "a long secret", "--host", "0.0.0.0", "--allow-host", "our.name"], None),
        (["--host", "0.0.0.0"], "0.0.0.0:8000"),
        (["--host", "0.0.0.0", "--allow-host", "our.name"], "0.0.0.0:8000"),
        (["--allow-host", "our.name"], "our.name"),
    ],
)
def test_a_server_that_others_reach_without_a_key_is_warned_of(command, tmp_path, capsys, options, reached):
    assert command(*options, folder=tmp_path) is not None
    warning = f"sharedllm: anyone who reaches {reached} can use this server; --api-key asks for a key.\n"
    assert capsys.readouterr().err == ("" if reached is None else warning)


@pytest.mark.parametrize(
    "key", ["a long secret\n", " a long secret", "ein langer Schlüssel", "a long\tsecret", "\n" * 9]
)
def test_a_key_that_no_client_can_send_is_refused(command, tmp_path, capsys, key):
    assert command("--api-key", key, folder=tmp_path) is None
    said = capsys.readouterr().err
    assert "printable ASCII" in said and said.count("\n") == 1


def test_a_server_ends_with_an_error_when_its_model_cannot_run(tmp_path, monkeypatch, caplog):
    from sharedllm.cli.serve import _run
    from sharedllm.serve.settings import Settings

    def fails(*_arguments):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr("sharedllm.serve.run.log_to_stderr", lambda _level: None)
    monkeypatch.setattr("sharedllm.serve.engine.take_in", fails)
    with (
        bound("127.0.0.1", 0) as sockets,
        caplog.at_level(logging.ERROR, "sharedllm"),
        pytest.raises(WorkError, match="start the server again") as told,
    ):
        _run(tiny_llm(), Settings(tmp_path), "127.0.0.1", sockets, "info")
    assert told.value.exit_code == 1
    assert "RuntimeError" in caplog.records[0].trace


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(tmp_path, monkeypatch, capsys):
    from sharedllm.cli import main

    monkeypatch.delenv("SHAREDLLM_API_KEY", raising=False)
    monkeypatch.setattr("sharedllm.cli.common.load", lambda **_: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as ended:
        port = taken.getsockname()[1]
        main(["serve", "--store", str(tmp_path), "--port", str(port)])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1
    assert f"cannot listen at 127.0.0.1, port {port} (Address already in use); give another --port" in said


@pytest.mark.parametrize("host", ["192.0.2.1", "no..name"])
def test_an_address_of_no_machine_or_another_one_cannot_be_listened_at(host):
    with pytest.raises(UsageError, match="as --host an address of this machine"), bound(host, 0):
        pass


def test_the_address_that_is_told_is_the_one_that_is_served(tmp_path, monkeypatch, capsys):
    from sharedllm.cli import main
    from sharedllm.serve.run import Server

    served = []
    monkeypatch.delenv("SHAREDLLM_API_KEY", raising=False)
    monkeypatch.setattr("sharedllm.cli.common.load", lambda **_: tiny_llm())
    monkeypatch.setattr("sharedllm.serve.run.log_to_stderr", lambda _level: None)
    monkeypatch.setattr(Server, "run", lambda _self, sockets: served.extend(s.getsockname()[1] for s in sockets))
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--store", str(tmp_path), "--port", "0"])
    assert ended.value.code == 0 and len(served) == 1 and served[0] > 0
    assert f"http://127.0.0.1:{served[0]}/ " in capsys.readouterr().err


def test_a_server_that_cannot_start_has_failed(tmp_path, monkeypatch):
    from sharedllm.cli.serve import _run
    from sharedllm.serve.service import Service
    from sharedllm.serve.settings import Settings

    def refused(_self):
        raise PermissionError("Permission denied")

    monkeypatch.setattr("sharedllm.serve.run.log_to_stderr", lambda _level: None)
    monkeypatch.setattr(Service, "start", refused)
    with bound("127.0.0.1", 0) as sockets, pytest.raises(WorkError, match="could not start; its log has the reason"):
        _run(tiny_llm(), Settings(tmp_path), "127.0.0.1", sockets, "info")


def test_a_server_whose_model_ends_tells_those_who_wait_and_ends_at_once(tmp_path, monkeypatch):
    running = started(tmp_path, grace=60.0)
    engine, answered = running.service.engine, threading.Event()
    decode = engine._decode

    def lost(*_arguments):
        raise RuntimeError("the device is gone")

    def decode_until_told():
        return lost() if answered.is_set() else decode()

    engine._decode, engine._batch.clear = decode_until_told, lost  # what handles the error fails too
    errors = []
    monkeypatch.setattr(threading, "excepthook", lambda about: errors.append(about.exc_value))
    with httpx.stream(
        "POST", f"{running.url}{CHAT}", json={"messages": SAID, "max_tokens": 200, "stream": True}
    ) as answer:
        lines = answer.iter_lines()
        next(lines)
        answered.set()
        assert '"error"' in "".join(lines)
    running.ended.join(20)
    assert not running.ended.is_alive() and not engine.alive
    assert [type(error) for error in errors] == [WorkError]


def test_replicas_have_the_log_and_the_seed_that_were_asked_for(tmp_path, monkeypatch):
    from types import SimpleNamespace

    import torch

    from sharedllm.serve import replicas
    from sharedllm.serve.settings import Settings

    built, told = [], []
    ray = SimpleNamespace(
        ingress=lambda build: (built.append(build), lambda replica: replica)[1],
        deployment=lambda **_options: lambda _replica: SimpleNamespace(bind=lambda: "bound"),
        start=lambda **_options: None,
        run=lambda *_arguments, **_options: None,
        delete=lambda _name: None,
    )
    monkeypatch.setattr(replicas, "ray_serve", lambda: ray)
    monkeypatch.setattr("sharedllm.serve.run.log_to_stderr", told.append)
    monkeypatch.setattr("sharedllm.serve.replicas.Setup", lambda *_: SimpleNamespace(apply=lambda: None))
    llm = tiny_llm()
    loaded = lambda **_: (told.append(torch.initial_seed()), llm)[1]  # noqa: E731
    monkeypatch.setattr("sharedllm.model.SharedLLM.from_pretrained", loaded)
    before = torch.random.get_rng_state()
    try:
        assert replicas.replicated({}, Settings(tmp_path), seed=7, log_level="warning") == "bound"
        built[0]()
    finally:
        torch.random.set_rng_state(before)
    assert told[:2] == ["warning", 7]


def test_the_command_hands_log_and_seed_on_to_replicas(command, tmp_path, monkeypatch):
    told = {}
    monkeypatch.setattr("sharedllm.serve.replicas.run_until_told", lambda *_arguments, **about: told.update(about))
    with pytest.raises(IndexError):  # nothing is served by this process
        command("--replicas", "2", "--seed", "7", "--log-level", "error", folder=tmp_path)
    assert told == {"seed": 7, "log_level": "error"}


def test_a_replica_whose_model_has_ended_is_ill():
    from types import SimpleNamespace

    from sharedllm.serve.replicas import Replica

    replica, engine = Replica(), SimpleNamespace(alive=True)
    replica.app = SimpleNamespace(state=SimpleNamespace(service=SimpleNamespace(engine=engine)))
    replica.check_health()
    engine.alive = False
    with pytest.raises(RuntimeError, match="thread has ended"):
        replica.check_health()
