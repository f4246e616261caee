"""Request and answer bodies, frame headers: one encoding each, fixed lengths, every refusal."""

from __future__ import annotations

import dataclasses
import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_tun.crypto.certificates import MAX_CERTIFICATE_LEN
from phantom_tun.crypto.packages import TAG_LEN
from phantom_tun.crypto.sealing import SEAL_OVERHEAD
from phantom_tun.crypto.signing import SIGNATURE_LEN
from phantom_tun.endpoints import MAX_FIRST, STREAM_PIECE
from phantom_tun.errors import WireError
from phantom_tun.ids import PublicKey
from phantom_tun.wire.session import (
    ANSWER_BODY_LEN,
    MAX_CERTIFICATE,
    MAX_CLIENT_HELLO,
    MAX_DATA,
    MAX_DATAGRAM,
    MAX_EARLY,
    MAX_FLIGHT,
    NO_TICKET,
    OPENING_LEN,
    REQUEST_BODY_LEN,
    TICKET_ID_LEN,
    TICKET_LEN,
    TIME_STEP,
    Answer,
    FrameKind,
    Opening,
    Outcome,
    Protocol,
    Request,
    Resumption,
    Ticket,
    frame_header,
    pack_ack,
    parse_ack,
    parse_frame_header,
    parse_outcome,
)
from phantom_tun.wire.sizes import ANSWER_LEN, SEALED_REQUEST_LEN

REQUEST = Request(
    protocol=Protocol.TCP,
    destination=ipaddress.IPv4Address("241.2.3.4"),
    port=443,
    caller=PublicKey(b"k" * 32),
    certificate=b"certificate",
    client_hello=b"hello",
    time=1_800_000_000,
    nonce=b"n" * 32,
    secret=b"s" * 32,
    session_id=b"i" * 16,
    source_ap4=ipaddress.IPv4Address("250.0.0.1"),
    source_port=50_000,
)

randoms = st.binary(min_size=32, max_size=32)
tickets = st.binary(min_size=TICKET_ID_LEN, max_size=TICKET_ID_LEN).filter(any)
ports = st.integers(1, 65_535)
addresses = st.ip_addresses(v=4) | st.ip_addresses(v=6).filter(lambda a: a.ipv4_mapped is None)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    protocol = draw(st.sampled_from(Protocol))
    is_echo = protocol is Protocol.ECHO
    is_ephemeral = draw(st.booleans())
    is_tcp = protocol is Protocol.TCP
    epoch = draw(st.integers(0, 2**32 - 1)) if is_tcp and draw(st.booleans()) else 0
    has_ticket = is_tcp and not (is_ephemeral or epoch) and draw(st.booleans())
    early = b""
    if has_ticket:
        early = draw(st.binary(min_size=TAG_LEN, max_size=MAX_EARLY + TAG_LEN))
    elif epoch:
        early = Resumption(draw(randoms), draw(st.integers(0, 2**64 - 1))).pack()
    claimed = draw(st.none() | st.ip_addresses(v=4).filter(int))
    return Request(
        protocol=protocol,
        destination=draw(addresses),
        port=0 if is_echo else draw(ports),
        caller=PublicKey(draw(randoms)),
        certificate=draw(st.binary(max_size=MAX_CERTIFICATE)),
        client_hello=draw(st.binary(max_size=MAX_CLIENT_HELLO)),
        time=draw(st.integers(0, 2**60)) // TIME_STEP * TIME_STEP,
        nonce=draw(randoms),
        secret=draw(randoms),
        session_id=draw(st.binary(min_size=16, max_size=16)),
        epoch=epoch,
        source_ap4=claimed,
        source_port=0 if is_echo else draw(ports),
        ephemeral=is_ephemeral,
        keep=is_tcp and not (is_ephemeral or epoch) and draw(st.booleans()),
        resumes=is_tcp and (epoch > 0 or draw(st.booleans())),
        ticket=draw(tickets) if has_ticket else NO_TICKET,
        early=early,
    )


def test_the_sizes_fit_what_goes_around_them() -> None:
    assert REQUEST_BODY_LEN + SIGNATURE_LEN + SEAL_OVERHEAD == SEALED_REQUEST_LEN
    assert ANSWER_BODY_LEN + TAG_LEN == ANSWER_LEN
    assert MAX_CERTIFICATE == MAX_CERTIFICATE_LEN
    assert MAX_DATA - 64 < STREAM_PIECE <= MAX_DATA
    assert MAX_CLIENT_HELLO > 1600, "no room for a post-quantum key share"
    assert MAX_FIRST == MAX_EARLY


