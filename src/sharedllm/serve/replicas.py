"""The server as a Ray Serve application: replicas of one model, which keep their contexts in one folder.

A request goes to the replica that its header `x-session-id` names by a consistent hash, so that uploads and questions
of one session meet the same memory; any other replica opens the context from the folder. Requests that a lost
replica was at fail and are to be sent again; Ray starts another in its place.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from sharedllm.errors import UsageError, WorkError, to_install
from sharedllm.ray_pool import Setup, connect
from sharedllm.serve.folder import held
from sharedllm.serve.settings import Settings

NAME = "sharedllm"
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
ONGOING, FOLLOWERS = 4, 64
"""So many times the requests that a replica answers and has wait are sent to it, and so many more that follow a reading: what is
too much it refuses itself (429), and it is asked for its health meanwhile."""


class Replica:
    """What Ray asks of a replica beside its application, which `serve.ingress` adds as `app`."""

    app: Any

    def check_health(self) -> None:
        """Raise where the model's thread has ended: Ray puts another replica in the place of this one then."""
        if not self.app.state.service.engine.alive:
            raise RuntimeError("the model's thread has ended")


def shared_settings(settings: Settings) -> Settings:
    """The same for servers that share a folder: long prompts, which each keeps by itself, leave no trace on the disk."""
    return replace(settings, folder=settings.folder.absolute(), shared=True, prompt_disk_bytes=0)


def replicated(
    loading: dict[str, Any],
    settings: Settings,
    replicas: int | tuple[int, int] = 1,
    threads: int | None = None,
    seed: int = 0,
    log_level: str = "info",
    **options: Any,
) -> Any:
    """An application for `ray.serve.run`.

    Args:
        loading: arguments of `SharedLLM.from_pretrained`, which each replica calls.
        settings: of each replica; the folder must be the same one on every machine.
        replicas: how many; or the least and the most, between which Ray chooses by the requests under way.
        threads: that a replica computes with; None: as many as Ray gives it CPUs (`num_cpus` of its actor, else 1).
        seed: of everything random while a replica loads the model: all have the same weights, those of a new adapter too.
        log_level: of what each replica writes to its stderr, which Ray keeps among its logs.
        options: of `ray.serve.deployment`, such as `ray_actor_options`; of `autoscaling_config` only what is to differ.
    """
    serve = ray_serve()
    settings, here = shared_settings(settings), os.getcwd()

    def build() -> Any:
        import torch

        from sharedllm.hardware import choose_threads, share_memory_between_threads
        from sharedllm.model import SharedLLM
        from sharedllm.serve.app import application
        from sharedllm.serve.run import log_to_stderr
        from sharedllm.serve.service import Service

        log_to_stderr(log_level)
        share_memory_between_threads()
        Setup(here, threads or int(choose_threads().value)).apply()
        torch.manual_seed(seed)
        return application(Service(SharedLLM.from_pretrained(**loading), settings))

    ongoing = ONGOING * (settings.rows + settings.queue) + FOLLOWERS
    scale: dict[str, Any] = {"num_replicas": replicas}
    if isinstance(replicas, tuple):
        least, most = replicas
        chosen = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": settings.rows}
        scale = {"autoscaling_config": {**chosen, **options.pop("autoscaling_config", {})}}
    deployment = serve.deployment(
        name=NAME,
        max_ongoing_requests=ongoing,
        max_queued_requests=ongoing,  # those on their way to a replica among them
        graceful_shutdown_timeout_s=settings.grace + 10,
        request_router_config={"request_router_class": ROUTER},
        **scale,
        **options,
    )
    return deployment(serve.ingress(build)(Replica)).bind()


def run_until_told(
    loading: dict[str, Any],
    settings: Settings,
    replicas: int | tuple[int, int],
    host: str,
    port: int,
    address: str | None = None,
    **more: Any,
) -> None:
    """Serve replicas, with a GPU each where there are any, until SIGTERM or SIGINT; the folder is theirs as long.

    Args:
        address: of a running cluster; None: one is started on this machine.
        more: of `replicated`, such as `log_level`.
    Raises:
        UsageError: Ray Serve is not installed or listens elsewhere already, or another server has the folder.
        WorkError: no cluster answers at `address`, it has no room for the replicas, or they cannot be started.
        KeyboardInterrupt: a signal came before they were up.
    """
    serve = ray_serve()
    import ray

    least = replicas if isinstance(replicas, int) else replicas[0]
    with held(settings.folder):
        connect(address, least)
        up, told = threading.Event(), threading.Event()

        def stop(*_: Any) -> None:
            if not up.is_set():
                raise KeyboardInterrupt
            told.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        try:
            needs = share_of_one(ray.nodes(), least)
            application = replicated(loading, settings, replicas, ray_actor_options=needs, **more)
            with _listening(serve, host, port):
                try:
                    _start(serve, application)
                    up.set()
                    told.wait()
                finally:
                    with suppress(TimeoutError):
                        serve.delete(NAME)  # running answers end first
        finally:
            ray.shutdown()


def share_of_one(nodes: Sequence[Mapping[str, Any]], least: int) -> dict[str, int]:
    """What Ray is to give each replica: a GPU where there are any, else a processor.

    Args:
        nodes: of the cluster, as `ray.nodes` has them.
        least: replicas that there are to be in any case.
    Raises:
        WorkError: the cluster has no room for these.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = any(has.get("GPU") for has in alive)
    room = sum(int(min(has.get("CPU", 0), has.get("GPU", 0)) if gpus else has.get("CPU", 0)) for has in alive)
    if room < least:
        raise WorkError(
            f"the Ray cluster has room for {room} replicas, each with a {'GPU and a ' if gpus else ''}processor, and "
            f"--replicas asks for {least}; give fewer, or a range that begins with fewer."
        )
    return {"num_gpus": 1} if gpus else {"num_cpus": 1}


@contextmanager
def _listening(serve: Any, host: str, port: int) -> Iterator[None]:
    """Have Ray Serve listen at an address; it ends with the block, unless it ran before.

    Raises:
        UsageError: it runs on this cluster already and listens elsewhere.
    """
    from ray.serve.context import _get_global_client

    there = _get_global_client(raise_if_no_controller_running=False)
    if there is not None and (there.http_config.host, there.http_config.port) != (host, port):
        raise UsageError(
            f"Ray Serve runs on that cluster already and listens at {there.http_config.host}:{there.http_config.port}; "
            "give these as --host and --port, or end it with `serve shutdown`."
        )
    try:
        serve.start(http_options={"host": host, "port": port})
        yield
    finally:
        if there is None:
            serve.shutdown()


def _start(serve: Any, application: Any) -> None:
    """Start the replicas and wait until they answer.

    Raises:
        WorkError: they cannot be started.
    """
    try:
        serve.run(application, name=NAME, route_prefix="/")
    except RuntimeError as error:
        found = serve.status().applications.get(NAME)
        said = [about.message for about in found.deployments.values() if about.message] if found else []
        last = "\n".join([str(error), *said]).strip().splitlines()[-1]
        raise WorkError(f"the replicas could not be started: {last.split('Error: ', 1)[-1]}") from error


def ray_serve() -> Any:
    """The module `ray.serve`.

    Raises:
        UsageError: it is not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise UsageError(f"replicas need Ray Serve, which is not installed; {to_install('ray')}.") from error
    return serve
