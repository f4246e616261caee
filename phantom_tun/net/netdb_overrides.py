"""Passing override commands on, and obeying them (docs/spec/netdb.md, "Override commands")."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import trio

from phantom_tun.errors import PeerError, RecordRefused, WireError, WorldError
from phantom_tun.ids import NodeId
from phantom_tun.net.netdb_calls import NodeCalls
from phantom_tun.netdb.overrides import InForce, Overrides
from phantom_tun.netdb.server import Server
from phantom_tun.wire.netdb import Override, Refusal, ReserveAp, Stored
from phantom_tun.wire.nodes import NodeRef
from phantom_tun.wire.records import OverrideRecord

AT_ONCE = 16
QUEUE = 256
"""Commands and newcomers that wait to be served; more are dropped and counted."""
REVIEW_EVERY = 15.0
"""Seconds after which what is in force is worked out again: commands expire, and the budget for
bans follows the number of known nodes."""


class OverrideFlood:
    """One node's part in the flood."""

    def __init__(
        self,
        overrides: Overrides,
        calls: NodeCalls,
        server: Server,
        on_change: Callable[[InForce], None],
    ) -> None:
        """``on_change`` is told whatever is in force from now on."""
        self._overrides = overrides
        self._calls = calls
        self._server = server
        self._on_change = on_change
        self._send, self._receive = trio.open_memory_channel[
            tuple[OverrideRecord | None, NodeId | None]
        ](QUEUE)
        self._counts: Counter[str] = Counter()

    def receive(self, encoded: bytes, source: NodeId | None) -> Stored:
        """A command from another node, or (None) from a person here."""
        try:
            command = self._overrides.receive(encoded, source, self._calls.clock.now())
        except WireError:
            self._counts["overrides_refused"] += 1
            return Stored(int(Refusal.MALFORMED), b"")
        except RecordRefused:
            self._counts["overrides_refused"] += 1
            return Stored(int(Refusal.SIGNATURE), b"")
        if command is not None:
            self._counts["overrides_taken"] += 1
            self.review()
            self._queue(command, source)
        return Stored(int(Refusal.NONE), b"")

    def greet(self, newcomer: NodeId) -> None:
        """A node introduced itself: tell it the commands we know."""
        if len(self._overrides):
            self._queue(None, newcomer)

    def review(self) -> None:
        """Work out what is in force, and obey."""
        now = self._calls.clock.now()
        self._overrides.expire(now)
        view = self._overrides.in_force(self._calls.book.known_records(), now)
        if view == self._server.view:
            return
        self._server.obey(view)
        for record in view.pinned_records:
            self._server.answer(ReserveAp(record.encoded), now, None, vouched=True)
        self._on_change(view)

    async def review_regularly(self) -> None:
        """:meth:`review` now and then, for ever."""
        while True:
            await trio.sleep(REVIEW_EVERY)
            self.review()

    async def flood(self) -> None:
        """Pass commands on, for ever."""
        async for command, node_id in self._receive:
            if command is not None:
                await self._tell_everybody(command, node_id)
            elif node_id is not None:
                await self._tell_all(node_id)

    def statistics(self) -> dict[str, int]:
        """Counts for people."""
        return {"overrides_known": len(self._overrides), **self._counts}

    def _queue(self, command: OverrideRecord | None, node_id: NodeId | None) -> None:
        try:
            self._send.send_nowait((command, node_id))
        except trio.WouldBlock:
            self._counts["overrides_not_passed_on"] += 1

    async def _tell_everybody(self, command: OverrideRecord, source: NodeId | None) -> None:
        limiter = trio.CapacityLimiter(AT_ONCE)
        async with trio.open_nursery() as nursery:
            for contact in list(self._calls.book.table):
                if contact.node_id != source:
                    nursery.start_soon(
                        self._tell, self._calls.ref(contact.record), command, limiter
                    )

    async def _tell_all(self, node_id: NodeId) -> None:
        contact = self._calls.book.get(node_id)
        if contact is not None:
            limiter = trio.CapacityLimiter(math.inf)
            for command in self._overrides.commands():
                await self._tell(self._calls.ref(contact.record), command, limiter)

    async def _tell(
        self, ref: NodeRef, command: OverrideRecord, limiter: trio.CapacityLimiter
    ) -> None:
        async with limiter:
            try:
                await self._calls.ask(ref, Override(command.encoded), Stored)
            except (WorldError, PeerError):
                self._counts["overrides_not_passed_on"] += 1
