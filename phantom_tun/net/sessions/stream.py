"""One TCP-equivalent connection: :class:`~phantom_tun.endpoints.ByteStream` over secure tunnels
(docs/spec/session.md, "Streams" and "Sessions that survive").

Over one, most of the time. If that dies, both ends keep what the other one may not have, and a
:class:`Resumer` finds the next one, over which each end repeats what the other lacks::

              the tunnel has failed              a new one, and what the far end has
    running ───────────────────────► lost ──────────────────────────────────────────► repeating
       ▲                               │ none in time                                     │
       └───────────────────────────────┼─────────── all is sent again ────────────────────┘
                                       ▼
                                     over
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

import trio

from phantom_tun.errors import ProtocolViolation, StreamReset
from phantom_tun.net.links.turns import BULK, TURNS
from phantom_tun.net.sessions.acknowledging import ACK_EVERY, ACK_LEAST, LateAcks
from phantom_tun.net.sessions.ending import abandon, finish, send_end
from phantom_tun.net.sessions.secure_tunnel import SecureTunnel, Spawn
from phantom_tun.net.sessions.unacknowledged import MOST_OF_ONE, Memory, Unacknowledged
from phantom_tun.wire.session import MAX_DATA, FrameKind, pack_ack

_ENDED = memoryview(b"")

READER_WITHIN = 5.0
"""Seconds for which a sender waits for a confirmation that nobody reads, since the program here
doesn't take what comes before it."""


class Resumer(Protocol):
    """Finds another tunnel for a stream that has lost its own."""

    def lost(self, stream: SessionStream) -> bool:
        """Begin to look for one; false if there will be none. In the end it calls
        :meth:`SessionStream.go_on` or :meth:`SessionStream.give_up`."""
        ...

    def over(self) -> None:
        """The stream needs none any more."""
        ...


@dataclass(frozen=True, slots=True)
class Durable:
    """What a stream needs that may survive its tunnel."""

    resumer: Resumer
    memory: Memory
    late: LateAcks
    spawn: Spawn
    counts: Counter[str]


_NO_MEMORY = Memory(0)