@given(requests())
def test_a_request_has_one_length_and_survives(request_: Request) -> None:
    packed = request_.pack()
    assert len(packed) == REQUEST_BODY_LEN
    assert Request.unpack(packed) == request_


@given(requests(), st.integers(0, REQUEST_BODY_LEN - 1), st.integers(1, 255))
def test_an_altered_request_is_another_one_or_refused(
    request_: Request, position: int, change: int
) -> None:
    packed = bytearray(request_.pack())
    packed[position] ^= change
    try:
        other = Request.unpack(bytes(packed))
    except WireError:
        return
    assert other != request_
    assert other.pack() == packed, "two encodings of one request"


@given(st.binary(max_size=64) | st.binary(min_size=REQUEST_BODY_LEN, max_size=REQUEST_BODY_LEN))
def test_noise_is_no_request(data: bytes) -> None:
    try:
        found = Request.unpack(data)
    except WireError:
        return
    assert found.pack() == data


@pytest.mark.parametrize("length", [0, REQUEST_BODY_LEN - 1, REQUEST_BODY_LEN + 1])
def test_a_request_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(WireError, match="fixed length"):
        Request.unpack(REQUEST.pack()[:length].ljust(length, b"\0"))


@pytest.mark.parametrize(
    ("offset", "value", "complaint"),
    [
        (0, b"\2", "version"),
        (1, b"\2", "no valid value"),
        (2, b"\2", "no valid value"),
        (3, b"\2", "no valid value"),
        (4, b"\2", "no valid value"),
        (8, b"\1", "isn't resumed like that"),
        (32, b"\1", "rounded"),
        (113, b"\0\0", "port"),
        (119, b"\0\0", "port"),
        (153, b"\1", "early data doesn't go"),
        (169, struct.pack(">H", MAX_CERTIFICATE + 1), "too long"),
        (171, struct.pack(">H", MAX_CLIENT_HELLO + 1), "too long"),
        (171, b"\0\4", "padding"),
        (173, b"\0\1", "early data doesn't go"),
        (REQUEST_BODY_LEN - 1, b"\1", "padding"),
    ],
)
def test_every_field_of_a_request_is_checked(offset: int, value: bytes, complaint: str) -> None:
    packed = bytearray(REQUEST.pack())
    packed[offset : offset + len(value)] = value
    with pytest.raises(WireError, match=complaint):
        Request.unpack(bytes(packed))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"ephemeral": True}, "this kind of request"),
        ({"protocol": Protocol.UDP}, "this kind of request"),
        ({"early": bytes(TAG_LEN - 1)}, "early data doesn't go"),
        ({"early": b""}, "early data doesn't go"),
        ({"ticket": NO_TICKET}, "early data doesn't go"),
    ],
)
def test_early_data_go_with_a_ticket_of_a_known_caller(
    changes: dict[str, object], complaint: str
) -> None:
    early = dataclasses.replace(REQUEST, ticket=b"t" * TICKET_ID_LEN, early=bytes(TAG_LEN))
    assert Request.unpack(early.pack()) == early
    with pytest.raises(WireError, match=complaint):
        Request.unpack(dataclasses.replace(early, **changes).pack())  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"ephemeral": True}, {"protocol": Protocol.UDP}])
def test_sessions_of_known_callers_are_kept(changes: dict[str, object]) -> None:
    kept = dataclasses.replace(REQUEST, keep=True)
    assert Request.unpack(kept.pack()).keep
    with pytest.raises(WireError, match="this kind of request"):
        Request.unpack(dataclasses.replace(kept, **changes).pack())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": 0},
        {"resumes": False},
        {"keep": True},
        {"protocol": Protocol.UDP},
        {"ticket": b"t" * TICKET_ID_LEN},
        {"early": bytes(39)},
        {"early": bytes(41)},
        {"early": b""},
    ],
)
def test_a_session_is_resumed_in_one_way_only(changes: dict[str, object]) -> None:
    resumption = Resumption(b"p" * 32, 2**40)
    resumed = dataclasses.replace(REQUEST, epoch=1, resumes=True, early=resumption.pack())
    again = Request.unpack(resumed.pack())
    assert again == resumed
    assert not again.has_first
    assert Resumption.unpack(again.early) == resumption
    with pytest.raises(WireError):
        Request.unpack(dataclasses.replace(resumed, **changes).pack())  # type: ignore[arg-type]


