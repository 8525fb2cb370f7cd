"""`sharedllm serve`: an OpenAI-compatible API and a page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sharedllm.cli import common

if TYPE_CHECKING:
    from socket import socket

    from sharedllm.model import SharedLLM
    from sharedllm.serve.settings import Settings

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LEVELS = ("debug", "info", "warning", "error")

HostOption = Annotated[str, typer.Option("--host", help="Address to listen on; others than 127.0.0.1 let others in.")]
KEY = "SHAREDLLM_API_KEY"
KeyOption = Annotated[str | None, typer.Option("--api-key", envvar=KEY, help="Key that clients must send.")]
NameOption = Annotated[list[str] | None, typer.Option("--allow-host", help="A name that clients call this server by.")]
ShareOption = Annotated[
    float, typer.Option("--reading-share", help="Share of the time for reading while answers are written.")
]
MemoryOption = Annotated[
    float, typer.Option("--memory-gb", help="GB of memory that contexts may take; the rest stays on disk.")
]
PromptsOption = Annotated[
    float, typer.Option("--prompt-disk-gb", help="GB of disk for long prompts; the oldest are forgotten.")
]
DiskOption = Annotated[
    float, typer.Option("--disk-gb", help="GB of disk for uploaded contexts; uploads beyond it are refused.")
]
ReplicasOption = Annotated[
    str | None, typer.Option("--replicas", help="Serve by Ray Serve: 4 of them, or 1-8 as there are requests.")
]


def serve(
    host: HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on.")] = 8000,
    folder: Annotated[Path | None, typer.Option("--store", help="Folder that keeps contexts.")] = None,
    api_key: KeyOption = None,
    allow_host: NameOption = None,
    rows: Annotated[int, typer.Option("--rows", help="Answers that decode together.")] = 8,
    queue: Annotated[int, typer.Option("--queue", help="Requests that wait at most.")] = 64,
    window: Annotated[int, typer.Option("--window", help="Tokens left in the window beside a context.")] = 1024,
    reading_share: ShareOption = 0.5,
    memory_gb: MemoryOption = 4.0,
    prompt_disk_gb: PromptsOption = 16.0,
    disk_gb: DiskOption = 64.0,
    body_mb: Annotated[float, typer.Option("--body-mb", help="Largest request, in MB.")] = 64.0,
    seconds: Annotated[float, typer.Option("--seconds", help="Longest time of an answer.")] = 600.0,
    rate: Annotated[int, typer.Option("--rate", help="Requests a minute from one address; 0: any number.")] = 0,
    grace: Annotated[float, typer.Option("--grace", help="Seconds for running answers at the end.")] = 30.0,
    replicas: ReplicasOption = None,
    ray_address: common.RayAddressOption = None,
    log_level: Annotated[str, typer.Option("--log-level", help="debug, info, warning or error.")] = "info",
    model: common.ModelOption = None,
    adapter: common.AdapterOption = "default",
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    seed: common.SeedOption = 0,
) -> None:
    """Serve an OpenAI-compatible API and a page; see docs/SERVE.md."""
    _check(log_level, port, rows, queue, rate)
    names = allow_host or []
    _check_names(names)
    _check_replicas(replicas, ray_address)
    _installed()
    from sharedllm.serve.settings import Settings

    key = os.environ.get(KEY) if api_key is None else api_key  # typer takes an empty variable for none
    settings = Settings(
        folder=folder or Path.home() / ".local" / "share" / "sharedllm" / "serve",
        api_key=key,
        hosts=_names(host, names, key),
        rows=rows,
        queue=queue,
        window=window,
        reading_share=reading_share,
        memory_bytes=_bytes("--memory-gb", memory_gb, 2**30),
        prompt_disk_bytes=_bytes("--prompt-disk-gb", prompt_disk_gb, 2**30),
        context_disk_bytes=_bytes("--disk-gb", disk_gb, 2**30),
        body_bytes=_bytes("--body-mb", body_mb, 2**20),
        seconds=seconds,
        requests_a_minute=rate,
        grace=grace,
    )
    if settings.api_key is None and (names or host not in LOOPBACK):
        where = names[0] if host in LOOPBACK else f"{host}:{port}"  # a name says that others come, by a proxy
        common.say(f"sharedllm: anyone who reaches {where} can use this server; --api-key asks for a key.")
    loading: dict[str, Any] = {"model": model, "adapter": adapter, "device": device, "dtype": dtype}
    if replicas is not None:
        from sharedllm.serve.replicas import run_until_told

        about = {"seed": seed, "log_level": log_level}
        run_until_told(loading, settings, _replicas(replicas), host, port, ray_address, **about)
    else:
        _run_alone({**loading, "seed": seed}, settings, host, port, log_level)


def _check(log_level: str, port: int, rows: int, queue: int, rate: int) -> None:
    """Raise `UsageError` for a value that is out of range."""
    from sharedllm.config import check_choice
    from sharedllm.errors import UsageError

    check_choice("--log-level", log_level, LEVELS)
    if not 0 <= port < 65536:
        raise UsageError(f"--port is {port}; it must lie between 0 and 65535.")
    for option, value, low in (("--rows", rows, 1), ("--queue", queue, 0), ("--rate", rate, 0)):
        if value < low:
            raise UsageError(f"{option} is {value}; it must be at least {low}.")


def _check_names(names: Sequence[str]) -> None:
    """Raise `UsageError` for a name that no request has: a `Host` is compared without its port, and has no scheme."""
    from sharedllm.errors import UsageError

    for name in names:
        if not name or not {"/", ":"}.isdisjoint(name):
            raise UsageError(
                f"--allow-host is {name!r}; give a name alone, such as your.name, without https:// or a port (addresses "
                "are let in without it)."
            )


def _check_replicas(replicas: str | None, ray_address: str | None) -> None:
    """Raise `UsageError` for a cluster without replicas."""
    from sharedllm.errors import UsageError

    if ray_address is not None and replicas is None:
        raise UsageError("--ray-address is for --replicas; say how many, or leave it out.")


def _bytes(option: str, value: float, unit: int) -> int:
    """The bytes of a size; `UsageError` for a number that is none."""
    from sharedllm.errors import UsageError

    if not 0 <= value <= 2**30:
        raise UsageError(f"{option} is {value:g}; give a number from 0 to a billion, such as 16.")
    return int(value * unit)


def _installed() -> None:
    """Raise `UsageError` where a package that the server needs is missing, before a model is loaded."""
    from sharedllm.errors import UsageError, to_install

    try:
        import_module("sharedllm.serve.run")
        import_module("sharedllm.serve.service")
    except ModuleNotFoundError as error:
        raise UsageError(f"the server needs the package {error.name}; {to_install('serve')}.") from error


def _names(host: str, allowed: list[str], key: str | None) -> tuple[str, ...]:
    """Names that clients may call a server by which listens on `host`, as `Settings.hosts` has them."""
    names = [*LOOPBACK, *allowed] if host in LOOPBACK else allowed or ([] if key else [host])
    return tuple(name.lower() for name in names)


def _run_alone(loading: dict[str, Any], settings: Settings, host: str, port: int, log_level: str) -> None:
    """Load the model and serve, with the folder of contexts and the port to this process alone."""
    from sharedllm.hardware import share_memory_between_threads
    from sharedllm.serve.folder import held
    from sharedllm.serve.listening import bound

    share_memory_between_threads()
    with held(settings.folder), bound(host, port) as sockets:
        _run(common.load(**loading), settings, host, sockets, log_level)


def _run(llm: SharedLLM, settings: Settings, host: str, sockets: list[socket], log_level: str) -> None:
    """Serve with this process, at the sockets that were bound for `host`, until it is told to stop."""
    from sharedllm.serve.run import log_to_stderr, server
    from sharedllm.serve.service import Service

    log_to_stderr(log_level)
    port = sockets[0].getsockname()[1]
    common.say(f"http://{f'[{host}]' if ':' in host else host}:{port}/ (API: /v1; page: /)")
    server(Service(llm, settings), host, port).run(sockets)


def _replicas(text: str) -> int | tuple[int, int]:
    """How many replicas: a number, or the least and the most; `UsageError` otherwise."""
    from sharedllm.errors import UsageError

    numbers = text.split("-")
    if len(numbers) > 2 or not all(n.isdigit() and int(n) for n in numbers) or sorted(map(int, numbers)) != [*map(int, numbers)]:  # fmt: skip
        raise UsageError(f"--replicas is {text!r}; give a number, or the least and the most, such as 1-8.")
    return int(text) if len(numbers) == 1 else (int(numbers[0]), int(numbers[1]))
