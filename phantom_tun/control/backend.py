"""What a running node offers to the control socket.

Every method may raise :class:`ControlError` with a stable code, or any other error of this
package, which :mod:`phantom_tun.control.dispatch` translates. A ``report`` callback sends an event
to the client and waits until it is on its way; when the client goes away the call is cancelled.
Names of identities that are ``None`` mean the node's first identity.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Protocol

from phantom_tun.control.model import (
    AddressInfo,
    ExposeRule,
    NetdbAnswer,
    OverrideInfo,
    OverridesInfo,
    PathInfo,
    PeerInfo,
    PingReply,
    PingSummary,
    PinInfo,
    Progress,
    Statistics,
    Status,
    TunnelInfo,
    Verdict,
    WhyStep,
)
from phantom_tun.control.model import Protocol as TransportProtocol
from phantom_tun.ids import ApAddress, NodeId


class ControlBackend(Protocol):
    """Implemented by the node; one caller's request at a time per call, several at once overall."""

    async def status(self) -> Status:
        """The node at a glance; works in every state and never waits for the network."""
        ...

    async def statistics(self) -> Statistics:
        """All counters."""
        ...

    async def addresses(self) -> tuple[AddressInfo, ...]:
        """All AP identities, the first one first."""
        ...

    async def new_address(
        self, name: str, report: Callable[[Progress], Awaitable[None]]
    ) -> AddressInfo:
        """Make an identity and wait until its addresses are claimed and its paths stand, reporting
        what it waits for.

        :raises ControlError: ``conflict``, the name is taken; ``timeout``, it exists but isn't
            ready yet; ``unavailable``, this node has no AP addresses or isn't in the network yet.
        """
        ...

    async def remove_address(self, name: str) -> None:
        """Delete an identity and its key.

        :raises ControlError: ``not_found``; ``conflict``, it is the last one.
        """
        ...

    async def expose(
        self,
        identity: str | None,
        port: int,
        protocol: TransportProtocol,
        allowed: tuple[ApAddress, ...] | None,
        target_port: int,
    ) -> ExposeRule:
        """Let others reach a port; ``allowed`` ``None`` means anybody.

        :raises ControlError: ``conflict``, the port is exposed already; ``not_found``, no such
            identity.
        """
        ...

    async def unexpose(
        self, identity: str | None, port: int, protocol: TransportProtocol
    ) -> ExposeRule:
        """Take a rule back and return it.

        :raises ControlError: ``not_found``.
        """
        ...

    async def exposed(self) -> tuple[ExposeRule, ...]:
        """All rules of all identities."""
        ...

    async def paths(self) -> tuple[PathInfo, ...]:
        """Our own paths."""
        ...

    async def rebuild_paths(
        self, path_id: str | None, report: Callable[[Progress], Awaitable[None]]
    ) -> tuple[PathInfo, ...]:
        """Replace one path or all (``None``) and return the new ones.

        :raises ControlError: ``not_found``, no such path; ``unavailable``, no build succeeded.
        """
        ...

    async def tunnels(self) -> tuple[TunnelInfo, ...]:
        """Our own tunnels in use."""
        ...

    async def close_tunnel(self, tunnel_id: str) -> None:
        """Reset one of them.

        :raises ControlError: ``not_found``.
        """
        ...

    async def peers(self) -> tuple[PeerInfo, ...]:
        """Nodes we have links with."""
        ...

    async def ping(
        self,
        address: ApAddress,
        *,
        count: int | None,
        interval_s: float,
        timeout_s: float,
        size: int,
        report: Callable[[PingReply], Awaitable[None]],
    ) -> PingSummary:
        """Send ``count`` echo requests (``None``: until cancelled), reporting each one's fate.

        :raises ControlError: ``not_found``, no such AP address; ``conflict``, it has another owner
            than the pinned one; ``unavailable``, no path.
        """
        ...

    async def netdb_get(self, key: ApAddress | NodeId, *, votes: bool) -> NetdbAnswer:
        """Look up what the network database holds about ``key``; with ``votes`` over several exit
        paths, or from several nodes, saying what each of them said.

        :raises ControlError: ``not_found``.
        """
        ...

    async def pins(self) -> tuple[PinInfo, ...]:
        """Every pinned AP4 address, those with a changed key first."""
        ...

    async def accept_pin(self, address: ipaddress.IPv4Address) -> PinInfo:
        """Pin the key that was refused last.

        :raises ControlError: ``not_found``, no other key was seen.
        """
        ...

    async def remove_pin(self, address: ipaddress.IPv4Address) -> None:
        """Forget a pin.

        :raises ControlError: ``not_found``.
        """
        ...

    async def send_override(self, command: str) -> OverrideInfo:
        """Obey a signed override command (base64) and pass it on.

        :raises ControlError: ``invalid``, it isn't one; ``failed``, it isn't valid in this network;
            ``conflict``, its number names another command; ``busy``, too many are known.
        """
        ...

    async def overrides(self) -> OverridesInfo:
        """Every override command that the node knows."""
        ...

    async def why(
        self,
        address: ApAddress,
        port: int | None,
        report: Callable[[WhyStep], Awaitable[None]],
    ) -> Verdict:
        """Try the way to ``address`` step by step; failure is an answer, not an exception."""
        ...
