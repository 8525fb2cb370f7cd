"""Two servers on one folder; and two replicas of Ray Serve, one of which is killed under load."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from sharedllm import UsageError
from tests.collection.conftest import home  # noqa: F401
from tests.ray_cluster import cluster  # noqa: F401
from tests.serve.conftest import LONG, read, started, upload

pytestmark = pytest.mark.processes

QUESTION = {"messages": [{"role": "user", "content": "Where is item 7?"}], "max_tokens": 8, "temperature": 0}


def test_servers_that_share_a_folder_know_each_others_contexts(tmp_path):
    httpx = pytest.importorskip("httpx", reason="httpx is not installed")
    a, b = (started(tmp_path, shared=True, prompt_disk_bytes=0) for _ in range(2))
    try:
        with httpx.Client(base_url=a.url, timeout=60) as here, httpx.Client(base_url=b.url, timeout=60) as there:
            key = upload(here)
            assert [entry["id"] for entry in there.get("/v1/contexts").json()["data"]] == [key]
            read(there, key)
            ask = {**QUESTION, "context": key}
            answers = [c.post("/v1/chat/completions", json=ask).json()["choices"][0]["message"] for c in (here, there)]
            assert answers[0] == answers[1]
            assert there.post(f"/v1/contexts/{key}", files={"file": ("more.txt", b"One more.")}).status_code == 202
            read(there, key)
            assert read(here, key) and here.get(f"/v1/contexts/{key}").json()["documents"] == ["items.txt", "more.txt"]
            assert there.delete(f"/v1/contexts/{key}").status_code == 200
            until = time.monotonic() + 30
            while here.get(f"/v1/contexts/{key}").status_code != 404 and time.monotonic() < until:
                time.sleep(0.05)
            assert here.post("/v1/chat/completions", json=ask).status_code == 404
    finally:
        a.stop()
        b.stop()


@pytest.mark.parametrize("text", ["0", "2-1", "many", "1-2-3", ""])
def test_a_number_of_replicas_that_cannot_be_is_refused(text):
    from sharedllm.cli.serve import _replicas

    with pytest.raises(UsageError, match="such as 1-8"):
        _replicas(text)
    assert _replicas("3") == 3 and _replicas("1-8") == (1, 8)


def test_without_ray_replicas_say_how_to_install_it(monkeypatch, capsys):
    import sys

    from sharedllm.cli import main

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--replicas", "2"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "pip install 'sharedllm[ray]'" in said and said.count("\n") == 1


@contextmanager
def replicated_server(home, folder, replicas, **options):  # noqa: F811
    """A client of replicas of the tiny model under Ray Serve."""
    httpx = pytest.importorskip("httpx", reason="httpx is not installed")
    serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'sharedllm[ray]'")
    from sharedllm.serve.replicas import NAME, replicated
    from sharedllm.serve.settings import Settings

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(folder=folder, window=48, grace=5.0)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    options = {"ray_actor_options": {"num_cpus": 0.5}, **options}
    serve.run(replicated(home.loading, settings, replicas, threads=1, **options), name=NAME)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            yield client
    finally:
        serve.shutdown()


def running() -> list[int]:
    """Process ids of the replicas."""
    psutil = pytest.importorskip("psutil")
    from sharedllm.serve.replicas import NAME

    family = psutil.Process().children(recursive=True)
    return [p.pid for p in family if f"ServeReplica:{NAME}" in " ".join(p.cmdline())]


def test_a_replica_is_killed_under_load_and_no_request_is_lost(cluster, home, tmp_path):  # noqa: F811
    httpx = pytest.importorskip("httpx", reason="httpx is not installed")
    with replicated_server(home, tmp_path / "store", 2) as client:
        key = upload(client, LONG)
        expected = client.post("/v1/chat/completions", json={**QUESTION, "context": key}).json()["choices"]
        answers, failures = [], []

        def ask(session: int) -> None:
            for _ in range(6):
                until = time.monotonic() + 240
                while time.monotonic() < until:
                    try:
                        answer = client.post("/v1/chat/completions", json={**QUESTION, "context": key}, headers={"x-session-id": str(session)})  # fmt: skip
                    except httpx.HTTPError as error:
                        failures.append(str(error))
                    else:
                        if answer.status_code == 200:
                            answers.append(answer.json()["choices"])
                            break
                        failures.append(answer.text)
                    time.sleep(0.2)

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        before = running()
        while len(answers) < 4:
            time.sleep(0.05)
        os.kill(before[0], signal.SIGKILL)
        for thread in threads:
            thread.join(300)
        assert len(before) == 2 and len(answers) == 24, failures
        assert all(answer == expected for answer in answers)
        assert client.get(f"/v1/contexts/{key}").json()["status"] == "ready"


def test_there_are_more_replicas_where_there_are_more_requests(cluster, home, tmp_path):  # noqa: F811
    sooner = {"target_ongoing_requests": 1, "upscale_delay_s": 1, "metrics_interval_s": 0.5, "look_back_period_s": 2}
    with replicated_server(home, tmp_path / "store", (1, 2), autoscaling_config=sooner) as client:
        assert len(running()) == 1
        done, answers = threading.Event(), []

        def ask() -> None:
            while not done.is_set():
                answers.append(client.post("/v1/chat/completions", json={**QUESTION, "max_tokens": 24}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 120
        while len(running()) < 2 and time.monotonic() < until:
            time.sleep(0.2)
        done.set()
        for thread in threads:
            thread.join(120)
        assert len(running()) == 2 and set(answers) == {200}


def test_a_replica_whose_model_ends_is_replaced(cluster, home, tmp_path, monkeypatch):  # noqa: F811
    from sharedllm.serve import replicas

    order = tmp_path / "order"

    class Ending(replicas.Replica):
        """Its model ends when it is ordered to."""

        def check_health(self) -> None:
            if order.exists():
                order.unlink()
                engine = self.app.state.service.engine
                engine._turn = None
                engine.do(nothing for nothing in ())
                engine._thread.join(30)
            super().check_health()

    monkeypatch.setattr(replicas, "Replica", Ending)
    with replicated_server(home, tmp_path / "store", 1, health_check_period_s=1) as client:
        before = running()
        assert client.post("/v1/chat/completions", json=QUESTION).status_code == 200
        order.touch()
        until = time.monotonic() + 120
        while (not running() or running() == before) and time.monotonic() < until:
            time.sleep(0.5)
        assert len(before) == 1 and running() != before
        while client.post("/v1/chat/completions", json=QUESTION).status_code != 200 and time.monotonic() < until:
            time.sleep(0.5)
        assert client.get("/health").status_code == 200
