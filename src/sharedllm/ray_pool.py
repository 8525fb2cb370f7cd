"""Workers on a Ray cluster: an object of one class in each of several processes, and pieces of work spread over them.

What restarts a process that was killed, and calls again what it was at, is Ray.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from sharedllm.errors import SharedLLMError, UsageError, WorkError, to_install
from sharedllm.hardware import processors

T = TypeVar("T")
TRIES_AGAIN = 2
"""How often a call is made again whose process died under it."""
ROOM_SECONDS = 300
"""How long a busy cluster is waited for, one that starts more nodes when it is full, and another node for one that is lost."""
LOOK_SECONDS = 10
"""How long nothing ends before it is looked whether a node is lost."""


@dataclass(frozen=True)
class Setup:
    """What a worker takes over from the process that starts it."""

    folder: str
    threads: int

    def apply(self) -> None:
        """Take this folder, so that relative paths mean the same, where the machine has it; and so many threads."""
        import torch

        with suppress(OSError):
            os.chdir(self.folder)
        torch.set_num_threads(self.threads)


class Pool:
    """Objects of one class, each in a process of its own.

    Args:
        start: starts the process at a place, by its number.
        nodes: where the places are now, by number; those are left out whose node is lost and that have no other yet.

    Attributes:
        threads: that each computes with.
    """

    def __init__(
        self, ray: Any, start: Callable[[int], Any], workers: int, threads: int, nodes: Callable[[], dict[int, str]]
    ) -> None:
        self._ray, self._start, self._nodes, self.threads = ray, start, nodes, threads
        self._actors = {at: start(at) for at in range(workers)}
        self._died: dict[int, str | None] = {}  # the node at which a place's process died last
        self._since: dict[int, float] = {}  # when a place was first found lost, in monotonic time

    @property
    def workers(self) -> int:
        return len(self._actors)

    def call(self, method: str) -> list[Any]:
        """What each of the objects gives; so all of them have started.

        Raises:
            SharedLLMError: an object's own, or `WorkError` where one cannot be started.
        """
        try:
            return list(self._ray.get([getattr(actor, method).remote() for actor in self._actors.values()]))
        except self._ray.exceptions.RayError as error:
            raise _said(error) from error

    def map(self, method: str, items: Iterable[T]) -> Iterator[tuple[T, Any]]:
        """Each item with what an object gave for it, or with the error that says why there is nothing, as they end.

        What a lost node was at is done by others. Ray at first calls it a process that died; so of an item that it gave
        up nothing is said before a new process answers at the same node.

        Raises:
            WorkError: the nodes of all objects are lost, and no others came in their places.
        """
        waiting, idle = deque(items), list(self._actors)
        running: dict[Any, tuple[int, T, SharedLLMError | None]] = {}  # the last: what is to be said of the item then
        while waiting or running:
            while waiting and idle:
                at, item = idle.pop(), waiting.popleft()
                running[getattr(self._actors[at], method).remote(item)] = at, item, None
            ended, _ = self._ray.wait(list(running), num_returns=1, timeout=LOOK_SECONDS)
            if not ended:
                gone = self._dropped()
                waiting.extendleft(item for at, item, _ in running.values() if at in gone)
                idle = [at for at in idle if at not in gone]
                running = {task: call for task, call in running.items() if call[0] not in gone}
                continue
            (done,) = ended
            at, item, failed = running.pop(done)
            try:
                result = self._ray.get(done)
            except self._ray.exceptions.RayError as error:
                result = _said(error)
                if isinstance(error, self._ray.exceptions.RayActorError):  # Ray has given it up
                    answers = self._again(at)
                    if failed is None and not getattr(error, "actor_init_failed", False):
                        running[answers] = at, item, result
                        continue
            idle.append(at)
            if failed is not None and self._nodes().get(at) != self._died[at]:
                waiting.appendleft(item)
                continue
            yield item, result if failed is None else failed

    def _again(self, at: int) -> Any:
        """Start the object at a place once more; what ends when it answers."""
        self._died[at] = self._nodes().get(at)
        self._ray.kill(self._actors[at])
        self._actors[at] = self._start(at)
        return self._actors[at].__ray_ready__.remote()

    def _dropped(self) -> set[int]:
        """Do without the objects whose nodes have been lost for `ROOM_SECONDS`; the numbers of their places."""
        now = time.monotonic()
        self._since = {at: self._since.get(at, now) for at in self._actors.keys() - self._nodes().keys()}
        gone = {at for at, since in self._since.items() if now - since >= ROOM_SECONDS}
        for at in gone:
            self._ray.kill(self._actors.pop(at))
        if not self._actors:
            raise WorkError(
                f"all nodes of the Ray cluster that worked on it are lost, and no others came within {ROOM_SECONDS} seconds; "
                "give the same command again when there are some."
            )
        return gone

    def close(self) -> None:
        for actor in self._actors.values():
            self._ray.kill(actor)


@contextmanager
def ray_pool(
    kind: type, arguments: dict[str, Any], address: str | None = None, workers: int | None = None
) -> Iterator[Pool]:
    """Start `kind(**arguments, setup=...)` in several processes.

    Args:
        address: of a running cluster, `auto` for the one on this machine; None: one is started here and stopped at
            the end, unless this process has one already.
        workers: None: one a GPU of the cluster; without GPUs one for every two processors.
    Raises:
        UsageError: Ray is not installed.
        WorkError: no cluster answers at `address`, or it has no room for the workers.
    """
    ray = _ray()
    ours = not ray.is_initialized()
    if ours:
        connect(address, workers)
    try:
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        share = shared_out([(int(has.get("CPU", 0)), int(has.get("GPU", 0))) for has in alive], workers)
        with _reserved(share) as places:
            setup, actor = Setup(os.getcwd(), share.threads), ray.remote(kind)
            needs = {"num_cpus": share.threads, "num_gpus": share.gpu}
            again = {"max_restarts": -1, "max_task_retries": TRIES_AGAIN}

            def start(at: int) -> Any:
                placed = actor.options(**needs, **again, scheduling_strategy=places.at(at))
                return placed.remote(**arguments, setup=setup)

            pool = Pool(ray, start, share.workers, share.threads, places.nodes)
            try:
                yield pool
            finally:
                pool.close()
    finally:
        if ours:
            ray.shutdown()


@dataclass(frozen=True)
class Share:
    """How many workers there are, and what each has: processors, and a share of a GPU."""

    workers: int
    threads: int
    gpu: float


def shared_out(nodes: Sequence[tuple[int, int]], wanted: int | None = None) -> Share:
    """Divide the processors and GPUs of a cluster's nodes; all workers get equally many, and each fits one node.

    Args:
        nodes: processors and GPUs of each.
        wanted: workers; None as for `ray_pool`.
    Raises:
        WorkError: there is no processor for a worker.
    """
    gpus = sum(g for _, g in nodes)
    usable = [(c, g) for c, g in nodes if c and (g or not gpus)]
    cpus = sum(c for c, _ in usable)
    if not cpus:
        raise WorkError("no node of the Ray cluster has processors for a worker; start one with --num-cpus above 0.")
    workers = min(wanted or gpus or max(1, cpus // 2), cpus)
    on_a_gpu = -(-workers // gpus) if gpus else 0

    def room(threads: int) -> int:
        return sum(min(c // threads, g * on_a_gpu if gpus else c) for c, g in usable)

    workers = min(workers, room(1))
    threads = max(t for t in range(1, cpus // workers + 1) if room(t) >= workers)
    # Ray counts in ten thousandths, of which those of all workers on a GPU may not come to more than one.
    return Share(workers, threads, 10**4 // on_a_gpu / 10**4 if gpus else 0)


@dataclass(frozen=True)
class _Places:
    """Where workers are to be started, by number: the bundles of a placement group, for which Ray finds other nodes."""

    group: Any

    def at(self, number: int) -> Any:
        """What an actor is told to start at a place."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=number)

    def nodes(self) -> dict[int, str]:
        """The nodes of those places that have one now."""
        import ray
        from ray.util.placement_group import placement_group_table

        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        found = placement_group_table(self.group).get("bundles_to_node_id", {})
        return {int(number): str(node) for number, node in found.items() if node in alive}


