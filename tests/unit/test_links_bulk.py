"""One exclusive use of a bulk link after the other."""

from __future__ import annotations

import ipaddress
import random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from links_world import receive, receive_all

from phantom_tun.errors import LinkBroken, ProtocolViolation, WireError
from phantom_tun.ids import NodeId
from phantom_tun.net.links.buffers import POOL, Buffer, Segment
from phantom_tun.net.links.bulk import Bulk, BulkLink, Ending
from phantom_tun.net.links.loopback import connection_pair
from phantom_tun.net.links.peers import Peer
from phantom_tun.wire.frames import MAX_PAYLOAD, Frame, pack_frame

PEER = Peer(NodeId(b"p" * 32), ipaddress.IPv4Address("192.0.2.1"))
OPENING = bytes(range(64))
DATA = random.Random(3).randbytes(200_000)


class End:
    """One side of a bulk link."""

    def __init__(self, connection) -> None:
        self.link = BulkLink(connection, PEER)
        self.endings = []
        self.next_use()

    def next_use(self) -> None:
        self.bulk = Bulk(self.link, lambda _link, ending: self.endings.append(ending))


def pair():
    return [End(connection) for connection in connection_pair()]


async def raw(*frames):
    """A use whose peer sends exactly these bytes."""
    near, far = connection_pair()
    await far.write_all(b"".join(frames))
    return End(near), far


async def test_an_opening_arrives_whole(autojump_clock):
    near, far = pair()
    await near.link.send_opening(OPENING)
    assert await far.link.receive_opening() == OPENING


async def test_bytes_fin_and_reuse(autojump_clock):
    near, far = pair()
    for number in range(3):
        near.next_use(), far.next_use()
        await near.link.send_opening(OPENING)
        assert await far.link.receive_opening() == OPENING
        await near.bulk.send_bytes(DATA)
        await near.bulk.send_fin()
        assert await receive_all(far.bulk) == DATA
        assert await receive(far.bulk) == b""  # again and again
        await far.bulk.send_bytes(b"answer")
        await far.bulk.send_fin()
        assert await receive_all(near.bulk) == b"answer"
        await near.bulk.aclose()
        await far.bulk.aclose()
        assert near.endings == far.endings == [Ending.CLEAN] * (number + 1)


async def test_fin_and_the_next_opening_in_one_read(autojump_clock):
    stream = pack_frame(Frame.DATA, b"first") + pack_frame(Frame.FIN)
    stream += pack_frame(Frame.OPEN, OPENING) + pack_frame(Frame.DATA, b"second")
    end, _ = await raw(stream)
    await end.bulk.send_fin()
    assert await receive_all(end.bulk) == b"first"
    await end.bulk.aclose()
    assert await end.link.receive_opening() == OPENING
    end.next_use()
    assert await end.bulk.receive_exactly(6) == b"second"


async def test_fin_and_half_an_opening_in_one_read(autojump_clock):
    opening = pack_frame(Frame.OPEN, OPENING)
    end, far = await raw(pack_frame(Frame.FIN) + opening[:30])
    await end.bulk.send_fin()
    assert await receive_all(end.bulk) == b""
    await end.bulk.aclose()
    await far.write_all(opening[30:] + pack_frame(Frame.DATA, b"x"))
    assert await end.link.receive_opening() == OPENING


async def test_nothing_may_follow_fin_before_ours(autojump_clock):
    end, _ = await raw(pack_frame(Frame.FIN) + pack_frame(Frame.OPEN, OPENING))
    with pytest.raises(ProtocolViolation):
        await receive(end.bulk)


async def test_only_an_opening_begins_a_use(autojump_clock):
    for frame in (pack_frame(Frame.DATA, b"x"), pack_frame(Frame.FIN), b"\xff" * 68):
        end, _ = await raw(frame)
        with pytest.raises(WireError):
            await end.link.receive_opening()


async def test_a_peer_that_closes_between_uses_is_no_error(autojump_clock):
    end, far = await raw()
    far.close()
    assert await end.link.receive_opening() is None


