"""A relay's hot loop, in memory and over real TLS."""

from __future__ import annotations

import errno
import random
import socket
from collections import Counter
from contextlib import suppress

import pytest
import trio
from links_world import loopback_pair, receive, receive_all, tls_pair, until
from test_links_bulk import End

from phantom_tun.crypto.streams import ChainedStream
from phantom_tun.errors import LinkBroken
from phantom_tun.guard import Guard
from phantom_tun.net.links import rest as rest_module
from phantom_tun.net.links import splice as splice_module
from phantom_tun.net.links.buffers import CHUNK, POOL
from phantom_tun.net.links.bulk import Bulk
from phantom_tun.net.links.rest import Rest
from phantom_tun.net.links.splice import FEW, LITTLE, SMALL, join, splice
from phantom_tun.tasks import Tasks
from phantom_tun.wire.frames import Frame, pack_frame

SECRETS = b"a" * 64, b"b" * 64
DATA = random.Random(5).randbytes(1_500_000)
MUCH = SMALL + 1
"""Bytes of a message that a tunnel doesn't move at rest."""


class Relay:
    """near ↔ (a  relay  b) ↔ far, with the layers of one hop."""

    def __init__(self, first, second) -> None:
        self.near, self.a = (End(connection) for connection in first)
        self.b, self.far = (End(connection) for connection in second)
        self.sizes = []
        self.counts = Counter()

    async def run(self):
        layers = [ChainedStream(secret, outer=False) for secret in SECRETS]
        tasks = Tasks(Guard(self.counts))
        async with tasks.open():
            uses = self.a.bulk, self.b.bulk
            await splice(*uses, *layers, spawn=tasks.start, on_bytes=self.sizes.append)


@pytest.fixture(params=[loopback_pair, tls_pair], ids=["memory", "tls"])
async def relay(request, nursery):
    async with request.param() as first, request.param() as second:
        relay = Relay(first, second)
        yield relay


def expected(data, secret):
    """What the layer makes of ``data``, whatever the chunks were."""
    buffer = memoryview(bytearray(data + bytes(32)))
    ChainedStream(secret, outer=False).process(buffer, 0, len(data))
    return bytes(buffer[: len(data)])


async def send(end, data, rng):
    while data:
        size = rng.choice([1, 100, 5000, 60_000])
        await end.bulk.send_bytes(data[:size])
        data = data[size:]
    await end.bulk.send_fin()


async def test_bytes_go_through_the_layers_both_ways_until_fin(relay):
    found = {}

    async def take(end):
        found[end] = await receive_all(end.bulk)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.run)
            for number, end in enumerate((relay.near, relay.far)):
                nursery.start_soon(send, end, DATA[number:], random.Random(number))
                nursery.start_soon(take, end)
    assert found[relay.far] == expected(DATA, SECRETS[0])
    assert found[relay.near] == expected(DATA[1:], SECRETS[1])
    assert sum(relay.sizes) == 2 * len(DATA) - 1
    for end in (relay.a, relay.b):
        await end.bulk.aclose()
        assert [ending.name for ending in end.endings] == ["CLEAN"]


async def test_half_close_leaves_the_other_direction_open(relay, nursery):
    nursery.start_soon(relay.run)
    await relay.near.bulk.send_fin()
    assert await receive_all(relay.far.bulk) == b""
    await relay.far.bulk.send_bytes(b"still talking")
    assert await relay.near.bulk.receive_exactly(13) == expected(b"still talking", SECRETS[1])
    nursery.cancel_scope.cancel()


async def test_a_byte_is_passed_on_before_its_frame_is_complete(relay, nursery):
    nursery.start_soon(relay.run)
    await relay.near.link.connection.write_all(pack_frame(Frame.DATA, bytes(9000))[:5])
    with trio.fail_after(30):
        assert await relay.far.bulk.receive_exactly(1) == expected(b"\0", SECRETS[0])
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("way", ["reset", "end", "garbage"])
async def test_whatever_ends_one_side_resets_the_other(relay, way):
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.run)
            if way == "reset":
                relay.near.bulk.reset()
            elif way == "end":
                relay.near.link.connection.close()
            else:
                await relay.near.link.connection.write_all(b"\xff" * 100)
            with pytest.raises(LinkBroken):
                await receive_all(relay.far.bulk)
    assert [ending.name for ending in relay.a.endings + relay.b.endings] == ["BROKEN"] * 2


