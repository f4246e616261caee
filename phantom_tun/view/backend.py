"""The node's side of the control socket (docs/spec/control.md)."""

from __future__ import annotations

import ipaddress
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec

from phantom_tun import __version__
from phantom_tun.control.model import (
    AddressInfo,
    BuildStatus,
    ExposeRule,
    IdentityStatus,
    LinkStatus,
    NetdbAnswer,
    NetdbStatus,
    NetworkStatus,
    OverrideInfo,
    OverridesInfo,
    PathInfo,
    PeerInfo,
    PingReply,
    PingSummary,
    PinInfo,
    Progress,
    Protocol,
    Statistics,
    Status,
    TunnelInfo,
    TunnelStatus,
    Verdict,
    WhyStep,
)
from phantom_tun.control.schema import ControlError
from phantom_tun.errors import UsageError
from phantom_tun.ids import ApAddress, NodeId
from phantom_tun.net.addresses.identities import ApIdentity
from phantom_tun.netdb.addresses import is_ap_address
from phantom_tun.profile import Bootstrap
from phantom_tun.view import identities, listening, overrides, pins, shapes
from phantom_tun.view.drops import drops
from phantom_tun.view.fitness import unusable
from phantom_tun.view.health import warnings

if TYPE_CHECKING:
    from phantom_tun.node import Node


