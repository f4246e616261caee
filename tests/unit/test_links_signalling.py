"""One signalling link: messages, calls, keepalive, an ending that loses nothing. In memory and in
virtual time."""

from __future__ import annotations

import ipaddress
from collections import Counter

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from phantom_tun.errors import (
    CapacityExceeded,
    DeadlineExpired,
    LinkBroken,
    ProtocolViolation,
    WireError,
)
from phantom_tun.ids import NodeId
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.loopback import connection_pair
from phantom_tun.net.links.peers import Peer
from phantom_tun.net.links.signalling import Quotas, SignalLink
from phantom_tun.wire.frames import MAX_CALL_LEN, Frame, pack_frame
from phantom_tun.wire.signalling import Chunk, SignalUnframer, call_frames


class Events:
    """What one side's owner sees."""

    def __init__(self) -> None:
        self.signals = []
        self.asks = self.declines = 0
        self.busy = False
        self.follows = True
        self.answer = lambda payload: payload[::-1]
        self.hold = None

    def signalled(self, _peer, payload):
        self.signals.append(payload)

    async def called(self, _peer, payload):
        if self.hold is not None:
            await self.hold.wait()
        return self.answer(payload)

    def asked(self, _peer):
        self.asks += 1
        return self.follows

    def declined(self, _peer):
        self.declines += 1

    def is_busy(self, _peer):
        return self.busy


class Side:
    def __init__(self, connection, limits, *, dialed) -> None:
        self.connection = connection
        self.events = Events()
        self.counts = Counter()
        self.ended = False
        self.link = SignalLink(
            connection,
            Peer(NodeId(b"p" * 32), ipaddress.IPv4Address("192.0.2.1")),
            dialed=dialed,
            limits=limits,
            quotas=Quotas(limits),
            events=self.events,
            counts=self.counts,
        )

    async def run(self):
        await self.link.run()
        self.ended = True


def join(nursery, limits=None):
    """Two running sides; the first one dialed."""
    sides = [
        Side(connection, limits or LinkLimits(), dialed=number == 0)
        for number, connection in enumerate(connection_pair())
    ]
    for side in sides:
        nursery.start_soon(side.run)
    return sides


def alone(nursery, limits=None):
    """A running side, and the bare connection of its peer."""
    near, far = connection_pair()
    side = Side(near, limits or LinkLimits(), dialed=True)
    nursery.start_soon(side.run)
    return side, far


async def read_messages(connection):
    view = memoryview(bytearray(1_000_000))
    return SignalUnframer().feed(view[: await connection.read_some(view)])


async def test_messages_arrive_in_order_both_ways(autojump_clock, nursery):
    one, other = join(nursery)
    for number in range(50):
        one.link.send(Frame.SIGNAL, b"there%d" % number)
        other.link.send(Frame.SIGNAL, b"back%d" % number)
    await wait_all_tasks_blocked()
    assert other.events.signals == [b"there%d" % number for number in range(50)]
    assert one.events.signals == [b"back%d" % number for number in range(50)]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("size", [0, 1, 2048, 2049, MAX_CALL_LEN])
async def test_calls_are_answered(autojump_clock, nursery, size):
    one, other = join(nursery)
    body = bytes(index % 251 for index in range(size))
    assert await one.link.call(body) == body[::-1]
    assert await other.link.call(body) == body[::-1]
    assert one.counts["calls_served"] == other.counts["calls_served"] == 1
    nursery.cancel_scope.cancel()


async def test_many_calls_at_once(autojump_clock, nursery):
    one, _ = join(nursery)
    answers = []

    async def call(number):
        answers.append((number, await one.link.call(b"%05d" % number * 1000)))

    async with trio.open_nursery() as inner:
        for number in range(20):
            inner.start_soon(call, number)
    assert sorted(answers) == [(n, (b"%05d" % n * 1000)[::-1]) for n in range(20)]
    nursery.cancel_scope.cancel()


