"""What waits to go along with what is sent next: it isn't worth a message of its own at every hop,
or not yet."""

from __future__ import annotations

from collections.abc import Callable

from phantom_tun.net.sessions.pipe import Pipe
from phantom_tun.wire.session import FrameKind, Outcome, Ticket

MakeTicket = Callable[[], Ticket | None]


class Ahead:
    """All of one connection, in the order in which it goes. Before it, with whatever is written,
    goes what the tunnel owes and what completes the TLS handshake."""

    __slots__ = ("_pipe", "_ticket", "outcome", "secret")

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self.outcome: Outcome | None = None
        """What OPENED is still to say."""
        self._ticket: MakeTicket | None = None
        self.secret: bytes | None = None
        """For resuming the session, until it is said."""

    def hand_out(self, make: MakeTicket) -> None:
        """Send the ticket that ``make`` gives, if any. Nothing is made if nothing follows."""
        self._ticket = make

    def is_due(self) -> bool:
        """Whether something waits that goes alone if nothing else is sent for a while."""
        pipe = self._pipe
        owes = bool(pipe.tunnel.owed) or self.secret is not None or self.outcome is not None
        return owes or pipe.holds_flight

    def has_any(self) -> bool:
        """Whether anything waits."""
        pipe = self._pipe
        return (
            pipe.holds_flight
            or self._ticket is not None
            or self.secret is not None
            or self.outcome is not None
            or pipe.channel.is_past_early
            or pipe.tunnel.owed != b""
        )

    def flush(self, view: memoryview, start: int) -> int:
        """Write it, and what TLS has to say, to ``view[start:]``; returns the end."""
        return self._pipe.channel.flush(view, self.encode(view, start))

    def encode(self, view: memoryview, start: int) -> int:
        """Write it to ``view[start:]``, where what it goes along with follows; returns the end."""
        if self.outcome is not None:
            start = self.encode_outcome(view, start)
        if self._ticket is not None:
            make, self._ticket = self._ticket, None
            ticket = make()
            if ticket is not None:
                start = self._encode(view, start, FrameKind.TICKET, ticket.pack())
        if self.secret is not None:
            secret, self.secret = self.secret, None
            start = self._encode(view, start, FrameKind.SECRET, secret)
        return start

    def encode_outcome(self, view: memoryview, start: int) -> int:
        """The same with what OPENED says only."""
        outcome, self.outcome = self.outcome, None
        if outcome is None:
            return start
        return self._encode(view, start, FrameKind.OPENED, bytes((outcome,)))

    def _encode(self, view: memoryview, start: int, kind: FrameKind, payload: bytes) -> int:
        return self._pipe.channel.encode(view, start, kind, memoryview(payload))
