"""What the two ends of a connection say to each other (docs/spec/session.md).

*Request body*, ``REQUEST_BODY_LEN`` bytes, followed by the caller's 64-byte signature:

======= ============================================================================
bytes   field
======= ============================================================================
1       version
1       protocol: 6 TCP, 17 UDP, 1 ECHO
1       ephemeral: 1 if the caller's key was made for this connection, else 0
1       keep: 1 if the session may serve further connections, else 0
1       resumes: 1 if the caller goes on over another tunnel when this one dies, else 0
4       epoch: 0 for a new session, higher for each time it is resumed
16      session id
8       time in seconds, a multiple of ``TIME_STEP``
32      nonce, which is also the caller's random
32      stream secret
16, 2   destination AP address (IPv4 mapped), port
4, 2    the AP4 the caller claims (0.0.0.0: none), source port
32      the caller's AP public key
16      ticket (zero bytes: none)
2, 2, 2 lengths of the next three
…       certificate (DER), TLS ClientHello, locked early data (a resumed session: a
        :class:`Resumption`), zero bytes
======= ============================================================================

*Answer body*, ``ANSWER_BODY_LEN`` bytes: version u8 ‖ outcome u8 ‖ took early u8 ‖
callee random (32) ‖ received u64 ‖ flight length u16 ‖ TLS flight ‖ zero bytes.

*Frames* inside TLS: kind u8 ‖ length u24 ‖ payload.

*Opening*, ``OPENING_LEN`` bytes, asks for a further connection within a session: session id (16) ‖
time u64 ‖ destination (16) ‖ port u16 ‖ source port u16 ‖ length u16 of the first bytes ‖
first bytes ‖ zero bytes.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, field
from enum import IntEnum

from phantom_tun.errors import WireError
from phantom_tun.ids import ApAddress, PublicKey
from phantom_tun.wire.sizes import ANSWER_LEN, SEALED_REQUEST_LEN

VERSION = 1

RANDOM_LEN = 32
SECRET_LEN = 32
SESSION_ID_LEN = 16

TIME_STEP = 15
"""Times are rounded down to this many seconds: a request shall not show how the clock is off."""

_SEAL_OVERHEAD = 1136
_SIGNATURE_LEN = 64
REQUEST_BODY_LEN = SEALED_REQUEST_LEN - _SEAL_OVERHEAD - _SIGNATURE_LEN
_TAG_LEN = 16
ANSWER_BODY_LEN = ANSWER_LEN - _TAG_LEN

MAX_CERTIFICATE = 1024
MAX_EARLY = 2008
"""Bytes of the stream that a request can take along: a web browser's ClientHello, or the head of
its request."""

TICKET_ID_LEN = 16
TICKET_SECRET_LEN = 32
TICKET_LEN = TICKET_ID_LEN + TICKET_SECRET_LEN
NO_TICKET = bytes(TICKET_ID_LEN)

PROOF_LEN = 32
_RESUMPTION = struct.Struct(f">{PROOF_LEN}sQ")
RESUMPTION_LEN = _RESUMPTION.size

RESUME_SECRET_LEN = 32

_REQUEST = struct.Struct(">BBBBBI16sQ32s32s16sH4sH32s16sHHH")
MAX_CLIENT_HELLO = REQUEST_BODY_LEN - _REQUEST.size - MAX_CERTIFICATE - MAX_EARLY - _TAG_LEN
"""Room for the ClientHello beside the longest of everything else; OpenSSL 3.5 with ML-KEM needs
1,500."""

_ANSWER = struct.Struct(">BBB32sQH")
MAX_FLIGHT = ANSWER_BODY_LEN - _ANSWER.size

_OPENING = struct.Struct(">16sQ16sHHH")
OPENING_LEN = _OPENING.size + MAX_EARLY
"""As long whatever it says and takes along."""

_NO_AP4 = ipaddress.IPv4Address(0)


class Protocol(IntEnum):
    """What is to be carried; IANA's numbers."""

    ECHO = 1
    TCP = 6
    UDP = 17


class Outcome(IntEnum):
    """How a request ended at the callee."""

    CONNECTED = 0
    REFUSED = 1
    """The port is exposed, but nothing listens there."""
    FILTERED = 2
    """The port is not exposed, or not to this caller."""
    UNREACHABLE = 3
    """The callee's machine can't serve it at the moment."""
    GONE = 4
    """There is no such session to be resumed, or not by this caller, or not from there."""