@pytest.mark.parametrize("cut", [0, 2, 4, 7])
async def test_an_end_without_fin_is_a_broken_link(autojump_clock, cut):
    end, far = await raw(pack_frame(Frame.DATA, b"abcdef")[:cut])
    far.close()
    with pytest.raises(LinkBroken):
        await receive_all(end.bulk)
    await end.bulk.aclose()
    assert end.endings == [Ending.BROKEN]


async def test_a_reset_breaks_even_in_the_middle_of_a_frame(autojump_clock):
    near, far = pair()
    await near.link.connection.write_all(pack_frame(Frame.DATA, bytes(1000))[:300])
    near.bulk.reset()
    # It can't be told apart.
    assert await receive(far.bulk) == bytes(296) + pack_frame(Frame.RESET)
    with pytest.raises(LinkBroken):
        await receive(far.bulk)


async def test_a_reset_between_frames_is_recognised(autojump_clock):
    near, far = pair()
    await near.bulk.send_bytes(b"abc")
    near.bulk.reset()
    assert await far.bulk.receive_exactly(3) == b"abc"
    with pytest.raises(LinkBroken, match="reset"):
        await far.bulk.receive_exactly(1)
    end, _ = await raw(pack_frame(Frame.RESET))
    with pytest.raises(LinkBroken, match="reset"):
        await receive(end.bulk)


@pytest.mark.parametrize(
    "frame", [b"\xff\0\0\0", b"\x03\0\0\0", b"\x03\x02\0\0", b"\x04\0\0\1x", b"\x02\0\0\x40"]
)
async def test_bad_frames_are_refused(autojump_clock, frame):
    end, _ = await raw(frame)
    with pytest.raises(WireError):
        await receive(end.bulk)
    end, _ = await raw(frame)
    with pytest.raises(WireError):
        await end.bulk.receive_exactly(1)


async def test_receive_exactly_leaves_the_rest_for_receive(autojump_clock):
    near, far = pair()
    await near.bulk.send_bytes(b"abcdefgh")
    await near.bulk.send_bytes(b"ij")
    await near.bulk.send_fin()
    assert await far.bulk.receive_exactly(3) == b"abc"
    assert await far.bulk.receive_exactly(6) == b"defghi"
    assert await receive_all(far.bulk) == b"j"
    assert await far.bulk.receive_exactly(0) == b""
    with pytest.raises(LinkBroken, match="early"):
        await far.bulk.receive_exactly(1)


async def test_receive_and_receive_exactly_can_share_a_header(autojump_clock):
    """A read in place can end in the middle of a header."""
    data, more = pack_frame(Frame.DATA, b"abc"), pack_frame(Frame.DATA, b"def")
    end, far = await raw(data + more[:2])
    assert await receive(end.bulk) == b"abc"
    await far.write_all(more[2:])
    assert await end.bulk.receive_exactly(3) == b"def"


@settings(max_examples=40)
@given(st.lists(st.integers(1, 500), min_size=1), st.integers())
def test_ways_of_receiving_can_be_mixed(sizes, seed):
    rng = random.Random(seed)

    async def main():
        near, far = pair()
        data = rng.randbytes(sum(sizes))
        taken = 0
        for size in sizes:
            await near.bulk.send_bytes(data[taken : taken + size])
            taken += size
        await near.bulk.send_fin()
        found = b""
        while len(found) < len(data):
            if rng.random() < 0.5:
                found += await far.bulk.receive_exactly(min(100, len(data) - len(found)))
            else:
                came = await receive(far.bulk)
                assert came
                found += came
        assert found == data
        assert await receive(far.bulk) == b""

    trio.run(main)


async def test_send_goes_out_as_it_lies_in_the_buffer(autojump_clock):
    near, far = pair()
    buffer = Buffer()
    buffer.view[4:7] = b"abc"
    buffer.view[11:13] = b"de"
    buffer.segments = [Segment(4, 7), Segment(11, 13)]
    await near.bulk.send(buffer)
    expected = pack_frame(Frame.DATA, b"abc") + pack_frame(Frame.DATA, b"de")
    view = memoryview(bytearray(100))
    assert bytes(view[: await far.link.connection.read_some(view)]) == expected
    buffer.segments = []
    await near.bulk.send(buffer)  # nothing
    assert far.link.connection.is_quiet()


