"""The secure channel and its frame reader: handshake, every alteration, odd piece sizes."""

from __future__ import annotations

import gc
import ipaddress
import random
import ssl
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantom_tun.crypto.certificates import Certificate, callee_context, caller_context
from phantom_tun.crypto.x509 import make_certificate
from phantom_tun.errors import CryptoError, PeerError, WireError
from phantom_tun.ids import PublicKey
from phantom_tun.net.links.buffers import CHUNK, HEADER_LEN, POOL, Buffer, Segment
from phantom_tun.net.sessions.frames import FrameReader
from phantom_tun.tunnel.answer import Wrap, callee_wrap, caller_wrap
from phantom_tun.tunnel.channel import RECORD, CalleeHandshake, CallerHandshake, Channel
from phantom_tun.wire.frames import MAX_PAYLOAD
from phantom_tun.wire.session import (
    MAX_CLIENT_HELLO,
    MAX_DATA,
    MAX_DATAGRAM,
    MAX_FLIGHT,
    Answer,
    FrameKind,
    Outcome,
    Protocol,
    Request,
)

CALLER, CALLEE, OTHER = (make_certificate("localhost", time.time()) for _ in range(3))
CALLER_CONTEXT = caller_context(CALLER)
CALLEE_CONTEXT = callee_context(CALLEE, CALLER.der)

REQUEST = Request(
    protocol=Protocol.TCP,
    destination=ipaddress.IPv4Address("241.2.3.4"),
    port=443,
    caller=PublicKey(b"k" * 32),
    certificate=CALLER.der,
    client_hello=b"",
    time=0,
    nonce=b"n" * 32,
    secret=b"s" * 32,
    session_id=b"i" * 16,
)
ANSWER = Answer(Outcome.CONNECTED, b"r" * 32, b"flight")


