"""Messages of signalling links: frames, chunks, order of sending."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_tun.errors import CapacityExceeded, ProtocolViolation, WireError
from phantom_tun.wire.frames import (
    CHUNK_LEN,
    LENGTHS,
    MAX_CALL_LEN,
    Frame,
    pack_frame,
)
from phantom_tun.wire.signalling import (
    SIGNALLING_FRAMES,
    Assembler,
    Chunk,
    Message,
    Outbox,
    SignalUnframer,
    call_frames,
)

messages = st.lists(
    st.one_of(
        st.tuples(st.just(Frame.SIGNAL), st.binary(min_size=1, max_size=200)),
        st.tuples(st.sampled_from([Frame.PING, Frame.ASK, Frame.FIN]), st.just(b"")),
        st.tuples(st.just(Frame.CALL), st.binary(min_size=5, max_size=300)),
    ),
    max_size=12,
)


def chunks(number: int, body: bytes) -> list[Chunk]:
    (found,) = [SignalUnframer().feed(b"".join(call_frames(Frame.CALL, number, body)))]
    return [Chunk.unpack(message.payload) for message in found]


@given(messages, st.lists(st.integers(1, 50), min_size=1))
def test_messages_are_found_however_they_arrive(
    sent: list[tuple[Frame, bytes]], reads: list[int]
) -> None:
    stream = b"".join(pack_frame(*message) for message in sent)
    unframer, found = SignalUnframer(), []
    for size in itertools.chain(reads, itertools.repeat(7)):
        if not stream:
            break
        found += unframer.feed(stream[:size])
        stream = stream[size:]
    assert found == [Message(*message) for message in sent]


@given(messages, st.data())
def test_truncated_or_altered_streams_give_messages_or_wire_errors(
    sent: list[tuple[Frame, bytes]], data: st.DataObject
) -> None:
    stream = bytearray(b"".join(pack_frame(*message) for message in sent))
    del stream[data.draw(st.integers(0, len(stream))) :]
    if stream:
        stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(0, 255))
    try:
        found = SignalUnframer().feed(bytes(stream))
    except WireError:
        return
    assert {message.frame for message in found} <= SIGNALLING_FRAMES


@pytest.mark.parametrize("frame", [frame for frame in Frame if frame not in SIGNALLING_FRAMES])
def test_frames_of_other_places_are_refused_by_their_header(frame: Frame) -> None:
    with pytest.raises(WireError):
        SignalUnframer().feed(pack_frame(frame, bytes(LENGTHS[frame][0]))[:4])


@given(st.integers(0, 2**32 - 1), st.binary(max_size=3 * CHUNK_LEN))
def test_a_body_survives_being_cut_into_chunks(number: int, body: bytes) -> None:
    assembler = Assembler()
    *early, last = [assembler.add(chunk) for chunk in chunks(number, body)]
    assert early == [None] * len(early)
    assert last == body
    assert len(assembler) == 0


def test_interleaved_bodies_are_told_apart() -> None:
    one, other = b"1" * 5000, b"2" * 7000
    assembler = Assembler()
    mixed = itertools.zip_longest(chunks(1, one), chunks(2, other))
    found = [assembler.add(chunk) for pair in mixed for chunk in pair if chunk is not None]
    assert [body for body in found if body is not None] == [one, other]


def test_the_largest_body_passes_and_one_byte_more_does_not() -> None:
    largest = bytes(MAX_CALL_LEN)
    assembler = Assembler()
    assert [assembler.add(chunk) for chunk in chunks(1, largest)][-1] == largest
    with pytest.raises(WireError):
        call_frames(Frame.CALL, 1, largest + b"x")


def test_a_peer_can_not_send_a_longer_body() -> None:
    assembler = Assembler()
    assembler.add(Chunk(1, True, False, bytes(CHUNK_LEN)))
    with pytest.raises(ProtocolViolation):
        for _ in range(MAX_CALL_LEN // CHUNK_LEN + 1):
            assembler.add(Chunk(1, False, False, bytes(CHUNK_LEN)))


def test_a_number_can_not_begin_twice() -> None:
    assembler = Assembler()
    assembler.add(Chunk(1, True, False, b"x"))
    with pytest.raises(ProtocolViolation):
        assembler.add(Chunk(1, True, True, b"y"))


def test_chunks_without_a_beginning_are_ignored() -> None:
    assembler = Assembler()
    assert assembler.add(Chunk(1, False, True, b"x")) is None
    assembler.add(Chunk(2, True, False, b"x"))
    assembler.forget(2)
    assert assembler.add(Chunk(2, False, True, b"x")) is None
    assert len(assembler) == 0


def test_unknown_chunk_flags_are_refused() -> None:
    with pytest.raises(WireError):
        Chunk.unpack(b"\0\0\0\1\4")


def test_small_messages_never_wait_behind_a_large_body() -> None:
    outbox = Outbox(10)
    outbox.add_body(call_frames(Frame.ANSWER, 1, bytes(MAX_CALL_LEN)))
    assert len(outbox.next_batch()) <= CHUNK_LEN + 9
    outbox.add(Frame.SIGNAL, b"tunnel block")
    assert outbox.next_batch().startswith(pack_frame(Frame.SIGNAL, b"tunnel block"))


def test_bodies_take_turns() -> None:
    outbox = Outbox(10)
    outbox.add_body(call_frames(Frame.ANSWER, 1, bytes(5 * CHUNK_LEN)))
    outbox.add_body(call_frames(Frame.ANSWER, 2, bytes(CHUNK_LEN + 1)))
    order = []
    while batch := outbox.next_batch():
        order += [Chunk.unpack(message.payload).number for message in SignalUnframer().feed(batch)]
    assert order == [1, 2, 1, 2, 1, 1, 1]
    assert len(outbox) == 0


def test_the_queue_of_small_messages_is_bounded() -> None:
    outbox = Outbox(2)
    outbox.add(Frame.SIGNAL, b"1")
    outbox.add(Frame.SIGNAL, b"2")
    with pytest.raises(CapacityExceeded):
        outbox.add(Frame.SIGNAL, b"3")
    assert outbox.next_batch() == pack_frame(Frame.SIGNAL, b"1") + pack_frame(Frame.SIGNAL, b"2")
    outbox.add(Frame.SIGNAL, b"3")
