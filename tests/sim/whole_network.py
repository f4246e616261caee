"""A whole network in one process: every node of the real parts, on links in memory whose plaintexts
are all on record. What is not there: TLS and the door (``test_path_over_tls.py`` has them), the
interface (its place has :class:`~phantom_tun.testing.fake_host.FakeHost`), files of the netdb.

:class:`Eyes` adds what the nodes themselves make of what they receive: everything that is unsealed,
unlocked, deciphered or decrypted, filed under the node that did it.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest
import trio

from phantom_tun.clock import HOUR
from phantom_tun.crypto import packages
from phantom_tun.crypto.sealing import SealingKey
from phantom_tun.crypto.streams import ChainedStream, Keystream
from phantom_tun.endpoints import ByteStream, Endpoint
from phantom_tun.errors import StreamReset
from phantom_tun.guard import COUNTER
from phantom_tun.ids import ApAddress, NodeId
from phantom_tun.net.addresses.directory import Directory
from phantom_tun.net.addresses.identities import ApIdentity, IdentityStore, LeaseState
from phantom_tun.net.addresses.pins import Pins
from phantom_tun.net.addresses.publishers import Publishers
from phantom_tun.net.links.bulk import Bulk
from phantom_tun.net.links.peers import Peer
from phantom_tun.net.netdb.node_database import NodeDatabase
from phantom_tun.net.netdb.service import NetdbService
from phantom_tun.net.paths import builder as path_builder
from phantom_tun.net.paths.builder import PathBuilder, Surroundings
from phantom_tun.net.paths.guard_watch import GuardNews
from phantom_tun.net.paths.member import PathMember
from phantom_tun.net.paths.pool import Change, PathEvent
from phantom_tun.net.paths.pools import PathPools, PathWishes
from phantom_tun.net.sessions.expose import ExposeRules
from phantom_tun.net.sessions.service import SessionService, SessionSettings
from phantom_tun.net.sessions.stream import SessionStream
from phantom_tun.net.tunnels.connector import Connector
from phantom_tun.net.tunnels.entry_node import EntryDesk
from phantom_tun.net.tunnels.exit_node import EntryDialer
from phantom_tun.net.tunnels.hops import HopHost
from phantom_tun.net.tunnels.hub import TunnelHub
from phantom_tun.net.tunnels.ready_pool import PoolLimits
from phantom_tun.net.tunnels.switchboard import Switchboard
from phantom_tun.net.tunnels.workshop import Workshop
from phantom_tun.path import member as path_member
from phantom_tun.path.build import Build
from phantom_tun.path.guards import GuardSet
from phantom_tun.path.hop import OwnedPath, PathHop
from phantom_tun.path.keys import PathKeys
from phantom_tun.path.member import Member, MemberLimits
from phantom_tun.testing.fake_host import FakeHost
from phantom_tun.testing.memory_links import MemoryNetwork, Recorded
from phantom_tun.testing.path_nodes import TrioClock, at_once
from phantom_tun.testing.record_factory import NETWORK, NodeMaker
from phantom_tun.tunnel import answer as session_answer
from phantom_tun.tunnel.channel import Channel
from phantom_tun.wire.frames import HEADER_LEN, Frame, parse_header
from phantom_tun.wire.netdb import UpdateApRoutes
from phantom_tun.wire.nodes import NodeRef

VIEWER: ContextVar[NodeId | None] = ContextVar("viewer", default=None)
"""The node that the running task belongs to."""

IDENTITY = "default"
SETTINGS = SessionSettings(
    nat4=IPv4Network("240.0.128.0/17"), nat6=IPv6Network("2001:2f:0:0:8000::/65")
)


@dataclass(frozen=True)
class Owner:
    """What a node that owns an AP identity is to have."""

    exit_hops: int = 3
    entry_hops: int = 3
    publish: bool = True
    """Whether it can be called: has entry paths and is in the network database."""


class WholeNode:
    """One node, wired as :class:`phantom_tun.node.Node` does."""

    def __init__(
        self,
        network: MemoryNetwork,
        number: int,
        clock: TrioClock,
        *,
        bootstrap: Sequence[NodeRef],
        state_dir: Path,
        owner: Owner | None = None,
        shunned: frozenset[NodeId] = frozenset(),
    ) -> None:
        """``shunned``: nodes that it has take no part in its paths."""
        self.owner = owner
        self.clock = clock
        self.rng = random.Random(number)
        self.keys = PathKeys(clock.now())
        self.maker = NodeMaker(number)
        self.record = self.maker.record(clock.now(), path_key=self.keys.published.public)
        self.ref = self.record.ref()
        self.node_id = self.record.node_id
        self.links = network.links(self.ref)
        self.netdb = NetdbService(
            NETWORK,
            self.record,
            self.keys.published.public,
            self.links.call,
            clock=clock,
            rng=self.rng,
        )
        self.database = NodeDatabase(self.netdb, 4)
        self.desk = EntryDesk(clock, self.rng)
        self.board = Switchboard(self._array, self.desk.handle, self.netdb.handle_call)
        limits = PoolLimits(low=3, high=48)
        workshop = Workshop(self.rng, at_once)
        self.hub = TunnelHub(self.links, self.board, limits, clock, self.rng, workshop=workshop)
        dialer = self.dialer = EntryDialer(self.hub, self.database)
        self.relayed: list[PathHop] = []
        """Every hop this node ever was."""
        self.hops = HopHost(
            self.hub,
            self.desk,
            self.database,
            dialer,
            publish=self._publish,
            on_end=self._hop_ended,
        )
        self.member = PathMember(
            Member(self.node_id, NETWORK.network_id, self.keys, MemberLimits()),
            self.keys,
            self.links,
            on_hop=self._add_hop,
            on_hop_lost=self.hops.remove,
            on_new_key=lambda _key: None,
            clock=clock,
            rng=self.rng,
        )
        self.guards = GuardSet(frozenset())
        self.builder = PathBuilder(
            self.links,
            self.member,
            NETWORK.network_id,
            self.guards,
            Surroundings(
                own_record=lambda: self.record,
                candidates=lambda _now: self.netdb.candidates(),
                relatives=shunned,
                save_guards=lambda _guards: None,
                guard_news=GuardNews(self.netdb.record_of, self.netdb.report_success),
            ),
            clock=clock,
            rng=self.rng,
            workshop=workshop,
        )
        self.connector = Connector(self.hub, self.desk, self.database, dialer, self)
        self.identities = IdentityStore(state_dir, NETWORK, clock)
        wishes = owner or Owner()
        self.paths = PathPools(
            self.builder,
            self.connector,
            self.identities,
            PathWishes(
                exit_hops=wishes.exit_hops,
                entry_hops=wishes.entry_hops,
                exit_paths=1,
                entry_paths=1 if wishes.publish else 0,
                lifetime=HOUR,
            ),
            on_event=self._path_event,
            guard=self.hub.guard,
            clock=clock,
            rng=self.rng,
        )
        self.directory = Directory(
            self.connector,
            self.identities,
            Pins(state_dir, clock.now),
            clock=clock,
            rng=self.rng,
        )
        self.publishers = Publishers(
            self.identities,
            self.connector,
            self.connector.routes,
            on_lease=lambda _identity: None,
            clock=clock,
            rng=self.rng,
        )
        self.rules = ExposeRules(None)
        self.host = FakeHost()
        self.sessions = SessionService(
            network=NETWORK,
            identities=self.identities,
            directory=self.directory,
            connector=self.connector,
            rules=self.rules,
            settings=SETTINGS,
            clock=clock,
            rng=self.rng,
        )
        self._bootstrap = list(bootstrap)

    @property
    def identity(self) -> ApIdentity:
        """Its AP identity."""
        return self.identities.get(IDENTITY)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be a node until cancelled."""
        VIEWER.set(self.node_id)
        async with trio.open_nursery() as nursery:
            await nursery.start(self.hub.run)
            await nursery.start(self.member.run)
            nursery.start_soon(self.hops.run)
            await nursery.start(self.links.run, [], self)
            await nursery.start(self.netdb.run, self._bootstrap)
            if self.owner is not None:
                self.identities.load()
                await nursery.start(self.paths.run)
                await nursery.start(self.directory.run)
                await nursery.start(self.publishers.run)
                await nursery.start(self.sessions.run, self.host)
            task_status.started()

    @contextmanager
    def viewing(self) -> Iterator[None]:
        """What the running task does meanwhile, this node does."""
        token = VIEWER.set(self.node_id)
        try:
            yield
        finally:
            VIEWER.reset(token)

    async def wait_knows(self, count: int) -> None:
        """Wait until so many nodes can be chosen for paths."""
        while len(self.netdb.candidates()) < count:
            await trio.sleep(0.5)

    async def bring_up(self) -> None:
        """Have the paths built and, if wanted, the identity published."""
        assert self.owner is not None
        with self.viewing():
            self.paths.add(self.identity)
            if self.owner.publish:
                self.publishers.add(self.identity, hurry=True)
        while not self._is_up(self.owner):
            await trio.sleep(0.5)

    def _is_up(self, owner: Owner) -> bool:
        reaches = self.connector.exit_count(IDENTITY) > 0
        if not owner.publish:
            return reaches
        called = self.connector.entry_count(IDENTITY) > 0
        return reaches and called and self.identity.ap4_state is LeaseState.HELD

    async def connect(self, address: ApAddress, port: int, source_port: int) -> SessionStream:
        """As a program of this node would."""
        source = self.identity.ap6 if address.version == 6 else self.identity.ap4
        assert source is not None
        with self.viewing():
            return await self.sessions.open_stream(
                Endpoint(source, source_port), Endpoint(address, port)
            )

    def troubles(self) -> dict[str, int]:
        """Counters of what must never happen."""
        parts = {
            "hub": self.hub.counts,
            "links": self.links.statistics(),
            "member": self.member.statistics(),
            "netdb": self.netdb.statistics(),
            "directory": self.directory.statistics(),
            "sessions": self.sessions.statistics(),
            "publishers": self.publishers.statistics(),
        }
        return {name: part[COUNTER] for name, part in parts.items() if part.get(COUNTER)}

    def _hop_ended(self, hop: PathHop) -> None:
        self.member.hop_ended(hop)

    def _add_hop(self, hop: PathHop) -> None:
        self.relayed.append(hop)
        self.hops.add(hop)

    async def _array(self, peer: Peer, opening: bytes, bulk: Bulk) -> None:
        await self.member.handle_array(peer, opening, bulk)

    async def _publish(self, route: bytes) -> None:
        await self.database.perform_for_entry(UpdateApRoutes((route,)).encode())

    def _path_event(self, event: PathEvent) -> None:
        if event.path.kind == "entry":
            self.publishers.routes_changed(event.path.identity)
        if event.change is Change.UP and event.path.route is not None:
            self.hub.start(self._publish, event.path.route)

    # --- OwnerEvents ----------------------------------------------------------------------------

    async def handle_request(self, identity: str, sealed_request: bytes, accept: Any) -> None:
        """A request came over an entry path."""
        await self.sessions.handle_request(identity, sealed_request, accept)

    async def private_exit(self, identity: str) -> OwnedPath:
        """A path for one question."""
        return await self.paths.private_exit(identity)

    def path_died(self, path: OwnedPath) -> None:
        """A path gives no tunnels any more."""
        self.paths.died(path)

    def path_doubted(self, path: OwnedPath) -> None:
        """A path gives no tunnels at the moment."""
        self.paths.doubted(path)

    # --- LinkHandlers: another node's task may be running us -------------------------------------

    async def bulk_opened(self, peer: Peer, opening: bytes, bulk: Bulk) -> None:
        """See :class:`~phantom_tun.net.links.peers.LinkHandlers`."""
        VIEWER.set(self.node_id)
        await self.board.bulk_opened(peer, opening, bulk)

    def signalled(self, peer: Peer, payload: bytes) -> None:
        """See :class:`~phantom_tun.net.links.peers.LinkHandlers`."""
        with self.viewing():
            self.board.signalled(peer, payload)

    async def called(self, peer: Peer, payload: bytes) -> bytes:
        """See :class:`~phantom_tun.net.links.peers.LinkHandlers`."""
        VIEWER.set(self.node_id)
        return await self.board.called(peer, payload)