class End:
    """A channel with a reader, and memory to encode into."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.reader = FrameReader(channel)
        self._view = memoryview(bytearray(CHUNK + 100))

    def frame(self, kind: FrameKind, data: bytes = b"") -> bytes:
        return bytes(self._view[5 : self.channel.encode(self._view, 5, kind, memoryview(data))])

    def messages(self, *messages: bytes) -> bytes:
        return bytes(self._view[5 : self.channel.encode_messages(self._view, 5, messages)])

    def flush(self) -> bytes:
        return bytes(self._view[5 : self.channel.flush(self._view, 5)])

    def close(self) -> bytes:
        return bytes(self._view[5 : self.channel.encode_close(self._view, 5)])

    def receive(self, data: bytes, piece: int = CHUNK) -> list[tuple[FrameKind, bytes]]:
        """All frames that ``data`` leads to; pieces of DATA are joined."""
        found: list[tuple[FrameKind, bytes]] = []
        for start in range(0, len(data), piece):
            self.reader.load(loaded(data[start : start + piece]))
            while (frame := self.reader.next()) is not None:
                kind, payload = frame.kind, bytes(frame.payload)
                if found and kind is FrameKind.DATA is found[-1][0]:
                    payload = found.pop()[1] + payload
                found.append((kind, payload))
        return found


def loaded(data: bytes) -> Buffer:
    """A buffer as a tunnel fills it: several segments with room for headers between them."""
    buffer = POOL.take()
    start = HEADER_LEN
    parts = [data]
    if 3 < len(data) <= CHUNK - 2 * HEADER_LEN:
        middle = len(data) // 3
        parts = [data[:middle], data[middle:-1], data[-1:]]
    for part in parts:
        buffer.view[start : start + len(part)] = part
        buffer.segments.append(Segment(start, start + len(part)))
        start += len(part) + HEADER_LEN
    return buffer


def handshakes(
    caller: ssl.SSLContext = CALLER_CONTEXT, callee: ssl.SSLContext = CALLEE_CONTEXT
) -> tuple[CallerHandshake, CalleeHandshake]:
    mine = CallerHandshake(caller)
    return mine, CalleeHandshake(callee, mine.hello)


def pair() -> tuple[End, End]:
    """Two established ends."""
    mine, theirs = handshakes()
    caller = End(mine.finish(theirs.flight, CALLEE.hash, caller_wrap(REQUEST, ANSWER)))
    callee = End(theirs.open(CALLER.hash, callee_wrap(REQUEST, ANSWER)))
    assert not callee.channel.is_established
    assert callee.receive(caller.flush()) == []
    assert callee.channel.is_established
    assert caller.channel.is_established
    return caller, callee


# --- handshake -----------------------------------------------------------------------------------


def test_both_flights_fit_with_the_longest_certificates() -> None:
    now = time.time()
    long_one = make_certificate("a" * 60, now)
    mine, theirs = handshakes(caller_context(long_one), callee_context(CALLEE, long_one.der))
    assert len(mine.hello) <= MAX_CLIENT_HELLO
    assert 0 < len(theirs.flight) <= MAX_FLIGHT


def test_the_caller_has_no_more_to_wait_for_than_the_answer() -> None:
    mine, theirs = handshakes()
    channel = mine.finish(theirs.flight, CALLEE.hash, caller_wrap(REQUEST, ANSWER))
    assert channel.is_established


def test_data_can_follow_the_callers_flight_at_once() -> None:
    mine, theirs = handshakes()
    caller = End(mine.finish(theirs.flight, CALLEE.hash, caller_wrap(REQUEST, ANSWER)))
    callee = End(theirs.open(CALLER.hash, callee_wrap(REQUEST, ANSWER)))
    both = caller.flush() + caller.frame(FrameKind.DATA, b"early")
    assert callee.receive(both, piece=7) == [(FrameKind.DATA, b"early")]


def test_a_callee_with_another_certificate_is_refused() -> None:
    mine, theirs = handshakes(callee=callee_context(OTHER, CALLER.der))
    with pytest.raises(CryptoError, match="certificate"):
        mine.finish(theirs.flight, CALLEE.hash, caller_wrap(REQUEST, ANSWER))


def refused_by_callee(caller: ssl.SSLContext, callee: ssl.SSLContext, expected: bytes) -> None:
    mine, theirs = handshakes(caller, callee)
    end = End(mine.finish(theirs.flight, CALLEE.hash, caller_wrap(REQUEST, ANSWER)))
    callee_end = End(theirs.open(expected, callee_wrap(REQUEST, ANSWER)))
    with pytest.raises(CryptoError):
        callee_end.receive(end.flush())
    assert not callee_end.channel.is_established


def test_a_caller_with_another_certificate_is_refused() -> None:
    refused_by_callee(caller_context(OTHER), CALLEE_CONTEXT, CALLER.hash)


def test_a_caller_without_a_certificate_is_refused() -> None:
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.verify_mode = ssl.CERT_NONE
    refused_by_callee(bare, CALLEE_CONTEXT, CALLER.hash)


def test_the_certificate_must_be_that_of_the_request() -> None:
    refused_by_callee(CALLER_CONTEXT, CALLEE_CONTEXT, OTHER.hash)


@pytest.mark.parametrize("hello", [b"", b"\x16", b"GET / HTTP/1.1\r\n\r\n", bytes(1700)])
def test_what_is_no_client_hello_is_refused(hello: bytes) -> None:
    with pytest.raises(CryptoError):
        CalleeHandshake(CALLEE_CONTEXT, hello)


def test_a_hello_with_something_behind_it_is_refused() -> None:
    with pytest.raises(CryptoError):
        CalleeHandshake(CALLEE_CONTEXT, CallerHandshake(CALLER_CONTEXT).hello + b"\x17\3\3\0\1a")


def test_tls_1_2_is_refused() -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(CryptoError):
        CalleeHandshake(CALLEE_CONTEXT, CallerHandshake(old).hello)


@pytest.mark.parametrize("cut", [0, 1, 200, -1])
def test_an_incomplete_flight_is_refused(cut: int) -> None:
    mine, theirs = handshakes()
    with pytest.raises(CryptoError):
        mine.finish(theirs.flight[:cut], CALLEE.hash, caller_wrap(REQUEST, ANSWER))


def test_an_altered_flight_is_refused() -> None:
    for position in range(0, 700, 50):
        mine, theirs = handshakes()
        flight = bytearray(theirs.flight)
        flight[position] ^= 1
        with pytest.raises(CryptoError):
            mine.finish(bytes(flight), CALLEE.hash, caller_wrap(REQUEST, ANSWER))


# --- frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 3, 1000, 16_406, CHUNK])
@pytest.mark.parametrize("length", [1, 16_379, 16_380, 16_381, 32_764, MAX_DATA])
def test_data_of_any_length_arrives_in_any_pieces(length: int, piece: int) -> None:
    if piece < 1000 < length:
        length = 17_000
    caller, callee = pair()
    data = random.Random(length).randbytes(length)
    for sender, receiver in ((caller, callee), (callee, caller)):
        sealed = sender.frame(FrameKind.DATA, data)
        assert receiver.receive(sealed, piece) == [(FrameKind.DATA, data)]


def test_the_longest_frame_fits_one_frame_of_a_link() -> None:
    caller, _ = pair()
    sealed = len(caller.frame(FrameKind.DATA, bytes(MAX_DATA)))
    assert MAX_PAYLOAD - 16 < sealed <= MAX_PAYLOAD
    assert len(caller.frame(FrameKind.DATAGRAM, bytes(MAX_DATAGRAM))) < sealed


contents = st.lists(
    st.tuples(st.just(FrameKind.DATA), st.binary(min_size=1, max_size=300))
    | st.tuples(st.just(FrameKind.DATAGRAM), st.binary(max_size=300))
    | st.tuples(st.just(FrameKind.DATAGRAM), st.integers(16_000, MAX_DATAGRAM).map(bytes))
    | st.tuples(st.sampled_from([FrameKind.END, FrameKind.RESET]), st.just(b"")),
    max_size=12,
)


@settings(max_examples=30)
@given(contents, st.integers(1, 70_000))
def test_a_mixture_arrives_in_order(frames: list[tuple[FrameKind, bytes]], piece: int) -> None:
    caller, callee = pair()
    sealed = b"".join(caller.frame(kind, data) for kind, data in frames)
    expected: list[tuple[FrameKind, bytes]] = []
    for kind, data in frames:
        before = b""
        if expected and kind is FrameKind.DATA is expected[-1][0]:
            before = expected.pop()[1]
        expected.append((kind, before + data))
    assert callee.receive(sealed, min(max(piece, len(sealed) // 50 + 1), CHUNK)) == expected


def test_several_messages_go_into_one_record() -> None:
    caller, callee = pair()
    messages = [bytes([n]) * 1200 for n in range(13)]
    sealed = caller.messages(*messages)
    assert len(sealed) == 13 * 1204 + 22
    assert callee.receive(sealed) == [(FrameKind.DATAGRAM, message) for message in messages]


def test_what_is_sent_is_wrapped() -> None:
    """Without the wrap the bytes would be TLS records; with it, nothing of that shows."""
    caller, _ = pair()
    assert caller.frame(FrameKind.DATA, b"x")[:3] != b"\x17\x03\x03"
    mine, theirs = handshakes()

    class Nothing:
        def process(self, view: memoryview, start: int, end: int) -> None:
            pass

    bare = Wrap(Nothing(), Nothing())  # type: ignore[arg-type]
    channel = End(mine.finish(theirs.flight, CALLEE.hash, bare))
    channel.flush()
    assert channel.frame(FrameKind.DATA, b"x")[:3] == b"\x17\x03\x03"


def test_a_flipped_bit_anywhere_is_noticed() -> None:
    sealed_length = len(pair()[0].frame(FrameKind.DATA, bytes(20_000)))
    for position in (0, 2, 4, 5, 9, 8000, 16_405, 16_410, sealed_length - 1):
        caller, callee = pair()
        sealed = bytearray(caller.frame(FrameKind.DATA, bytes(20_000)))
        sealed[position] ^= 4
        with pytest.raises(PeerError):
            # A longer length field makes TLS wait for more.
            callee.receive(bytes(sealed) + caller.frame(FrameKind.DATA, bytes(20_000)))


def test_a_missing_byte_is_noticed() -> None:
    caller, callee = pair()
    sealed = caller.frame(FrameKind.DATA, bytes(3000))
    with pytest.raises(PeerError):
        callee.receive(sealed[:100] + sealed[101:] + sealed)


def test_repeated_bytes_are_noticed() -> None:
    caller, callee = pair()
    sealed = caller.frame(FrameKind.DATA, bytes(3000))
    callee.receive(sealed)
    with pytest.raises(PeerError):
        callee.receive(sealed)


def test_impossible_frames_are_refused() -> None:
    for header in (b"\0\0\0\0", b"\1\0\0\0", b"\2\0\0\1x", b"\4\xff\xff\xff"):
        caller, callee = pair()
        view = memoryview(bytearray(200))
        view[: len(header)] = header
        end = caller.channel._seal(view, 0, view[: len(header)])
        caller.channel._wrap.outgoing.process(view, 0, end)
        with pytest.raises(WireError):
            callee.receive(bytes(view[:end]))


def test_close_notify_is_seen_after_everything_else() -> None:
    caller, callee = pair()
    sealed = caller.frame(FrameKind.DATA, b"last") + caller.frame(FrameKind.END) + caller.close()
    assert callee.receive(sealed) == [(FrameKind.DATA, b"last"), (FrameKind.END, b"")]
    assert callee.channel.is_closed
    assert not caller.channel.is_closed
    assert caller.receive(callee.close()) == []
    assert caller.channel.is_closed


def test_nothing_can_be_sent_after_close() -> None:
    caller, _ = pair()
    caller.close()
    with pytest.raises(CryptoError, match="can't send"):
        caller.frame(FrameKind.DATA, b"more")


# --- memory --------------------------------------------------------------------------------------


@pytest.fixture
def empty_pool() -> Iterator[list[Buffer]]:
    """The pool's free list, emptied, so that what comes back can be counted."""
    kept = POOL._free[:]
    POOL._free.clear()
    yield POOL._free
    POOL._free[:] = kept