def test_only_streams_survive() -> None:
    with pytest.raises(WireError, match="only streams"):
        Request.unpack(dataclasses.replace(REQUEST, protocol=Protocol.UDP, resumes=True).pack())


@pytest.mark.parametrize("length", [0, 39, 41])
def test_a_resumption_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(WireError):
        Resumption.unpack(bytes(length))


# --- openings ------------------------------------------------------------------------------------

OPENING = Opening(b"i" * 16, 1_800_000_000, ipaddress.IPv4Address("241.2.3.4"), 443, 50_000, b"GET")


@given(
    st.builds(
        Opening,
        session_id=st.binary(min_size=16, max_size=16),
        time=st.integers(0, 2**60).map(lambda time: time // TIME_STEP * TIME_STEP),
        destination=addresses,
        port=ports,
        source_port=ports,
        first=st.binary(max_size=MAX_EARLY),
    )
)
def test_an_opening_has_one_length_and_survives(opening: Opening) -> None:
    packed = opening.pack()
    assert len(packed) == OPENING_LEN
    assert Opening.unpack(packed) == opening


@given(st.integers(0, OPENING_LEN - 1), st.integers(1, 255))
def test_an_altered_opening_is_another_one_or_refused(position: int, change: int) -> None:
    packed = bytearray(OPENING.pack())
    packed[position] ^= change
    try:
        other = Opening.unpack(bytes(packed))
    except WireError:
        return
    assert other != OPENING
    assert other.pack() == packed, "two encodings of one opening"


@pytest.mark.parametrize(
    ("offset", "value", "complaint"),
    [
        (23, b"\1", "no valid value"),
        (40, b"\0\0", "no valid value"),
        (42, b"\0\0", "no valid value"),
        (44, b"\0\2", "padding"),
        (44, struct.pack(">H", MAX_EARLY + 1), "padding"),
        (OPENING_LEN - 1, b"\1", "padding"),
    ],
)
def test_every_field_of_an_opening_is_checked(offset: int, value: bytes, complaint: str) -> None:
    packed = bytearray(OPENING.pack())
    packed[offset : offset + len(value)] = value
    with pytest.raises(WireError, match=complaint):
        Opening.unpack(bytes(packed))


@pytest.mark.parametrize("length", [0, OPENING_LEN - 1, OPENING_LEN + 1])
def test_an_opening_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(WireError, match="fixed length"):
        Opening.unpack(OPENING.pack()[:length].ljust(length, b"\0"))


def test_an_opening_that_is_too_long_is_not_packed() -> None:
    with pytest.raises(WireError, match="too long"):
        dataclasses.replace(OPENING, first=bytes(MAX_EARLY + 1)).pack()


@pytest.mark.parametrize("payload", [b"", b"\5", b"\0\0"])
def test_what_answers_an_opening_is_an_outcome(payload: bytes) -> None:
    assert parse_outcome(b"\1") is Outcome.REFUSED
    with pytest.raises(WireError, match="outcome"):
        parse_outcome(payload)


def test_a_ping_has_no_ports() -> None:
    for changes in ({"port": 0}, {"source_port": 0}, {"protocol": Protocol.ECHO}):
        with pytest.raises(WireError, match="port"):
            Request.unpack(dataclasses.replace(REQUEST, **changes).pack())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"certificate": bytes(MAX_CERTIFICATE + 1)},
        {"client_hello": bytes(MAX_CLIENT_HELLO + 1)},
        {"early": bytes(MAX_EARLY + TAG_LEN + 1)},
    ],
)
def test_a_request_that_is_too_long_is_not_packed(changes: dict[str, bytes]) -> None:
    with pytest.raises(WireError, match="too long"):
        dataclasses.replace(REQUEST, **changes).pack()  # type: ignore[arg-type]


def test_secrets_are_not_shown() -> None:
    shown = repr(REQUEST)
    assert "s" * 32 not in shown
    assert "secret" not in shown


# --- answers -------------------------------------------------------------------------------------


@given(
    st.sampled_from(Outcome),
    randoms,
    st.binary(min_size=1, max_size=MAX_FLIGHT),
    st.booleans(),
    st.integers(0, 2**64 - 1),
)
def test_an_answer_has_one_length_and_survives(
    outcome: Outcome, random: bytes, flight: bytes, took_early: bool, received: int
) -> None:
    is_connected = outcome is Outcome.CONNECTED
    answer = Answer(
        outcome,
        random,
        flight * is_connected,
        took_early and is_connected,
        received * (is_connected and not took_early),
    )
    assert len(answer.pack()) == ANSWER_BODY_LEN
    assert Answer.unpack(answer.pack()) == answer