class NodeView:
    """Implements :class:`~phantom_tun.control.backend.ControlBackend` for a node.

    What is asked now and then, and by nobody at a node that only relays, is imported when it is.
    """

    def __init__(self, node: Node) -> None:
        self._node = node

    # --- looking --------------------------------------------------------------------------------

    async def status(self) -> Status:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        node = self._node
        neighbours = node.links.neighbours()
        users = node.connector.users()
        builds = node.paths.statistics()
        held = node.netdb.statistics()
        counters = node.counters()
        survival = Counter(counters.get("sessions", {}))  # none at a node that only relays
        profile = node.profile
        return Status(
            version=__version__,
            state=node.state,
            node_id=node.keys.node_id.hex(),
            pid=os.getpid(),
            uptime_s=node.uptime(),
            network=NetworkStatus(profile.name, profile.network_id.hex(), profile.update_number),
            dialable=node.dialable,
            relay_only=node.config.node.relay_only,
            interface=node.interface_name,
            identities=tuple(self._identity_status(found) for found in node.identities.all()),
            netdb=NetdbStatus(held["known_nodes"], held["held_aps"], unusable(node)),
            links=LinkStatus(
                signalling=sum(1 for found in neighbours if found.signalling),
                bulk_idle=sum(found.bulk_idle for found in neighbours),
                bulk_busy=sum(found.bulk_in_use for found in neighbours),
            ),
            tunnels=TunnelStatus(
                ready=sum(user.ready for user in users if user.path.members),
                active=len(node.connections()),
                relayed=node.links.relayed,
                resumed=survival["sessions_resumed"],
                lost=survival["sessions_lost"],
                unprotected=survival["streams_unprotected"],
            ),
            builds=BuildStatus(
                builds.tried, builds.succeeded, builds.median_s, node.paths.shortage()
            ),
            drops=drops(counters.values()),
            bootstrap=self._bootstrap(),
            warnings=tuple(warnings(node)),
        )

    def _identity_status(self, identity: ApIdentity) -> IdentityStatus:
        return IdentityStatus(
            name=identity.name,
            ap4=shapes.text(identity.ap4),
            ap4_state=shapes.LEASES[identity.ap4_state],
            ap6=str(identity.ap6),
            exit_paths_ready=self._node.connector.exit_count(identity.name),
            entry_paths_ready=self._node.connector.entry_count(identity.name),
        )

    def _bootstrap(self) -> tuple[str, ...]:
        keys, settings = self._node.keys, self._node.config.node
        addresses = self._node.addresses if settings.dialable else ()
        return tuple(
            str(Bootstrap(keys.node_id, address, settings.port, keys.cert_hash))
            for address in addresses
        )

    async def statistics(self) -> Statistics:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        return Statistics({name: dict(group) for name, group in self._node.counters().items()})

    async def peers(self) -> tuple[PeerInfo, ...]:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        node = self._node
        guards = node.guard_ids()
        members = {ref for user in node.connector.users() for ref in user.path.node_ids}
        return tuple(
            PeerInfo(
                node_id=found.node_id.hex(),
                addresses=(str(found.address),),
                links=int(found.signalling) + found.bulk_in_use + found.bulk_idle,
                guard=found.node_id in guards,
                roles=tuple(
                    role
                    for role, holds in (
                        ("signalling", found.signalling),
                        ("path member", found.node_id in members),
                        ("tunnels", found.bulk_in_use > 0),
                    )
                    if holds
                ),
            )
            for found in node.links.neighbours()
        )

    # --- identities and services ----------------------------------------------------------------

    async def addresses(self) -> tuple[AddressInfo, ...]:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        node = self._node
        return tuple(identities.info(node, identity) for identity in node.identities.all())

    async def new_address(
        self, name: str, report: Callable[[Progress], Awaitable[None]]
    ) -> AddressInfo:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        return await identities.make(self._node, name, report)

    async def remove_address(self, name: str) -> None:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        identities.check_running(self._node)
        identities.one(self._node, name)
        if len(self._node.identities.all()) == 1:
            raise ControlError("conflict", f"{name!r} is the only address; make another first")
        await self._node.remove_identity(name)

    async def expose(
        self,
        identity: str | None,
        port: int,
        protocol: Protocol,
        allowed: tuple[ApAddress, ...] | None,
        target_port: int,
    ) -> ExposeRule:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        owner, rules = identities.one(self._node, identity), self._node.rules
        name = owner.name
        if rules.find(name, protocol, port) is not None:
            raise ControlError(
                "conflict",
                f"port {port}/{protocol} of {name!r} is exposed already: "
                f"'phantom-tun unexpose {port}/{protocol}{_option(identity)}' first, then name "
                "all that it is for",
            )
        for address in allowed or ():
            if not is_ap_address(self._node.network, address):
                from phantom_tun.view import probing  # noqa: PLC0415 - see the class

                raise ControlError("invalid", probing.no_ap_address(self._node, address))
        to = () if allowed is None else tuple(str(address) for address in allowed)
        rule = rules.expose(name, protocol, port, to=to, target_port=target_port)
        addresses = [each for each in (owner.ap4, owner.ap6) if each is not None]
        hint = listening.hint(protocol, target_port, addresses)
        return msgspec.structs.replace(shapes.rule_info(rule), hint=hint)

    async def unexpose(self, identity: str | None, port: int, protocol: Protocol) -> ExposeRule:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        name = identities.one(self._node, identity).name
        rule = self._node.rules.find(name, protocol, port)
        if rule is None:
            raise ControlError(
                "not_found",
                f"port {port}/{protocol} of {name!r} isn't exposed; 'phantom-tun expose --list' "
                "shows what is",
            )
        self._node.rules.unexpose(name, protocol, port)
        return shapes.rule_info(rule)

    async def exposed(self) -> tuple[ExposeRule, ...]:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        return tuple(shapes.rule_info(rule) for rule in self._node.rules.rules())

    # --- paths and tunnels ----------------------------------------------------------------------

    async def paths(self) -> tuple[PathInfo, ...]:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        now = self._node.clock.now()
        standing = [
            shapes.path_info(user.path, now, retired=False, ready=user.ready, active=user.active)
            for user in self._node.connector.users()
        ]
        retired = [
            shapes.path_info(user.path, now, retired=True, ready=0, active=user.active)
            for user in self._node.connector.retired()
        ]
        return (*standing, *retired)

    async def rebuild_paths(
        self, path_id: str | None, report: Callable[[Progress], Awaitable[None]]
    ) -> tuple[PathInfo, ...]:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        identities.check_running(self._node)
        identities.check_has_addresses(self._node)
        connector = self._node.connector
        known = {user.path for user in connector.users()}
        old = [path for path in known if path_id in {None, str(path.number)}]
        if path_id is not None and not old:
            raise ControlError(
                "not_found", f"there is no path {path_id!r}; 'phantom-tun paths list' shows all"
            )
        if not old:
            raise ControlError("unavailable", "no path stands yet that could be replaced")
        for done, path in enumerate(sorted(old, key=lambda path: path.number)):
            what = f"{path.kind} path {path.number} of {path.identity}"
            await report(Progress(f"replacing {what}", done, len(old)))
            await self._node.paths.replace(path)
        await report(Progress("done", len(old), len(old)))
        now = self._node.clock.now()
        return tuple(
            shapes.path_info(user.path, now, retired=False, ready=user.ready, active=user.active)
            for user in connector.users()
            if user.path not in known
        )

    async def tunnels(self) -> tuple[TunnelInfo, ...]:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        return tuple(shapes.tunnel_info(found) for found in self._node.connections())

    async def close_tunnel(self, tunnel_id: str) -> None:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        try:
            self._node.sessions.close(int(tunnel_id))
        except (UsageError, ValueError) as error:
            raise ControlError(
                "not_found",
                f"there is no tunnel {tunnel_id!r}; 'phantom-tun tunnels list' shows all",
            ) from error

    # --- trying ---------------------------------------------------------------------------------

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
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        from phantom_tun.view import probing  # noqa: PLC0415 - see the class

        pace = probing.Pace(count, interval_s, timeout_s, size)
        return await probing.ping(self._node, address, pace, report)

    async def netdb_get(self, key: ApAddress | NodeId, *, votes: bool) -> NetdbAnswer:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        from phantom_tun.view import netdb  # noqa: PLC0415 - see the class

        return await netdb.answer(self._node, key, votes=votes)

    async def why(
        self,
        address: ApAddress,
        port: int | None,
        report: Callable[[WhyStep], Awaitable[None]],
    ) -> Verdict:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        from phantom_tun.view.why import Inquest  # noqa: PLC0415 - see the class

        return await Inquest(self._node, address, port).hold(report)

    # --- pins -----------------------------------------------------------------------------------

    async def pins(self) -> tuple[PinInfo, ...]:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        return pins.infos(self._node.pins)

    async def accept_pin(self, address: ipaddress.IPv4Address) -> PinInfo:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        return pins.accept(self._node, address)

    async def remove_pin(self, address: ipaddress.IPv4Address) -> None:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        pins.remove(self._node, address)

    # --- override commands ------------------------------------------------------------------------

    async def send_override(self, command: str) -> OverrideInfo:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        return overrides.send(self._node, command)

    async def overrides(self) -> OverridesInfo:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        return overrides.listed(self._node)


def _option(identity: str | None) -> str:
    return "" if identity is None else f" --identity {identity}"