def held(free: list[Buffer]) -> int:
    """Buffers that somebody has."""
    gc.collect()
    return sum(isinstance(thing, Buffer) for thing in gc.get_objects()) - len(free)


def test_an_idle_reader_holds_no_buffer(empty_pool: list[Buffer]) -> None:
    caller, callee = pair()
    sealed = caller.frame(FrameKind.DATA, bytes(50_000))
    before = held(empty_pool)
    callee.receive(sealed[:-1])
    assert held(empty_pool) == before
    assert callee.receive(sealed[-1:])[-1][0] is FrameKind.DATA


def test_an_ended_reader_holds_no_buffer(empty_pool: list[Buffer]) -> None:
    caller, callee = pair()
    before = held(empty_pool)
    callee.reader.load(loaded(caller.frame(FrameKind.DATA, b"x")))
    assert callee.reader.next() is not None
    assert held(empty_pool) > before
    assert callee.reader.next() is None
    callee.reader.load(loaded(caller.frame(FrameKind.END)))
    frame = callee.reader.next()
    assert frame is not None
    assert frame.kind is FrameKind.END
    assert held(empty_pool) == before


def test_a_record_is_what_tls_makes_of_the_longest_plaintext() -> None:
    caller, _ = pair()
    assert len(caller.frame(FrameKind.DATA, bytes(RECORD - 4))) == RECORD + 22
    assert len(caller.frame(FrameKind.DATA, bytes(RECORD - 3))) == RECORD + 22 + 23


def test_certificates_differ() -> None:
    hashes = {certificate.hash for certificate in (CALLER, CALLEE, OTHER)}
    assert len(hashes) == 3
    assert isinstance(CALLER, Certificate)
