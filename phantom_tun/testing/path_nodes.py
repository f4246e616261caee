"""Nodes that build paths through each other over links in memory, without netdb and tunnels."""

from __future__ import annotations

import ipaddress
import random
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import trio

from phantom_tun.clock import Clock, Rng
from phantom_tun.errors import ProtocolViolation
from phantom_tun.ids import NodeId
from phantom_tun.net.links.bulk import Bulk
from phantom_tun.net.links.peers import LinkHandlers, Peer
from phantom_tun.net.paths.builder import PathBuilder, Surroundings
from phantom_tun.net.paths.guard_watch import GuardNews
from phantom_tun.net.paths.member import PathLinks, PathMember
from phantom_tun.net.tunnels.workshop import Workshop
from phantom_tun.path.candidates import Candidate
from phantom_tun.path.guards import GuardSet
from phantom_tun.path.hop import PathHop
from phantom_tun.path.keys import PathKeys, PublishedPathKey
from phantom_tun.path.member import Member, MemberLimits
from phantom_tun.testing.memory_links import MemoryNetwork
from phantom_tun.testing.record_factory import NETWORK, NOW, NodeMaker
from phantom_tun.wire.nodes import NodeRef
from phantom_tun.wire.records import Capability, NodeRecord

T = TypeVar("T")


class TrioClock:
    """Wall time that follows trio's clock, virtual time included."""

    def __init__(self, start: float = NOW) -> None:
        self._offset = start - trio.current_time()

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._offset + trio.current_time()


async def at_once(work: Callable[[], T]) -> T:
    """Work of a :class:`~phantom_tun.net.tunnels.workshop.Workshop`, not in a thread, for which
    virtual time would not wait."""
    await trio.lowlevel.checkpoint()
    return work()


class RunningLinks(PathLinks, Protocol):
    """Links that can be started and looked at."""

    async def run(
        self,
        listeners: Sequence[socket.socket],
        handlers: LinkHandlers,
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        """Serve until cancelled."""
        ...


@dataclass(frozen=True, slots=True)
class KnownNode:
    """A candidate as the netdb's cache has it."""

    record: NodeRecord
    path_key: bytes = field(repr=False)
    fair: bool = True


class PathNode:
    """One node: member of others' builds and builder of its own paths."""

    def __init__(
        self,
        links: RunningLinks,
        record: NodeRecord,
        keys: PathKeys,
        *,
        clock: Clock,
        rng: Rng,
        known: list[Candidate],
        allow_loopback: bool = False,
    ) -> None:
        """``record`` publishes a key of ``keys``. ``known`` is what the node's netdb knows; it may
        grow later."""
        self.links = links
        self.record = record
        self.keys = keys
        self.clock = clock
        self.rng = rng
        self.known = known
        self.failed: list[Candidate] = []
        """Nodes that its netdb has no use for because they failed."""
        self.hops: list[PathHop] = []
        self.lost: list[PathHop] = []
        self.new_keys: list[PublishedPathKey] = []
        self.demands: list[int] = []
        self.guards = GuardSet(frozenset())
        network_id = NETWORK.network_id
        self.member = Member(
            self.node_id, network_id, keys, MemberLimits(), allow_loopback=allow_loopback
        )
        self.paths = PathMember(
            self.member,
            keys,
            links,
            on_hop=self.hops.append,
            on_hop_lost=self.lost.append,
            on_new_key=self.new_keys.append,
            on_demand=self.demands.append,
            clock=clock,
            rng=rng,
        )
        self.builder = PathBuilder(
            links,
            self.paths,
            network_id,
            self.guards,
            Surroundings(
                own_record=lambda: self.record,
                candidates=lambda _now: self.known,
                relatives=frozenset(),
                save_guards=lambda _guards: None,
                guard_news=GuardNews(self._record_of, self._answered),
            ),
            clock=clock,
            rng=rng,
            workshop=Workshop(rng, at_once),
        )

    @property
    def node_id(self) -> NodeId:
        """Its id."""
        return self.record.node_id

    @property
    def ref(self) -> NodeRef:
        """How others reach it."""
        return self.record.ref()

    async def run(
        self,
        listeners: Sequence[socket.socket] = (),
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Take part until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.paths.run)
            await nursery.start(self.links.run, listeners, self)
            task_status.started()

    def _record_of(self, node: NodeId) -> NodeRecord | None:
        known = (each.record for each in (*self.known, *self.failed))
        return next((record for record in known if record.node_id == node), None)

    def _answered(self, node: NodeId) -> None:
        back = [each for each in self.failed if each.record.node_id == node]
        self.failed = [each for each in self.failed if each not in back]
        self.known += back

    # --- LinkHandlers ---------------------------------------------------------------------------

    async def bulk_opened(self, peer: Peer, opening: bytes, bulk: Bulk) -> None:
        """All that comes over bulk links here is setup arrays."""
        await self.paths.handle_array(peer, opening, bulk)

    def signalled(self, peer: Peer, payload: bytes) -> None:
        """Nothing is signalled here."""
        raise ProtocolViolation("no signals here")

    async def called(self, peer: Peer, payload: bytes) -> bytes:
        """Nothing is called here."""
        raise ProtocolViolation("no calls here")


class PathWorld:
    """Some nodes that all know each other."""

    def __init__(self, network: MemoryNetwork, nodes: list[PathNode]) -> None:
        self.network = network
        self.nodes = nodes
        self._by_id = {node.node_id: node for node in nodes}

    def __getitem__(self, node_id: NodeId) -> PathNode:
        return self._by_id[node_id]


def memory_node(
    network: MemoryNetwork,
    number: int,
    *,
    clock: Clock,
    known: list[Candidate],
    dialable: bool,
    families: tuple[bytes, ...] = (),
) -> PathNode:
    """A node of a :class:`MemoryNetwork`, in a /16 of its own."""
    keys = PathKeys(clock.now())
    maker = NodeMaker(number, address=ipaddress.IPv4Address(f"11.{number}.0.1"))
    record = maker.record(
        clock.now(),
        path_key=keys.published.public,
        capabilities=Capability.RELAY | Capability.DIALABLE if dialable else Capability(0),
        families=families,
    )
    links = network.links(record.ref(), dialable=dialable)
    rng = random.Random(number)  # noqa: S311 - tests are repeatable
    return PathNode(links, record, keys, clock=clock, rng=rng, known=known)


@asynccontextmanager
async def path_world(
    count: int,
    *,
    latency: float = 0.0,
    undialable: Sequence[int] = (),
    families: Mapping[int, tuple[bytes, ...]] | None = None,
) -> AsyncIterator[PathWorld]:
    """``count`` running nodes; those numbered in ``undialable`` can't be dialed, those in
    ``families`` publish tags."""
    clock = TrioClock()
    network = MemoryNetwork(latency=latency)
    known: list[Candidate] = []
    nodes = [
        memory_node(
            network,
            number,
            clock=clock,
            known=known,
            dialable=number not in undialable,
            families=(families or {}).get(number, ()),
        )
        for number in range(count)
    ]
    known += [KnownNode(node.record, node.keys.published.public) for node in nodes]
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.run)
        yield PathWorld(network, nodes)
        nursery.cancel_scope.cancel()