async def test_both_sides_may_reset_at_once(relay):
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.run)
            relay.near.bulk.reset()
            relay.far.bulk.reset()


async def test_a_stopped_reader_stops_the_sender_and_nothing_is_lost(relay, nursery):
    nursery.start_soon(relay.run)
    sent = 0

    async def flood():
        nonlocal sent
        while True:
            await relay.near.bulk.send_bytes(bytes(50_000))
            sent += 50_000

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as inner:
            inner.start_soon(flood)
            before = -1
            while sent != before:
                before = sent
                await trio.testing.wait_all_tasks_blocked(0.1)
            scope.cancel()
    assert sum(relay.sizes) <= sent
    stuck = sum(relay.sizes)
    read = 0
    while read < stuck and (data := await receive(relay.far.bulk)):
        read += len(data)
    assert read >= stuck
    nursery.cancel_scope.cancel()


async def test_idle_splices_hold_no_buffer(autojump_clock, nursery, monkeypatch):
    taken = []
    take, give_back = POOL.take, POOL.give_back
    monkeypatch.setattr(type(POOL), "take", lambda _: taken.append(1) or take())
    monkeypatch.setattr(type(POOL), "give_back", lambda _, used: taken.pop() and give_back(used))
    async with loopback_pair() as first, loopback_pair() as second:
        relay = Relay(first, second)
        nursery.start_soon(relay.run)
        await relay.near.bulk.send_bytes(b"x")
        await relay.far.bulk.receive_exactly(1)
        await trio.testing.wait_all_tasks_blocked()
        assert taken == []
        nursery.cancel_scope.cancel()


async def test_a_busy_tunnel_lets_others_go_on(nursery):
    async with loopback_pair() as first, loopback_pair() as second:
        relay = Relay(first, second)

        async def flood():
            with suppress(LinkBroken):
                while True:
                    await relay.near.bulk.send_bytes(bytes(1_000_000))

        async def drain():
            with suppress(LinkBroken):
                while await receive(relay.far.bulk):
                    pass

        for task in (relay.run, flood, drain):
            nursery.start_soon(task)
        turns = 0
        while sum(relay.sizes) < 20_000_000:
            await trio.sleep(0)
            turns += 1
        assert turns >= 20_000_000 // CHUNK
        nursery.cancel_scope.cancel()


@pytest.fixture
async def tls_relay():
    async with tls_pair() as first, tls_pair() as second:
        yield Relay(first, second)


@pytest.fixture
def soon_at_rest(monkeypatch):
    monkeypatch.setattr(rest_module, "LOOK_EVERY", 0.01)


@pytest.fixture
def seldom(monkeypatch):
    """However soon after each other messages come."""
    monkeypatch.setattr(splice_module, "SPARSE", 0.0)


def tasks():
    return trio.lowlevel.current_statistics().tasks_living


async def to_and_fro(relay, count, size=1):
    """A message through the relay and back, again and again."""
    for _ in range(count):
        for sender, receiver, byte in (
            (relay.near, relay.far, b"x"),
            (relay.far, relay.near, b"y"),
        ):
            await sender.bulk.send_bytes(byte * size)
            await receiver.bulk.receive_exactly(size)


async def send_alone(relay, message):
    """Send a message that the relay sees before the next one; whether it moved it soon."""
    count = len(relay.sizes)
    await relay.near.bulk.send_bytes(message)
    with trio.move_on_after(0.3):
        while len(relay.sizes) == count:
            await trio.sleep(0)
    return len(relay.sizes) > count


async def at_rest(relay, nursery):
    """Has it run, move something and come to rest."""
    nursery.start_soon(relay.run)
    await to_and_fro(relay, FEW, MUCH)
    await until(lambda: rest_module.rest()._sleepers and not rest_module.rest()._restless)


async def test_a_tunnel_at_rest_has_no_task(tls_relay, nursery, soon_at_rest):
    with trio.fail_after(30):
        nursery.start_soon(tls_relay.run)
        await to_and_fro(tls_relay, FEW)
        flowing = tasks()
        await until(lambda: tasks() == flowing - 3)
    nursery.cancel_scope.cancel()


