"""One signalling link: small messages both ways, calls and answers in chunks, keepalive, an ending
that loses nothing (docs/spec/links.md, "Signalling")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from typing import Protocol

import trio

from phantom_tun.errors import (
    CapacityExceeded,
    DeadlineExpired,
    LinkBroken,
    PeerError,
    PhantomError,
    ProtocolViolation,
)
from phantom_tun.guard import Guard
from phantom_tun.ids import NodeId
from phantom_tun.net.links.connection import Connection
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.peers import Peer
from phantom_tun.net.links.rates import RateTable
from phantom_tun.net.links.shares import Shares
from phantom_tun.path.candidates import prefix
from phantom_tun.wire.frames import Frame
from phantom_tun.wire.signalling import (
    Assembler,
    Chunk,
    Message,
    Outbox,
    SignalUnframer,
    call_frames,
)

READ_LEN = 4096
"""There can be thousands of idle signalling links."""

_NEW = frozenset({Frame.SIGNAL, Frame.ASK})
"""What can't follow a FIN; neither can the first chunk of a call."""


class SignalEvents(Protocol):
    """What a signalling link tells its owner."""

    def signalled(self, peer: Peer, payload: bytes) -> None:
        """A one-way message came."""
        ...

    async def called(self, peer: Peer, payload: bytes) -> bytes:
        """Answer a call; a PhantomError means no answer."""
        ...

    def asked(self, peer: Peer) -> bool:
        """The peer wants to be dialed; false to decline."""
        ...

    def declined(self, peer: Peer) -> None:
        """The peer won't dial us."""
        ...

    def is_busy(self, peer: Peer) -> bool:
        """Whether bulk links of this peer are in use, which keeps an idle signalling link up."""
        ...


class Quotas:
    """What each neighbour may send, over however many links, and all in one network together."""

    def __init__(self, limits: LinkLimits) -> None:
        self.memory: Shares[NodeId] = Shares(limits.calls_memory, limits.calls_memory_per_node)
        """Bytes of calls and of answers to them, until those are sent."""
        rates = {
            Frame.SIGNAL: (limits.signal_rate, limits.signal_burst),
            Frame.CALL: (limits.call_rate, limits.call_burst),
            Frame.ASK: (limits.ask_rate, limits.ask_burst),
            Frame.PING: (limits.ping_rate, limits.ping_burst),
        }
        times = limits.network_rates
        self._by_node: dict[Frame, RateTable[NodeId]] = {
            frame: RateTable(rate, burst) for frame, (rate, burst) in rates.items()
        }
        self._by_network: dict[Frame, RateTable[bytes]] = {
            frame: RateTable(rate * times, burst * times) for frame, (rate, burst) in rates.items()
        }

    def excess(self, frame: Frame, peer: Peer) -> str:
        """Whose rate one more frame would exceed: ``"rate"``, the peer's own; ``"network_rate"``,
        that of all in its network; empty if nobody's, and then it is counted."""
        now = trio.current_time()
        if not self._by_node[frame].allow(peer.node_id, now):
            return "rate"
        if not self._by_network[frame].allow(prefix(peer.address), now):
            return "network_rate"
        return ""


class _Reply:
    """A call of ours that waits for its answer."""

    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: bytes | None = None


