"""AP identities as their owner handles them: which one is meant, what it waits for, a new one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from phantom_tun.control.model import AddressInfo, NodeState, Progress
from phantom_tun.control.schema import ControlError
from phantom_tun.net.addresses.identities import ApIdentity, LeaseState
from phantom_tun.path.hop import PathKind
from phantom_tun.view import shapes

if TYPE_CHECKING:
    from phantom_tun.node import Node

NEW_ADDRESS_TIMEOUT = 60.0
"""Seconds for a new identity to get its addresses and paths."""

_NOT_RUNNING: dict[NodeState, str] = {
    "starting": "the node is still starting",
    "joining": "the node is still joining the network",
    "stopping": "the node is stopping",
}


def not_running(node: Node) -> str | None:
    """Why the node isn't in the network, if it isn't."""
    return _NOT_RUNNING.get(node.state)


def no_path(node: Node, name: str, kind: PathKind) -> str:
    """That an identity has no path of a kind, and why."""
    reason = node.paths.problem(name, kind) or "the first one isn't built yet"
    return f"no {kind} path of {name!r} stands: {reason}"


def check_running(node: Node) -> None:
    """
    :raises ControlError: ``unavailable``, the node isn't in the network yet, or any more.
    """
    reason = not_running(node)
    if reason is not None:
        raise ControlError("unavailable", f"{reason}; 'phantom-tun status' shows how far it is")


def no_addresses(node: Node) -> str | None:
    """Why this node can't have AP addresses, if it can't."""
    if node.config.node.relay_only:
        return "this node only relays (node.relay_only): it has no AP addresses"
    if node.interface_name is None:
        return "this node has no interface (interface.enabled), so it has no AP addresses"
    return None


def check_has_addresses(node: Node) -> None:
    """
    :raises ControlError: ``unavailable``, this node has no AP addresses.
    """
    reason = no_addresses(node)
    if reason is not None:
        raise ControlError("unavailable", reason)


def one(node: Node, name: str | None) -> ApIdentity:
    """The identity called ``name``, or the first one.

    :raises ControlError: ``not_found``; ``unavailable``, this node has none at all.
    """
    check_has_addresses(node)
    known = node.identities.all()
    for identity in known:
        if name in {None, identity.name}:
            return identity
    names = ", ".join(identity.name for identity in known)
    raise ControlError("not_found", f"there is no address named {name!r}; there are: {names}")


def info(node: Node, identity: ApIdentity) -> AddressInfo:
    """What there is to say about an identity."""
    return shapes.address_info(identity, node.rules.rules(), missing(node, identity))


def missing(node: Node, identity: ApIdentity) -> tuple[str, ...]:
    """What an identity waits for until it can be reached and reach others."""
    found = []
    if node.connector.exit_count(identity.name) == 0:
        found.append("an exit path")
    if node.connector.entry_count(identity.name) == 0:
        found.append("an entry path")
    if identity.ap4_state is not LeaseState.HELD:
        found.append(f"its IPv4 address {identity.candidate} to be claimed")
    return tuple(found)


async def make(node: Node, name: str, report: Callable[[Progress], Awaitable[None]]) -> AddressInfo:
    """Make an identity, report what it waits for, and return when that is nothing.

    :raises ControlError: ``conflict``, the name is taken; ``timeout``, it exists but isn't ready.
    """
    check_running(node)
    check_has_addresses(node)
    if name in {identity.name for identity in node.identities.all()}:
        raise ControlError("conflict", f"there is an address named {name!r} already")
    identity = await node.add_identity(name)
    total = len(missing(node, identity))
    waiting: tuple[str, ...] = ()
    with trio.move_on_after(NEW_ADDRESS_TIMEOUT):
        while True:
            # Taken before looking, so that nothing that happens meanwhile is missed.
            progress = node.progress
            now = missing(node, identity)
            if not now:
                return info(node, identity)
            if now != waiting:
                waiting = now
                words = f"waiting for {_list(now)}"
                await report(Progress(words, max(0, total - len(now)), total))
            await progress.wait()
    raise ControlError(
        "timeout",
        f"the address {name!r} is made, but after {NEW_ADDRESS_TIMEOUT:.0f} s it still waits "
        f"for {_list(waiting)}; it goes on trying, 'phantom-tun address show {name}' shows how "
        "far it is",
    )


def _list(words: tuple[str, ...]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
