"""The control channel between a node and a worker."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from phantom_tun.errors import CapacityExceeded, LinkBroken, WireError
from phantom_tun.net.links import worker_channel
from phantom_tun.net.links.worker_channel import WorkerChannel, channel_pair
from phantom_tun.wire.worker import MAX_MESSAGE_LEN, Forget, Greet, Proof, Ready, pack


@pytest.fixture
async def channels(nursery):
    first, second = (WorkerChannel(end) for end in channel_pair())
    yield first, second
    first.close()
    second.close()


async def test_messages_arrive_one_by_one(channels):
    one, other = channels
    for number in range(50):
        one.send(Forget(bytes([number])))
    for number in range(50):
        received = await other.receive()
        assert received.data == pack(Forget(bytes([number])))
        assert received.attached is None


async def test_a_descriptor_comes_with_its_message_and_leaves_the_sender(channels):
    one, other = channels
    near, far = socket.socketpair()
    with near:
        one.send(Greet(1, b"\x7f\0\0\1"), far)
        assert far.fileno() == -1
        received = await other.receive()
        with received.attached as arrived:
            assert not arrived.get_inheritable()
            near.send(b"through")
            assert arrived.recv(10) == b"through"


async def test_what_does_not_fit_is_sent_later_in_order(channels, nursery):
    one, other = channels
    nursery.start_soon(one.keep_sending)
    messages = [Proof(number, bytes(10_000)) for number in range(200)]
    pairs = [socket.socketpair() for _ in messages]
    for message, (_near, far) in zip(messages, pairs, strict=True):
        one.send(message, far)
    for message, (near, _far) in zip(messages, pairs, strict=True):
        received = await other.receive()
        assert received.data == pack(message)
        received.attached.close()
        assert near.recv(1) == b""
        near.close()


async def test_messages_that_nobody_takes_are_limited(channels, monkeypatch):
    monkeypatch.setattr(worker_channel, "MAX_WAITING", 3)
    one, _other = channels
    near, far = socket.socketpair()
    with near:
        with pytest.raises(CapacityExceeded):
            for _ in range(100):
                one.send(Proof(1, bytes(60_000)))
        with pytest.raises(CapacityExceeded):
            one.send(Ready(), far)
        assert far.fileno() == -1


async def test_the_end_of_the_other_process_is_noticed(channels, nursery):
    one, other = channels
    nursery.start_soon(one.keep_sending)
    other.close()
    with pytest.raises(LinkBroken):
        await one.receive()
    near, far = socket.socketpair()
    with near:
        one.send(Ready())
        with pytest.raises(LinkBroken):
            one.send(Ready(), far)
        assert far.fileno() == -1


async def test_descriptors_that_were_not_sent_are_closed(channels):
    one, _other = channels
    near, far = socket.socketpair()
    for _ in range(20):
        one.send(Proof(1, bytes(60_000)))
    one.send(Ready(), far)
    assert far.fileno() >= 0
    one.close()
    assert far.fileno() == -1
    assert near.recv(1) == b""
    near.close()


async def test_closing_wakes_whoever_receives(channels, nursery):
    one, _other = channels

    async def close() -> None:
        await trio.testing.wait_all_tasks_blocked()
        one.close()

    nursery.start_soon(close)
    with pytest.raises(LinkBroken):
        await one.receive()


async def test_messages_that_are_too_long_are_refused(nursery):
    near, far = channel_pair()
    channel = WorkerChannel(far)
    with near:
        near.send(bytes(MAX_MESSAGE_LEN + 1))
        with pytest.raises(WireError):
            await channel.receive()
    channel.close()


async def test_more_than_one_descriptor_is_refused(nursery):
    near, far = channel_pair()
    channel = WorkerChannel(far)
    with near:
        socket.send_fds(near, [pack(Ready())], [near.fileno()] * 2)
        with pytest.raises(WireError):
            await channel.receive()
    channel.close()
