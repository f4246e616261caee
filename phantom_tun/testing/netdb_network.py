"""A network of netdb services in memory, in virtual time: seeded delays, dead and silent nodes, cut
lines, and liars (run it under trio's autojump clock)."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import trio

from phantom_tun.errors import LinkBroken, PeerError
from phantom_tun.ids import NodeId, PublicKey
from phantom_tun.net.netdb.files import NetdbFiles
from phantom_tun.net.netdb.service import NetdbService
from phantom_tun.netdb.overrides import Overrides
from phantom_tun.netdb.rules import Caller
from phantom_tun.testing.record_factory import NETWORK, NOW, NodeMaker
from phantom_tun.wire.nodes import IpAddress, NodeRef

NO_FILES = NetdbFiles()
LinkFilter = Callable[[NodeId, NodeId], bool]
Handler = Callable[[Caller, bytes], Awaitable[bytes]]


class VirtualClock:
    """Protocol time that follows trio's clock."""

    def __init__(self, start: float) -> None:
        self._offset = start - trio.current_time()

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._offset + trio.current_time()


@dataclass
class MemberNode:
    """One node of the network; ``stop`` and ``start`` keep its keys, as a restart does."""

    maker: NodeMaker
    handler: Handler
    service: NetdbService | None
    up: bool = True
    silent: bool = False
    """Accepts calls and never answers, like a stopped process."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def node_id(self) -> NodeId:
        """Its id."""
        return self.maker.record().node_id


class MemoryNetwork:
    """Carries netdb calls between services."""

    def __init__(self, seed: int, *, delay: float = 0.002, start: float = NOW) -> None:
        self.rng = random.Random(seed)  # noqa: S311 - virtual networks are reproducible
        self.clock = VirtualClock(start)
        self.delay = delay
        self.members: dict[NodeId, MemberNode] = {}
        self.allowed: LinkFilter = lambda _caller, _callee: True
        self.calls: Counter[NodeId] = Counter()
        self.dialed: deque[NodeRef] = deque(maxlen=1_000)
        """The last ways that were tried to anybody."""
        self.bytes_carried = 0
        self.override_keys: list[PublicKey] = []
        """Of the services made from here on."""
        self.obeying = True
        """Whether the services made from here on obey override commands."""
        self.linked: Callable[[NodeId], list[NodeRef]] = lambda _node: []
        """With whom a node has links, if they are to be told of override commands."""
        self.unroutable: set[IpAddress] = set()
        """Where nobody has a route to: who dials there learns it at once."""
        self.trusted: frozenset[NodeId] = frozenset()
        """By the services made from here on."""
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Host members until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def service_for(self, maker: NodeMaker, files: NetdbFiles = NO_FILES) -> NetdbService:
        """A service for one node, connected to this network but not running yet."""
        record = maker.record(self.clock.now())
        return NetdbService(
            maker.network,
            record,
            maker.path_key,
            lambda ref, payload: self.carry(record.node_id, maker, ref, payload),
            clock=self.clock,
            rng=random.Random(self.rng.random()),  # noqa: S311
            files=files,
            overrides=Overrides(maker.network, self.override_keys, (), enabled=self.obeying),
            neighbours=lambda: self.linked(record.node_id),
            trusted=self.trusted,
        )

    def start(
        self, maker: NodeMaker, bootstrap: Iterable[NodeRef], files: NetdbFiles = NO_FILES
    ) -> NetdbService:
        """Start a node, or start it again."""
        service = self.service_for(maker, files)
        member = MemberNode(maker, service.handle_call, service)
        self.members[service.own_record.node_id] = member
        assert self._nursery is not None  # noqa: S101 - run() comes first
        self._nursery.start_soon(self._host, member, service, list(bootstrap))
        return service

    def add_impostor(self, maker: NodeMaker, handler: Handler) -> None:
        """A node that answers whatever it likes."""
        member = MemberNode(maker, handler, None)
        self.members[member.node_id] = member

    def stop(self, node_id: NodeId) -> None:
        """Kill a node."""
        member = self.members[node_id]
        member.up = False
        member.scope.cancel()

    async def carry(
        self, caller_id: NodeId, caller: NodeMaker, ref: NodeRef, payload: bytes
    ) -> bytes:
        """``Links.call`` of this network."""
        await trio.sleep(self.delay * self.rng.uniform(0.5, 1.5))
        self.dialed.append(ref)
        if ref.address in self.unroutable:
            raise LinkBroken("the node can't be reached (Network is unreachable)")
        member = self.members.get(ref.node_id)
        if member is None or not member.up or not self.allowed(caller_id, ref.node_id):
            raise LinkBroken("connection refused")
        if member.silent or ref.address != member.maker.ip:
            await trio.sleep_forever()
        self.calls[ref.node_id] += 1
        try:
            answer = await member.handler(Caller(caller_id, caller.ip), payload)
        except PeerError:
            await trio.sleep_forever()
        self.bytes_carried += len(payload) + len(answer)
        await trio.sleep(self.delay * self.rng.uniform(0.5, 1.5))
        return answer

    async def _host(
        self, member: MemberNode, service: NetdbService, bootstrap: list[NodeRef]
    ) -> None:
        with member.scope:
            await service.run(bootstrap)


def makers(count: int, first: int = 0) -> list[NodeMaker]:
    """Nodes number ``first`` and up."""
    return [NodeMaker(number, NETWORK) for number in range(first, first + count)]