@contextmanager
def _reserved(share: Share) -> Iterator[_Places]:
    """Where workers of these shares are to be started, kept free for them.

    Raises:
        WorkError: other work on the cluster leaves no room for them.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    needs = {"CPU": share.threads, **({"GPU": share.gpu} if share.gpu else {})}
    group = placement_group([needs] * share.workers)
    try:
        if not group.wait(ROOM_SECONDS):
            raise WorkError(
                f"the Ray cluster had no room for {share.workers} workers of {share.threads} processors each within "
                f"{ROOM_SECONDS} seconds; wait until its other work ends, or ask for fewer --workers."
            )
        yield _Places(group)
    finally:
        remove_placement_group(group)


def connect(address: str | None, workers: int | None = None) -> None:
    """Connect this process to a running cluster, or start one here with a processor for each worker at least.

    Raises:
        UsageError: Ray is not installed.
        WorkError: no cluster answers at `address`.
    """
    ray = _ray()
    try:
        if address is not None:
            ray.init(address=address, logging_level="ERROR", log_to_driver=False)
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        cpus = max(workers or 1, processors())
        ray.init("local", num_cpus=cpus, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    except Exception as error:  # Ray's own are of many classes, plain `Exception` among them
        where = f"no Ray cluster answers at {address}" if address else "no local Ray cluster could be started"
        raise WorkError(f"{where} ({str(error).splitlines()[0] if str(error) else type(error).__name__}).") from error


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ModuleNotFoundError as error:
        raise UsageError(f"the engine ray needs Ray, which is not installed; {to_install('ray')}.") from error
    return ray


def _said(error: Exception) -> SharedLLMError:
    """What a Ray error means for the user."""
    if getattr(error, "actor_init_failed", False):
        last = str(error).strip().splitlines()[-1]
        return WorkError(f"a worker could not be started: {last.split('Error: ', 1)[-1]}")
    cause = getattr(error, "cause", None)
    if isinstance(cause, SharedLLMError):
        return cause
    if cause is not None:
        return WorkError(f"a worker failed: {type(cause).__name__}, {' '.join(str(cause).split())[:200]}.")
    return WorkError(f"the process that worked on it ended {TRIES_AGAIN + 1} times; is there enough memory for it?")
