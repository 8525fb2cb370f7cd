"""Reading with real Ray: workers in processes of their own, one of them killed in the middle."""

from __future__ import annotations

import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from sharedllm import SharedLLMError, UsageError, WorkError
from sharedllm import ray_pool as pools
from sharedllm.cli import main
from sharedllm.collection.engines import LocalEngine, RayEngine, ray_engine
from sharedllm.collection.read import read_collection
from sharedllm.collection.worker import Worker
from sharedllm.ray_pool import Pool, Share, ray_pool, shared_out
from tests.collection.conftest import MOST_BYTES, documents
from tests.contexts import assert_one_sentence, files
from tests.ray_cluster import cluster  # noqa: F401

pytestmark = pytest.mark.processes


def readers() -> list[int]:
    """Process ids of this cluster's workers."""
    psutil = pytest.importorskip("psutil")
    family = psutil.Process().children(recursive=True)
    return [p.pid for p in family if "LoadingWorker" in " ".join(p.cmdline())]


def test_a_worker_is_killed_and_every_document_is_there_as_without_it(cluster, home, tmp_path):  # noqa: F811
    folder = documents(tmp_path / "texts", 12, words=600)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    died = []

    def kill(now):
        if now.done == 4:
            died.append(readers())
            os.kill(died[0][0], signal.SIGKILL)

    with ray_engine(home.loading, str(killed), workers=2, most_bytes=MOST_BYTES) as engine:
        records = read_collection([str(folder)], killed, engine, kill)
    assert len(died[0]) == 2 and sum(r.state == "kept" for r in records.values()) == 12 and len(records) == 15
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as each worker has, on which the last bits depend
    read_collection([str(folder)], whole, LocalEngine(Worker(home.llm, whole, MOST_BYTES)))
    torch.set_num_threads(threads)
    assert files(killed) == files(whole)


def test_a_document_whose_process_always_dies_is_reported(cluster):  # noqa: F811
    class Fragile:
        def __init__(self, setup):
            self.threads = setup.threads

        def read(self, item):
            if item == "poison":
                os.kill(os.getpid(), signal.SIGKILL)
            if item == "refused":
                raise UsageError("it is refused.")
            return item.upper(), self.threads

    with ray_pool(Fragile, {}, workers=2) as pool:
        found = dict(pool.map("read", ["a", "poison", "b", "refused", "c"]))
    assert {k: found[k] for k in "abc"} == {"a": ("A", 1), "b": ("B", 1), "c": ("C", 1)}
    assert isinstance(found["poison"], SharedLLMError) and "ended 3 times" in str(found["poison"])
    assert isinstance(found["refused"], UsageError) and str(found["refused"]) == "it is refused."


def test_a_worker_that_cannot_start_says_why(cluster):  # noqa: F811
    class Refuses:
        def __init__(self, setup):
            raise UsageError("there is no such model.")

        def read(self):
            return 1

    with ray_pool(Refuses, {}, workers=1) as pool, pytest.raises(WorkError, match="not be started: there is no such"):
        pool.call("read")


def test_a_cluster_without_room_says_so_instead_of_waiting(cluster, monkeypatch):  # noqa: F811
    class Idle:
        def __init__(self, setup):
            pass

    monkeypatch.setattr(pools, "ROOM_SECONDS", 2)
    with ray_pool(Idle, {}, workers=2), pytest.raises(WorkError, match="no room for 1 workers of 2 processors"):
        with ray_pool(Idle, {}, workers=1):
            pass


@pytest.mark.parametrize(
    ("nodes", "wanted", "share"),
    [
        ([(8, 0)], None, (4, 2, 0)),
        ([(8, 0)], 3, (3, 2, 0)),
        ([(2, 0)], 5, (2, 1, 0)),
        ([(4, 0), (4, 0), (2, 0)], 3, (3, 2, 0)),  # not 10 // 3: two nodes have room for one worker of 3 each
        ([(1, 0)] * 4, None, (2, 1, 0)),
        ([(0, 0), (16, 0)], 2, (2, 8, 0)),
        ([(16, 4)], None, (4, 4, 1)),
        ([(16, 1), (64, 0)], None, (1, 16, 1)),
        ([(8, 1), (8, 1)], 3, (3, 4, 0.5)),
        ([(8, 1)], 3, (3, 2, 0.3333)),
        ([(1, 4), (8, 1)], None, (2, 1, 1)),
    ],
)
def test_every_worker_fits_a_node(nodes, wanted, share):
    assert shared_out(nodes, wanted) == Share(*share)


def test_a_cluster_without_processors_is_refused():
    with pytest.raises(WorkError, match="has processors for a worker"):
        shared_out([(0, 0)])


def test_workers_that_would_read_differently_are_refused():
    with pytest.raises(UsageError, match="give one with --dtype"):
        RayEngine(SimpleNamespace(call=lambda method: ["of bfloat16", "of float32"])).made_with()