async def test_little_and_much_go_through_a_tunnel_that_was_at_rest(
    tls_relay, nursery, soon_at_rest
):
    found = {}

    async def take(end):
        found[end] = await receive_all(end.bulk)

    with trio.fail_after(60):
        async with trio.open_nursery() as inner:
            await at_rest(tls_relay, inner)
            sent = b"x" * FEW * MUCH, b"y" * FEW * MUCH
            await to_and_fro(tls_relay, 1)
            await trio.sleep(0.05)
            for number, end in enumerate((tls_relay.near, tls_relay.far)):
                inner.start_soon(send, end, DATA[number:], random.Random(number))
                inner.start_soon(take, end)
    before = [part + part[:1] for part in sent]
    passed = [
        expected(part + DATA[i:], SECRETS[i])[FEW * MUCH + 1 :] for i, part in enumerate(before)
    ]
    assert [found[tls_relay.far], found[tls_relay.near]] == passed


async def test_a_tunnel_that_woke_with_no_room_to_send_comes_to_rest_again(
    tls_relay, nursery, soon_at_rest, monkeypatch
):
    with trio.fail_after(30):
        await at_rest(tls_relay, nursery)
        await until(lambda: not rest_module.rest()._restless)
        with monkeypatch.context() as full:
            full.setattr(type(tls_relay.b.bulk), "has_room", lambda _: False)
            await tls_relay.near.bulk.send_bytes(bytes(3 * LITTLE))
            await tls_relay.far.bulk.receive_exactly(3 * LITTLE)
            assert not rest_module.rest()._sleepers
        await until(lambda: rest_module.rest()._sleepers)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("size", [1, 100, SMALL])
async def test_messages_go_through_a_tunnel_that_stays_at_rest(
    tls_relay, nursery, soon_at_rest, seldom, size
):
    with trio.fail_after(30):
        await at_rest(tls_relay, nursery)
        before, fewest = tasks(), len(tls_relay.sizes)
        for turn in range(20):
            await tls_relay.near.bulk.send_bytes(DATA[turn * size :][:size])
            await tls_relay.far.bulk.receive_exactly(size)
            await tls_relay.far.bulk.send_bytes(b"y" * size)
            await tls_relay.near.bulk.receive_exactly(size)
            assert tasks() == before
    assert sum(tls_relay.sizes[fewest:]) == 40 * size
    nursery.cancel_scope.cancel()


async def test_what_goes_through_at_rest_went_through_the_layer(
    tls_relay, nursery, soon_at_rest, seldom
):
    with trio.fail_after(30):
        await at_rest(tls_relay, nursery)
        passed = b"x" * FEW * MUCH
        for turn in range(10):
            sent = bytes([turn]) * 300
            await tls_relay.near.bulk.send_bytes(sent)
            passed += sent
            got = await tls_relay.far.bulk.receive_exactly(300)
            assert got == expected(passed, SECRETS[0])[-300:]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 40])
async def test_frames_in_several_records_go_through_a_tunnel_at_rest(
    tls_relay, nursery, soon_at_rest, seldom, cut
):
    """They are all there when the relay looks, and its kernel says so once."""
    frame = pack_frame(Frame.DATA, b"z" * 100)
    with trio.fail_after(30):
        await at_rest(tls_relay, nursery)
        for _ in range(5):
            for start in range(0, len(frame), cut):
                tls_relay.near.link.connection.write_now(frame[start : start + cut])
            await tls_relay.far.bulk.receive_exactly(100)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("is_half_closed", [False, True])
async def test_a_full_sink_holds_up_only_one_way_of_a_tunnel_at_rest(
    tls_relay, nursery, soon_at_rest, seldom, monkeypatch, is_half_closed
):
    """It takes a part of a message: nothing is lost, doubled or out of order."""
    left = []
    tls_relay.b.link.connection._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    end_send = Bulk.end_send

    async def seen(bulk):
        left.append(len(bulk._link.connection._left))
        await end_send(bulk)

    monkeypatch.setattr(Bulk, "end_send", seen)
    rng = random.Random(3)
    with trio.fail_after(60):
        await at_rest(tls_relay, nursery)
        if is_half_closed:
            await tls_relay.far.bulk.send_fin()
            assert await receive_all(tls_relay.near.bulk) == b""
            await until(lambda: rest_module.rest()._sleepers and not rest_module.rest()._restless)
        passed, sent = b"x" * FEW * MUCH, b""
        while not left:
            message = rng.randbytes(rng.randint(1, SMALL))
            await send_alone(tls_relay, message)
            sent += message
        if not is_half_closed:
            await tls_relay.far.bulk.send_bytes(b"back")
            assert len(await tls_relay.near.bulk.receive_exactly(4)) == 4
        got = await tls_relay.far.bulk.receive_exactly(len(sent))
        assert got == expected(passed + sent, SECRETS[0])[len(passed) :]
        assert len(left) == 1
    nursery.cancel_scope.cancel()


