"""A node for the tests of ``view``: real pins, rules and addresses, everything else scripted."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio

from phantom_tun.config import Config
from phantom_tun.errors import StreamReset, WorldError
from phantom_tun.ids import ApAddress, CertHash, ConnectionId, EntryId, NodeId
from phantom_tun.net.addresses.ap_database import Found
from phantom_tun.net.addresses.directory import ResolvedAp
from phantom_tun.net.addresses.identities import LeaseState
from phantom_tun.net.addresses.pins import Pins
from phantom_tun.net.sessions.expose import ExposeRules
from phantom_tun.path.hop import OwnedPath
from phantom_tun.testing.fake_owner import SMALL_NETWORK, FakeOwner
from phantom_tun.testing.record_factory import NodeMaker
from phantom_tun.view.health import PathDeaths
from phantom_tun.wire.netdb import Vote
from phantom_tun.wire.nodes import NodeRef

NOW = 1_800_000_000.0
OWN_ID = NodeId(b"o" * 32)


@dataclass(eq=False)
class FakeIdentity:
    """An AP identity of the node."""

    name: str = "default"
    owner: FakeOwner = field(default_factory=FakeOwner)
    ap4_state: LeaseState = LeaseState.HELD
    created: float = NOW - 100

    @property
    def candidate(self) -> ipaddress.IPv4Address:
        return self.owner.ap4

    @property
    def ap4(self) -> ipaddress.IPv4Address | None:
        return self.owner.ap4 if self.ap4_state is LeaseState.HELD else None

    @property
    def ap6(self) -> ipaddress.IPv6Address:
        return self.owner.ap6

    @property
    def public_key(self) -> bytes:
        return self.owner.key.public


class FakeEcho:
    """An echo exchange that answers at once, or dies."""

    def __init__(self, *, dies: bool = False, silent: bool = False) -> None:
        self.dies = dies
        self.silent = silent
        self.closed = False
        self._waiting: list[bytes] = []

    async def send(self, message: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self.dies:
            raise StreamReset("the tunnel ended")
        self._waiting.append(message)

    async def receive(self) -> bytes | None:
        if self.silent:
            await trio.sleep_forever()
        await trio.sleep(0.012)
        return self._waiting.pop(0)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self.closed = True


class FakeStream:
    """A connection that was accepted, to a service that sends something first."""

    def __init__(self, *, endless: bool = False, resets: bool = False) -> None:
        self.steps: list[str] = []
        self._endless = endless
        self._resets = resets
        self._waiting = [b"", b"hello"]

    def is_broken(self) -> bool:
        return False

    async def send_end(self) -> None:
        await trio.lowlevel.checkpoint()
        self.steps.append("end")
        if self._resets:
            raise StreamReset("the service reset it")

    async def receive(self) -> bytes:
        await trio.sleep(0.01)
        return b"on and on" if self._endless else self._waiting.pop()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self.steps.append("close")


@dataclass
class World:
    """What a test sets; :attr:`node` is what the code under test gets."""

    state_dir: Path
    config: Config = field(default_factory=Config)
    identities: list[FakeIdentity] = field(default_factory=lambda: [FakeIdentity()])
    state: str = "ready"
    interface: str | None = "phantom0"
    exit_hops: int = 3
    entry_hops: int = 3
    exits: int = 2
    entries: int = 2
    problems: dict[tuple[str, str], str] = field(default_factory=dict)
    neighbours: int = 5
    silent_neighbours: int = 0
    """Nodes that are dialed, or linked for data only."""
    dialable: bool | None = True
    up_for: float = 1000.0
    publisher_warnings: list[str] = field(default_factory=list)
    interface_warnings: list[str] = field(default_factory=list)
    resolve: Callable[[ApAddress], Awaitable[ResolvedAp]] | Exception = field(
        default_factory=lambda: WorldError("not set")
    )
    asked: list[Found | Exception | None] = field(default_factory=list)
    """What the exit paths say, in their order."""
    echoes: list[FakeEcho | Exception] = field(default_factory=list)
    """What opening an echo exchange gives, one after the other."""
    streams: list[FakeStream | Exception] = field(default_factory=list)
    node_record: Any = field(default_factory=lambda: WorldError("not set"))
    witnesses: list[Any] = field(default_factory=list)
    commands: list[Any] = field(default_factory=list)
    """Override commands with their standings."""
    known: list[Any] = field(default_factory=lambda: [NodeMaker(2).record()])
    """Records of other nodes, banned ones too."""
    unanswered: list[Any] = field(default_factory=list)
    """Ways to nodes of the profile, and why they failed."""
    override_keys: tuple[bytes, ...] = ()
    bootstrap: list[Any] = field(default_factory=list)
    """Nodes that the profile names."""
    forgotten: list[tuple[str, ApAddress]] = field(default_factory=list)
    resolved: list[ApAddress] = field(default_factory=list)
    after_add: Callable[[FakeIdentity], None] = lambda _identity: None

    def __post_init__(self) -> None:
        self.pins = Pins(self.state_dir, lambda: NOW)
        self.rules = ExposeRules(None)
        self.repeated = 0
        self.deaths = PathDeaths()
        self.node: Any = _Node(self)

    def tell_progress(self) -> None:
        self.node.progress.set()
        self.node.progress = trio.Event()


class _Node:
    """The parts of :class:`phantom_tun.node.Node` that the view uses."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.network = SMALL_NETWORK
        self.profile = SimpleNamespace(override_keys=world.override_keys, bootstrap=world.bootstrap)
        self.keys = SimpleNamespace(node_id=OWN_ID)
        self.config = world.config
        self.clock = SimpleNamespace(now=lambda: NOW)
        self.pins, self.rules, self.deaths = world.pins, world.rules, world.deaths
        self.repeated_deaths = lambda: world.repeated
        self.progress = trio.Event()
        self.identities = SimpleNamespace(
            all=lambda: list(world.identities), owner_of=self._owner_of
        )
        self.connector = SimpleNamespace(
            exit_count=lambda _name: world.exits,
            entry_count=lambda _name: world.entries,
            users=lambda: [SimpleNamespace(path=exit_path(n)) for n in range(world.exits)],
        )
        self.paths = SimpleNamespace(
            problem=lambda name, kind: world.problems.get((name, kind)),
            wishes=SimpleNamespace(exit_hops=world.exit_hops, entry_hops=world.entry_hops),
        )
        self.links = SimpleNamespace(neighbours=self._neighbours)
        self.directory = SimpleNamespace(
            resolve=self._resolve,
            ask=self._ask,
            forget=lambda name, address: world.forgotten.append((name, address)),
        )
        self.sessions = SimpleNamespace(open_echo=self._open_echo, open_stream=self._open_stream)
        self.netdb = SimpleNamespace(
            find_node=self._find_node,
            witnesses=self._witnesses,
            own_record=NodeMaker(1).record(),
            commands=lambda: world.commands,
            all_records=lambda: world.known,
            unwritten={},
            unanswered=lambda: world.unanswered,
        )
        self.guard_file = SimpleNamespace(problem=None)

    def _neighbours(self) -> list[Any]:
        own = [SimpleNamespace(node_id=OWN_ID, signalling=True)]
        many = (self._world.neighbours, self._world.silent_neighbours)
        return own + [
            SimpleNamespace(node_id=bytes([number]) * 32, signalling=signalling)
            for signalling, count in zip((True, False), many, strict=True)
            for number in range(count)
        ]

    @property
    def state(self) -> str:
        return self._world.state

    @property
    def interface_name(self) -> str | None:
        return self._world.interface

    @property
    def dialable(self) -> bool | None:
        return self._world.dialable

    def publisher_warnings(self) -> list[str]:
        return self._world.publisher_warnings

    def interface_warnings(self) -> list[str]:
        return self._world.interface_warnings

    def uptime(self) -> float:
        return self._world.up_for

    async def add_identity(self, name: str) -> FakeIdentity:
        await trio.lowlevel.checkpoint()
        identity = FakeIdentity(name)
        self._world.identities.append(identity)
        self._world.after_add(identity)
        return identity

    def _owner_of(self, address: ApAddress) -> FakeIdentity | None:
        return next(
            (found for found in self._world.identities if address in {found.ap4, found.ap6}), None
        )

    async def _resolve(self, _name: str, address: ApAddress, *, fresh: bool = False) -> ResolvedAp:
        del fresh
        await trio.lowlevel.checkpoint()
        self._world.resolved.append(address)
        if isinstance(self._world.resolve, Exception):
            raise self._world.resolve
        return await self._world.resolve(address)

    async def _ask(
        self, _name: str, _address: ApAddress, *, path_index: int | None = None
    ) -> Found | None:
        await trio.lowlevel.checkpoint()
        said = self._world.asked[path_index or 0]
        if isinstance(said, Exception):
            raise said
        return said

    async def _open_echo(self, _source: Any, _target: Any) -> FakeEcho:
        return await _next(self._world.echoes)

    async def _open_stream(self, _source: Any, _target: Any) -> FakeStream:
        return await _next(self._world.streams)

    async def _find_node(self, _node_id: NodeId) -> Any:
        await trio.lowlevel.checkpoint()
        if isinstance(self._world.node_record, Exception):
            raise self._world.node_record
        return self._world.node_record

    async def _witnesses(self, _node_id: NodeId) -> list[Any]:
        await trio.lowlevel.checkpoint()
        return self._world.witnesses


