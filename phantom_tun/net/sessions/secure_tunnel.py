"""A secure channel over a routing tunnel: what streams and datagram flows have in common
(docs/spec/session.md, "Ending").

One task may send and another receive. However a connection ends, it ends in the background, soon
(``LAST_WORD_WITHIN``, ``CLOSE_WITHIN``) and if possible with FIN both ways, so that the links below
can be used again: an application's reset costs no link.

A session that is kept goes from one connection to the next, each a :class:`SecureTunnel` of its own
over the same channel (docs/spec/session.md, "Kept sessions")::

    first connection ── END both ways ──► idle ── OPEN, OPENED ──► next connection ── …
                                            └─── FIN both ways ──► over
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
    WorldError,
)
from phantom_tun.net.links.buffers import POOL
from phantom_tun.net.sessions.frames import Frame, FrameReader
from phantom_tun.net.sessions.pipe import Encode, Pipe
from phantom_tun.net.sessions.ports import Tunnel
from phantom_tun.tunnel.channel import RECORD, Channel
from phantom_tun.wire.session import (
    ACK_LEN,
    RESUME_SECRET_LEN,
    FrameKind,
    Opening,
    Outcome,
    Ticket,
    parse_ack,
    parse_outcome,
)

LAST_WORD_WITHIN = 1.0
"""Seconds for saying goodbye; if the tunnel is too full for that, it is torn down."""

LAST_WORD_OF_SURVIVOR_WITHIN = 10.0
"""The same in a session that can be resumed: that a tunnel is torn down doesn't say RESET there."""

FLIGHT_WAIT = 0.002
"""Seconds that the caller's last TLS flight waits for the application's first bytes: they save it a
message of its own at every hop. A service that speaks first is heard so much later."""

EARLY_FLIGHT_WAIT = 0.05
"""The same if the callee took early data: it doesn't wait for our flight."""

ANSWER_WAIT = 0.002
"""Seconds that the callee's answer waits for the service's first bytes, if the service has the
caller's already."""

SECRET_WAIT = 1.0
"""Seconds that the secret for resuming the session waits for what the service says first."""

ANSWER_TAKEN_WITHIN = 5.0
"""Seconds for the caller's tunnel to take what :meth:`SecureTunnel.answer_next` says: a few bytes,
and a session that waits to say them is in no table."""

CLOSE_WITHIN = 5.0
"""Seconds for the peer to do the same."""

CLOSE_IDLE_WITHIN = 15.0
"""The same between two connections: a caller notices when it gives the session up itself."""

FRAMES_AT_ONCE = 32
"""Frames between two turns of everybody else: a peer can put thousands of empty ones into what is
read at once."""

Spawn = Callable[[Callable[[], Awaitable[None]]], bool]
"""Starts a background task; False when there will be none any more."""

MakeTicket = Callable[[], Ticket | None]

OnRest = Callable[["SecureTunnel"], None]
"""Gets the same session, idle."""

_NOTHING = memoryview(b"")

_BETWEEN = frozenset({FrameKind.OPEN, FrameKind.OPENED})
"""What comes between two connections only."""


