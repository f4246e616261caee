"""From a request to a backend's method, and from an error to its stable code."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable

from phantom_tun.control.backend import ControlBackend
from phantom_tun.control.model import Answer, Done
from phantom_tun.control.schema import (
    AnyRequest,
    CloseTunnel,
    ControlError,
    ErrorCode,
    Expose,
    GetNetdb,
    GetStatistics,
    GetStatus,
    ListAddresses,
    ListExposed,
    ListPaths,
    ListPeers,
    ListTunnels,
    NewAddress,
    Ping,
    RebuildPaths,
    RemoveAddress,
    Shutdown,
    Unexpose,
    Why,
)
from phantom_tun.errors import (
    CapacityExceeded,
    DeadlineExpired,
    PathUnavailable,
    PhantomError,
    Unreachable,
    UsageError,
)
from phantom_tun.ids import ApAddress, NodeId

_NODE_ID = re.compile("[0-9a-fA-F]{64}")

_CODES: tuple[tuple[type[PhantomError], ErrorCode], ...] = (
    (UsageError, "invalid"),
    (Unreachable, "not_found"),
    (DeadlineExpired, "timeout"),
    (PathUnavailable, "unavailable"),
    (CapacityExceeded, "busy"),
    (PhantomError, "failed"),
)


async def dispatch(
    request: AnyRequest,
    backend: ControlBackend,
    *,
    report: Callable[[Answer], Awaitable[None]],
) -> Answer | tuple[Answer, ...]:
    """Let ``backend`` answer ``request``; events go through ``report``. A shutdown is not the
    backend's: it is only acknowledged here.

    :raises ControlError: every error of this package, with its code.
    """
    try:
        return await _answer(request, backend, report)
    except ControlError:
        raise
    except PhantomError as error:
        raise ControlError(code_of(error), str(error)) from error


def code_of(error: PhantomError) -> ErrorCode:
    """The stable code for an error that isn't a :class:`ControlError`."""
    return next(code for kind, code in _CODES if isinstance(error, kind))


async def _answer(
    request: AnyRequest,
    backend: ControlBackend,
    report: Callable[[Answer], Awaitable[None]],
) -> Answer | tuple[Answer, ...]:
    match request:
        case GetStatus():
            return await backend.status()
        case GetStatistics():
            return await backend.statistics()
        case ListAddresses():
            return await backend.addresses()
        case NewAddress(name):
            return await backend.new_address(name)
        case RemoveAddress(name):
            await backend.remove_address(name)
            return Done()
        case Expose(port, protocol, to, target_port, identity):
            allowed = None if to == "any" else tuple(parse_address(text) for text in to)
            return await backend.expose(identity, port, protocol, allowed, target_port or port)
        case Unexpose(port, protocol, identity):
            return await backend.unexpose(identity, port, protocol)
        case ListExposed():
            return await backend.exposed()
        case ListPaths():
            return await backend.paths()
        case RebuildPaths(path_id):
            return await backend.rebuild_paths(path_id, report)
        case ListTunnels():
            return await backend.tunnels()
        case CloseTunnel(tunnel_id):
            await backend.close_tunnel(tunnel_id)
            return Done()
        case ListPeers():
            return await backend.peers()
        case Ping():
            return await backend.ping(
                parse_address(request.address),
                count=request.count,
                interval_s=request.interval_s,
                timeout_s=request.timeout_s,
                size=request.size,
                report=report,
            )
        case GetNetdb(key):
            return await backend.netdb_get(parse_key(key))
        case Why(address, port):
            return await backend.why(parse_address(address), port, report)
        case Shutdown():
            return Done()


def parse_address(text: str) -> ApAddress:
    """An IPv4 or IPv6 address.

    :raises ControlError: ``invalid``.
    """
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise ControlError("invalid", f"{text!r} is not an IPv4 or IPv6 address") from error


def parse_key(text: str) -> ApAddress | NodeId:
    """An AP address, or a node id as 64 hex digits.

    :raises ControlError: ``invalid``.
    """
    if _NODE_ID.fullmatch(text):
        return NodeId(bytes.fromhex(text))
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise ControlError(
            "invalid", f"{text!r} is neither an AP address nor a node id (64 hex digits)"
        ) from error
