"""Passing override commands on, asking for those that were missed, and obeying them
(docs/spec/netdb.md, "Override commands")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog
import trio

from phantom_tun.errors import PeerError, ProtocolViolation, RecordRefused, WireError, WorldError
from phantom_tun.guard import Guard
from phantom_tun.ids import CertHash, NodeId
from phantom_tun.net.netdb.calls import NodeCalls
from phantom_tun.netdb.overrides import (
    MAX_COMMANDS,
    InForce,
    NumberTaken,
    Overrides,
    Standing,
    TooFast,
    TooManyCommands,
    digest_of,
)
from phantom_tun.netdb.rules import Caller
from phantom_tun.netdb.server import Server
from phantom_tun.wire.netdb import (
    MissedOverrides,
    Override,
    OverrideList,
    Refusal,
    ReserveAp,
    Stored,
)
from phantom_tun.wire.nodes import NodeRef
from phantom_tun.wire.records import NodeRecord, OverrideRecord, decode

AT_ONCE = 32
"""Nodes that are told at the same time."""
ROUNDS_AT_ONCE = 4
"""Rounds of telling everybody: one may still wait for nodes that don't answer."""
QUEUE = 256
"""Commands that wait to be passed on; more are dropped and counted."""
REVIEW_EVERY = 5.0
"""Seconds after which what is in force is worked out again: commands expire, and the budget for
bans follows the number of known nodes."""
ASK_EVERY = 0.5
"""Seconds between looks whether somebody knows commands that we missed."""
ASKED_AT_ONCE = 3
ASK_DEADLINE = 10.0
"""Seconds in which a node must have shown all commands that it says it knows: liars that dawdle
must not keep us from asking others."""
MAX_PAGES = 64

_REFUSALS: tuple[tuple[type[PeerError], Refusal], ...] = (
    (WireError, Refusal.MALFORMED),
    (TooFast, Refusal.SOURCE_LIMIT),
    (NumberTaken, Refusal.SEQUENCE),
    (TooManyCommands, Refusal.STORE_FULL),
    (RecordRefused, Refusal.SIGNATURE),
)

_log = structlog.get_logger()


@dataclass(slots=True)
class _Item:
    command: OverrideRecord
    told_by: set[NodeId]
    """Who is known to know it."""


