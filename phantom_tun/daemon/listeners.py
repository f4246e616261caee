"""The sockets that other nodes dial: bound here, or handed over by a service manager."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable

import structlog

from phantom_tun.config import Address
from phantom_tun.errors import ConfigError

BACKLOG = 512
_FIRST_PASSED_HANDLE = 3
_MAX_PASSED = 32

_log = structlog.get_logger(__name__)


def open_listeners(addresses: Iterable[Address], port: int) -> list[socket.socket]:
    """Sockets from the service manager if it passed any, else new ones at ``addresses``.

    :raises ConfigError: none can be had; says why and what to do.
    """
    return passed_listeners() or bind_listeners(addresses, port)


def passed_listeners() -> list[socket.socket]:
    """The listening TCP sockets that a service manager handed to this process, each once.

    :raises ConfigError: something else was handed over.
    """
    count = os.environ.pop("LISTEN_FDS", "0")
    owner = os.environ.pop("LISTEN_PID", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if owner != str(os.getpid()) or not count.isdigit():
        return []
    passed: list[socket.socket] = []
    for handle in range(_FIRST_PASSED_HANDLE, _FIRST_PASSED_HANDLE + min(int(count), _MAX_PASSED)):
        try:
            received = socket.socket(fileno=handle)
        except OSError as error:
            raise ConfigError(f"the service manager passed handle {handle}: no socket") from error
        passed.append(received)
        if not _listens(received):
            for each in passed:
                each.close()
            raise ConfigError(
                f"the service manager passed handle {handle}, which is no listening TCP socket: "
                "the .socket unit needs ListenStream= with a port"
            )
        received.set_inheritable(False)
    return passed


def bind_listeners(addresses: Iterable[Address], port: int) -> list[socket.socket]:
    """New listening sockets. A family that this machine doesn't have is left out while another
    one works.

    :raises ConfigError: the port is taken or not allowed, or an address isn't ours.
    """
    bound: list[socket.socket] = []
    missing: list[str] = []
    for address in addresses:
        try:
            bound.append(_bind(address, port))
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT or (
                error.errno == errno.EADDRNOTAVAIL and address.is_unspecified
            ):
                missing.append(f"IPv{address.version}")
                continue
            for each in bound:
                each.close()
            raise ConfigError(_explain(address, port, error)) from error
    if not bound:
        raise ConfigError(f"this machine has no {' and no '.join(missing)}: nothing to listen on")
    if missing:
        _log.info("listening without an address family", missing=missing)
    return bound


def _bind(address: Address, port: int) -> socket.socket:
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((str(address), port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _listens(candidate: socket.socket) -> bool:
    return (
        candidate.family in {socket.AF_INET, socket.AF_INET6}
        and candidate.type == socket.SOCK_STREAM
        and candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    )


def _explain(address: Address, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return (
                f"no permission to listen on port {port}: start as root, or give the program "
                "CAP_NET_BIND_SERVICE, or let systemd pass the socket (the project's file "
                "systemd/phantom-tun.socket), "
                "or choose a port from 1024 on with --port"
            )
        case errno.EADDRINUSE:
            return (
                f"port {port} is in use on {address}: \"ss -ltnp 'sport = :{port}'\" shows by "
                "what; stop that, or choose another port with --port or node.port"
            )
        case errno.EADDRNOTAVAIL:
            return f"node.listen: {address} is not an address of this machine"
        case _:
            return f"can't listen on {address} port {port}: {error.strerror}"