@pytest.mark.parametrize(
    ("offset", "value", "complaint"),
    [
        (0, b"\2", "version"),
        (1, b"\5", "outcome"),
        (1, b"\1", "flight doesn't go"),
        (2, b"\2", "early data"),
        (1, b"\1\1", "early data"),
        (2, b"\1" + b"r" * 32 + b"\1", "resumed"),
        (43, b"\0\0", "padding"),
        (43, struct.pack(">H", MAX_FLIGHT + 1), "padding"),
        (ANSWER_BODY_LEN - 1, b"\1", "padding"),
    ],
)
def test_every_field_of_an_answer_is_checked(offset: int, value: bytes, complaint: str) -> None:
    packed = bytearray(Answer(Outcome.CONNECTED, b"r" * 32, b"flight").pack())
    packed[offset : offset + len(value)] = value
    with pytest.raises(WireError, match=complaint):
        Answer.unpack(bytes(packed))


def test_connected_needs_a_flight() -> None:
    with pytest.raises(WireError, match="flight doesn't go"):
        Answer.unpack(Answer(Outcome.CONNECTED, b"r" * 32).pack())


def test_an_answer_that_is_too_long_is_not_packed() -> None:
    with pytest.raises(WireError, match="too long"):
        Answer(Outcome.CONNECTED, b"r" * 32, bytes(MAX_FLIGHT + 1)).pack()


@pytest.mark.parametrize("length", [0, ANSWER_BODY_LEN - 1, ANSWER_BODY_LEN + 1])
def test_an_answer_of_another_length_is_refused(length: int) -> None:
    packed = Answer(Outcome.REFUSED, b"r" * 32).pack()
    with pytest.raises(WireError, match="fixed length"):
        Answer.unpack(packed[:length].ljust(length, b"\0"))


# --- frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        (FrameKind.DATA, 1),
        (FrameKind.DATA, MAX_DATA),
        (FrameKind.END, 0),
        (FrameKind.RESET, 0),
        (FrameKind.DATAGRAM, 0),
        (FrameKind.DATAGRAM, MAX_DATAGRAM),
        (FrameKind.TICKET, TICKET_LEN),
    ],
)
def test_frame_headers_survive(kind: FrameKind, length: int) -> None:
    assert parse_frame_header(frame_header(kind, length)) == (kind, length)


@pytest.mark.parametrize(
    "header",
    [
        bytes(4),
        b"\12\0\0\0",
        frame_header(FrameKind.SECRET, 33),
        frame_header(FrameKind.ACK, 9),
        frame_header(FrameKind.OPEN, OPENING_LEN + 1),
        frame_header(FrameKind.OPENED, 2),
        frame_header(FrameKind.TICKET, TICKET_LEN + 1),
        frame_header(FrameKind.DATA, 0),
        frame_header(FrameKind.DATA, MAX_DATA + 1),
        frame_header(FrameKind.END, 1),
        frame_header(FrameKind.RESET, 1),
        frame_header(FrameKind.DATAGRAM, MAX_DATAGRAM + 1),
    ],
)
def test_impossible_frames_are_refused(header: bytes) -> None:
    with pytest.raises(WireError):
        parse_frame_header(header)


@given(st.integers(0, 2**64 - 1))
def test_an_acknowledgement_says_a_position(received: int) -> None:
    packed = pack_ack(received)
    assert parse_frame_header(packed[:4]) == (FrameKind.ACK, 8)
    assert parse_ack(packed[4:]) == received
    with pytest.raises(WireError):
        parse_ack(packed[5:])


# --- tickets -------------------------------------------------------------------------------------


@given(tickets, randoms)
def test_a_ticket_survives(number: bytes, secret: bytes) -> None:
    ticket = Ticket(number, secret)
    assert Ticket.unpack(ticket.pack()) == ticket
    assert len(ticket.pack()) == TICKET_LEN
    assert secret.hex() not in repr(ticket)


@pytest.mark.parametrize("packed", [b"", b"t" * (TICKET_LEN - 1), NO_TICKET + b"s" * 32])
def test_what_is_no_ticket_is_refused(packed: bytes) -> None:
    with pytest.raises(WireError, match="not a ticket"):
        Ticket.unpack(packed)