class WholeNetwork:
    """The nodes and the medium between them."""

    def __init__(self, medium: MemoryNetwork, nodes: list[WholeNode]) -> None:
        self.medium = medium
        self.nodes = nodes
        self.by_id = {node.node_id: node for node in nodes}

    def __getitem__(self, node_id: NodeId) -> WholeNode:
        return self.by_id[node_id]

    def check_untroubled(self) -> None:
        """No node met anything that it did not expect."""
        assert {node.maker.number: node.troubles() for node in self.nodes if node.troubles()} == {}


@asynccontextmanager
async def whole_network(
    count: int, owners: dict[int, Owner], *, latency: float = 0.01
) -> AsyncIterator[WholeNetwork]:
    """``count`` running nodes that know each other; ``owners`` by number are ready to be brought
    up. No owner takes part in another's paths, so that what a node does as an owner and as a relay
    can be told apart."""
    clock = TrioClock(time.time())  # TLS looks at the real clock when it checks a certificate
    medium = MemoryNetwork(latency=latency)
    bootstrap = [NodeMaker(0).record().ref()]
    shunned = frozenset(NodeMaker(number).record().node_id for number in owners)
    with tempfile.TemporaryDirectory() as directory:
        nodes = []
        for number in range(count):
            state_dir = Path(directory) / str(number)
            state_dir.mkdir(mode=0o700)
            nodes.append(
                WholeNode(
                    medium,
                    number,
                    clock,
                    bootstrap=bootstrap,
                    state_dir=state_dir,
                    owner=owners.get(number),
                    shunned=shunned,
                )
            )
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(node.run)
            with trio.fail_after(120):
                for number in owners:
                    await nodes[number].wait_knows(count - 1)
            yield WholeNetwork(medium, nodes)
            nursery.cancel_scope.cancel()