class SessionStream:
    """See :class:`~phantom_tun.endpoints.ByteStream`. One task may send and another receive.

    Data is cut into frames of at most ``MAX_DATA`` bytes, as equal as possible; a piece of
    :data:`~phantom_tun.endpoints.STREAM_PIECE` bytes makes one frame and one write to the link.
    """

    __slots__ = (
        "_acked",
        "_changed",
        "_durable",
        "_has_ended",
        "_is_acking",
        "_is_late",
        "_is_lost",
        "_is_over",
        "_is_receiving",
        "_is_repeating",
        "_is_torn",
        "_repeated",
        "_secure",
        "_sent",
        "_unacked",
        "bytes_in",
        "bytes_out",
        "resumed",
    )

    def __init__(self, secure: SecureTunnel, durable: Durable | None = None) -> None:
        """Without ``durable`` it is over when its tunnel is."""
        self._secure = secure
        self._durable = durable
        self._unacked = Unacknowledged(_NO_MEMORY if durable is None else durable.memory)
        self._acked = 0
        """What we have acknowledged."""
        self._is_acking = False
        """An acknowledgement of its own is on its way out."""
        self._is_late = False
        """One is due in a moment."""
        self._has_ended = False
        """Nothing more will be sent."""
        self._is_lost = False
        self._is_repeating = False
        self._repeated = 0
        """Position up to which that has come."""
        self._is_receiving = False
        self._is_over = False
        self._is_torn = False
        """A send was cancelled: nobody knows what of it counts."""
        self._changed: trio.Event | None = None
        self._sent = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.resumed = 0
        """How often it has changed to another tunnel."""
        secure.on_ack(self._confirm)

    @property
    def path_number(self) -> int:
        """The path of ours that carries it, or did so last."""
        return self._secure.path_number

    @property
    def secret(self) -> bytes | None:
        """With which the caller can resume the session."""
        return self._secure.secret

    @property
    def is_lost(self) -> bool:
        """Whether its tunnel has failed, and another one is looked for."""
        return self._is_lost

    @property
    def got_end(self) -> bool:
        """Whether nothing more comes."""
        return self._secure.got_end

    @property
    def received(self) -> int:
        """What has arrived: bytes, and one more for END."""
        return self.bytes_in + self._secure.got_end

    # --- in -------------------------------------------------------------------------------------

    async def receive(self) -> memoryview:
        """See :meth:`phantom_tun.endpoints.ByteStream.receive`."""
        while True:
            secure = self._secure
            if secure.got_end:
                await trio.lowlevel.checkpoint()
                return _ENDED
            self._is_receiving = True
            try:
                kind, payload = await secure.receive()
            except StreamReset:
                if not self._lose(secure):
                    raise
                while secure is self._secure:
                    await self._change()
                continue
            finally:
                self._is_receiving = False
            if kind is FrameKind.DATAGRAM:
                self.abort()
                raise StreamReset("a datagram in a stream")
            self.bytes_in += len(payload)
            behind = self.bytes_in - self._acked
            if behind >= ACK_LEAST and self._acknowledges:
                if behind >= ACK_EVERY:
                    self._acknowledge_soon()
                elif not self._is_late:
                    self._acknowledge_late()
            return payload

    # --- out ------------------------------------------------------------------------------------

    async def send_all(self, data: memoryview) -> None:
        """See :meth:`phantom_tun.endpoints.ByteStream.send_all`."""
        length = len(data)
        if not length:
            return
        pieces = -(-length // MAX_DATA)
        size = -(-length // pieces)
        for start in range(0, length, size):
            if self._sent >= BULK:
                await TURNS.wait()
            piece = data[start : start + size]
            if self._durable is not None:
                await self._wait_room(len(piece))
                self._keep(piece)
            secure = self._secure
            try:
                await secure.send(FrameKind.DATA, piece, self._ack_along)
            except StreamReset:
                if not self._lose(secure):
                    raise
                await self._wait_repeated()
            except BaseException:
                self._is_torn = True
                raise
            self._sent = len(piece)
            self.bytes_out += self._sent

    async def send_first(self, data: bytes) -> None:
        """Send what the application said before there was a connection, unless the request took
        it along.

        :raises StreamReset: as :meth:`send_all`.
        """
        if self._secure.took_first:
            self._check()
            self._keep(memoryview(data))
            self.bytes_out += len(data)
        else:
            await self.send_all(memoryview(data))

    async def send_end(self) -> None:
        """See :meth:`phantom_tun.endpoints.ByteStream.send_end`."""
        if self._is_lost or self._is_repeating:
            await self._wait_repeated()
        self._has_ended = True
        secure = self._secure
        try:
            await send_end(secure)
        except StreamReset:
            if not self._lose(secure):
                raise
            await self._wait_repeated()

    async def _wait_room(self, count: int) -> None:
        """Wait until everything was sent again, and the far end has confirmed so much that
        ``count`` bytes more can be kept: what is on its way to a slow reader needn't be more. Not
        if nobody reads what it says.

        :raises StreamReset: it's over.
        """
        self._check()
        while True:
            if self._is_lost or self._is_repeating:
                await self._wait_repeated()
            is_full = self._acknowledges and len(self._unacked) + count > MOST_OF_ONE
            if not is_full or self.got_end:
                return
            with trio.move_on_after(READER_WITHIN):
                await self._change()
                continue
            if not self._is_receiving:
                return

    def _keep(self, data: memoryview) -> None:
        if self._durable is None:
            return
        was_whole = self._unacked.is_whole
        if not was_whole and self.got_end:
            self._unacked.skip(len(data))  # nobody will confirm what it waits for
        elif not self._unacked.add(data) and was_whole:
            self._durable.counts["streams_unprotected"] += 1

    # --- acknowledgements -----------------------------------------------------------------------

    @property
    def _acknowledges(self) -> bool:
        """Whether both ends keep what they send, as the secret says, and we can still confirm."""
        is_able = self._durable is not None and self._secure.secret is not None
        return is_able and not self._has_ended

    def _confirm(self, position: int) -> None:
        """
        :raises ProtocolViolation: the far end has what it can't have.
        """
        position = self._without_end(position)
        if self._is_repeating and position > self._repeated:
            raise ProtocolViolation("an acknowledgement of what wasn't sent again")
        self._unacked.confirm(position)
        self._tell()

    def _without_end(self, position: int) -> int:
        is_behind_end = self._has_ended and position == self._unacked.end + 1
        return position - is_behind_end

    def _ack_along(self) -> bytes:
        """An acknowledgement that goes along with what is sent, if there is anything new."""
        if not self._acknowledges or self.received == self._acked:
            return b""
        return pack_ack(self._say_received())

    def _say_received(self) -> int:
        self._acked = self.received
        return self._acked

    def _acknowledge_late(self) -> None:
        if self._durable is not None:
            self._is_late = self._durable.late.add(self)

    def acknowledge_now(self) -> None:
        """For :class:`~phantom_tun.net.sessions.acknowledging.LateAcks`: it is late enough."""
        self._is_late = False
        if self.bytes_in - self._acked >= ACK_LEAST:
            self._acknowledge_soon()

    def _acknowledge_soon(self) -> None:
        """Not at once: whoever receives must not wait until there is room for it."""
        if self._durable is not None and not (self._is_acking or self._is_lost or self._is_over):
            self._is_acking = self._durable.spawn(self._acknowledge)

    async def _acknowledge(self) -> None:
        try:
            await self._secure.send_ack(self._say_received)
        except StreamReset:
            return  # whoever receives is told so
        finally:
            self._is_acking = False
        if self.bytes_in - self._acked >= ACK_LEAST and self._acknowledges and not self._is_late:
            self._acknowledge_late()  # it took a while

    # --- another tunnel -------------------------------------------------------------------------

    def _lose(self, secure: SecureTunnel) -> bool:
        """``secure`` has failed; whether another tunnel may take, or has taken, its place."""
        if self._is_over:
            return False
        if secure is not self._secure or self._is_lost:
            return True
        if self._durable is None or self._is_torn or not secure.can_be_replaced:
            return False
        return self._look_for_another(self._durable)

    def _look_for_another(self, durable: Durable) -> bool:
        self._is_lost = True
        abandon(self._secure)
        if durable.resumer.lost(self):
            return True
        self.give_up()
        return False

    def suspend(self) -> int:
        """Nothing more is taken from the tunnel, which the far end has given up; returns what has
        arrived."""
        if self._durable is not None and not (self._is_lost or self._is_over):
            self._look_for_another(self._durable)
        return self.received

    def can_go_on(self, received: int) -> bool:
        """Whether the far end, which has ``received``, can be given all the rest."""
        return not (self._is_over or self._is_torn) and self._unacked.has(
            self._without_end(received)
        )

    def go_on(self, secure: SecureTunnel, received: int) -> None:
        """Take ``secure`` in place of the tunnel that was lost; the far end has ``received``.

        :raises ProtocolViolation: it can't have, or had more before.
        """
        if not self._is_lost or not self.can_go_on(received):
            raise ProtocolViolation("the far end goes on where this one can't")
        self._unacked.confirm(self._without_end(received))
        secure.continue_after(
            self._secure, knows_end=self._has_ended and received > self._unacked.end
        )
        secure.on_ack(self._confirm)
        self._secure = secure
        self._is_lost = False
        self._is_repeating = True
        self._repeated = received
        self._acked = self.received
        self.resumed += 1
        self._tell()
        if self._durable is None or not self._durable.spawn(lambda: self._repeat(secure, received)):
            self.abort()

    async def _repeat(self, secure: SecureTunnel, position: int) -> None:
        """Send what the far end lacks. It may tell meanwhile what has arrived; and this tunnel may
        be lost, too, and another one have come."""
        try:
            while secure is self._secure and position < self._unacked.end:
                data = self._unacked.read(position, MAX_DATA)
                position += len(data)
                self._repeated = position
                await secure.send(FrameKind.DATA, memoryview(data))
                if len(data) >= BULK:
                    await TURNS.wait()
            if secure is not self._secure or self._is_lost:
                return
            if self._has_ended:
                await send_end(secure)
        except StreamReset:
            if not self._lose(secure):
                self.give_up()
            return
        if secure is self._secure and not self._is_lost:
            self._is_repeating = False
            self._tell()

    def give_up(self) -> None:
        """There is no other tunnel: the connection is over."""
        self._is_lost = False
        self._be_over()
        finish(self._secure, FrameKind.RESET)

    async def _wait_repeated(self) -> None:
        """Wait until everything was sent again.

        :raises StreamReset: it won't be.
        """
        while self._is_lost or self._is_repeating:
            await self._change()
        self._check()

    async def _change(self) -> None:
        """Wait until something is different.

        :raises StreamReset: it's over.
        """
        self._check()
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()
        self._check()

    def _check(self) -> None:
        if self._is_over:
            raise StreamReset("the connection is over")

    def _tell(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()

    # --- ending ---------------------------------------------------------------------------------

    def is_broken(self) -> bool:
        """See :meth:`phantom_tun.endpoints.ByteStream.is_broken`."""
        if self._is_over:
            return True
        secure = self._secure
        return not self._is_lost and secure.is_broken() and not self._lose(secure)

    def abort(self) -> None:
        """See :meth:`phantom_tun.endpoints.ByteStream.abort`."""
        self._be_over()
        finish(self._secure, FrameKind.RESET)

    async def aclose(self) -> None:
        """See :meth:`phantom_tun.endpoints.ByteStream.aclose`. The goodbye itself is said in the
        background."""
        has_ended = self._secure.sent_end and self._secure.got_end
        self._be_over()
        finish(self._secure, None if has_ended else FrameKind.RESET)
        await trio.lowlevel.checkpoint()

    def _be_over(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._is_lost = self._is_repeating = False
            self._unacked.discard()
            if self._durable is not None:
                self._durable.resumer.over()
            self._tell()

    async def wait_closed(self) -> None:
        """Wait until nothing of any tunnel is in use, and none is looked for."""
        while True:
            secure = self._secure
            await secure.closed.wait()
            while self._is_lost:
                if self._changed is None:
                    self._changed = trio.Event()
                await self._changed.wait()
            if secure is self._secure:
                return