async def test_a_full_buffer_is_one_frame(autojump_clock):
    near, far = pair()
    buffer = Buffer()
    buffer.fill(bytes(MAX_PAYLOAD))
    await near.bulk.send(buffer)
    received = await far.bulk.receive_pooled()
    assert received.segments == [Segment(4, 4 + MAX_PAYLOAD)]
    POOL.give_back(received)


async def test_nothing_is_sent_after_fin(autojump_clock):
    near, _ = pair()
    await near.bulk.send_fin()
    await near.bulk.send_fin()
    for send in (near.bulk.send_bytes(b"x"), near.bulk.send(_filled())):
        with pytest.raises(LinkBroken):
            await send


def _filled():
    buffer = Buffer()
    buffer.fill(b"x")
    return buffer


async def test_everything_fails_once_a_use_is_over(autojump_clock):
    near, _ = pair()
    near.bulk.reset()
    near.bulk.reset()
    await near.bulk.aclose()
    assert near.endings == [Ending.BROKEN]
    for attempt in (
        near.bulk.wait_readable(),
        near.bulk.receive_pooled(),
        near.bulk.receive_exactly(1),
        near.bulk.send_bytes(b"x"),
        near.bulk.send_fin(),
    ):
        with pytest.raises(LinkBroken):
            await attempt


@pytest.mark.parametrize("fin_sent", [False, True])
@pytest.mark.parametrize("fin_received", [False, True])
async def test_how_a_use_ends(autojump_clock, fin_sent, fin_received):
    end, _ = await raw(pack_frame(Frame.FIN) if fin_received else b"")
    if fin_received:
        assert await receive(end.bulk) == b""
    if fin_sent:
        await end.bulk.send_fin()
    await end.bulk.aclose()
    await end.bulk.aclose()
    expected = Ending.BROKEN
    if fin_sent:
        expected = Ending.CLEAN if fin_received else Ending.HALF
    assert end.endings == [expected]
    assert end.link.connection.usable is fin_sent


async def test_who_leaves_in_the_middle_of_a_frame_closes_the_link(autojump_clock):
    end, _ = await raw(pack_frame(Frame.DATA, b"abc"))
    await end.bulk.send_fin()
    await end.bulk.receive_exactly(1)
    await end.bulk.aclose()
    assert end.endings == [Ending.BROKEN]


async def test_a_cut_short_write_closes_the_link(autojump_clock):
    near, _ = pair()
    with trio.move_on_after(1):
        await near.bulk.send_bytes(bytes(1_000_000))
    with pytest.raises(LinkBroken):
        await near.bulk.send_fin()
    await near.bulk.aclose()
    assert near.endings == [Ending.BROKEN]


async def test_a_late_fin_settles_a_link(autojump_clock):
    end, _ = await raw(pack_frame(Frame.FIN))
    await end.link.receive_fin()
    end, _ = await raw(pack_frame(Frame.DATA, b"x"))
    with pytest.raises(ProtocolViolation):
        await end.link.receive_fin()
    end, _ = await raw(pack_frame(Frame.RESET))
    with pytest.raises(LinkBroken):
        await end.link.receive_fin()


async def test_a_cancelled_receive_loses_nothing(autojump_clock):
    end, far = await raw(pack_frame(Frame.DATA, b"abc") + b"\x03\0")
    assert await receive(end.bulk) == b"abc"
    for wait in (end.bulk.receive_pooled, lambda: end.bulk.receive_exactly(2)):
        with trio.move_on_after(1):
            await wait()
    await far.write_all(b"\0\2de")
    assert await end.bulk.receive_exactly(2) == b"de"


async def test_idle_uses_need_no_buffer(autojump_clock):
    near, far = pair()
    with trio.move_on_after(1) as idle:
        await far.bulk.wait_readable()
    assert idle.cancelled_caught
    await near.bulk.send_bytes(b"x")
    await far.bulk.wait_readable()
    await far.bulk.receive_exactly(1)
    await near.bulk.send_fin()
    await far.bulk.wait_readable()
    assert await receive(far.bulk) == b""
    await far.bulk.wait_readable()  # FIN stays


async def test_quiet_links_have_nothing_unread(autojump_clock):
    end, far = await raw()
    assert end.link.is_quiet()
    await far.write_all(b"\x03\0")
    assert not end.link.is_quiet()