class SignalLink:
    """A signalling link while :meth:`run` runs."""

    def __init__(
        self,
        connection: Connection,
        peer: Peer,
        *,
        dialed: bool,
        limits: LinkLimits,
        quotas: Quotas,
        events: SignalEvents,
        counts: Counter[str],
    ) -> None:
        """``dialed``: by us."""
        self.peer = peer
        self.dialed = dialed
        self.dead = False
        """The peer was silent for too long."""
        self.heard = trio.current_time()
        """When something last came."""
        self._connection = connection
        self._limits = limits
        self._quotas = quotas
        self._events = events
        self._counts = counts
        self._guard = Guard(counts)
        self._outbox = Outbox(limits.signal_queue)
        self._wakeup = trio.Event()
        self._numbers = count(1)
        self._replies: dict[int, _Reply] = {}
        self._answers = Assembler()
        self._calls = Assembler()
        self._begun: dict[int, float] = {}
        """When the first chunk of an unfinished call came."""
        self._held = 0
        """Bytes of calls and answers that :attr:`Quotas.memory` counts for this link."""
        self._served = 0
        self._used = self.heard
        self._retiring = False
        self._fin_sent = False
        self._fin_received = False
        self._over = False

    # --- for the owner --------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether new messages may be sent over it."""
        return not (self._retiring or self._over)

    @property
    def used(self) -> float:
        """When a message last went or came; PING and PONG are none."""
        return self._used

    def touch(self) -> None:
        """Count as used, so that it isn't ended for being idle."""
        self._used = trio.current_time()

    def send(self, frame: Frame, payload: bytes = b"") -> None:
        """Queue a SIGNAL or ASK.

        :raises LinkBroken: the link is ending.
        :raises CapacityExceeded: the queue is full.
        """
        if not self.open:
            raise LinkBroken("the signalling link is ending")
        self._queue(frame, payload)
        self.touch()

    def decline(self) -> None:
        """Tell the peer that an ASK won't be followed."""
        self._reply(Frame.DECLINE)

    async def call(self, body: bytes) -> bytes:
        """Send a call and wait for its answer.

        :raises LinkBroken: the link ended before the answer came.
        :raises DeadlineExpired: no answer.
        :raises CapacityExceeded: too many calls wait already.
        :raises WireError: ``body`` is too long.
        """
        if not self.open:
            raise LinkBroken("the signalling link is ending")
        if len(self._replies) >= self._limits.calls_waiting:
            self._counts["drop_call_queue_full"] += 1
            raise CapacityExceeded("too many calls to this neighbour wait for answers")
        number = next(self._numbers) & 0xFFFFFFFF
        self._outbox.add_body(call_frames(Frame.CALL, number, body))
        reply = self._replies[number] = _Reply()
        self.touch()
        self._wake()
        try:
            with trio.fail_after(self._limits.call_deadline):
                await reply.done.wait()
        except trio.TooSlowError as error:
            self._counts["calls_timed_out"] += 1
            raise DeadlineExpired("the neighbour gave no answer") from error
        finally:
            del self._replies[number]
            self._answers.forget(number)
            self._wake()
        if reply.answer is None:
            raise LinkBroken("the neighbour's signalling link ended")
        return reply.answer

    def retire(self) -> None:
        """Send nothing new any more; end the link once nothing is under way, in either direction.
        Nothing that was sent is lost."""
        self._retiring = True
        self._wake()

    def close(self) -> None:
        """End the link now."""
        self._over = True
        self._connection.close()

    async def run(self) -> None:
        """Serve until the link has ended; doesn't raise for the peer's or the network's sake."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, nursery.cancel_scope)
                nursery.start_soon(self._keep, nursery.cancel_scope)
                await self._read(nursery)
                nursery.cancel_scope.cancel()
        except* LinkBroken:
            self._counts["signalling_broken"] += 1
        except* PeerError:
            self._counts["drop_signalling_violation"] += 1
        finally:
            self._over = True
            self._release(self._held)
            self._connection.close()
            self._counts["lost_messages"] += len(self._outbox)
            for reply in self._replies.values():
                reply.done.set()

    # --- outgoing -------------------------------------------------------------------------------

    def _queue(self, frame: Frame, payload: bytes = b"") -> None:
        try:
            self._outbox.add(frame, payload)
        except CapacityExceeded:
            self._counts["drop_signal_queue_full"] += 1
            raise
        self._wake()

    def _wake(self) -> None:
        self._wakeup.set()

    async def _write(self, scope: trio.CancelScope) -> None:
        while True:
            self._wakeup = trio.Event()
            while batch := self._outbox.next_batch():
                with trio.move_on_after(self._limits.dead_after) as patience:
                    await self._connection.write_all(batch)
                if patience.cancelled_caught:
                    # That it sends doesn't help: what it has asked for piles up here.
                    self.dead = True
                    self._counts["neighbours_dead"] += 1
                    raise LinkBroken("the neighbour doesn't take what it is sent")
            if self._retiring and not self._fin_sent and not self._replies:
                self._fin_sent = True
                self._outbox.add(Frame.FIN)
            elif self._fin_sent and self._fin_received:
                # Each side's FIN comes after all its messages and after the answers to its calls:
                # nothing is under way any more.
                scope.cancel()
                return
            else:
                await self._wakeup.wait()

    async def _keep(self, scope: trio.CancelScope) -> None:
        limits = self._limits
        while True:
            now = trio.current_time()
            self._forget_unfinished(now - limits.call_patience)
            dead_at = self.heard + limits.dead_after
            ping_at = self.heard + limits.ping_after
            if now >= dead_at:
                self.dead = not self._fin_sent
                self._counts["neighbours_dead"] += self.dead
                scope.cancel()
                return
            if self.dialed and now >= self._used + limits.signalling_idle:
                if self._events.is_busy(self.peer):
                    self.touch()
                else:
                    self.retire()
            if now >= ping_at:
                self._reply(Frame.PING)
                ping_at = min(now + limits.ping_after, dead_at)
            await trio.sleep_until(ping_at)

    # --- incoming -------------------------------------------------------------------------------

    async def _read(self, nursery: trio.Nursery) -> None:
        unframer = SignalUnframer()
        view = memoryview(bytearray(READ_LEN))
        while True:
            await self._connection.wait_arrival()
            received = self._connection.read_now(view)
            if received is None:
                continue
            if not received:
                if not (self._fin_sent and self._fin_received):
                    raise LinkBroken("the neighbour closed the signalling link")
                return
            self.heard = trio.current_time()
            for message in unframer.feed(view[:received]):
                self._take(message, nursery)

    def _take(self, message: Message, nursery: trio.Nursery) -> None:
        frame, payload = message
        if self._fin_received and frame in _NEW:
            raise ProtocolViolation("something new after FIN")
        if frame is Frame.ANSWER:
            self._take_answer(Chunk.unpack(payload))
        elif frame is Frame.CALL:
            self._take_call(Chunk.unpack(payload), nursery)
        elif frame is Frame.FIN:
            self._fin_received = True
            self.retire()
        elif frame is Frame.DECLINE:
            self._events.declined(self.peer)
        elif frame is not Frame.PONG:
            self._take_limited(frame, payload)

    def _take_limited(self, frame: Frame, payload: bytes) -> None:
        if excess := self._quotas.excess(frame, self.peer):
            self._counts[f"drop_{frame.name.lower()}_{excess}"] += 1
        elif frame is Frame.SIGNAL:
            self.touch()
            self._counts["signals_received"] += 1
            self._events.signalled(self.peer, payload)
        elif frame is Frame.ASK:
            if not self._events.asked(self.peer):
                self.decline()
        else:
            self._reply(Frame.PONG)

    def _reply(self, frame: Frame) -> None:
        """Queue what needn't arrive: if the queue is full, what waits there will do as well. After
        our FIN nothing may lie unread when the peer closes."""
        if not self._fin_sent:
            with suppress(CapacityExceeded):
                self._queue(frame)

    def _take_answer(self, chunk: Chunk) -> None:
        reply = self._replies.get(chunk.number)
        if reply is None or reply.done.is_set():
            self._counts["drop_answer_late"] += chunk.last
            return
        reply.answer = self._answers.add(chunk)
        if reply.answer is not None:
            reply.done.set()

    def _take_call(self, chunk: Chunk, nursery: trio.Nursery) -> None:
        if chunk.first:
            if self._fin_received:
                raise ProtocolViolation("a call after FIN")
            if excess := self._quotas.excess(Frame.CALL, self.peer):
                self._counts[f"drop_call_{excess}"] += 1
                return
            if self._served + len(self._calls) >= self._limits.calls_served:
                self._counts["drop_call_limit"] += 1
                return
        body = self._add_to_call(chunk)
        if body is not None:
            self.touch()
            self._served += 1
            nursery.start_soon(self._guard.once, self._serve_call, chunk.number, body)

    def _add_to_call(self, chunk: Chunk) -> bytes | None:
        if chunk.first:
            self._begun[chunk.number] = trio.current_time()
        elif chunk.number not in self._calls:
            return None  # of a call that was dropped
        if not self._hold(len(chunk.data)):
            self._counts["drop_call_memory"] += 1
            self._forget_call(chunk.number)
            return None
        if chunk.last:
            del self._begun[chunk.number]
        return self._calls.add(chunk)

    def _hold(self, count: int) -> bool:
        if not self._quotas.memory.take(self.peer.node_id, count):
            return False
        self._held += count
        return True

    def _release(self, count: int) -> None:
        self._quotas.memory.leave(self.peer.node_id, count)
        self._held -= count

    def _forget_call(self, number: int) -> None:
        del self._begun[number]
        self._release(self._calls.forget(number))

    def _forget_unfinished(self, since: float) -> None:
        for number in [number for number, begun in self._begun.items() if begun <= since]:
            self._counts["drop_call_unfinished"] += 1
            self._forget_call(number)

    async def _serve_call(self, number: int, body: bytes) -> None:
        self._counts["calls_served"] += 1
        held = len(body)
        sent = trio.Event()
        try:
            answer = await self._events.called(self.peer, body)
            if not self._hold(len(answer)):
                raise CapacityExceeded("the neighbour doesn't take answers fast enough")
            held += len(answer)
            self._outbox.add_body(_until_sent(call_frames(Frame.ANSWER, number, answer), sent))
            self._wake()
            await sent.wait()
        except PhantomError:
            self._counts["calls_unanswered"] += 1
        finally:
            self._release(held)
            self._served -= 1
            self._wake()


def _until_sent(frames: Iterator[bytes], sent: trio.Event) -> Iterator[bytes]:
    yield from frames
    sent.set()