class Pretended:
    """Ray with workers that answer at once, unless they are of a lost node; `dies` ends a process, a number of times."""

    def __init__(self, lost: str = "", back: str = "", deaths: int = 0, then: str = "abc") -> None:
        """Nodes `a`, `b`, `c` have places 0, 1, 2; `back` are those that come back; `then`: those of a death later on."""
        self.nodes_now = dict(enumerate("abc"))
        self.lost, self.back, self.deaths, self.then = lost, back, deaths, dict(enumerate(then))
        self.killed: list[int] = []
        self.exceptions = SimpleNamespace(RayError=LookupError, RayActorError=LookupError)

    def start(self, at: int):
        def remote(item=None):
            return at, item

        return SimpleNamespace(at=at, read=SimpleNamespace(remote=remote), __ray_ready__=SimpleNamespace(remote=remote))

    def nodes(self) -> dict[int, str]:
        found = {at: node for at, node in self.nodes_now.items() if node not in self.lost}
        self.lost = "".join(node for node in self.lost if node not in self.back)
        return found

    def wait(self, tasks, num_returns, timeout):
        assert timeout > 0
        ended = [task for task in tasks if self.nodes_now.get(task[0], " ") not in self.lost + " "]
        return ended[:1], tasks

    def get(self, task):
        if task[1] == "dies" and self.deaths:
            self.deaths -= 1
            raise LookupError
        if task[1] is None:
            self.nodes_now = self.then
        return task[1] and task[1].upper()

    def kill(self, actor):
        self.killed.append(actor.at)


@pytest.mark.parametrize("workers", [2, 3])
def test_what_a_lost_node_was_at_is_done_by_others(monkeypatch, workers):
    monkeypatch.setattr(pools, "ROOM_SECONDS", 0.2)
    ray = Pretended(lost="b")
    pool = Pool(ray, ray.start, workers, 1, ray.nodes)
    assert dict(pool.map("read", "uvwx")) == {item: item.upper() for item in "uvwx"}
    assert ray.killed == [1] and pool.workers == workers - 1
    assert dict(pool.map("read", "yz")) == {"y": "Y", "z": "Z"}, "nothing is given to it any more"


def test_a_place_that_gets_a_node_again_in_time_is_waited_for():
    ray = Pretended(lost="a", back="a")
    assert dict(Pool(ray, ray.start, 1, 1, ray.nodes).map("read", "u")) == {"u": "U"} and not ray.killed


def test_without_any_node_left_it_is_said(monkeypatch):
    monkeypatch.setattr(pools, "ROOM_SECONDS", 0.2)
    ray = Pretended(lost="ab")
    with pytest.raises(WorkError, match="all nodes of the Ray cluster that worked on it are lost") as error:
        list(Pool(ray, ray.start, 2, 1, ray.nodes).map("read", "uvw"))
    assert_one_sentence(error)


@pytest.mark.parametrize(("then", "said"), [("abc", "ended 3 times"), ("zbc", "DIES")])
def test_an_item_is_to_blame_only_for_what_happens_again_at_the_same_node(then, said):
    ray = Pretended(deaths=1, then=then)
    ((item, result),) = Pool(ray, ray.start, 1, 1, ray.nodes).map("read", ["dies"])
    assert item == "dies" and said in str(result) and ray.killed == [0]


def test_the_command_reads_with_workers_and_goes_on(cluster, home, tmp_path, capsys):  # noqa: F811
    folder, where = documents(tmp_path / "texts", 3), tmp_path / "kept"
    model = ("--model", home.loading["model"], "--adapter", home.loading["adapter"], "--dtype", "float32")
    for run in ("6 of 6 documents", "3 of 3 documents"):  # then only those that failed are tried again
        with pytest.raises(SystemExit) as ended:
            main(["encode", str(folder), "--separate", "--engine", "ray", "--workers", "1", "--max-mb", "0.02", "-o", str(where), *model, "--json"])  # fmt: skip
        out = capsys.readouterr()
        assert not ended.value.code, out.err
        told = json.loads(out.out.splitlines()[-1])
        assert (told["documents"], told["failed"], told["engine"]) == (3, 3, "ray")
        assert "not read: " in out.err and run in out.err


def test_without_ray_the_engine_says_how_to_install_it(monkeypatch, tmp_path, capsys):
    import sys

    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as ended:
        main(["encode", str(tmp_path / "a.txt"), "--separate", "--engine", "ray", "-o", str(tmp_path / "kept")])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "pip install 'sharedllm[ray]'" in said and said.count("\n") == 1


def test_nothing_else_imports_ray():
    import subprocess
    import sys

    code = (
        "import sys, sharedllm.cli, sharedllm.collection.engines, sharedllm.ray_pool; assert 'ray' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_system_that_tells_no_affinity_starts_a_cluster_too(monkeypatch):
    asked: dict = {}
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(pools, "_ray", lambda: SimpleNamespace(init=lambda *_, **options: asked.update(options)))
    pools.connect(None)
    assert asked["num_cpus"] == os.cpu_count()