@dataclass(frozen=True, slots=True)
class Request:
    """A connection request as the caller signs it."""

    protocol: Protocol
    destination: ApAddress
    port: int
    """0 for ECHO, else 1 to 65535."""
    caller: PublicKey
    certificate: bytes
    """The caller's end-to-end certificate, DER."""
    client_hello: bytes = field(repr=False)
    time: int
    """Seconds since the epoch, a multiple of :data:`TIME_STEP`."""
    nonce: bytes
    """32 bytes, never used again; also the caller's random of the key schedule."""
    secret: bytes = field(repr=False)
    """32 bytes: everything after the request is under keys derived from it."""
    session_id: bytes
    """16 bytes."""
    epoch: int = 0
    """0 for a new session; higher for each time it is resumed."""
    source_ap4: ipaddress.IPv4Address | None = None
    """The AP4 the caller says it leases. Its AP6 follows from its key."""
    source_port: int = 0
    """As :attr:`port`."""
    ephemeral: bool = False
    """The key was made for this connection: nobody can be reached under it."""
    keep: bool = False
    """After this connection the session is to be kept for further ones."""
    resumes: bool = False
    """The caller goes on over another tunnel when this one dies, if the session allows it."""
    ticket: bytes = NO_TICKET
    """Number of a ticket that the callee handed out in an earlier session."""
    early: bytes = field(default=b"", repr=False)
    """With a ticket: first bytes of the stream, perhaps none, locked under its secret. If this
    resumes a session: a :class:`Resumption`, packed."""

    @property
    def has_first(self) -> bool:
        """Whether there are any: their length shows without the secret."""
        return not self.epoch and len(self.early) > _TAG_LEN

    def pack(self) -> bytes:
        """Always ``REQUEST_BODY_LEN`` bytes.

        :raises WireError: the certificate, the ClientHello or the early data are too long.
        """
        _check_lengths(len(self.certificate), len(self.client_hello), len(self.early))
        head = _REQUEST.pack(
            VERSION,
            self.protocol,
            self.ephemeral,
            self.keep,
            self.resumes,
            self.epoch,
            self.session_id,
            self.time,
            self.nonce,
            self.secret,
            _mapped(self.destination),
            self.port,
            (self.source_ap4 or _NO_AP4).packed,
            self.source_port,
            self.caller,
            self.ticket,
            len(self.certificate),
            len(self.client_hello),
            len(self.early),
        )
        body = head + self.certificate + self.client_hello + self.early
        return body.ljust(REQUEST_BODY_LEN, b"\0")

    @classmethod
    def unpack(cls, data: bytes) -> Request:
        """Undo :meth:`pack`.

        :raises WireError: not the one encoding of a valid request.
        """
        if len(data) != REQUEST_BODY_LEN:
            raise WireError("a request has a fixed length")
        (
            version,
            protocol,
            ephemeral,
            keep,
            resumes,
            epoch,
            session_id,
            time,
            nonce,
            secret,
            destination,
            port,
            source_ap4,
            source_port,
            caller,
            ticket,
            certificate_len,
            hello_len,
            early_len,
        ) = _REQUEST.unpack_from(data)
        if version != VERSION:
            raise WireError("unknown version of a request")
        if protocol not in Protocol.__members__.values() or max(ephemeral, keep, resumes) > 1:
            raise WireError("a request field has no valid value")
        if time % TIME_STEP:
            raise WireError("the time of a request isn't rounded")
        if {port == 0, source_port == 0} != {protocol == Protocol.ECHO}:
            raise WireError("a port doesn't go with the protocol")
        if epoch:
            if early_len != RESUMPTION_LEN or ticket != NO_TICKET or keep or not resumes:
                raise WireError("a session isn't resumed like that")
        elif (ticket == NO_TICKET) != (early_len == 0) or 0 < early_len < _TAG_LEN:
            raise WireError("early data doesn't go with the ticket")
        if resumes and protocol != Protocol.TCP:
            raise WireError("only streams are resumed")
        if (ticket != NO_TICKET or keep) and (protocol != Protocol.TCP or ephemeral):
            raise WireError("a ticket or a kept session doesn't go with this kind of request")
        _check_lengths(certificate_len, hello_len, early_len)
        hello_at = _REQUEST.size + certificate_len
        early_at = hello_at + hello_len
        end = early_at + early_len
        if any(data[end:]):
            raise WireError("lengths and padding of a request don't fit")
        claimed = ipaddress.IPv4Address(source_ap4)
        return cls(
            protocol=Protocol(protocol),
            destination=_unmapped(destination),
            port=port,
            caller=PublicKey(caller),
            certificate=data[_REQUEST.size : hello_at],
            client_hello=data[hello_at:early_at],
            time=time,
            nonce=nonce,
            secret=secret,
            session_id=session_id,
            epoch=epoch,
            source_ap4=None if claimed == _NO_AP4 else claimed,
            source_port=source_port,
            ephemeral=bool(ephemeral),
            keep=bool(keep),
            resumes=bool(resumes),
            ticket=ticket,
            early=data[early_at:end],
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What the callee says to a request."""

    outcome: Outcome
    callee_random: bytes
    """32 bytes, random whatever the outcome."""
    flight: bytes = field(default=b"", repr=False)
    """The TLS server's first flight; empty unless connected."""
    took_early: bool = False
    """The service has the early data, and what it says before TLS stands comes in early records."""
    received: int = 0
    """Of a session that is resumed: the callee's :attr:`Resumption.received`."""

    def pack(self) -> bytes:
        """Always ``ANSWER_BODY_LEN`` bytes.

        :raises WireError: the flight is too long.
        """
        if len(self.flight) > MAX_FLIGHT:
            raise WireError("TLS flight is too long for an answer")
        head = _ANSWER.pack(
            VERSION,
            self.outcome,
            self.took_early,
            self.callee_random,
            self.received,
            len(self.flight),
        )
        return (head + self.flight).ljust(ANSWER_BODY_LEN, b"\0")

    @classmethod
    def unpack(cls, data: bytes) -> Answer:
        """Undo :meth:`pack`.

        :raises WireError: not the one encoding of a valid answer.
        """
        if len(data) != ANSWER_BODY_LEN:
            raise WireError("an answer has a fixed length")
        version, outcome, took_early, callee_random, received, flight_len = _ANSWER.unpack_from(
            data
        )
        if version != VERSION:
            raise WireError("unknown version of an answer")
        if outcome not in Outcome.__members__.values():
            raise WireError("unknown outcome")
        if took_early > (outcome == Outcome.CONNECTED):
            raise WireError("early data can only be taken by who is connected")
        if received and (outcome != Outcome.CONNECTED or took_early):
            raise WireError("only a session that is resumed goes on somewhere")
        end = _ANSWER.size + flight_len
        if flight_len > MAX_FLIGHT or any(data[end:]):
            raise WireError("flight and padding of an answer don't fit")
        if bool(flight_len) != (outcome == Outcome.CONNECTED):
            raise WireError("a flight doesn't go with the outcome")
        flight = data[_ANSWER.size : end]
        return cls(Outcome(outcome), callee_random, flight, bool(took_early), received)


@dataclass(frozen=True, slots=True)
class Resumption:
    """What a request says that resumes a session."""

    proof: bytes
    """``PROOF_LEN`` bytes: that the caller knows the session's secret, for this request only."""
    received: int
    """What has arrived: bytes of the stream, and one more for END."""

    def pack(self) -> bytes:
        """``RESUMPTION_LEN`` bytes."""
        return _RESUMPTION.pack(self.proof, self.received)

    @classmethod
    def unpack(cls, data: bytes) -> Resumption:
        """Undo :meth:`pack`.

        :raises WireError: wrong length.
        """
        if len(data) != RESUMPTION_LEN:
            raise WireError("not a resumption")
        return cls(*_RESUMPTION.unpack(data))


@dataclass(frozen=True, slots=True)
class Ticket:
    """What lets a caller's next requests take bytes along: it is handed out inside a session."""

    number: bytes
    """16 random bytes, not all zero."""
    secret: bytes = field(repr=False)
    """32 random bytes."""

    def pack(self) -> bytes:
        """``TICKET_LEN`` bytes."""
        return self.number + self.secret

    @classmethod
    def unpack(cls, data: bytes) -> Ticket:
        """Undo :meth:`pack`.

        :raises WireError: wrong length, or the number that stands for none.
        """
        if len(data) != TICKET_LEN or data.startswith(NO_TICKET):
            raise WireError("not a ticket")
        return cls(data[:TICKET_ID_LEN], data[TICKET_ID_LEN:])


@dataclass(frozen=True, slots=True)
class Opening:
    """A caller's wish for a further connection within a session that stands; always TCP."""

    session_id: bytes
    """16 bytes: of this connection, not of the one that the session began with."""
    time: int
    """As :attr:`Request.time`."""
    destination: ApAddress
    port: int
    source_port: int
    first: bytes = field(default=b"", repr=False)
    """First bytes of the stream, at most ``MAX_EARLY``, perhaps none."""

    def pack(self) -> bytes:
        """Always ``OPENING_LEN`` bytes.

        :raises WireError: the first bytes are too long.
        """
        if len(self.first) > MAX_EARLY:
            raise WireError("first bytes are too long for an opening")
        head = _OPENING.pack(
            self.session_id,
            self.time,
            _mapped(self.destination),
            self.port,
            self.source_port,
            len(self.first),
        )
        return (head + self.first).ljust(OPENING_LEN, b"\0")

    @classmethod
    def unpack(cls, data: bytes) -> Opening:
        """Undo :meth:`pack`.

        :raises WireError: not the one encoding of a valid opening.
        """
        if len(data) != OPENING_LEN:
            raise WireError("an opening has a fixed length")
        session_id, time, destination, port, source_port, length = _OPENING.unpack_from(data)
        end = _OPENING.size + length
        if length > MAX_EARLY or any(data[end:]):
            raise WireError("length and padding of an opening don't fit")
        if time % TIME_STEP or not (port and source_port):
            raise WireError("an opening field has no valid value")
        return cls(
            session_id,
            time,
            _unmapped(destination),
            port,
            source_port,
            data[_OPENING.size : end],
        )


# --- frames inside TLS ---------------------------------------------------------------------------

FRAME_HEADER_LEN = 4

MAX_DATA = 130_884
"""Payload bytes of the longest DATA frame that is sent: with its header in eight TLS records it
just fits into one frame of a link."""

MAX_DATAGRAM = 65_507
"""Bytes of the longest UDP payload over IPv4."""


ACK_LEN = 8


class FrameKind(IntEnum):
    """Kinds of frames."""

    DATA = 1
    """Bytes of the stream, at least one."""
    END = 2
    """No more will be sent this way (TCP's FIN). Empty."""
    RESET = 3
    """The connection was aborted (TCP's RST). Empty; nothing follows."""
    DATAGRAM = 4
    """One whole UDP datagram or echo message, possibly empty."""
    TICKET = 5
    """From the callee: a :class:`Ticket`."""
    OPEN = 6
    """From the caller, in a kept session when a connection has ended: an :class:`Opening`."""
    OPENED = 7
    """From the callee, after OPEN: an :class:`Outcome`, one byte."""
    SECRET = 8
    """From the callee, once in a session: ``RESUME_SECRET_LEN`` bytes, with which the caller can
    resume it."""
    ACK = 9
    """u64: so many bytes of the stream have arrived in all, and one more for END."""


_LONGEST = {
    FrameKind.DATA: MAX_DATA,
    FrameKind.END: 0,
    FrameKind.RESET: 0,
    FrameKind.DATAGRAM: MAX_DATAGRAM,
    FrameKind.TICKET: TICKET_LEN,
    FrameKind.OPEN: OPENING_LEN,
    FrameKind.OPENED: 1,
    FrameKind.SECRET: RESUME_SECRET_LEN,
    FrameKind.ACK: ACK_LEN,
}


def parse_outcome(payload: bytes | memoryview) -> Outcome:
    """What an OPENED frame says.

    :raises WireError: nothing known.
    """
    if len(payload) != 1 or payload[0] not in Outcome.__members__.values():
        raise WireError("unknown outcome")
    return Outcome(payload[0])


def pack_ack(received: int) -> bytes:
    """A whole ACK frame."""
    return frame_header(FrameKind.ACK, ACK_LEN) + received.to_bytes(ACK_LEN, "big")


def parse_ack(payload: bytes | memoryview) -> int:
    """What an ACK frame says.

    :raises WireError: wrong length.
    """
    if len(payload) != ACK_LEN:
        raise WireError("not an acknowledgement")
    return int.from_bytes(payload, "big")


def frame_header(kind: FrameKind, length: int) -> bytes:
    """The four bytes before a payload of ``length`` bytes."""
    return (kind << 24 | length).to_bytes(4, "big")


def parse_frame_header(header: bytes | memoryview) -> tuple[FrameKind, int]:
    """Kind and payload length.

    :raises WireError: unknown kind, or a length the kind can't have.
    """
    number, length = header[0], int.from_bytes(header[1:4], "big")
    try:
        kind = FrameKind(number)
    except ValueError as error:
        raise WireError("unknown kind of frame") from error
    if length > _LONGEST[kind] or (kind is FrameKind.DATA and not length):
        raise WireError("a frame has an impossible length")
    return kind, length


def _check_lengths(certificate: int, hello: int, early: int) -> None:
    """All three together fit then, too."""
    if certificate > MAX_CERTIFICATE or hello > MAX_CLIENT_HELLO or early > MAX_EARLY + _TAG_LEN:
        raise WireError("certificate, ClientHello or early data are too long for a request")


def _mapped(address: ApAddress) -> bytes:
    if address.version == 4:
        return b"\0" * 10 + b"\xff\xff" + address.packed
    return address.packed


def _unmapped(packed: bytes) -> ApAddress:
    address = ipaddress.IPv6Address(packed)
    return address.ipv4_mapped or address
