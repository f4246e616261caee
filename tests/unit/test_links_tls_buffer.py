"""TLS holds no buffer while a connection waits, and nothing is lost by finding that out."""

from __future__ import annotations

import random
import socket

import pytest
import trio
from links_world import tls_pair, until

from phantom_tun.errors import LinkBroken
from phantom_tun.net.links import tls
from phantom_tun.net.links.tls import TlsConnection


@pytest.fixture(autouse=True)
def _keeps_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "KEEPS_BUFFER", True)


async def arrived(connection: TlsConnection) -> None:
    await until(lambda: not connection.is_quiet())


async def test_what_comes_meanwhile_is_not_lost() -> None:
    view = memoryview(bytearray(100))
    async with tls_pair() as (near, far):
        await near.write_all(b"one")
        await far.wait_arrival()
        assert far.read_now(view) == 3
        assert far._holds == 3
        await near.write_all(b"two")
        await arrived(far)
        far.let_go()
        assert not far.is_quiet()
        with trio.fail_after(5):
            await far.wait_arrival()
        assert far.read_now(view) == 3
        assert bytes(view[:3]) == b"two"
        far.let_go()
        assert far._holds == 0
        assert far.is_quiet()


async def test_an_end_that_was_met_meanwhile_is_told() -> None:
    view = memoryview(bytearray(100))
    async with tls_pair() as (near, far):
        await near.write_all(b"one")
        await far.wait_arrival()
        assert far.read_now(view) == 3
        near._say_goodbye()  # and TCP stays open: nothing will make the socket readable again
        await arrived(far)
        far.let_go()
        assert not far.is_quiet()
        with trio.fail_after(5):
            await far.wait_arrival()
        assert far.read_now(view) == 0


async def test_a_failure_that_was_met_meanwhile_is_told() -> None:
    view = memoryview(bytearray(100))
    async with tls_pair() as (near, far):
        await near.write_all(b"one")
        await far.wait_arrival()
        assert far.read_now(view) == 3
        socket.socket.send(near._socket, b"\x17\x03\x03\x00\x20" + bytes(32))
        await arrived(far)
        far.let_go()
        assert not far.is_quiet()
        with trio.fail_after(5):
            await far.wait_arrival()
        with pytest.raises(LinkBroken):
            while far.read_now(view):
                pass
            raise LinkBroken("it has ended")


async def test_a_stream_is_the_same_however_often_it_waits() -> None:
    rng = random.Random(4)
    data = rng.randbytes(1_000_000)
    found = bytearray()
    async with tls_pair() as (near, far):

        async def send() -> None:
            done = 0
            while done < len(data):
                size = rng.choice([1, 2, 300, 16_384, 20_000, 70_000])
                await near.write_all(data[done : done + size])
                done += size
                if size < 1_000:
                    await trio.sleep(0.0005)

        async def receive() -> None:
            view = memoryview(bytearray(131_072))
            while len(found) < len(data):
                if len(found) % 3:
                    far.let_go()
                await far.wait_arrival()
                found.extend(view[: far.read_now(view[: rng.choice([1, 5_000, 131_072])]) or 0])

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                nursery.start_soon(receive)
    assert found == data
