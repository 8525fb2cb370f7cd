"""The server as a Ray Serve application: replicas of one model, which keep their contexts in one folder.

A request goes to the replica that its header `x-session-id` names by a consistent hash, so that uploads and questions
of one session meet the same memory; any other replica opens the context from the folder. Requests that a lost
replica was at fail and are to be sent again; Ray starts another in its place.
"""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from typing import Any

from sharedllm.errors import UsageError
from sharedllm.ray_pool import Setup, connect
from sharedllm.serve.settings import Settings

NAME = "sharedllm"
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


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

        from sharedllm.hardware import choose_threads
        from sharedllm.model import SharedLLM
        from sharedllm.serve.app import application
        from sharedllm.serve.run import log_to_stderr
        from sharedllm.serve.service import Service

        log_to_stderr(log_level)
        Setup(here, threads or int(choose_threads().value)).apply()
        torch.manual_seed(seed)
        return application(Service(SharedLLM.from_pretrained(**loading), settings))

    scale: dict[str, Any] = {"num_replicas": replicas}
    if isinstance(replicas, tuple):
        least, most = replicas
        chosen = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": settings.rows}
        scale = {"autoscaling_config": {**chosen, **options.pop("autoscaling_config", {})}}
    deployment = serve.deployment(
        name=NAME,
        max_ongoing_requests=settings.rows + settings.queue,
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
    """Serve replicas, with a GPU each where there are any, until SIGTERM or SIGINT.

    Args:
        address: of a running cluster; None: one is started on this machine.
        more: of `replicated`, such as `log_level`.
    Raises:
        UsageError: Ray Serve is not installed.
        WorkError: no cluster answers at `address`.
    """
    serve = ray_serve()
    import ray

    connect(address)
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    needs = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
    serve.start(http_options={"host": host, "port": port})
    try:
        application = replicated(loading, settings, replicas, ray_actor_options=needs, **more)
        serve.run(application, name=NAME, route_prefix="/")
        told.wait()
    finally:
        serve.delete(NAME)  # running answers end first
        ray.shutdown()


def ray_serve() -> Any:
    """The module `ray.serve`.

    Raises:
        UsageError: it is not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise UsageError(
            "replicas need Ray Serve, which is not installed; run `pip install 'sharedllm[ray]'`."
        ) from error
    return serve