async def test_a_sink_that_is_closed_before_it_has_taken_all(
    tls_relay, soon_at_rest, seldom, monkeypatch
):
    """In the turn in which it has no room: nobody waits for a descriptor that is none."""
    connection, closed = tls_relay.b.link.connection, []
    begin_send = Bulk.begin_send

    def begin(bulk, buffer, *, fin=False):
        is_all = begin_send(bulk, buffer, fin=fin)
        if not is_all:
            closed.append(True)
            trio.lowlevel.current_trio_token().run_sync_soon(connection.close)
        return is_all

    connection._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    with trio.fail_after(60):
        async with trio.open_nursery() as inner:
            await at_rest(tls_relay, inner)
            monkeypatch.setattr(Bulk, "begin_send", begin)
            while not closed:
                await send_alone(tls_relay, bytes(SMALL))
    assert [ending.name for ending in tls_relay.a.endings + tls_relay.b.endings] == ["BROKEN"] * 2
    assert tls_relay.counts == {}


@pytest.mark.parametrize("end", ["b", "far"])
async def test_a_full_sink_of_a_tunnel_that_was_at_rest_may_fail(
    tls_relay, soon_at_rest, seldom, end
):
    tls_relay.b.link.connection._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    free = len(POOL)
    with trio.fail_after(60):
        async with trio.open_nursery() as inner:
            await at_rest(tls_relay, inner)
            while await send_alone(tls_relay, bytes(SMALL)):
                pass
            getattr(tls_relay, end).bulk.reset()
    assert [ending.name for ending in tls_relay.a.endings + tls_relay.b.endings] == ["BROKEN"] * 2
    assert len(POOL) >= free


async def test_the_end_of_one_way_goes_through_a_tunnel_at_rest_with_bytes(tls_relay, soon_at_rest):
    with trio.fail_after(30):
        async with trio.open_nursery() as inner:
            await at_rest(tls_relay, inner)
            last = pack_frame(Frame.DATA, b"last") + pack_frame(Frame.FIN)
            await tls_relay.near.link.connection.write_all(last)
            tls_relay.near.bulk._fin_sent = True
            assert len(await receive_all(tls_relay.far.bulk)) == 4
            await tls_relay.far.bulk.send_fin()
            assert await receive_all(tls_relay.near.bulk) == b""
    assert [ending.name for ending in tls_relay.a.endings + tls_relay.b.endings] == ["CLEAN"] * 2


@pytest.mark.parametrize("size", [1, MUCH])
async def test_a_mistake_of_ours_at_rest_resets_both_and_is_counted(tls_relay, soon_at_rest, size):
    layers = [Breaks(secret, outer=False) for secret in SECRETS]
    joined = Joined(tls_relay, layers)
    with trio.fail_after(30):
        async with joined.tasks.open():
            joined.begin()
            await until(lambda: not rest_module.rest()._restless)
            await to_and_fro(tls_relay, 1)
            layers[0].is_broken = True
            await tls_relay.near.bulk.send_bytes(bytes(size))
            with pytest.raises(LinkBroken):
                await receive_all(tls_relay.far.bulk)
    assert joined.over == 1
    assert joined.endings() == ["BROKEN"] * 2
    assert tls_relay.counts == {"internal_errors": 1}


class Breaks(ChainedStream):
    """A layer with a mistake in it, from some moment on."""

    __slots__ = ("is_broken",)

    def process(self, view, start, end):
        if getattr(self, "is_broken", False):
            raise ZeroDivisionError
        super().process(view, start, end)


@pytest.mark.parametrize("end", ["a", "b"])
async def test_closing_a_link_here_ends_a_tunnel_at_rest(tls_relay, soon_at_rest, end):
    with trio.fail_after(30):
        async with trio.open_nursery() as inner:
            await at_rest(tls_relay, inner)
            getattr(tls_relay, end).link.connection.close()
    assert [ending.name for ending in tls_relay.a.endings + tls_relay.b.endings] == ["BROKEN"] * 2


async def test_closing_a_link_of_a_cancelled_tunnel_at_rest_is_harmless(tls_relay, soon_at_rest):
    with trio.fail_after(30):
        async with trio.open_nursery() as inner:
            await at_rest(tls_relay, inner)
            inner.cancel_scope.cancel()
            tls_relay.a.link.connection.close()


