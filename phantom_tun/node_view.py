"""What a node tells its owner, and what the owner can ask of it (docs/spec/control.md)."""

from __future__ import annotations

import os
import struct
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from phantom_tun import __version__
from phantom_tun.control.model import (
    AddressInfo,
    BuildStatus,
    ExposeRule,
    FlowProtocol,
    IdentityStatus,
    LeaseState,
    LinkStatus,
    NetdbAnswer,
    NetdbStatus,
    NetworkStatus,
    PathInfo,
    PeerInfo,
    PingReply,
    PingSummary,
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
from phantom_tun.endpoints import DatagramStream, Endpoint
from phantom_tun.errors import (
    CapacityExceeded,
    Filtered,
    PhantomError,
    Refused,
    StreamReset,
    Unreachable,
    UsageError,
    WorldError,
)
from phantom_tun.ids import ApAddress, NodeId
from phantom_tun.net import expose, identities
from phantom_tun.path.hop import OwnedPath
from phantom_tun.profile import Bootstrap

if TYPE_CHECKING:
    from phantom_tun.node import Node

_ECHO_HEADER = struct.Struct("!HH")
_LEASES: dict[identities.LeaseState, LeaseState] = {
    identities.LeaseState.NONE: "claiming",
    identities.LeaseState.RESERVING: "claiming",
    identities.LeaseState.HELD: "held",
    identities.LeaseState.LOST: "lost",
}
_FLOW_NAMES: dict[str, FlowProtocol] = {"tcp": "tcp", "udp": "udp", "echo": "icmp"}

NEW_ADDRESS_TIMEOUT = 60.0
"""Seconds to claim the addresses of a new identity."""
WHY_TIMEOUT = 20.0
"""Seconds that one step of `why` may take."""


class NodeView:
    """Implements :class:`~phantom_tun.control.backend.ControlBackend` for a node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    # --- looking --------------------------------------------------------------------------------

    async def status(self) -> Status:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        node = self._node
        neighbours = node.links.neighbours()
        users = node.connector.users()
        builds = node.paths.statistics()
        netdb = node.netdb.statistics()
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
            identities=tuple(
                IdentityStatus(
                    name=identity.name,
                    ap4=_text(identity.ap4),
                    ap4_state=_LEASES[identity.ap4_state],
                    ap6=str(identity.ap6),
                    exit_paths_ready=node.connector.exit_count(identity.name),
                    entry_paths_ready=node.connector.entry_count(identity.name),
                )
                for identity in node.identities.all()
            ),
            netdb=NetdbStatus(netdb["known_nodes"], netdb["held_aps"]),
            links=LinkStatus(
                signalling=sum(1 for found in neighbours if found.signalling),
                bulk_idle=sum(found.bulk_idle for found in neighbours),
                bulk_busy=sum(found.bulk_in_use for found in neighbours),
            ),
            tunnels=TunnelStatus(
                ready=sum(user.ready for user in users if user.path.members),
                active=len(node.sessions.sessions()),
                relayed=node.hub.counts["tunnels_relayed_now"],
            ),
            builds=BuildStatus(builds.tried, builds.succeeded, builds.median_s),
            drops=self._drops(),
            bootstrap=self._bootstrap(),
            warnings=tuple(node.warnings()),
        )

    def _bootstrap(self) -> tuple[str, ...]:
        keys, settings = self._node.keys, self._node.config.node
        addresses = settings.advertised_addresses if settings.dialable else ()
        return tuple(
            str(Bootstrap(keys.node_id, address, settings.port, keys.cert_hash))
            for address in addresses
        )

    async def statistics(self) -> Statistics:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        return Statistics({name: dict(group) for name, group in self._node.counters().items()})

    def _drops(self) -> dict[str, int]:
        drops: dict[str, int] = {}
        for group in self._node.counters().values():
            for name, count in group.items():
                if name.startswith("drop_") and count:
                    reason = name.removeprefix("drop_").replace("_", " ")
                    drops[reason] = drops.get(reason, 0) + int(count)
        return drops

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
        return tuple(self._address(identity) for identity in self._node.identities.all())

    def _address(self, identity: identities.ApIdentity) -> AddressInfo:
        return AddressInfo(
            name=identity.name,
            ap4=_text(identity.ap4),
            ap4_state=_LEASES[identity.ap4_state],
            ap6=str(identity.ap6),
            created=identity.created,
            exposed=tuple(
                _rule(rule) for rule in self._node.rules.rules() if rule.identity == identity.name
            ),
        )

    async def new_address(self, name: str) -> AddressInfo:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        self._check_has_addresses()
        if name in {identity.name for identity in self._node.identities.all()}:
            raise ControlError("conflict", f"there is an AP identity {name!r} already")
        identity = await self._node.add_identity(name)
        with trio.move_on_after(NEW_ADDRESS_TIMEOUT):
            await self._node.wait_identity_ready(identity)
        return self._address(identity)

    async def remove_address(self, name: str) -> None:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        self._identity(name)
        if len(self._node.identities.all()) == 1:
            raise ControlError("conflict", f"{name!r} is the only AP identity; make another first")
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
        name = self._identity(identity).name
        if self._node.rules.find(name, protocol, port) is not None:
            raise ControlError(
                "conflict",
                f"port {port}/{protocol} of {name!r} is exposed already: "
                f"'phantom-tun unexpose {port}/{protocol}' first",
            )
        to = () if allowed is None else tuple(str(address) for address in allowed)
        return _rule(self._node.rules.expose(name, protocol, port, to=to, target_port=target_port))

    async def unexpose(self, identity: str | None, port: int, protocol: Protocol) -> ExposeRule:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        name = self._identity(identity).name
        rule = self._node.rules.find(name, protocol, port)
        if rule is None:
            raise ControlError("not_found", f"port {port}/{protocol} of {name!r} isn't exposed")
        self._node.rules.unexpose(name, protocol, port)
        return _rule(rule)

    async def exposed(self) -> tuple[ExposeRule, ...]:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        return tuple(_rule(rule) for rule in self._node.rules.rules())

    # --- paths and tunnels ----------------------------------------------------------------------

    async def paths(self) -> tuple[PathInfo, ...]:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        now = self._node.clock.now()
        standing = [
            _path(user.path, now, retired=False, ready=user.ready, active=user.active)
            for user in self._node.connector.users()
        ]
        retired = [
            _path(user.path, now, retired=True, ready=0, active=user.active)
            for user in self._node.connector.retired()
        ]
        return (*standing, *retired)

    async def rebuild_paths(
        self, path_id: str | None, report: Callable[[Progress], Awaitable[None]]
    ) -> tuple[PathInfo, ...]:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        connector = self._node.connector
        old = [
            user.path
            for user in connector.users()
            if path_id is None or str(user.path.number) == path_id
        ]
        if not old:
            raise ControlError("not_found", f"there is no path {path_id or ''}".rstrip())
        known = {user.path for user in connector.users()}
        for done, path in enumerate(old):
            what = f"{path.kind} path {path.number} of {path.identity}"
            await report(Progress(f"replacing {what}", done, len(old)))
            await self._node.paths.replace(path)
        await report(Progress("done", len(old), len(old)))
        now = self._node.clock.now()
        return tuple(
            _path(user.path, now, retired=False, ready=user.ready, active=user.active)
            for user in connector.users()
            if user.path not in known
        )

    async def tunnels(self) -> tuple[TunnelInfo, ...]:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        return tuple(
            TunnelInfo(
                id=str(found.number),
                path_id="",
                identity=found.identity,
                direction=found.direction,
                remote=_endpoint(found.remote),
                protocol=_FLOW_NAMES[found.protocol],
                age_s=found.age,
                bytes_in=found.bytes_in,
                bytes_out=found.bytes_out,
            )
            for found in self._node.sessions.sessions()
        )

    async def close_tunnel(self, tunnel_id: str) -> None:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        try:
            self._node.sessions.close(int(tunnel_id))
        except (UsageError, ValueError) as error:
            raise ControlError("not_found", f"there is no tunnel {tunnel_id!r}") from error

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
        echo = await self._open_echo(address)
        rtts: list[float | None] = []
        try:
            while count is None or len(rtts) < count:
                if rtts:
                    await trio.sleep(interval_s)
                sequence = len(rtts) + 1
                rtt = await _echo_once(echo, sequence, size, timeout_s)
                rtts.append(rtt)
                await report(PingReply(sequence, 0 if rtt is None else size + 8, rtt))
        finally:
            with trio.CancelScope(shield=True):
                await echo.aclose()
        return PingSummary.of(rtts)

    async def _open_echo(self, address: ApAddress) -> DatagramStream:
        source = Endpoint(self._source_for(address), 0)
        try:
            return await self._node.sessions.open_echo(source, Endpoint(address, 0))
        except Filtered as error:
            raise ControlError("timeout", f"{address} doesn't answer pings") from error

    def _source_for(self, address: ApAddress) -> ApAddress:
        identity = self._identity(None)
        if address.version == 6:
            return identity.ap6
        if identity.ap4 is None:
            raise ControlError("unavailable", "this node holds no AP4 address yet; use the AP6 one")
        return identity.ap4

    async def netdb_get(self, key: ApAddress | NodeId) -> NetdbAnswer:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        return await self._node.netdb_answer(key)

    async def why(
        self,
        address: ApAddress,
        port: int | None,
        report: Callable[[WhyStep], Awaitable[None]],
    ) -> Verdict:
        """See :class:`~phantom_tun.control.backend.ControlBackend`."""
        steps: list[tuple[str, Callable[[], Awaitable[str]], str]] = [
            ("interface", self._try_interface, "start the node: 'phantom-tun up'"),
            ("path", self._try_path, "wait, then look at 'phantom-tun status' and 'peers'"),
            (
                "record",
                lambda: self._try_record(address),
                "check the address; its owner's node may be down",
            ),
            (
                "handshake",
                lambda: self._try_echo(address),
                "its paths may just be changing: try again in a minute",
            ),
        ]
        if port is not None:
            steps.append(
                (
                    "service",
                    lambda: self._try_service(address, port),
                    "its owner has to start the service and 'phantom-tun expose' its port",
                )
            )
        failed: tuple[str, str] | None = None
        for name, attempt, fix in steps:
            if failed is not None:
                await report(WhyStep(name, "skipped", "", 0.0))
                continue
            began = trio.current_time()
            try:
                with trio.fail_after(WHY_TIMEOUT):
                    detail = await attempt()
                outcome = True
            except trio.TooSlowError:
                detail, outcome = "no answer in time", False
            except PhantomError as error:
                detail, outcome = str(error), False
            took = (trio.current_time() - began) * 1000
            await report(WhyStep(name, "ok" if outcome else "failed", detail, took))
            if not outcome:
                failed = f"{name}: {detail}", fix
        if failed is not None:
            return Verdict(False, failed[0], failed[1])
        return Verdict(True, "It works.", "")

    async def _try_interface(self) -> str:
        if self._node.interface_name is None:
            raise UsageError("this node has no interface")
        return f"{self._node.interface_name} is up"

    async def _try_path(self) -> str:
        identity = self._identity(None)
        exits = self._node.connector.exit_count(identity.name)
        if not exits:
            raise WorldError("no exit path stands")
        return f"{exits} exit path{'s' * (exits != 1)} ready"

    async def _try_record(self, address: ApAddress) -> str:
        resolved = await self._node.directory.resolve(self._identity(None).name, address)
        ways = len(resolved.routes)
        return f"published, {ways} way{'s' * (ways != 1)} in"

    async def _try_echo(self, address: ApAddress) -> str:
        try:
            echo = await self._open_echo(address)
        except ControlError as error:
            if error.code == "timeout":
                return "reached; it doesn't answer pings"
            raise
        try:
            rtt = await _echo_once(echo, 1, 56, WHY_TIMEOUT)
        finally:
            with trio.CancelScope(shield=True):
                await echo.aclose()
        if rtt is None:
            raise Unreachable("no answer to a ping")
        return f"answers in {rtt:.1f} ms"

    async def _try_service(self, address: ApAddress, port: int) -> str:
        source = Endpoint(self._source_for(address), 0)
        try:
            stream = await self._node.sessions.open_stream(source, Endpoint(address, port))
        except Refused as error:
            raise Refused(f"port {port} is exposed, but nothing listens there") from error
        except Filtered as error:
            raise Filtered(f"port {port} isn't exposed, or not to you") from error
        stream.abort()
        return f"port {port} accepts connections"

    # --- helpers --------------------------------------------------------------------------------

    def _identity(self, name: str | None) -> identities.ApIdentity:
        self._check_has_addresses()
        known = self._node.identities.all()
        for identity in known:
            if name in {None, identity.name}:
                return identity
        raise ControlError("not_found", f"there is no AP identity {name!r}")

    def _check_has_addresses(self) -> None:
        if not self._node.identities.all() and self._node.config.node.relay_only:
            raise ControlError("unavailable", "this node only relays: it has no AP addresses")


async def _echo_once(
    echo: DatagramStream, sequence: int, size: int, timeout_s: float
) -> float | None:
    message = _ECHO_HEADER.pack(0, sequence & 0xFFFF) + bytes(size)
    began = trio.current_time()
    with trio.move_on_after(timeout_s):
        try:
            await echo.send(message)
            while (answer := await echo.receive()) is not None:
                if answer == message:
                    return (trio.current_time() - began) * 1000
        except (StreamReset, CapacityExceeded):
            return None
    return None


def _text(address: ApAddress | None) -> str | None:
    return None if address is None else str(address)


def _endpoint(endpoint: Endpoint) -> str:
    host = f"[{endpoint.address}]" if endpoint.address.version == 6 else str(endpoint.address)
    return f"{host}:{endpoint.port}"


def _rule(rule: expose.ExposeRule) -> ExposeRule:
    return ExposeRule(
        identity=rule.identity,
        port=rule.port,
        protocol=rule.protocol,
        to=tuple(sorted(str(address) for address in rule.to)) or "any",
        target_port=rule.target_port,
    )


def _path(path: OwnedPath, now: float, *, retired: bool, ready: int, active: int) -> PathInfo:
    return PathInfo(
        id=str(path.number),
        identity=path.identity,
        kind=path.kind,
        hops=path.hops,
        state="retired" if retired else "ready",
        age_s=max(0.0, now - path.built),
        expires_in_s=path.expires - now,
        build_s=path.build_seconds,
        nodes=tuple(node_id.hex() for node_id in path.node_ids),
        tunnels_ready=ready,
        tunnels_active=active,
    )