async def test_an_oversize_call_is_refused_here_and_there(autojump_clock, nursery):
    side, far = alone(nursery)
    with pytest.raises(WireError):
        await side.link.call(bytes(MAX_CALL_LEN + 1))
    for frame in call_frames(Frame.CALL, 1, bytes(MAX_CALL_LEN)):
        await far.write_all(
            frame[:8] + b"\1" + frame[9:] if frame[8] & 1 else frame[:8] + b"\0" + frame[9:]
        )
    await far.write_all(pack_frame(Frame.CALL, b"\0\0\0\1\0" + bytes(2048)))
    await wait_all_tasks_blocked()
    assert side.ended
    assert side.counts["drop_signalling_violation"] == 1


async def test_an_oversize_answer_is_not_sent(autojump_clock, nursery):
    one, other = join(nursery)
    other.events.answer = lambda _: bytes(MAX_CALL_LEN + 1)
    with pytest.raises(DeadlineExpired):
        await one.link.call(b"x")
    assert other.counts["calls_unanswered"] == 1
    nursery.cancel_scope.cancel()


async def test_no_answer_means_deadline_and_a_late_one_is_dropped(autojump_clock, nursery):
    one, other = join(nursery)
    other.events.hold = trio.Event()
    start = trio.current_time()
    with pytest.raises(DeadlineExpired):
        await one.link.call(b"x")
    assert trio.current_time() - start == LinkLimits().call_deadline
    other.events.hold.set()
    await wait_all_tasks_blocked()
    assert one.counts["drop_answer_late"] == 1
    assert await one.link.call(b"xy") == b"yx"
    nursery.cancel_scope.cancel()


async def test_a_handler_that_refuses_gives_no_answer(autojump_clock, nursery):
    one, other = join(nursery)

    def refuse(_payload):
        raise ProtocolViolation("no")

    other.events.answer = refuse
    with pytest.raises(DeadlineExpired):
        await one.link.call(b"x")
    assert other.counts["calls_unanswered"] == 1
    assert one.link.open
    assert other.link.open
    nursery.cancel_scope.cancel()


async def test_own_calls_are_limited(autojump_clock, nursery):
    one, other = join(nursery, LinkLimits(calls_waiting=2))
    other.events.hold = trio.Event()
    nursery.start_soon(one.link.call, b"1")
    nursery.start_soon(one.link.call, b"2")
    await wait_all_tasks_blocked()
    with pytest.raises(CapacityExceeded):
        await one.link.call(b"3")
    assert one.counts["drop_call_queue_full"] == 1
    other.events.hold.set()
    await wait_all_tasks_blocked()
    assert await one.link.call(b"12") == b"21"
    nursery.cancel_scope.cancel()


async def test_calls_served_are_limited(autojump_clock, nursery):
    side, far = alone(nursery, LinkLimits(calls_served=2))
    side.events.hold = trio.Event()
    for number in range(3):
        await far.write_all(b"".join(call_frames(Frame.CALL, number, b"x" * 5000)))
    await wait_all_tasks_blocked()
    assert side.counts["drop_call_limit"] == 1
    side.events.hold.set()
    numbers = set()
    with trio.move_on_after(1):
        while True:
            found = await read_messages(far)
            numbers |= {Chunk.unpack(m.payload).number for m in found if m.frame is Frame.ANSWER}
    assert numbers == {0, 1}
    await far.write_all(b"".join(call_frames(Frame.CALL, 9, b"x")))
    assert (await read_messages(far))[0].frame is Frame.ANSWER
    nursery.cancel_scope.cancel()


async def test_unfinished_calls_count_too(autojump_clock, nursery):
    side, far = alone(nursery, LinkLimits(calls_served=2))
    for number in range(3):
        await far.write_all(next(call_frames(Frame.CALL, number, bytes(5000))))
    await wait_all_tasks_blocked()
    assert side.counts["drop_call_limit"] == 1
    nursery.cancel_scope.cancel()


async def test_the_queue_is_bounded_when_the_peer_does_not_read(autojump_clock, nursery):
    side, _ = alone(nursery, LinkLimits(signal_queue=10))
    with pytest.raises(CapacityExceeded):
        for _ in range(1000):
            side.link.send(Frame.SIGNAL, bytes(1024))
            await wait_all_tasks_blocked()
    assert side.counts["drop_signal_queue_full"] == 1
    nursery.cancel_scope.cancel()


