"""Early data below the frames: what the callee says before its TLS stands, and how it goes on."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_channel import ANSWER, CALLEE, CALLER, REQUEST, End, handshakes

from phantom_tun.errors import CryptoError, PeerError
from phantom_tun.tunnel.answer import callee_wrap, caller_wrap
from phantom_tun.tunnel.channel import RECORD
from phantom_tun.tunnel.early import (
    MAX_RECORD,
    EarlyOpener,
    EarlySealer,
    lock_early,
    unlock_early,
)
from phantom_tun.wire.frames import REGION_LEN
from phantom_tun.wire.session import MAX_DATA, MAX_EARLY, FrameKind, Ticket

TICKET = Ticket(b"t" * 16, b"T" * 32)
OTHER = Ticket(b"t" * 16, b"O" * 32)
DATA = FrameKind.DATA


def early_pair(first: bytes = b"") -> tuple[End, End]:
    """A caller that has the answer, and a callee that waits for its flight."""
    mine, theirs = handshakes()
    opener = EarlyOpener(TICKET, REQUEST, ANSWER)
    caller = mine.finish(theirs.flight, CALLEE.hash, caller_wrap(REQUEST, ANSWER), opener)
    sealer = EarlySealer(TICKET, REQUEST, ANSWER)
    callee = theirs.open_early(CALLER.hash, callee_wrap(REQUEST, ANSWER), sealer, first)
    return End(caller), End(callee)


def said(end: End) -> list[tuple[FrameKind, bytes]]:
    """Frames that are there without anything from the tunnel."""
    found = []
    while (frame := end.reader.next()) is not None:
        found.append((frame.kind, bytes(frame.payload)))
    return found


# --- records -------------------------------------------------------------------------------------


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=5), st.integers(1, 50))
def test_records_arrive_whatever_pieces_they_come_in(parts: list[bytes], piece: int) -> None:
    sealer, opener = (kind(TICKET, REQUEST, ANSWER) for kind in (EarlySealer, EarlyOpener))
    wire = b"".join(sealer.seal(memoryview(part)) for part in parts) + sealer.end() + b"tls"
    found = b"".join(
        opener.feed(wire[start : start + piece]) for start in range(0, len(wire), piece)
    )
    assert found == b"".join(parts)
    assert opener.is_over
    assert opener.take_rest() == b"tls"
    assert opener.take_rest() == b""


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_an_altered_record_is_noticed_or_waited_for(position: int, change: int) -> None:
    sealer, opener = (kind(TICKET, REQUEST, ANSWER) for kind in (EarlySealer, EarlyOpener))
    wire = bytearray(sealer.seal(memoryview(b"something")) + sealer.end())
    wire[position % len(wire)] ^= change
    try:
        found = opener.feed(wire)
    except CryptoError:
        return
    assert found in (b"", b"something")
    assert not opener.is_over


def test_records_are_numbered() -> None:
    sealer = EarlySealer(TICKET, REQUEST, ANSWER)
    first, second = (sealer.seal(memoryview(b"same")) for _ in range(2))
    assert first != second
    with pytest.raises(CryptoError):
        EarlyOpener(TICKET, REQUEST, ANSWER).feed(second)
    repeated = EarlyOpener(TICKET, REQUEST, ANSWER)
    repeated.feed(first)
    with pytest.raises(CryptoError):
        repeated.feed(first)


def test_a_record_that_is_too_long_is_refused_before_it_is_there() -> None:
    with pytest.raises(CryptoError, match="impossible"):
        EarlyOpener(TICKET, REQUEST, ANSWER).feed((MAX_RECORD + 1).to_bytes(2, "big"))


@pytest.mark.parametrize(
    "changes", [{"nonce": b"m" * 32}, {"secret": b"S" * 32}, {}], ids=["nonce", "secret", "ticket"]
)
def test_everything_that_early_keys_come_from_matters(changes: dict[str, bytes]) -> None:
    locked = lock_early(TICKET, REQUEST.secret, REQUEST.nonce, b"first")
    request = dataclasses.replace(REQUEST, early=locked)
    assert unlock_early(TICKET, request) == b"first"
    other, ticket = dataclasses.replace(request, **changes), TICKET if changes else OTHER
    with pytest.raises(CryptoError):
        unlock_early(ticket, other)
    record = EarlySealer(TICKET, request, ANSWER).seal(memoryview(b"answer"))
    with pytest.raises(CryptoError):
        EarlyOpener(ticket, other, ANSWER).feed(record)


def test_records_are_bound_to_the_answer() -> None:
    record = EarlySealer(TICKET, REQUEST, ANSWER).seal(memoryview(b"answer"))
    other = dataclasses.replace(ANSWER, callee_random=b"q" * 32)
    with pytest.raises(CryptoError):
        EarlyOpener(TICKET, REQUEST, other).feed(record)


# --- channel -------------------------------------------------------------------------------------


def test_the_first_bytes_are_there_before_anything_comes() -> None:
    _, callee = early_pair(b"GET / HTTP/1.0")
    assert said(callee) == [(DATA, b"GET / HTTP/1.0")]
    assert not callee.channel.is_established


def test_the_longest_first_bytes_are_read_piece_by_piece() -> None:
    _, callee = early_pair(bytes(MAX_EARLY))
    view, end, found = memoryview(bytearray(100)), 100, bytearray()
    while end == 100:
        end = callee.channel.read(view, 0, 100)
        found += view[:end]
    assert found[4:] == bytes(MAX_EARLY)


def test_the_callee_is_heard_before_its_tls_stands() -> None:
    caller, callee = early_pair(b"hello")
    assert caller.receive(callee.frame(DATA, b"at once")) == [(DATA, b"at once")]
    assert not callee.channel.is_established


def test_what_is_said_early_looks_random() -> None:
    _, callee = early_pair()
    wire = callee.frame(DATA, b"x") + callee.frame(DATA, b"x")
    assert not wire.startswith((5).to_bytes(2, "big")), "a length shows"


@pytest.mark.parametrize("piece", [1, 7, 1000, 65_000])
def test_both_go_on_over_tls(piece: int) -> None:
    caller, callee = early_pair(b"first")
    early = callee.frame(DATA, b"early ")
    flight = caller.frame(DATA, b"second")
    assert said(callee) == [(DATA, b"first")]
    assert callee.receive(flight, piece) == [(DATA, b"second")]
    assert callee.channel.is_established
    assert callee.channel.is_past_early
    late = callee.frame(DATA, b"late") + callee.frame(FrameKind.END)
    assert not callee.channel.is_past_early
    assert caller.receive(early + late, piece) == [(DATA, b"early late"), (FrameKind.END, b"")]
    assert callee.receive(caller.frame(FrameKind.END) + caller.close(), piece) == [
        (FrameKind.END, b"")
    ]
    assert caller.receive(callee.close(), piece) == []
    assert caller.channel.is_closed
    assert callee.channel.is_closed


def test_the_end_of_early_can_be_said_alone() -> None:
    caller, callee = early_pair()
    callee.receive(caller.flush())
    assert caller.receive(callee.flush()) == []
    assert caller.receive(callee.frame(DATA, b"over TLS")) == [(DATA, b"over TLS")]


@pytest.mark.parametrize("length", [1, RECORD - 4, RECORD, RECORD + 1, MAX_DATA])
@pytest.mark.parametrize("is_established", [False, True])
def test_every_length_of_a_frame_fits(length: int, is_established: bool) -> None:
    caller, callee = early_pair()
    if is_established:
        callee.receive(caller.flush())
    payload = random.Random(length).randbytes(length)
    sealed = callee.frame(DATA, payload)
    assert len(sealed) <= REGION_LEN
    assert caller.receive(sealed + callee.frame(DATA, b"!")) == [(DATA, payload + b"!")]


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(0, 7), st.booleans())
def test_no_altered_bit_of_early_records_gets_through(
    position: int, bit: int, goes_on: bool
) -> None:
    caller, callee = early_pair()
    wire = bytearray(callee.frame(DATA, b"something early"))
    if goes_on:
        callee.receive(caller.flush())
        wire += callee.frame(DATA, b" and more")
    wire[position % len(wire)] ^= 1 << bit
    try:
        found = caller.receive(bytes(wire))
    except PeerError:
        return
    assert b"".join(payload for _, payload in found) in (b"", b"something early")


def test_tls_without_the_last_early_record_is_refused() -> None:
    mine, theirs = handshakes()
    opener = EarlyOpener(TICKET, REQUEST, ANSWER)
    caller = End(mine.finish(theirs.flight, CALLEE.hash, caller_wrap(REQUEST, ANSWER), opener))
    callee = End(theirs.open(CALLER.hash, callee_wrap(REQUEST, ANSWER)))
    callee.receive(caller.flush())
    with pytest.raises(PeerError):
        caller.receive(callee.frame(DATA, bytes(16_000)))


def test_a_callee_with_another_certificate_is_heard_no_further() -> None:
    """What it said early, the ticket proves."""
    mine, theirs = handshakes()
    opener = EarlyOpener(TICKET, REQUEST, ANSWER)
    wrap = caller_wrap(REQUEST, ANSWER)
    caller = End(mine.finish(theirs.flight, CALLER.hash, wrap, opener))
    sealer = EarlySealer(TICKET, REQUEST, ANSWER)
    callee = End(theirs.open_early(CALLER.hash, callee_wrap(REQUEST, ANSWER), sealer, b""))
    assert caller.receive(callee.frame(DATA, b"early")) == [(DATA, b"early")]
    with pytest.raises(CryptoError, match="certificate"):
        caller.frame(DATA, b"secret")


def test_a_caller_with_another_certificate_is_not_established() -> None:
    mine, theirs = handshakes()
    caller = End(mine.finish(theirs.flight, CALLEE.hash, caller_wrap(REQUEST, ANSWER)))
    sealer = EarlySealer(TICKET, REQUEST, ANSWER)
    wrap = callee_wrap(REQUEST, ANSWER)
    callee = End(theirs.open_early(CALLEE.hash, wrap, sealer, b"first"))
    assert said(callee) == [(DATA, b"first")]
    with pytest.raises(PeerError):
        callee.receive(caller.flush())
    assert not callee.channel.is_established
