"""Whole networks of netdb services in memory and virtual time: what their tests start from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from phantom_tun.errors import PeerError
from phantom_tun.net.netdb.service import NetdbService
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.netdb.rules import Caller
from phantom_tun.testing.netdb_network import Handler, MemoryNetwork, makers
from phantom_tun.testing.record_factory import NETWORK, NOW, ApMaker, NodeMaker
from phantom_tun.wire.netdb import (
    CloserNodes,
    ClosestNodes,
    ExtendApLease,
    Held,
    Method,
    RegisterNode,
    ReserveAp,
    ResolveAp,
    Stored,
    UpdateApRoutes,
    WriteReport,
    decode_answer,
    decode_call,
)
from phantom_tun.wire.nodes import NodeRef

AP = ApMaker(1)
AP6 = ap6_address(NETWORK, AP.key.public)
AP4 = ap4_candidate(NETWORK, AP.key.public, 0)
EXIT = frozenset({Method.RESOLVE_AP, Method.RESERVE_AP})


@asynccontextmanager
async def memory_network(seed: int = 1, start: float = NOW) -> AsyncIterator[MemoryNetwork]:
    """An empty network."""
    network = MemoryNetwork(seed, start=start)
    with pytest.MonkeyPatch.context() as patch:
        # Virtual time waits for no thread: files are written without one.
        patch.setattr(trio.to_thread, "run_sync", at_once)
        async with trio.open_nursery() as nursery:
            await nursery.start(network.run)
            yield network
            nursery.cancel_scope.cancel()


async def at_once(work: Callable[..., object], *args: object) -> object:
    """Stands for a thread that does ``work``."""
    await trio.lowlevel.checkpoint()
    return work(*args)


def ref_of(network: MemoryNetwork, maker: NodeMaker) -> NodeRef:
    return maker.record(network.clock.now()).ref()


def start(network: MemoryNetwork, count: int) -> list[NetdbService]:
    """``count`` nodes at once; the first is everybody's bootstrap node."""
    members = makers(count)
    bootstrap = [ref_of(network, members[0])]
    return [network.start(maker, bootstrap) for maker in members]


async def wait_until(condition: Callable[[], bool], within: float) -> float:
    """Virtual seconds until ``condition`` holds."""
    begun = trio.current_time()
    with trio.fail_after(within):
        while not condition():
            await trio.sleep(0.05)
    return trio.current_time() - begun


def everybody_knows(services: list[NetdbService], count: int) -> Callable[[], bool]:
    return lambda: all(len(service.candidates()) >= count for service in services)


async def reserve(service: NetdbService, maker: ApMaker, now: float, **more: int) -> WriteReport:
    record = maker.record(now, sequence=more.get("sequence", 1), ap4_n=more.get("ap4_n", 0))
    report = decode_answer(await service.write(ReserveAp(record.encoded)))
    assert isinstance(report, WriteReport)
    return report


class Liars:
    """Colluding nodes: they name only one another, hold nothing, and take nothing."""

    def __init__(self, network: MemoryNetwork, members: list[NodeMaker]) -> None:
        self._network = network
        self.makers = members
        now = network.clock.now()
        self.records = [maker.record(now) for maker in members]
        for maker in members:
            network.add_impostor(maker, self._handler(maker))

    def _handler(self, maker: NodeMaker) -> Handler:
        honest = self._network.service_for(maker)

        async def handle(caller: Caller, payload: bytes) -> bytes:
            match decode_call(payload):
                case ClosestNodes(target=target):
                    place = int.from_bytes(target, "big")
                    named = sorted(
                        self.records,
                        key=lambda record: int.from_bytes(record.node_id, "big") ^ place,
                    )
                    return CloserNodes(tuple(r.encoded for r in named[:20])).encode()
                case ResolveAp():
                    return Held(b"", 0, b"", b"", ()).encode()
                case ReserveAp() | ExtendApLease() | UpdateApRoutes():
                    return Stored(0, b"").encode()
                case RegisterNode():
                    return await honest.handle_call(caller, payload)
                case _:
                    raise PeerError("silence")

        return handle

    async def join(self, services: list[NetdbService]) -> None:
        """Make themselves known to everybody."""
        for maker, record in zip(self.makers, self.records, strict=True):
            call = RegisterNode(record.encoded, maker.path_key).encode()
            for service in services:
                ref = service.own_record.ref()
                await self._network.carry(record.node_id, maker, ref, call)
