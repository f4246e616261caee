"""From a request to a backend's method, and from an error to its stable code."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable

from phantom_tun.control.backend import ControlBackend
from phantom_tun.control.model import Answer, Done
from phantom_tun.control.schema import (
    AcceptPin,
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
    ListOverrides,
    ListPaths,
    ListPeers,
    ListPins,
    ListTunnels,
    NewAddress,
    Ping,
    RebuildPaths,
    RemoveAddress,
    RemovePin,
    SendOverride,
    Shutdown,
    Unexpose,
    Why,
)
from phantom_tun.errors import (
    CapacityExceeded,
    ConfigError,
    DeadlineExpired,
    PathUnavailable,
    PhantomError,
    Unreachable,
    UsageError,
)
from phantom_tun.ids import ApAddress, NodeId

_NODE_ID = re.compile("[0-9a-fA-F]{64}")

_CODES: tuple[tuple[type[PhantomError], ErrorCode], ...] = (
    (ConfigError, "failed"),  # a file of the node, not the request
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
    except ExceptionGroup as group:
        # What a nursery of the backend hands on.
        known, unknown = group.split(PhantomError)
        if known is None or unknown is not None:
            raise
        first = _first(known)
        if isinstance(first, ControlError):
            raise first from group
        raise ControlError(code_of(first), str(first)) from group


def code_of(error: PhantomError) -> ErrorCode:
    """The stable code for an error that isn't a :class:`ControlError`."""
    return next(code for kind, code in _CODES if isinstance(error, kind))


def _first(group: ExceptionGroup[PhantomError]) -> PhantomError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error


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
            return await backend.new_address(name, report)
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
        case GetNetdb(key, votes):
            return await backend.netdb_get(parse_key(key), votes=votes)
        case ListPins():
            return await backend.pins()
        case AcceptPin(address):
            return await backend.accept_pin(parse_address4(address))
        case RemovePin(address):
            await backend.remove_pin(parse_address4(address))
            return Done()
        case SendOverride(command):
            return await backend.send_override(command)
        case ListOverrides():
            return await backend.overrides()
        case Why(address, port):
            return await backend.why(parse_address(address), port, report)
        case Shutdown():
            return Done()


def parse_address(text: str) -> ApAddress:
    """An IPv4 or IPv6 address.

    :raises ControlError: ``invalid``.
    """
    address = _address(text.removeprefix("[").removesuffix("]"))  # as in a URL
    if address is None:
        raise ControlError("invalid", f"{text!r} is not an IPv4 or IPv6 address")
    return address


def parse_address4(text: str) -> ipaddress.IPv4Address:
    """An IPv4 address: only those are pinned.

    :raises ControlError: ``invalid``.
    """
    address = parse_address(text)
    if isinstance(address, ipaddress.IPv4Address):
        return address
    raise ControlError(
        "invalid", f"{text} needs no pin: an IPv6 AP address proves its owner's key by itself"
    )


def parse_key(text: str) -> ApAddress | NodeId:
    """An AP address, or a node id as 64 hex digits.

    :raises ControlError: ``invalid``.
    """
    if _NODE_ID.fullmatch(text):
        return NodeId(bytes.fromhex(text))
    address = _address(text)
    if address is None:
        raise ControlError(
            "invalid", f"{text!r} is neither an AP address nor a whole node id (64 hex digits)"
        )
    return address


def _address(text: str) -> ApAddress | None:
    """AP addresses are the same everywhere: one with a zone (``fe80::1%eth0``) is none."""
    if "%" in text:
        return None
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
