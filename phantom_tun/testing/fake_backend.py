"""A :class:`ControlBackend` without a network: a small, consistent, imaginary node.

It keeps its rules and identities like a real node, and knows one far AP address that answers.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec
import trio

from phantom_tun.control.model import (
    AddressInfo,
    BuildStatus,
    ExposeRule,
    IdentityStatus,
    LinkStatus,
    NetdbAnswer,
    NetdbPoll,
    NetdbRecord,
    NetdbStatus,
    NetdbVote,
    NetworkStatus,
    NodeState,
    OverrideInfo,
    OverridesInfo,
    PathInfo,
    PeerInfo,
    PinChangeInfo,
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
from phantom_tun.errors import PathUnavailable, Unreachable
from phantom_tun.ids import ApAddress, NodeId

FAR4 = ipaddress.IPv4Address("250.1.2.3")
FAR6 = ipaddress.IPv6Address("2001:2f:aaaa::1")
NODE_IDS = tuple(bytes([number] * 32).hex() for number in range(1, 9))
OWN_ID = bytes([0xAA] * 32).hex()
PINS = (
    PinInfo(
        "250.6.6.6",
        ":".join(["11111111"] * 8),
        3,
        1_800_000_000.0,
        PinChangeInfo(
            ":".join(["22222222"] * 8),
            2,
            1_800_086_400.0,
            "the owner of 250.6.6.6 has changed: phantom-tun pins accept 250.6.6.6",
        ),
    ),
    PinInfo(str(FAR4), ":".join(["66666666"] * 8), 2, 1_800_000_000.0),
)


@dataclass(slots=True)
class FakeBackend:
    """Public attributes may be changed by a test at any time."""

    state: NodeState = "ready"
    pid: int = 4711
    hops: int = 3
    warnings: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = (f"{OWN_ID}@192.0.2.7:443#{'bb' * 32}",)
    fail_builds: bool = False
    netdb_warning: str = ""
    has_addresses: bool = True
    relay_only: bool = False
    paths_ready: int = 2
    """Of each kind, as the status says."""
    shortage: str = ""
    hint: str = ""
    """What is missing at services that are exposed."""
    unusable: dict[str, int] = field(default_factory=dict)
    """Known nodes that are of no use, by reason."""
    missing: tuple[str, ...] = ()
    """What every identity waits for."""
    override_keys: tuple[str, ...] = ("dd" * 32,)
    given: dict[str, OverrideInfo] = field(default_factory=dict)
    """Override commands by their text; anything but the texts in it is no command."""
    sent: list[str] = field(default_factory=list)
    pinned: dict[str, PinInfo] = field(default_factory=lambda: {pin.address: pin for pin in PINS})
    stuck: bool = False
    """Every call waits for ever."""
    cancelled: list[str] = field(default_factory=list)
    """Names of calls that were cancelled, because the client went away or a deadline passed."""
    _identities: dict[str, int] = field(default_factory=lambda: {"default": 1})
    _rules: dict[tuple[str, int, str], ExposeRule] = field(default_factory=dict)
    _closed_tunnels: set[str] = field(default_factory=set)

    async def status(self) -> Status:
        """A node that is in :attr:`state`."""
        await self._maybe_stuck("status")
        return Status(
            version="0.1.0",
            state=self.state,
            node_id=OWN_ID,
            pid=self.pid,
            uptime_s=3725.0,
            network=NetworkStatus("example", "99" * 32, 0),
            dialable=True,
            relay_only=self.relay_only,
            interface="phantom0",
            identities=tuple(
                IdentityStatus(
                    info.name,
                    info.ap4,
                    info.ap4_state,
                    info.ap6,
                    self.paths_ready,
                    self.paths_ready,
                )
                for info in await self.addresses()
            ),
            netdb=NetdbStatus(known_nodes=12, records=34, unusable=self.unusable),
            links=LinkStatus(signalling=5, bulk_idle=4, bulk_busy=3),
            tunnels=TunnelStatus(ready=8, active=1, relayed=2),
            builds=BuildStatus(tried=5, succeeded=4, median_s=0.71, shortage=self.shortage),
            drops={"answer late": 2},
            bootstrap=self.bootstrap,
            warnings=self.warnings,
        )

    async def statistics(self) -> Statistics:
        """Two groups."""
        return Statistics({"links": {"opened": 12}, "tun": {"packets": 345, "dropped": 6}})

    async def addresses(self) -> tuple[AddressInfo, ...]:
        """The identities in order."""
        return tuple(self._info(name) for name in self._identities if self.has_addresses)

    async def new_address(
        self, name: str, report: Callable[[Progress], Awaitable[None]]
    ) -> AddressInfo:
        """Another identity, after two things to wait for."""
        if name in self._identities:
            raise ControlError("conflict", f"there is an address named {name!r} already")
        self._identities[name] = max(self._identities.values()) + 1
        await report(Progress("waiting for an exit path and an entry path", 0, 2))
        await report(Progress("waiting for an entry path", 1, 2))
        return self._info(name)

    async def remove_address(self, name: str) -> None:
        """Not the last one."""
        self._known(name)
        if len(self._identities) == 1:
            raise ControlError("conflict", f"{name!r} is the only address; make another one first")
        del self._identities[name]

    async def expose(
        self,
        identity: str | None,
        port: int,
        protocol: Protocol,
        allowed: tuple[ApAddress, ...] | None,
        target_port: int,
    ) -> ExposeRule:
        """Once for each port, protocol and identity."""
        key = (self._known(identity), port, protocol)
        if key in self._rules:
            raise ControlError(
                "conflict",
                f"port {port}/{protocol} of {key[0]!r} is exposed already: "
                f"'phantom-tun unexpose {port}/{protocol}' first",
            )
        to = ("any",) if allowed is None else tuple(str(address) for address in allowed)
        self._rules[key] = ExposeRule(key[0], port, protocol, to, target_port)
        return msgspec.structs.replace(self._rules[key], hint=self.hint)

    async def unexpose(self, identity: str | None, port: int, protocol: Protocol) -> ExposeRule:
        """What was exposed."""
        key = (self._known(identity), port, protocol)
        if key not in self._rules:
            raise ControlError("not_found", f"port {port}/{protocol} of {key[0]!r} isn't exposed")
        return self._rules.pop(key)

    async def exposed(self) -> tuple[ExposeRule, ...]:
        """All rules."""
        return tuple(self._rules.values())

    async def paths(self) -> tuple[PathInfo, ...]:
        """One exit and one entry path for each identity."""
        if not self.has_addresses:
            return ()
        return tuple(
            self._path(number, name, generation=0) for number, name in enumerate(self._identities)
        ) + tuple(
            msgspec.structs.replace(
                self._path(number + 100, name, generation=0), kind="entry", state="building"
            )
            for number, name in enumerate(self._identities)
        )

    async def rebuild_paths(
        self, path_id: str | None, report: Callable[[Progress], Awaitable[None]]
    ) -> tuple[PathInfo, ...]:
        """New paths, one progress event for each."""
        await self._maybe_stuck("rebuild_paths")
        if self.fail_builds:
            raise PathUnavailable("none of 3 builds succeeded; 'phantom-tun peers' shows the links")
        old = [path for path in await self.paths() if path_id in {None, path.id}]
        if not old:
            raise ControlError("not_found", f"there is no path {path_id!r}")
        new = []
        for number, path in enumerate(old):
            await report(Progress(f"built a path for {path.identity}", number + 1, len(old)))
            new.append(self._path(number, path.identity, generation=1))
        return tuple(new)

    async def tunnels(self) -> tuple[TunnelInfo, ...]:
        """One, until it is closed."""
        tunnel = TunnelInfo("t1", "p0", "default", "out", f"{FAR4}:80", "tcp", 12.5, 123_456, 7_890)
        return tuple(item for item in (tunnel,) if item.id not in self._closed_tunnels)

    async def close_tunnel(self, tunnel_id: str) -> None:
        """The one there is."""
        if tunnel_id not in {tunnel.id for tunnel in await self.tunnels()}:
            raise ControlError("not_found", f"there is no tunnel {tunnel_id!r}")
        self._closed_tunnels.add(tunnel_id)

    async def peers(self) -> tuple[PeerInfo, ...]:
        """Two; the first one is a guard."""
        return (
            PeerInfo(NODE_IDS[0], ("192.0.2.1:443",), 3, True, ("signalling", "path member")),
            PeerInfo(NODE_IDS[1], ("198.51.100.2:443", "[2001:db8::2]:443"), 1, False, ("netdb",)),
        )

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
        """The third of every three is lost."""
        await self._maybe_stuck("ping")
        if address not in {FAR4, FAR6}:
            raise Unreachable(f"no AP address {address} is known in this network")
        rtts: list[float | None] = []
        try:
            for sequence in itertools.count(1) if count is None else range(1, count + 1):
                if rtts:
                    await trio.sleep(interval_s)
                lost = sequence % 3 == 0
                rtts.append(None if lost else 12.5)
                await report(PingReply(sequence, 0 if lost else size + 8, rtts[-1]))
        except trio.Cancelled:
            self.cancelled.append("ping")
            raise
        return PingSummary.of(rtts)

    async def netdb_get(self, key: ApAddress | NodeId, *, votes: bool) -> NetdbAnswer:
        """Records of the far address and of node 1. Of three exit paths that are asked about the
        address one finds nothing and one fails; of two nodes one knows node 1."""
        if isinstance(key, bytes):
            if key.hex() != NODE_IDS[0]:
                raise ControlError("not_found", "no node with this id is known in this network")
            record = NetdbRecord("node", {"port": 443}, 3600.0, 3, 0)
            vote = NetdbVote("77" * 32, 1_800_000_000, 1)
            witnesses = (
                NetdbPoll("", NODE_IDS[1], "found", "", (vote,)),
                NetdbPoll("", NODE_IDS[2], "nothing", ""),
            )
            return NetdbAnswer(key.hex(), (record,), 3, witnesses if votes else ())
        if key not in {FAR4, FAR6}:
            raise ControlError("not_found", f"no AP address {key} is known in this network")
        found = (NetdbVote("66" * 32, 3, 3), NetdbVote("55" * 32, 9, 1))
        polls = (
            NetdbPoll("1", NODE_IDS[3], "found", "", found, 6, 4, 1),
            NetdbPoll("2", NODE_IDS[4], "nothing", ""),
            NetdbPoll("5", NODE_IDS[5], "failed", "no answer in time"),
        )
        return NetdbAnswer(
            str(key),
            (
                NetdbRecord("ap_key", {"ap4": str(FAR4), "sequence": 3}, 86_000.0, 3, 1, "AAAA"),
                NetdbRecord("ap_route", {"entry_node": NODE_IDS[2]}, 1_800.0, 3, 0),
            ),
            4,
            polls if votes else (),
            self.netdb_warning,
        )

    async def pins(self) -> tuple[PinInfo, ...]:
        """Those there are."""
        return tuple(self.pinned.values())

    async def accept_pin(self, address: ipaddress.IPv4Address) -> PinInfo:
        """The changed one."""
        pin = self.pinned.get(str(address))
        if pin is None or pin.change is None:
            raise ControlError("not_found", f"no other key was seen for {address}")
        change = pin.change
        accepted = PinInfo(pin.address, change.fingerprint, change.confirmations, change.seen)
        self.pinned[pin.address] = accepted
        return accepted

    async def remove_pin(self, address: ipaddress.IPv4Address) -> None:
        """One of them."""
        if self.pinned.pop(str(address), None) is None:
            raise ControlError("not_found", f"{address} isn't pinned")

    async def send_override(self, command: str) -> OverrideInfo:
        """One of :attr:`given`."""
        await self._maybe_stuck("send_override")
        if command not in self.given:
            raise ControlError("invalid", "that isn't an override command")
        new = command not in self.sent
        if new:
            self.sent.append(command)
        return msgspec.structs.replace(self.given[command], new=new)

    async def overrides(self) -> OverridesInfo:
        """Those that were sent."""
        await self._maybe_stuck("overrides")
        commands = tuple(self.given[text] for text in self.sent)
        return OverridesInfo(True, self.override_keys, 1, commands)

    async def why(
        self,
        address: ApAddress,
        port: int | None,
        report: Callable[[WhyStep], Awaitable[None]],
    ) -> Verdict:
        """The far address works, all others have no record."""
        await report(WhyStep("interface", "trying", "", 0.0))
        await report(WhyStep("interface", "ok", "phantom0 is up", 0.1))
        if address not in {FAR4, FAR6}:
            await report(WhyStep("record", "failed", "no record", 40.0))
            await report(WhyStep("path", "skipped", "", 0.0))
            return Verdict(False, "Nobody owns this address.", "Ask its owner for the right one.")
        await report(WhyStep("record", "ok", f"found, port {port}", 40.0))
        return Verdict(True, "It works.", "")

    def _info(self, name: str) -> AddressInfo:
        number = self._identities[name]
        return AddressInfo(
            name=name,
            ap4=f"241.0.0.{number}",
            ap4_state="held",
            ap6=f"2001:2f:1::{number:x}",
            created=1_800_000_000.0,
            exposed=tuple(rule for rule in self._rules.values() if rule.identity == name),
            missing=self.missing,
        )

    def _known(self, name: str | None) -> str:
        chosen = next(iter(self._identities)) if name is None else name
        if chosen not in self._identities:
            raise ControlError("not_found", f"there is no address named {chosen!r}")
        return chosen

    def _path(self, number: int, identity: str, *, generation: int) -> PathInfo:
        return PathInfo(
            id=f"p{number + 10 * generation}",
            identity=identity,
            kind="exit",
            hops=self.hops,
            state="ready",
            age_s=754.0 if not generation else 0.0,
            expires_in_s=2846.0,
            build_s=0.71,
            nodes=NODE_IDS[: self.hops],
            tunnels_ready=4,
            tunnels_active=1 - generation,
        )

    async def _maybe_stuck(self, name: str) -> None:
        if not self.stuck:
            return
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.cancelled.append(name)
            raise