async def test_a_block_does_not_wait_behind_big_answers(autojump_clock, nursery):
    """What the kernel has not taken yet is sent in the order of urgency."""
    one, other = join(nursery)
    async with trio.open_nursery() as inner:
        for _ in range(7):
            inner.start_soon(one.link.call, bytes(MAX_CALL_LEN))
        await wait_all_tasks_blocked()
        before = other.counts["calls_served"]
        one.link.send(Frame.SIGNAL, b"block")
        while not other.events.signals:
            await trio.sleep(0)
        assert other.counts["calls_served"] - before <= 7
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("frame", "limits", "counter"),
    [
        (Frame.SIGNAL, LinkLimits(signal_rate=1, signal_burst=3), "drop_signal_rate"),
        (Frame.ASK, LinkLimits(ask_rate=1, ask_burst=3), "drop_ask_rate"),
        (Frame.PING, LinkLimits(ping_rate=1, ping_burst=3), "drop_ping_rate"),
        (Frame.CALL, LinkLimits(call_rate=1, call_burst=3), "drop_call_rate"),
    ],
)
async def test_rates_are_limited_per_peer(autojump_clock, nursery, frame, limits, counter):
    side, far = alone(nursery, limits)

    async def send():
        payload = {Frame.SIGNAL: b"x", Frame.CALL: b"\0\0\0\1\3"}.get(frame, b"")
        await far.write_all(pack_frame(frame, payload))
        await wait_all_tasks_blocked()

    for _ in range(5):
        await send()
    assert side.counts[counter] == 2
    await trio.sleep(1)
    await send()
    assert side.counts[counter] == 2
    nursery.cancel_scope.cancel()


async def test_asks_are_passed_on_or_declined(autojump_clock, nursery):
    one, other = join(nursery)
    one.link.send(Frame.ASK)
    await wait_all_tasks_blocked()
    assert (other.events.asks, one.events.declines) == (1, 0)
    other.events.follows = False
    one.link.send(Frame.ASK)
    await wait_all_tasks_blocked()
    assert (other.events.asks, one.events.declines) == (2, 1)
    nursery.cancel_scope.cancel()


# --- keepalive ------------------------------------------------------------------------------------


async def test_an_idle_link_stays_up(autojump_clock, nursery):
    one, other = join(nursery)
    await trio.sleep(LinkLimits().signalling_idle - 1)
    assert one.link.open
    assert other.link.open
    nursery.cancel_scope.cancel()


async def test_a_silent_peer_is_dead_in_bounded_time(autojump_clock, nursery):
    side, far = alone(nursery)
    start = trio.current_time()
    while not side.ended:
        await trio.sleep(1)
    assert trio.current_time() - start <= LinkLimits().dead_after + 1
    assert side.link.dead
    assert side.counts["neighbours_dead"] == 1
    assert {message.frame for message in await read_messages(far)} == {Frame.PING}


async def test_a_peer_that_stops_reading_is_dead_too(autojump_clock, nursery):
    side, _ = alone(nursery)
    with pytest.raises((CapacityExceeded, LinkBroken)):
        while True:
            side.link.send(Frame.SIGNAL, bytes(1024))
            await trio.sleep(0.01)
    await trio.sleep(40)
    assert side.link.dead
    assert side.counts["lost_messages"] > 0


async def test_pings_are_answered(autojump_clock, nursery):
    _, far = alone(nursery)
    await far.write_all(pack_frame(Frame.PING))
    assert await read_messages(far) == [(Frame.PONG, b"")]
    nursery.cancel_scope.cancel()


async def test_a_call_on_a_link_that_dies_fails_at_once(autojump_clock, nursery):
    side, far = alone(nursery)
    start = trio.current_time()

    async def die():
        await trio.sleep(1)
        far.close()

    nursery.start_soon(die)
    with pytest.raises(LinkBroken):
        await side.link.call(b"x")
    assert trio.current_time() - start == 1
    assert not side.link.dead
    assert side.counts["signalling_broken"] == 1
    for attempt in (lambda: side.link.send(Frame.SIGNAL, b"x"),):
        with pytest.raises(LinkBroken):
            attempt()
    with pytest.raises(LinkBroken):
        await side.link.call(b"x")


# --- endings --------------------------------------------------------------------------------------