async def echo(stream: ByteStream) -> None:
    """A service that sends back what it gets, bytes inverted: the two directions differ."""
    try:
        while data := await stream.receive():
            await stream.send_all(memoryview(bytes(byte ^ 0xFF for byte in data)))
        await stream.send_end()
    except StreamReset:
        stream.abort()
    await stream.aclose()


async def exchange(stream: SessionStream, data: bytes) -> bytes:
    """Send ``data`` and return what comes back until the end."""
    found = bytearray()

    async def send() -> None:
        await stream.send_all(memoryview(data))
        await stream.send_end()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while piece := await stream.receive():
            found += piece
    await stream.aclose()
    return bytes(found)


# --- what nodes make of what they receive --------------------------------------------------------


@dataclass(frozen=True)
class Sight:
    """Something that a node has made readable for itself."""

    kind: str
    """``unsealed``, ``unlocked``, ``plaintext`` (inside TLS) or ``layered`` (a stream after its
    layer was applied or removed)."""
    data: bytes


@dataclass
class Eyes:
    """Looks into all nodes' cryptography."""

    sights: dict[NodeId | None, list[Sight]] = field(default_factory=lambda: defaultdict(list))
    streams: dict[int, tuple[object, str, NodeId | None, bytearray]] = field(default_factory=dict)
    """Bytes per stream object, kept with it so that its id stays its own."""
    builds: list[tuple[NodeId | None, Build]] = field(default_factory=list)
    """Every build of every node, with all its secrets."""

    def install(self, patch: pytest.MonkeyPatch) -> Eyes:
        """Look from now on, until ``patch`` is undone."""
        for module, name in (
            (packages, "unlock"),
            (path_member, "unlock"),
            (session_answer, "unlock"),
        ):
            patch.setattr(module, name, self._watch_result("unlocked", getattr(module, name)))
        patch.setattr(SealingKey, "open", self._watch_result("unsealed", SealingKey.open))
        for kind in (ChainedStream, Keystream):
            patch.setattr(kind, "process", self._watch_stream(kind.process))
        patch.setattr(Channel, "read", self._watch_plaintext(Channel.read))
        patch.setattr(path_builder, "Build", self._watch_build(path_builder.Build))
        return self

    def of(self, node_id: NodeId, *kinds: str) -> list[bytes]:
        """All that a node made readable, of some kinds or of all."""
        found = [(sight.kind, sight.data) for sight in self.sights[node_id]]
        found += [
            (kind, bytes(data))
            for _, kind, viewer, data in self.streams.values()
            if viewer == node_id
        ]
        return [data for kind, data in found if not kinds or kind in kinds]

    def _watch_result(self, kind: str, work: Callable[..., bytes]) -> Callable[..., bytes]:
        def watched(*args: Any) -> bytes:
            data = work(*args)
            self.sights[VIEWER.get()].append(Sight(kind, data))
            return data

        return watched

    def _watch_stream(self, process: Callable[..., None]) -> Callable[..., None]:
        def watched(stream: object, view: memoryview, start: int, end: int) -> None:
            process(stream, view, start, end)
            self._add(stream, "layered", view[start:end])

        return watched

    def _watch_plaintext(self, read: Callable[..., int]) -> Callable[..., int]:
        def watched(
            channel: object, view: memoryview, start: int, limit: int, **options: bool
        ) -> int:
            end = read(channel, view, start, limit, **options)
            self._add(channel, "plaintext", view[start:end])
            return end

        return watched

    def _watch_build(self, make: Callable[..., Build]) -> Callable[..., Build]:
        def watched(*args: Any, **options: Any) -> Build:
            build = make(*args, **options)
            self.builds.append((VIEWER.get(), build))
            return build

        return watched

    def _add(self, stream: object, kind: str, data: memoryview) -> None:
        entry = self.streams.setdefault(id(stream), (stream, kind, VIEWER.get(), bytearray()))
        entry[3].extend(data)


