"""What the parts of one running interface have in common."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from phantom_tun.endpoints import ByteStream, Endpoint
from phantom_tun.errors import Filtered
from phantom_tun.guard import Guard
from phantom_tun.packet.nat import NatTable
from phantom_tun.tun.bridge import Bridge
from phantom_tun.tun.flows import BufferPool, Counters, Flow
from phantom_tun.tun.plan import AddressPlan
from phantom_tun.tun.settings import Limits, Timeouts

MAX_PORT = 65_535

Write = Callable[..., bool]
"""Hands the kernel one packet, given in parts; see :meth:`phantom_tun.tun.pump.Pump.write`."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Owned by trio's thread, unless a member says otherwise."""

    plan: AddressPlan
    nat: NatTable
    timeouts: Timeouts
    limits: Limits
    token: trio.lowlevel.TrioToken
    clock: trio.abc.Clock
    write: Write
    """Any thread."""
    buffers: BufferPool
    flows: set[Flow] = field(default_factory=set)
    """Everything there is to list or to end."""
    bridges: set[Bridge] = field(default_factory=set)
    counters: Counters = field(default_factory=Counters)

    @property
    def guard(self) -> Guard:
        """Of all tasks that work for one flow."""
        return Guard(self.counters.counts)

    def now(self) -> float:
        """Seconds on trio's clock. Any thread."""
        return self.clock.current_time()

    def check_ends(self, caller: Endpoint, target: Endpoint) -> None:
        """Refuse what no packet on the interface may look like.

        :raises Filtered: ``caller`` is no possible caller or ``target`` isn't ours.
        """
        ends = caller, target
        if (
            caller.address.version != target.address.version
            or not self.plan.can_be_caller(caller.address)
            or target.address not in self.plan.own
            or not all(0 < end.port <= MAX_PORT for end in ends)
        ):
            raise self.filtered("inbound_bad_ends", "not a call from the overlay to us")

    def filtered(self, counter: str, reason: str) -> Filtered:
        """The exception for what is dropped without a word to the far side; counted."""
        self.counters.add(counter)
        return Filtered(reason)

    def write_or_count(self, *parts: bytes | memoryview) -> None:
        """Write a packet; count it if the kernel wouldn't have it."""
        if not self.write(*parts):
            self.counters.add("dropped_by_kernel")

    async def bridge(self, sock: socket.socket, stream: ByteStream, flow: Flow) -> None:
        """Join socket and stream until both are done."""
        bridge = Bridge(sock, stream, flow, self.buffers, self.timeouts.drain)
        self.bridges.add(bridge)
        try:
            await bridge.run()
        finally:
            self.bridges.discard(bridge)