class SecureTunnel:
    """Frames in both directions, until :meth:`finish`.

    :param reader: of the connection before, in a session that was kept for another one.
    """

    __slots__ = (
        "_channel",
        "_check",
        "_first",
        "_frames",
        "_is_refused",
        "_is_resumed",
        "_load",
        "_on_ack",
        "_on_established",
        "_on_rest",
        "_on_ticket",
        "_outcome",
        "_owes_secret",
        "_pipe",
        "_reader",
        "_said_all",
        "_spawn",
        "_ticket",
        "_tunnel",
        "_write",
        "closed",
        "got_end",
        "got_reset",
        "is_ending",
        "is_idle",
        "secret",
        "sent_end",
        "took_first",
    )

    def __init__(
        self, channel: Channel, tunnel: Tunnel, spawn: Spawn, reader: FrameReader | None = None
    ) -> None:
        self._channel = channel
        self._tunnel = tunnel
        self._spawn = spawn
        self._reader = reader or FrameReader(channel)
        self._pipe = pipe = Pipe(channel, tunnel, self._reader)
        # Found once, since they are called for every frame.
        self._write, self._load, self._check = pipe.write, pipe.load, pipe.check
        self._is_refused = False
        """The peer itself, not the way to it, broke the protocol."""
        self._is_resumed = False
        self._on_ack: Callable[[int], None] | None = None
        self._owes_secret = False
        self._on_established: Callable[[], None] | None = None
        self._on_ticket: Callable[[Ticket], None] | None = None
        self._on_rest: OnRest | None = None
        self._ticket: MakeTicket | None = None
        self._outcome: Outcome | None = None
        """What OPENED is still to say."""
        self._first = b""
        """What OPEN took along."""
        self._said_all = False
        self._frames = 0
        self.got_end = False
        self.got_reset = False
        self.sent_end = False
        self.is_ending = False
        self.is_idle = reader is not None
        """Between two connections."""
        self.took_first = False
        """The application's first bytes went along with the request."""
        self.secret: bytes | None = None
        """With which the caller can resume the session."""
        self.closed = pipe.closed
        """Set when nothing of the tunnel is in use any more."""

    @property
    def path_number(self) -> int:
        """The path of ours that carries it."""
        return self._tunnel.path_number

    @property
    def was_let_go(self) -> bool:
        """Whether the peer itself has closed the session, in order: no tunnel has failed."""
        return self._pipe.got_fin and self._channel.is_closed

    # --- handshake ------------------------------------------------------------------------------

    def hold_flight(self, wait: float = FLIGHT_WAIT) -> None:
        """Send what completes the TLS handshake, the caller's first act, together with the first
        bytes, or alone if there are none within ``wait`` seconds."""
        self._pipe.holds_flight = self._spawn(lambda: self._send_held(wait))

    def hold_answer(self) -> None:
        """Send what the tunnel owes together with the first bytes, or alone if there are none
        within ``ANSWER_WAIT``."""
        if not self._spawn(lambda: self._send_held(ANSWER_WAIT)):
            self._pipe.tear("nobody would send the answer")

    async def _send_held(self, wait: float) -> None:
        await trio.sleep(wait)
        try:
            owes = bool(self._tunnel.owed) or self._owes_secret or self._outcome is not None
            if self._pipe.holds_flight or owes:
                await self._write(self._encode_ahead)
        except StreamReset:
            if self._pipe.is_torn and not self.is_ending:
                self._tunnel.reset()  # whoever waits for bytes is told so

    async def wait_established(self, within: float) -> None:
        """Wait for what completes the TLS handshake; the callee's first act.

        :raises StreamReset: it didn't complete in time, or not with the right certificate.
        """
        with trio.move_on_after(within):
            while not self._channel.is_established:
                await self._load()
                try:
                    self._reader.fill()
                except PeerError as error:
                    raise self._pipe.tear("the caller failed the TLS handshake") from error
            return
        raise self._pipe.tear("the caller didn't complete the TLS handshake")

    def when_established(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` once the TLS handshake is complete, which the callee's :meth:`receive`
        then looks after: the session begins before."""
        self._on_established = tell

    # --- further connections --------------------------------------------------------------------

    def keep(self, on_rest: OnRest) -> None:
        """Don't let the tunnel end with this connection. Once that has ended both ways,
        ``on_rest`` gets what takes its place for the next one; if it ends otherwise, all ends."""
        self._on_rest = on_rest

    async def open_next(self, opening: Opening) -> Outcome:
        """Ask for the next connection; the caller's first act. Unless it is CONNECTED the session
        is idle again.

        :raises StreamReset: the session is over.
        """
        await self.send(FrameKind.OPEN, memoryview(opening.pack()))
        frame = await self._frame()
        try:
            if frame.kind is not FrameKind.OPENED:
                raise ProtocolViolation("no answer to an opening")
            outcome = parse_outcome(frame.payload)
            self._reader.rest()
        except PeerError as error:
            raise self._pipe.tear("the session broke") from error
        self.took_first = True
        self.is_idle = outcome is not Outcome.CONNECTED
        return outcome

    async def wait_next(self) -> Opening:
        """Wait until the next connection is asked for; the callee's first act. The first bytes are
        what :meth:`receive` then begins with.

        :raises StreamReset: the session is over.
        """
        frame = await self._frame()
        try:
            if frame.kind is not FrameKind.OPEN:
                raise ProtocolViolation("no connection is open")
            opening = Opening.unpack(bytes(frame.payload))
        except PeerError as error:
            raise self._pipe.tear("the session broke") from error
        self._first = opening.first
        return opening

    async def answer_next(self, outcome: Outcome) -> None:
        """Answer :meth:`wait_next`, with the service's first bytes if it has the caller's already.

        :raises StreamReset: the session is over, or the caller takes no answers.
        """
        self.is_idle = outcome is not Outcome.CONNECTED
        self._outcome = outcome
        if not self.is_idle and self._first:
            self.hold_answer()
            return
        self._first = b""
        with trio.move_on_after(ANSWER_TAKEN_WITHIN):
            await self._write(self._encode_ahead)
            return
        raise self._pipe.tear("the caller doesn't take its answer")

    # --- tickets --------------------------------------------------------------------------------

    def hand_out(self, make: MakeTicket) -> None:
        """Send what ``make`` gives with whatever is sent next; it isn't worth a message of its own.
        Nothing is made if nothing follows."""
        self._ticket = make

    def take_ticket(self, keep: Callable[[Ticket], None]) -> None:
        """Give ``keep`` the ticket that comes, one at most; another one breaks the session."""
        self._on_ticket = keep

    # --- sessions that survive ------------------------------------------------------------------

    def give_secret(self, secret: bytes) -> None:
        """The callee's: send ``secret`` with whatever is sent next, or alone if there is nothing
        within ``SECRET_WAIT``, so that the session can be resumed."""
        self.secret = secret
        self._owes_secret = self._spawn(lambda: self._send_held(SECRET_WAIT))

    def on_ack(self, confirm: Callable[[int], None]) -> None:
        """Tell ``confirm`` what has arrived at the peer, as soon as it says so."""
        self._on_ack = confirm

    async def send_ack(self, received: Callable[[], int]) -> None:
        """Say what has been ``received`` by the time it is said, unless END was sent.

        :raises StreamReset: as :meth:`send`.
        """

        def encode(view: memoryview, start: int) -> int:
            if self.sent_end:
                return start
            start = self._encode_waiting(view, start)
            payload = memoryview(received().to_bytes(ACK_LEN, "big"))
            return self._channel.encode(view, start, FrameKind.ACK, payload)

        await self._write(encode)

    @property
    def can_be_replaced(self) -> bool:
        """Whether the session may go on over another tunnel: this one has failed, not the peer."""
        return self.secret is not None and not (
            self._owes_secret or self.got_reset or self._is_refused
        )

    def continue_after(self, lost: SecureTunnel, *, knows_end: bool) -> None:
        """Go on where ``lost`` was given up; ``knows_end``: the peer has our END."""
        self.secret = lost.secret
        self.got_end = lost.got_end
        self.sent_end = knows_end
        self._is_resumed = True

    def abandon(self) -> None:
        """Tear the tunnel down now, without a word."""
        if not self.is_ending:
            self._be_ending()
            self._pipe.tear_down()

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
            await self._write(
                lambda view, start: encode(
                    view, self._encode_waiting(view, start), kind, data, along()
                )
            )
            return
        if self._has_waiting():
            await self._write(self._encode_ahead)  # there's no room for both
        await self._write(lambda view, start: encode(view, start, kind, data))

    async def send_messages(self, messages: list[bytes]) -> None:
        """Send several DATAGRAM frames at once, at most ``BATCH`` bytes with their headers.

        :raises StreamReset: as :meth:`send`.
        """
        encode = self._channel.encode_messages
        await self._write(lambda view, start: encode(view, start, messages))

    async def send_end(self) -> None:
        """Send END, and FIN unless the session is kept: nothing of this connection can follow. A
        program that resets afterwards costs the links.

        :raises StreamReset: as :meth:`send`.
        """
        if self.sent_end:
            return
        self.sent_end = True
        if self._on_rest is not None:
            await self.send(FrameKind.END)
            return
        await self._write(self._encode_last(FrameKind.END), fin=True)
        self._said_all = True

    def _has_waiting(self) -> bool:
        """Whether something waits to go with what is sent next."""
        channel = self._channel
        return (
            self._pipe.holds_flight
            or self._ticket is not None
            or self._owes_secret
            or self._outcome is not None
            or channel.is_past_early
            or bool(self._tunnel.owed)
        )

    def _encode_ahead(self, view: memoryview, start: int) -> int:
        """What waited for something to go with."""
        return self._channel.flush(view, self._encode_waiting(view, start))

    def _encode_waiting(self, view: memoryview, start: int) -> int:
        start = self._encode_outcome(view, start)
        make, self._ticket = self._ticket, None
        ticket = None if make is None else make()
        encode = self._channel.encode
        if ticket is not None:
            start = encode(view, start, FrameKind.TICKET, memoryview(ticket.pack()))
        if self._owes_secret and self.secret is not None:
            self._owes_secret = False
            start = encode(view, start, FrameKind.SECRET, memoryview(self.secret))
        return start

    def _encode_outcome(self, view: memoryview, start: int) -> int:
        outcome, self._outcome = self._outcome, None
        if outcome is None:
            return start
        return self._channel.encode(view, start, FrameKind.OPENED, memoryview(bytes((outcome,))))

    def _encode_last(self, last: FrameKind | None) -> Encode:
        """What comes before FIN."""
        channel = self._channel

        def encode(view: memoryview, start: int) -> int:
            if last is FrameKind.END:
                start = self._encode_waiting(view, start)
            elif last is FrameKind.RESET:
                start = self._encode_outcome(view, start)
            if last is not None:
                start = channel.encode(view, start, last, _NOTHING)
            if self.is_idle or (self.sent_end and self.got_end):
                start = channel.encode_close(view, start)
            return start

        return encode

    # --- in -------------------------------------------------------------------------------------

    async def receive(self) -> Frame:
        """Wait for the next frame. Its payload is valid until the next call. After END nothing
        more comes.

        :raises StreamReset: the peer reset the connection, or the tunnel died.
        """
        while True:
            frame = await self._frame()
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

    async def _frame(self) -> Frame:
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
        if self._first:
            first, self._first = self._first, b""
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
            raise self._pipe.tear("the stream broke") from error
        except PeerError as error:
            raise self._refused("the peer broke the protocol") from error
        if frame.kind is FrameKind.RESET:
            self.got_reset = self._pipe.is_stopped = True
            raise StreamReset("the far side reset the connection")
        self.got_end = frame.kind is FrameKind.END
        return frame

    def _take_ticket(self, packed: bytes) -> None:
        keep, self._on_ticket = self._on_ticket, None
        if keep is None or self.got_end:
            raise ProtocolViolation("a ticket that nobody expects")
        keep(Ticket.unpack(packed))

    def _take_secret(self, secret: bytes) -> None:
        if self.secret is not None or self.got_end:
            raise ProtocolViolation("a secret that nobody expects")
        if len(secret) != RESUME_SECRET_LEN:
            raise WireError("a secret of another length")
        self.secret = secret

    def _refused(self, reason: str) -> StreamReset:
        self._is_refused = True
        return self._pipe.tear(reason)

    def is_broken(self) -> bool:
        """Whether the tunnel died after the peer's END, when nobody reads any more."""
        return self._pipe.is_torn or self._tunnel.is_broken()

    # --- ending ---------------------------------------------------------------------------------

    def finish(self, last: FrameKind | None) -> None:
        """End the connection, with ``last`` as last word unless the peer has reset it anyway.
        Idempotent, never waits, never raises; :attr:`closed` tells when it is done."""
        if self.is_ending:
            return
        self._be_ending()
        if last is None and self._on_rest is not None and self._can_rest():
            self.closed.set()
            idle = SecureTunnel(self._channel, self._tunnel, self._spawn, self._reader)
            idle.secret, idle._owes_secret = self.secret, self._owes_secret
            self._on_rest(idle)
            return
        if not self._spawn(lambda: self._say_goodbye(last)):
            self._pipe.tear_down()

    def _be_ending(self) -> None:
        self.is_ending = True
        self._on_ack = None
        self._pipe.stop()

    def _can_rest(self) -> bool:
        return (
            self.sent_end
            and self.got_end
            and not (self._pipe.is_torn or self._pipe.got_fin or self._pipe.send_lock.locked())
        )

    async def _say_goodbye(self, last: FrameKind | None) -> None:
        try:
            survives = self.secret is not None
            within = LAST_WORD_OF_SURVIVOR_WITHIN if survives else LAST_WORD_WITHIN
            with trio.fail_after(within):
                async with self._pipe.send_lock:
                    await self._send_last(last)
            with trio.fail_after(CLOSE_IDLE_WITHIN if self.is_idle else CLOSE_WITHIN):
                async with self._pipe.receive_lock:
                    if not self._pipe.got_fin:
                        await _drain(self._tunnel)
            await self._tunnel.aclose()
        except (WorldError, PeerError, trio.TooSlowError):
            pass
        finally:
            self._pipe.tear_down()

    async def _send_last(self, last: FrameKind | None) -> None:
        if self._pipe.is_torn:
            raise StreamReset("nothing can be sent any more")
        if last is FrameKind.RESET and self.sent_end and not self.got_reset:
            raise StreamReset("the peer doesn't listen any more")
        if self._said_all:
            return
        if self.got_reset or (self._pipe.holds_flight and not self._is_resumed):
            # Without our flight the callee knows of no session. It must not get to know one that
            # ends at once: it would have the local service, and another attempt wouldn't.
            last = None
        self.sent_end = self.sent_end or last is FrameKind.END
        await self._pipe.write_locked(self._encode_last(last), fin=True)


async def release_unused(tunnel: Tunnel) -> None:
    """Let go of a tunnel that no data will follow on."""
    try:
        with trio.fail_after(CLOSE_WITHIN):
            await tunnel.send_fin()
            await _drain(tunnel)
        await tunnel.aclose()
    except (WorldError, PeerError, trio.TooSlowError):
        pass
    finally:
        tunnel.reset()


async def _drain(tunnel: Tunnel) -> None:
    """Throw away what is still on its way, up to the peer's FIN."""
    is_over = False
    while not is_over:
        buffer = await tunnel.receive_pooled()
        is_over = not buffer.segments
        POOL.give_back(buffer)