# --- what travelled ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """One frame on a bulk link, or one signal."""

    number: int
    """Rises with time over the whole network."""
    sender: NodeId
    receiver: NodeId
    link: int
    """0 for a signal."""
    frame: Frame
    payload: bytes


def events(medium: MemoryNetwork) -> list[Event]:
    """Everything on bulk links frame by frame, and all signals, in the order of sending."""
    found = []
    kept: dict[tuple[int, NodeId], bytearray] = defaultdict(bytearray)
    for number, item in enumerate(medium.recorded):
        if item.kind == "signal":
            found.append(Event(number, item.sender, item.receiver, 0, Frame.SIGNAL, item.data))
        if item.kind != "bulk":
            continue
        rest = kept[item.link, item.sender]
        rest += item.data
        while len(rest) >= HEADER_LEN:
            header = parse_header(rest)
            end = HEADER_LEN + header.length
            if len(rest) < end:
                break
            payload = bytes(rest[HEADER_LEN:end])
            found.append(
                Event(number, item.sender, item.receiver, item.link, header.frame, payload)
            )
            del rest[:end]
    return found


def calls(medium: MemoryNetwork) -> list[Recorded]:
    """Every netdb call and answer."""
    return [item for item in medium.recorded if item.kind in {"call", "answer"}]


def received(found: list[Event]) -> dict[NodeId, list[bytes]]:
    """All that came to each node over its links, but for netdb calls and answers: signals,
    openings, and the payload of each bulk link in one piece."""
    pieces: dict[NodeId, list[bytes]] = defaultdict(list)
    streams: dict[NodeId, dict[tuple[int, NodeId], bytearray]] = defaultdict(
        lambda: defaultdict(bytearray)
    )
    for event in found:
        if event.frame is Frame.DATA:
            streams[event.receiver][event.link, event.sender] += event.payload
        else:
            pieces[event.receiver].append(event.payload)
    for node, by_link in streams.items():
        pieces[node] += map(bytes, by_link.values())
    return pieces