class OverrideFlood:
    """One node's part in the flood."""

    def __init__(
        self,
        overrides: Overrides,
        calls: NodeCalls,
        server: Server,
        *,
        neighbours: Callable[[], Iterable[NodeRef]],
        on_change: Callable[[InForce], None],
        on_freed: Callable[[list[NodeRecord]], None],
    ) -> None:
        """``neighbours``: everybody we have a signalling link with; ``on_change`` is told whatever
        is in force from now on, ``on_freed`` which nodes are no longer banned."""
        self._overrides = overrides
        self._calls = calls
        self._server = server
        self._neighbours = neighbours
        self._on_change = on_change
        self._on_freed = on_freed
        self._send, self._receive = trio.open_memory_channel[_Item](QUEUE)
        self._under_way: dict[OverrideRecord, _Item] = {}
        self._counts: Counter[str] = Counter()
        self._guard = Guard(self._counts)
        self._limiter = trio.CapacityLimiter(AT_ONCE)
        self._rounds = trio.Semaphore(ROUNDS_AT_ONCE)

    def receive(self, call: Override, caller: Caller) -> Stored:
        """A command from another node.

        :raises ProtocolViolation: the node is banned, or asks too often.
        """
        self._server.admit(caller, self._calls.clock.now())
        refusal = Refusal.NONE
        try:
            command = self._take(call.command, caller.node_id)
            if command is not None:
                # Before anybody is told: a banned node hears it from nobody.
                self.review()
                self._pass_on(command, caller.node_id)
        except PeerError as error:
            self._counts["overrides_refused"] += 1
            refusal = next(found for kind, found in _REFUSALS if isinstance(error, kind))
            if isinstance(error, TooFast):
                self._overrides.lag(self._ref(caller), self._calls.clock.now())
        return Stored(int(refusal), b"")

    def give(self, encoded: bytes) -> bool:
        """A command from a person here. Returns whether it is new.

        :raises WireError: it does not parse.
        :raises RecordRefused: see :meth:`Overrides.receive`.
        """
        command = self._take(encoded, None)
        if command is None:
            return False
        self.review()
        self._pass_on(command, None)
        return True

    def restore(self, commands: Iterable[bytes]) -> None:
        """Commands of an earlier run: checked as if they came from anybody, but passed on to
        nobody."""
        for encoded in commands:
            try:
                self._overrides.receive(encoded, None, self._calls.clock.now())
            except PeerError:
                self._counts["overrides_not_restored"] += 1

    def review(self) -> None:
        """Work out what is in force, and obey."""
        now = self._calls.clock.now()
        self._overrides.expire(now)
        book = self._calls.book
        view = self._overrides.in_force(book.known_records(), now, unmet=book.unmet_records())
        if view == self._server.view:
            return
        freed = self._server.obey(view)
        _log.info(
            "override commands in force",
            banned_nodes=len(view.banned_nodes),
            banned_prefixes=len(view.banned_prefixes),
            deleted=len(view.deleted_keys),
            pinned=len(view.pinned_records),
            not_obeyed=len(view.not_obeyed),
        )
        for record in view.pinned_records:
            self._server.answer(ReserveAp(record.encoded), now, None, vouched=True)
        self._on_change(view)
        self._on_freed(freed)

    def standings(self) -> list[tuple[OverrideRecord, Standing]]:
        """Every command known and what it amounts to here."""
        return self._overrides.standings(self._server.view, self._calls.clock.now())

    async def review_regularly(self) -> None:
        """:meth:`review` now and then, for ever."""
        while True:
            await trio.sleep(REVIEW_EVERY)
            self.review()

    async def catch_up(self) -> None:
        """Ask nodes for commands that we missed, whenever one says that it knows others, for
        ever."""
        async with trio.open_nursery() as nursery:
            for _ in range(ASKED_AT_ONCE):
                nursery.start_soon(self._catch_up_one_by_one)

    async def _catch_up_one_by_one(self) -> None:
        while True:
            await trio.sleep(ASK_EVERY)
            while (ahead := self._overrides.next_to_ask(self._calls.clock.now())) is not None:
                try:
                    with trio.fail_after(ASK_DEADLINE):
                        await self._ask(*ahead)
                except (WorldError, PeerError, trio.TooSlowError):
                    self._counts["overrides_not_caught_up"] += 1

    async def flood(self) -> None:
        """Pass commands on, for ever."""
        async with trio.open_nursery() as nursery:
            async for item in self._receive:
                items = [item]
                while len(items) < QUEUE:
                    try:
                        items.append(self._receive.receive_nowait())
                    except trio.WouldBlock:
                        break
                await self._rounds.acquire()
                nursery.start_soon(self._guard.once, self._tell_everybody, items)

    def statistics(self) -> dict[str, int]:
        """Counts for people."""
        return {"overrides_known": len(self._overrides), **self._counts}

    def _take(self, encoded: bytes, source: NodeId | None) -> OverrideRecord | None:
        command = self._overrides.receive(encoded, source, self._calls.clock.now())
        if command is None:
            self._note_holder(encoded, source)
        else:
            self._counts["overrides_taken"] += 1
        return command

    def _pass_on(self, command: OverrideRecord, source: NodeId | None) -> None:
        item = _Item(command, {source} if source is not None else set())
        try:
            self._send.send_nowait(item)
            self._under_way[command] = item
        except trio.WouldBlock:
            self._counts["overrides_not_passed_on"] += 1

    def _note_holder(self, encoded: bytes, source: NodeId | None) -> None:
        self._counts["overrides_repeated"] += 1
        item = self._under_way.get(decode(OverrideRecord, encoded)) if self._under_way else None
        if item is not None and source is not None:
            item.told_by.add(source)

    def _ref(self, caller: Caller) -> NodeRef:
        contact = self._calls.book.get(caller.node_id)
        if contact is not None:
            return self._calls.ref(contact.record)
        return NodeRef(caller.node_id, CertHash(bytes(32)), caller.address, 0)

    # --- telling others ---------------------------------------------------------------------------

    async def _tell_everybody(self, items: list[_Item]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                for ref in self._targets():
                    nursery.start_soon(self._tell, ref, items)
        finally:
            self._rounds.release()
            for item in items:
                self._under_way.pop(item.command, None)

    def _targets(self) -> list[NodeRef]:
        """Those with a link come first: they need not be dialed."""
        book = self._calls.book
        linked = {ref.node_id: ref for ref in self._neighbours()}
        known = {contact.node_id: self._calls.ref(contact.record) for contact in book.table}
        found = [known.get(node_id, ref) for node_id, ref in linked.items()]
        found += [ref for node_id, ref in known.items() if node_id not in linked]
        return [ref for ref in found if ref.node_id != self._calls.own_id]

    async def _tell(self, ref: NodeRef, items: list[_Item]) -> None:
        async with self._limiter:
            for item in items:
                if ref.node_id in item.told_by:
                    continue
                try:
                    answer = await self._calls.ask(ref, Override(item.command.encoded), Stored)
                except (WorldError, PeerError):
                    self._counts["overrides_not_passed_on"] += 1
                    return
                if answer.refusal == Refusal.SOURCE_LIMIT:
                    return  # it will ask for the rest
                self._counts["overrides_passed_on"] += 1

    # --- asking others ----------------------------------------------------------------------------

    async def _ask(self, ref: NodeRef, digest: bytes) -> None:
        """Get all commands that ``ref`` knows; they must be those that it said it knows."""
        found: list[OverrideRecord] = []
        number, signer = 0, b""
        for _ in range(MAX_PAGES):
            answer = await self._calls.ask(ref, MissedOverrides(number, signer), OverrideList)
            if not answer.commands:
                break
            page = [decode(OverrideRecord, encoded) for encoded in answer.commands]
            for command in page:
                if (command.number, command.signer) <= (number, signer):
                    raise ProtocolViolation("override commands are not in their order")
                number, signer = command.number, command.signer
            found += page
            if len(found) > MAX_COMMANDS:
                raise ProtocolViolation("a node knows more override commands than it can")
        self._counts["overrides_asked_for"] += 1
        new: list[OverrideRecord] = []
        for command in found:
            try:
                if self._take(command.encoded, None) is not None:
                    new.append(command)
            except RecordRefused:
                self._counts["overrides_refused"] += 1
        self.review()
        if not digest:  # the rest of a burst; otherwise only we had missed them
            for command in new:
                self._pass_on(command, ref.node_id)
        elif digest_of(found) == digest:
            self._overrides.got(digest)