async def _next(script: list[Any]) -> Any:
    await trio.lowlevel.checkpoint()
    found = script.pop(0)
    if isinstance(found, Exception):
        raise found
    return found


def exit_path(number: int) -> OwnedPath:
    """Exit path ``number``; its exit node's id is made of the number."""
    exit_node = NodeRef(
        NodeId(bytes([number]) * 32), CertHash(bytes(32)), ipaddress.IPv4Address("10.0.0.1"), 443
    )
    return OwnedPath(
        number=number,
        kind="exit",
        identity="default",
        members=[exit_node],
        secrets=[bytes(32)],
        first_connection=ConnectionId(bytes(16)),
        entry_id=None,
        built=NOW - 60,
        retires=NOW + 600,
        expires=NOW + 700,
        build_seconds=0.5,
    )


def found_of(owner: FakeOwner, *, routes: int = 2, dissent: int = 0) -> Found:
    """What an exit node answers about ``owner``."""
    record = owner.record(NOW - 50)
    votes = [Vote(record.public_key, record.sequence, bytes(32), 6)]
    if dissent:
        votes.append(Vote(b"d" * 32, 7, bytes(32), dissent))
    return Found(
        record=record,
        routes=tuple(owner.route(NOW, number) for number in range(routes)),
        votes=tuple(votes),
        bad_routes=0,
        asked=8,
        answered=6 + dissent,
    )


def resolved_of(owner: FakeOwner, *, routes: int = 2) -> ResolvedAp:
    """What the directory answers about ``owner``."""
    return ResolvedAp(
        public_key=owner.key.public,
        ap4=owner.ap4,
        ap6=owner.ap6,
        certificate=b"",
        request_key=b"",
        routes=[(NodeId(bytes(32)), EntryId(bytes(16)), NOW + 600)] * routes,
        sequence=1,
        expires=NOW + 600,
        confirmations=2,
    )
