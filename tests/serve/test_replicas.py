"""Two servers on one folder; and two replicas of Ray Serve, one of which is killed under load."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from sharedllm import UsageError, WorkError
from tests.collection.conftest import home  # noqa: F401
from tests.contexts import assert_one_sentence
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


def node(cpus: int, gpus: int = 0, alive: bool = True):
    return {"Alive": alive, "Resources": {"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})}}


@pytest.mark.parametrize(
    ("nodes", "room", "needs"),
    [
        ([node(2)], 2, {"num_cpus": 1}),
        ([node(2), node(3), node(9, alive=False)], 5, {"num_cpus": 1}),
        ([node(16, 4), node(64)], 4, {"num_gpus": 1}),
        ([node(2, 4)], 2, {"num_gpus": 1}),
    ],
)
def test_more_replicas_than_there_is_room_for_are_refused(nodes, room, needs):
    from sharedllm.serve.replicas import share_of_one

    assert share_of_one(nodes, room) == needs
    with pytest.raises(WorkError, match=f"room for {room} replicas, each with .* asks for {room + 1}") as error:
        share_of_one(nodes, room + 1)
    assert_one_sentence(error)


def test_replicas_do_not_take_the_folder_of_another_server(tmp_path, monkeypatch):
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'sharedllm[ray]'")
    from sharedllm.serve import replicas
    from sharedllm.serve.folder import held
    from sharedllm.serve.settings import Settings

    monkeypatch.setattr(replicas, "connect", lambda *_: pytest.fail("a cluster is started"))
    with held(tmp_path), pytest.raises(UsageError, match="another server keeps its contexts"):
        replicas.run_until_told({}, Settings(tmp_path), 2, "127.0.0.1", 8000)


@pytest.fixture
def command(cluster, home, tmp_path, monkeypatch):  # noqa: F811
    """`command(port, replicas=1, **loading)`: what `sharedllm serve --replicas` does, in the cluster of this process."""
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'sharedllm[ray]'")
    from sharedllm.serve import replicas
    from sharedllm.serve.settings import Settings

    monkeypatch.setattr(replicas, "connect", lambda *_: None)
    monkeypatch.setattr(cluster, "shutdown", lambda: None)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(port: int, count: int = 1, **loading):
        settings = Settings(folder=tmp_path / "store", window=48, grace=5.0)
        replicas.run_until_told({**home.loading, **loading}, settings, count, "127.0.0.1", port, threads=1)

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def serve_runs() -> bool:
    from ray.serve.context import _get_global_client

    return _get_global_client(raise_if_no_controller_running=False) is not None


def test_replicas_that_wait_for_room_end_where_they_are_told_to(command, cluster):  # noqa: F811
    @cluster.remote(num_cpus=2)
    class Busy:
        def here(self):
            return True

    busy = Busy.remote()
    assert cluster.get(busy.here.remote())
    told = threading.Timer(20, os.kill, (os.getpid(), signal.SIGTERM))
    told.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            command(free_port(), 2)
    finally:
        told.cancel()
        cluster.kill(busy)
    assert not serve_runs()


def test_replicas_that_cannot_start_say_why_in_one_sentence(command, tmp_path):
    with pytest.raises(WorkError, match=r"the replicas could not be started: the model .*nowhere") as error:
        command(free_port(), model=str(tmp_path / "nowhere"))
    assert_one_sentence(error)
    assert not serve_runs()


def test_where_serve_listens_elsewhere_already_the_command_says_so_and_it_stays(command, cluster):  # noqa: F811
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        with pytest.raises(UsageError, match=f"listens at 127.0.0.1:{port}; give these") as error:
            command(free_port())
        assert_one_sentence(error)
        assert serve_runs()
    finally:
        serve.shutdown()


@contextmanager
def replicated_server(home, folder, replicas, limits=None, **options):  # noqa: F811
    """A client of replicas of the tiny model under Ray Serve."""
    httpx = pytest.importorskip("httpx", reason="httpx is not installed")
    serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'sharedllm[ray]'")
    from sharedllm.serve.replicas import NAME, replicated
    from sharedllm.serve.settings import Settings

    port, settings = free_port(), Settings(folder=folder, window=48, grace=5.0, **(limits or {}))
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


def slow_and_named(replica: type) -> type:
    """Replicas whose answers say which process they are of, and take a tenth of a second a token."""

    class Named(replica):
        def _set_asgi_app(self, app):
            engine = app.state.service.engine
            decode, engine._ends = engine._decode, []

            def slow():
                time.sleep(0.1 if engine._rows else 0)
                decode()

            engine._decode = slow

            @app.middleware("http")
            async def named(request, call_next):
                answer = await call_next(request)
                answer.headers["x-process"] = str(os.getpid())
                return answer

            super()._set_asgi_app(app)

    return Named


def in_session(name: object) -> dict[str, str]:
    return {"x-session-id": str(name)}


def test_a_replica_is_killed_under_load_and_no_request_is_lost(cluster, home, tmp_path, monkeypatch):  # noqa: F811
    httpx = pytest.importorskip("httpx", reason="httpx is not installed")
    from sharedllm.serve import replicas

    monkeypatch.setattr(replicas, "Replica", slow_and_named(replicas.Replica))
    with replicated_server(home, tmp_path / "store", 2) as client:
        key = upload(client, LONG)
        asked = {**QUESTION, "context": key}
        expected = client.post("/v1/chat/completions", json=asked).json()["choices"]
        of: dict[int, str] = {}
        for session in range(24):
            found = [client.get(f"/v1/contexts/{key}", headers=in_session(session)) for _ in range(3)]
            (of[session],) = {answer.headers["x-process"] for answer in found}
        assert set(of.values()) == set(map(str, running())), "sessions are shared out, each to one replica"
        answers, failures, failed = [], [], set()

        def ask(session: int) -> None:
            for _ in range(6):
                until = time.monotonic() + 240
                while time.monotonic() < until:
                    try:
                        answer = client.post("/v1/chat/completions", json=asked, headers=in_session(session))
                    except httpx.HTTPError as error:
                        failures.append(str(error))
                    else:
                        if answer.status_code == 200:
                            answers.append(answer.json()["choices"])
                            break
                        failures.append(answer.text)
                    failed.add(of[session])
                    time.sleep(0.2)

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 120
        while len(answers) < 4 and time.monotonic() < until:
            time.sleep(0.05)
        streamed = {**asked, "stream": True, "max_tokens": 24}
        with client.stream("POST", "/v1/chat/completions", json=streamed, headers=in_session(9)) as answer:
            lines = answer.iter_lines()
            said = [next(lines)]
            assert answer.headers["x-process"] == of[9]
            os.kill(int(of[9]), signal.SIGKILL)
            with suppress(httpx.HTTPError):
                said.extend(lines)
        assert said[0].startswith("data:") and "data: [DONE]" not in said, "it was under way"
        for thread in threads:
            thread.join(300)
        assert len(answers) == 24, failures
        assert failed <= {of[9]}, "who asks the other replica hears nothing of it"
        assert all(answer == expected for answer in answers)
        assert client.get(f"/v1/contexts/{key}").json()["status"] == "ready"


def test_what_is_too_much_for_a_replica_is_refused_and_it_says_that_it_lives(cluster, home, tmp_path, monkeypatch):  # noqa: F811
    from sharedllm.serve import replicas

    monkeypatch.setattr(replicas, "Replica", slow_and_named(replicas.Replica))
    with replicated_server(home, tmp_path / "store", 1, {"rows": 1, "queue": 1}) as client:
        told: list[int] = []

        def ask() -> None:
            told.append(client.post("/v1/chat/completions", json={**QUESTION, "max_tokens": 24}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 60
        while 429 not in told and any(thread.is_alive() for thread in threads) and time.monotonic() < until:
            time.sleep(0.05)
        assert client.get("/health").status_code == 200
        for thread in threads:
            thread.join(120)
        assert set(told) == {200, 429}


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
