"""A secure channel over a routing tunnel: what streams and datagram flows have in common
(docs/spec/session.md, "Frames").

One task may send and another receive. How it begins is in ``handshake``, how one connection follows
another in ``further``, how it ends in ``ending``: they work on it, and it knows none of them.
Below it are ``pipe``, which carries bytes, and ``ahead``, what waits to go along with them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from phantom_tun.errors import (
    CryptoError,
    PeerError,
    ProtocolViolation,
    StreamReset,
    WireError,
)
from phantom_tun.net.sessions.ahead import Ahead
from phantom_tun.net.sessions.frames import Frame, FrameReader
from phantom_tun.net.sessions.pipe import Pipe
from phantom_tun.net.sessions.ports import Tunnel
from phantom_tun.tunnel.channel import RECORD, Channel
from phantom_tun.wire.session import (
    ACK_LEN,
    RESUME_SECRET_LEN,
    FrameKind,
    Ticket,
    parse_ack,
)

FRAMES_AT_ONCE = 32
"""Frames between two turns of everybody else: a peer can put thousands of empty ones into what is
read at once."""

Spawn = Callable[[Callable[[], Awaitable[None]]], bool]
"""Starts a background task; False when there will be none any more."""

_NOTHING = memoryview(b"")

_BETWEEN = frozenset({FrameKind.OPEN, FrameKind.OPENED})
"""What comes between two connections only."""


class SecureTunnel:
    """Frames in both directions, until :func:`~phantom_tun.net.sessions.ending.finish`.

    :param reader: of the connection before, in a session that was kept for another one.
    """

    __slots__ = (
        "_channel",
        "_check",
        "_frames",
        "_is_refused",
        "_load",
        "_on_ack",
        "_on_established",
        "_on_ticket",
        "_reader",
        "_write",
        "ahead",
        "awaits_secret",
        "closed",
        "first",
        "got_end",
        "got_reset",
        "is_ending",
        "is_idle",
        "is_resumed",
        "on_rest",
        "pipe",
        "secret",
        "sent_end",
        "sent_fin",
        "spawn",
        "took_first",
    )

    def __init__(
        self, channel: Channel, tunnel: Tunnel, spawn: Spawn, reader: FrameReader | None = None
    ) -> None:
        self._channel = channel
        self._reader = reader or FrameReader(channel)
        self.spawn = spawn
        self.pipe = pipe = Pipe(channel, tunnel, self._reader)
        # Looked up once: they are called for every frame.
        self._write, self._load, self._check = pipe.write, pipe.load, pipe.check
        self.ahead = Ahead(pipe)
        self._is_refused = False
        """The peer itself, not the way to it, broke the protocol."""
        self._on_ack: Callable[[int], None] | None = None
        self._on_established: Callable[[], None] | None = None
        self._on_ticket: Callable[[Ticket], None] | None = None
        self._frames = 0
        self.first = b""
        """What comes before all that is still to come: OPEN took it along."""
        self.got_end = False
        self.got_reset = False
        self.sent_end = False
        self.sent_fin = False
        """With END, before anybody let go of it."""
        self.is_ending = False
        self.is_idle = reader is not None
        """Between two connections."""
        self.is_resumed = False
        """It goes on where another tunnel was lost."""
        self.on_rest: Callable[[SecureTunnel], None] | None = None
        """Gets it once it has ended both ways, if the session is kept."""
        self.took_first = False
        """The application's first bytes went along with the request."""
        self.secret: bytes | None = None
        """With which the caller can resume the session."""
        self.awaits_secret = False
        """The callee may still give it."""
        self.closed = pipe.closed
        """Set when nothing of the tunnel is in use any more."""

    @property
    def path_number(self) -> int:
        """The path of ours that carries it."""
        return self.pipe.tunnel.path_number

    @property
    def was_let_go(self) -> bool:
        """Whether the peer itself has closed the session, in order: no tunnel has failed."""
        return self.pipe.got_fin and self._channel.is_closed

    # --- who is told ----------------------------------------------------------------------------

    def when_established(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` once the TLS handshake is complete, which the callee's :meth:`receive`
        then looks after: the session begins before."""
        self._on_established = tell

    def take_ticket(self, keep: Callable[[Ticket], None]) -> None:
        """Give ``keep`` the ticket that comes, one at most; another one breaks the session."""
        self._on_ticket = keep

    def on_ack(self, confirm: Callable[[int], None]) -> None:
        """Tell ``confirm`` what has arrived at the peer, as soon as it says so."""
        self._on_ack = confirm

    # --- sessions that survive ------------------------------------------------------------------

    @property
    def can_be_replaced(self) -> bool:
        """Whether the session may go on over another tunnel: this one has failed, not the peer."""
        is_told = self.secret is not None and self.ahead.secret is None
        return is_told and not (self.got_reset or self._is_refused)

    def continue_after(self, lost: SecureTunnel, *, knows_end: bool) -> None:
        """Go on where ``lost`` was given up; ``knows_end``: the peer has our END."""
        self.secret = lost.secret
        self.got_end = lost.got_end
        self.sent_end = knows_end
        self.is_resumed = True

    # --- out ------------------------------------------------------------------------------------

    async def send(
        self, kind: FrameKind, data: memoryview = _NOTHING, along: Callable[[], bytes] = bytes
    ) -> None:
        """Send one frame; returns when the link has taken it.

        :param along: makes another one, whole and short, that goes before a short one.
        :raises StreamReset: the connection was reset, or the tunnel died.
        """
        encode = self._channel.encode
        if len(data) <= RECORD:
            ahead = self.ahead
            await self._write(
                lambda view, start: encode(view, ahead.encode(view, start), kind, data, along())
            )
            return
        if self.ahead.has_any():
            await self.flush()  # there's no room for both
        await self._write(lambda view, start: encode(view, start, kind, data))

    async def send_messages(self, messages: list[bytes]) -> None:
        """Send several DATAGRAM frames at once, at most ``RECORD`` bytes with their headers.

        :raises StreamReset: as :meth:`send`.
        """
        encode = self._channel.encode_messages
        await self._write(lambda view, start: encode(view, start, messages))

    async def send_ack(self, received: Callable[[], int]) -> None:
        """Say what has been ``received`` by the time it is said, unless END was sent.

        :raises StreamReset: as :meth:`send`.
        """

        def encode(view: memoryview, start: int) -> int:
            if self.sent_end:
                return start
            start = self.ahead.encode(view, start)
            payload = memoryview(received().to_bytes(ACK_LEN, "big"))
            return self._channel.encode(view, start, FrameKind.ACK, payload)

        await self._write(encode)

    async def flush(self) -> None:
        """Send what waits for something to go with.

        :raises StreamReset: as :meth:`send`.
        """
        await self._write(self.ahead.flush)

    # --- in -------------------------------------------------------------------------------------

    async def receive(self) -> Frame:
        """Wait for the next frame. Its payload is valid until the next call. After END nothing
        more comes.

        :raises StreamReset: the peer reset the connection, or the tunnel died.
        """
        while True:
            frame = await self.next_frame()
            if frame.kind in _BETWEEN:
                raise self._refused("a connection within a connection")
            if frame.kind is not FrameKind.ACK:
                return frame
            self._take_ack(frame.payload)

    def _take_ack(self, payload: memoryview) -> None:
        try:
            received = parse_ack(payload)
            if self._on_ack is None:
                raise ProtocolViolation("an acknowledgement of nothing")
            self._on_ack(received)
        except PeerError as error:
            raise self._refused("a wrong acknowledgement") from error

    async def next_frame(self) -> Frame:
        """The same for frames of all kinds but tickets and secrets."""
        self._frames += 1
        if self._frames % FRAMES_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
        while True:
            frame = self._next()
            if frame is not None:
                return frame
            await self._load()

    def _next(self) -> Frame | None:
        self._check()
        if self.first:
            first, self.first = self.first, b""
            return Frame(FrameKind.DATA, memoryview(first))
        try:
            frame = self._reader.next()
            if self._on_established is not None and self._channel.is_established:
                tell, self._on_established = self._on_established, None
                tell()
            if frame is not None and frame.kind is FrameKind.TICKET:
                self._take_ticket(bytes(frame.payload))
                return self._next()
            if frame is not None and frame.kind is FrameKind.SECRET:
                self._take_secret(bytes(frame.payload))
                return self._next()
            if frame is None:
                if self._channel.is_closed and not self.is_idle:
                    raise ProtocolViolation("closed without an END")
                return None
            if self.got_end:
                raise ProtocolViolation("a frame after END")
        except CryptoError as error:
            raise self.pipe.tear("the stream broke") from error
        except PeerError as error:
            raise self._refused("the peer broke the protocol") from error
        if frame.kind is FrameKind.RESET:
            self.got_reset = self.pipe.is_stopped = True
            raise StreamReset("the far side reset the connection")
        self.got_end = frame.kind is FrameKind.END
        return frame

    def _take_ticket(self, packed: bytes) -> None:
        keep, self._on_ticket = self._on_ticket, None
        if keep is None or self.got_end:
            raise ProtocolViolation("a ticket that nobody expects")
        keep(Ticket.unpack(packed))

    def _take_secret(self, secret: bytes) -> None:
        if not self.awaits_secret or self.got_end:
            raise ProtocolViolation("a secret that nobody expects")
        self.awaits_secret = False
        if len(secret) != RESUME_SECRET_LEN:
            raise WireError("a secret of another length")
        self.secret = secret

    def _refused(self, reason: str) -> StreamReset:
        self._is_refused = True
        return self.pipe.tear(reason)

    def is_broken(self) -> bool:
        """Whether the tunnel died after the peer's END, when nobody reads any more."""
        return self.pipe.is_torn or self.pipe.tunnel.is_broken()

    def stop(self) -> None:
        """Begin to end: nothing of the connection is sent or received any more."""
        self.is_ending = True
        self._on_ack = None
        self.pipe.stop()