async def test_a_half_closed_tunnel_comes_to_rest_and_goes_on(tls_relay, soon_at_rest):
    with trio.fail_after(30):
        async with trio.open_nursery() as inner:
            await at_rest(tls_relay, inner)
            await tls_relay.near.bulk.send_fin()
            assert await receive_all(tls_relay.far.bulk) == b""
            for _ in range(3):
                await trio.sleep(0.05)
                await tls_relay.far.bulk.send_bytes(b"y")
                await tls_relay.near.bulk.receive_exactly(1)
            await tls_relay.far.bulk.send_fin()


async def test_a_tunnel_whose_sockets_cannot_be_watched_flows(tls_relay, nursery, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "too many")

    monkeypatch.setattr(Rest, "begin", refuse)
    nursery.start_soon(tls_relay.run)
    with trio.fail_after(30):
        await to_and_fro(tls_relay, 3)
    nursery.cancel_scope.cancel()


class Broken:
    """A layer that fails."""

    def process(self, *_):
        raise KeyError("a mistake of ours")

    def rest(self):
        pass


class Joined:
    """The two uses of a relay, joined while ``tasks`` are open."""

    def __init__(self, relay, layers=None):
        self.relay = relay
        self.tasks = Tasks(Guard(relay.counts))
        self.layers = layers or [ChainedStream(secret, outer=False) for secret in SECRETS]
        self.over = 0

    def begin(self):
        uses = self.relay.a.bulk, self.relay.b.bulk
        join(*uses, *self.layers, spawn=self.tasks.start, on_over=self._is_over)

    def _is_over(self):
        self.over += 1

    def endings(self):
        return [ending.name for ending in self.relay.a.endings + self.relay.b.endings]


async def test_a_mistake_of_ours_resets_both_and_is_counted(relay):
    joined = Joined(relay, [Broken(), Broken()])
    with trio.fail_after(30):
        async with joined.tasks.open():
            joined.begin()
            await relay.near.bulk.send_bytes(b"x")
            with pytest.raises(LinkBroken):
                await receive_all(relay.far.bulk)
    assert joined.over == 1
    assert joined.endings() == ["BROKEN"] * 2
    assert relay.counts == {"internal_errors": 1}


@pytest.mark.parametrize("end", ["a", "b"])
@pytest.mark.parametrize("way", ["reset", "closed"])
async def test_what_ended_before_it_is_joined_is_over_at_once(relay, end, way):
    joined = Joined(relay)
    if way == "reset":
        getattr(relay, end).bulk.reset()
    else:
        getattr(relay, end).link.connection.close()
    with trio.fail_after(30):
        async with joined.tasks.open():
            joined.begin()
    assert joined.over == 1
    assert joined.endings() == ["BROKEN"] * 2
    assert not relay.counts


async def test_without_tasks_what_arrives_ends_a_tunnel_at_rest(tls_relay, soon_at_rest):
    joined = Joined(tls_relay)
    with trio.fail_after(30):
        async with joined.tasks.open():
            joined.begin()
            await until(lambda: not rest_module.rest()._restless)
        assert not joined.over
        await to_and_fro(tls_relay, 1)  # for that no task is needed
        await tls_relay.near.bulk.send_bytes(bytes(MUCH))
        with pytest.raises(LinkBroken):
            await receive_all(tls_relay.far.bulk)
    assert joined.over == 1
    assert joined.endings() == ["BROKEN"] * 2
    assert not rest_module.rest()._sleepers
    assert not rest_module.rest()._restless


async def test_links_in_memory_are_not_joined_without_tasks():
    async with loopback_pair() as first, loopback_pair() as second:
        joined = Joined(Relay(first, second))
        joined.begin()
        assert joined.over == 1
        assert joined.endings() == ["BROKEN"] * 2


async def test_a_half_closed_tunnel_at_rest_ends_when_either_link_is_closed_here(
    tls_relay, soon_at_rest
):
    joined = Joined(tls_relay)
    with trio.fail_after(30):
        async with joined.tasks.open():
            joined.begin()
            await tls_relay.near.bulk.send_fin()
            assert await receive_all(tls_relay.far.bulk) == b""
            await until(lambda: not rest_module.rest()._restless)
            tls_relay.a.link.connection.close()
            assert joined.over == 1
    assert joined.endings() == ["BROKEN"] * 2
