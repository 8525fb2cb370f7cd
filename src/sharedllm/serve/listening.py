"""The sockets of a server: bound before its model is loaded, so that a port that is taken is told at once."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sharedllm.errors import UsageError

ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


@contextmanager
def bound(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Sockets at all addresses of a host, at a port or, for 0, one that is free; nobody is let in before they listen.

    Raises:
        UsageError: the port is taken or not for this user, or the host no address of this machine.
    """
    sockets: list[socket.socket] = []
    try:
        try:
            _bind_all(sockets, host, port)
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that no host can have
            reason = getattr(error, "strerror", None) or error
            raise UsageError(
                f"cannot listen at {host}, port {port} ({reason}); give another --port, or as --host an address of this "
                "machine."
            ) from error
        yield sockets
    finally:
        for one in sockets:
            one.close()


def _bind_all(sockets: list[socket.socket], host: str, port: int) -> None:
    """Add the bound sockets to the list; an address that is not there is left out where the host has others."""
    absent: OSError | None = None
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            sockets.append(_bind(family, kind, protocol, (address[0], port, *address[2:])))
        except OSError as error:
            if error.errno not in ABSENT:
                raise
            absent = error  # such as ::1, which is localhost, where IPv6 is switched off
        else:
            port = sockets[-1].getsockname()[1]
    if absent is not None and not sockets:
        raise absent


def _bind(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    one = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of a server that has just ended
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one
