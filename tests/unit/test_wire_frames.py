"""Frames, and finding the payload of bulk links where it was read."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_tun.errors import WireError
from phantom_tun.wire.frames import (
    HEADER_LEN,
    LENGTHS,
    MAX_PAYLOAD,
    REGION_LEN,
    BulkUnframer,
    Frame,
    Header,
    Segment,
    pack_frame,
    parse_header,
    write_data_headers,
)

payloads = st.lists(st.binary(min_size=1, max_size=300), max_size=12)


def framed(parts: list[bytes]) -> bytes:
    return b"".join(pack_frame(Frame.DATA, part) for part in parts)


def unframe(unframer: BulkUnframer, stream: bytes, reads: list[int]) -> bytes:
    """Payload of ``stream`` when it arrives in pieces of the given sizes (the last one again and
    again)."""
    view = memoryview(bytearray(REGION_LEN))
    found = b""
    sizes = iter(reads)
    size = 1
    while stream and not (unframer.finished or unframer.broken):
        size = next(sizes, size)
        start = unframer.lead_in(view)
        piece, stream = stream[:size], stream[size:]
        view[start : start + len(piece)] = piece
        segments = unframer.parse(view, start + len(piece))
        assert len(segments) <= 1
        for segment in segments:
            assert segment.start == HEADER_LEN
            assert segment.end > segment.start
            found += view[segment.start : segment.end]
    return found


@pytest.mark.parametrize("frame", list(Frame))
def test_a_frame_is_its_header_and_its_payload(frame: Frame) -> None:
    for length in LENGTHS[frame]:
        packed = pack_frame(frame, bytes(length))
        assert parse_header(packed) == Header(frame, length)
        assert packed[HEADER_LEN:] == bytes(length)


@pytest.mark.parametrize("frame", list(Frame))
def test_lengths_outside_the_limits_are_neither_sent_nor_taken(frame: Frame) -> None:
    smallest, largest = LENGTHS[frame]
    for length in {smallest - 1, largest + 1} - {-1}:
        with pytest.raises(WireError):
            pack_frame(frame, bytes(length))
        with pytest.raises(WireError):
            parse_header((frame << 24 | length).to_bytes(4, "big"))


@given(st.integers(0, 255).filter(lambda number: number not in LENGTHS), st.integers(0, 100))
def test_an_unknown_type_is_refused(number: int, length: int) -> None:
    with pytest.raises(WireError):
        parse_header((number << 24 | length).to_bytes(4, "big"))


def test_no_data_frame_is_larger_than_a_read() -> None:
    assert len(pack_frame(Frame.DATA, bytes(MAX_PAYLOAD))) == REGION_LEN


@given(payloads, st.lists(st.integers(1, 700), min_size=1))
def test_payload_is_found_however_it_arrives(parts: list[bytes], reads: list[int]) -> None:
    unframer = BulkUnframer()
    stream = framed(parts) + pack_frame(Frame.FIN)
    assert unframe(unframer, stream, reads) == b"".join(parts)
    assert unframer.finished


@given(payloads)
def test_payload_is_found_byte_by_byte_and_all_at_once(parts: list[bytes]) -> None:
    for size in (1, REGION_LEN):
        assert unframe(BulkUnframer(), framed(parts), [size]) == b"".join(parts)


@given(payloads, st.data())
def test_a_truncated_stream_gives_a_prefix_and_does_not_end(
    parts: list[bytes], data: st.DataObject
) -> None:
    stream = framed(parts)
    cut = data.draw(st.integers(0, len(stream)))
    unframer = BulkUnframer()
    assert b"".join(parts).startswith(unframe(unframer, stream[:cut], [REGION_LEN]))
    assert not unframer.finished


@given(st.binary(max_size=2000), st.lists(st.integers(1, 700), min_size=1))
def test_whatever_comes_is_found_or_refused(stream: bytes, reads: list[int]) -> None:
    try:
        found = unframe(BulkUnframer(), stream, reads)
    except WireError:
        return
    assert len(found) <= len(stream)


@given(payloads, st.data())
def test_mutated_streams_only_ever_raise_wire_errors(
    parts: list[bytes], data: st.DataObject
) -> None:
    stream = bytearray(framed(parts) + pack_frame(Frame.FIN))
    stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(WireError):
        unframe(BulkUnframer(), bytes(stream), [97])


@pytest.mark.parametrize(
    "frame", [frame for frame in Frame if frame not in {Frame.DATA, Frame.FIN, Frame.RESET}]
)
def test_frames_of_other_places_are_refused_in_the_middle_of_a_use(frame: Frame) -> None:
    with pytest.raises(WireError):
        unframe(BulkUnframer(), pack_frame(frame, bytes(LENGTHS[frame][0])), [REGION_LEN])
    unframer = BulkUnframer()
    unframer.kept = pack_frame(frame, bytes(LENGTHS[frame][0]))[:HEADER_LEN]
    with pytest.raises(WireError):
        unframer.parse_header()


def test_what_follows_a_fin_is_kept_for_the_next_use() -> None:
    opening = pack_frame(Frame.OPEN, bytes(64))
    unframer = BulkUnframer()
    assert unframe(unframer, framed([b"a"]) + pack_frame(Frame.FIN) + opening, [REGION_LEN]) == b"a"
    assert unframer.finished
    assert unframer.kept == opening


def test_kept_payload_of_the_next_use_is_found_without_a_read() -> None:
    unframer, view = BulkUnframer(), memoryview(bytearray(REGION_LEN))
    unframer.kept = framed([b"abc"])[:6]
    assert unframer.has_more
    assert unframer.parse_header()
    assert unframer.has_more
    assert unframer.parse(view, unframer.lead_in(view)) == [Segment(4, 6)]
    assert not unframer.has_more
    assert unframer.remaining == 1


def test_a_reset_stops_the_search() -> None:
    unframer = BulkUnframer()
    stream = framed([b"a"]) + pack_frame(Frame.RESET) + b"\xff" * 9
    assert unframe(unframer, stream, [REGION_LEN]) == b"a"
    assert unframer.broken


@given(payloads, st.integers(1, 4))
def test_reads_of_exact_lengths_share_the_state_of_reads_in_place(
    parts: list[bytes], step: int
) -> None:
    stream = framed([b"head", *parts])
    unframer = BulkUnframer()
    taken = 0
    while not unframer.remaining:
        piece = stream[taken : min(taken + step, HEADER_LEN)]
        taken += len(piece)
        unframer.kept += piece
        assert unframer.parse_header() is (taken == HEADER_LEN)
    unframer.remaining -= 1
    rest = unframe(unframer, stream[HEADER_LEN + 1 :], [REGION_LEN])
    assert rest == b"ead" + b"".join(parts)


@given(payloads.filter(bool), st.lists(st.integers(1, 700), min_size=1))
def test_what_was_read_can_be_sent_on_in_one_piece(parts: list[bytes], reads: list[int]) -> None:
    """A relay's whole job: whatever the chunks were, the payload stays the same."""
    unframer, view = BulkUnframer(), memoryview(bytearray(REGION_LEN))
    stream, sent = framed(parts), b""
    for size in [*reads, REGION_LEN]:
        start = unframer.lead_in(view)
        piece, stream = stream[:size], stream[size:]
        view[start : start + len(piece)] = piece
        segments = unframer.parse(view, start + len(piece))
        if segments:
            sent += write_data_headers(view, segments)
    assert unframe(BulkUnframer(), sent, [REGION_LEN]) == b"".join(parts)


def test_frame_boundaries_do_not_survive() -> None:
    """What a hop sends says nothing of how the hop before it had cut the bytes."""
    view = memoryview(bytearray(REGION_LEN))
    sent = []
    for parts in ([b"abc", b"defg", b"h"], [b"abcdefgh"]):
        stream = framed(parts)
        view[: len(stream)] = stream
        sent.append(bytes(write_data_headers(view, BulkUnframer().parse(view, len(stream)))))
    assert sent[0] == sent[1] == framed([b"abcdefgh"])


def test_headers_are_written_before_each_segment() -> None:
    view = memoryview(bytearray(b"????abc????de"))
    region = write_data_headers(view, [Segment(4, 7), Segment(11, 13)])
    assert bytes(region) == framed([b"abc", b"de"])