async def test_an_unused_link_is_ended_by_its_dialer(autojump_clock, nursery):
    one, other = join(nursery)
    await trio.sleep(LinkLimits().signalling_idle + 11)
    assert one.ended
    assert other.ended
    assert not one.counts["signalling_broken"] + other.counts["signalling_broken"]
    assert not one.link.dead


async def test_use_and_bulk_links_keep_a_link_up(autojump_clock, nursery):
    one, other = join(nursery)
    for _ in range(3):
        await trio.sleep(LinkLimits().signalling_idle - 60)
        one.link.touch()
    one.events.busy = True
    await trio.sleep(2 * LinkLimits().signalling_idle)
    assert one.link.open
    one.events.busy = False
    await trio.sleep(2 * LinkLimits().signalling_idle)
    assert one.ended
    assert other.ended


@pytest.mark.parametrize("both", [False, True])
async def test_an_ending_loses_nothing(autojump_clock, nursery, both):
    one, other = join(nursery)
    other.events.hold = trio.Event()
    answers = []

    async def call(side, body):
        answers.append(await side.link.call(body))

    nursery.start_soon(call, one, b"x" * 30_000)
    nursery.start_soon(call, other, b"y" * 30_000)
    for _ in range(100):
        one.link.send(Frame.SIGNAL, b"there")
        other.link.send(Frame.SIGNAL, b"back")
    await wait_all_tasks_blocked()
    one.link.retire()
    if both:
        other.link.retire()
    with pytest.raises(LinkBroken):
        one.link.send(Frame.SIGNAL, b"too late")
    await trio.sleep(1)
    assert not one.ended  # a call is under way
    other.events.hold.set()
    await trio.sleep(1)
    assert sorted(answers) == [b"x" * 30_000, b"y" * 30_000]
    assert one.events.signals == [b"back"] * 100
    assert other.events.signals == [b"there"] * 100
    assert one.ended
    assert other.ended
    assert not one.counts["signalling_broken"] + other.counts["signalling_broken"]


async def test_a_peer_that_never_ends_is_left_without_being_called_dead(autojump_clock, nursery):
    side, _ = alone(nursery)
    side.link.retire()
    await trio.sleep(60)
    assert side.ended
    assert not side.link.dead
    assert side.counts["neighbours_dead"] == 0


@pytest.mark.parametrize(
    "late", [pack_frame(Frame.SIGNAL, b"x"), pack_frame(Frame.ASK), next(call_frames(17, 1, b""))]
)
async def test_nothing_new_follows_fin(autojump_clock, nursery, late):
    side, far = alone(nursery)
    side.events.hold = trio.Event()
    nursery.start_soon(_ignore_broken, side)
    await wait_all_tasks_blocked()
    await far.write_all(pack_frame(Frame.FIN) + late)
    await wait_all_tasks_blocked()
    assert side.ended
    assert side.counts["drop_signalling_violation"] == 1


async def _ignore_broken(side):
    with pytest.raises(LinkBroken):
        await side.link.call(b"keeps the link from ending")


@pytest.mark.parametrize(
    "bytes_",
    [
        b"\xff\0\0\0",
        b"\x10\0\0\0",
        b"\x10\x01\0\0",
        pack_frame(Frame.DATA, b"x"),
        pack_frame(Frame.OPEN, bytes(64)),
        pack_frame(Frame.CALL, b"\0\0\0\1\4"),
        pack_frame(Frame.CALL, b"\0\0\0\1\1") * 2,
    ],
    ids=["type", "empty", "long", "data", "open", "flags", "twice"],
)
async def test_violations_close_the_link(autojump_clock, nursery, bytes_):
    side, far = alone(nursery)
    await far.write_all(bytes_)
    await wait_all_tasks_blocked()
    assert side.ended
    assert side.counts["drop_signalling_violation"] == 1


async def test_answers_nobody_asked_for_are_dropped(autojump_clock, nursery):
    side, far = alone(nursery)
    await far.write_all(b"".join(call_frames(Frame.ANSWER, 7, bytes(5000))))
    await wait_all_tasks_blocked()
    assert side.counts["drop_answer_late"] == 1
    assert side.link.open
    nursery.cancel_scope.cancel()
