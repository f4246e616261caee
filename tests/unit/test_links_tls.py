"""Whole nodes over real TLS: what the tests in memory can't show."""

from __future__ import annotations

import os
import random
import resource
from pathlib import Path

import pytest
import trio
from links_world import LOOPBACK, Handlers, receive_all, tls_nodes, until, use

from phantom_tun.crypto.streams import ChainedStream
from phantom_tun.errors import DeadlineExpired, LinkBroken
from phantom_tun.net.links.buffers import Buffer
from phantom_tun.net.links.links import LinkLimits, Links
from phantom_tun.net.links.rest import rest
from phantom_tun.net.links.tls import HandshakeSteps, connect_tcp
from phantom_tun.testing.memory_links import MemoryLinks
from phantom_tun.wire.door import LinkKind

OPENING = bytes(range(64))
DATA = random.Random(9).randbytes(2_000_000)


def test_memory_links_have_the_same_interface():
    public = {name for name in vars(Links) if not name.startswith("_")}
    assert public <= set(dir(MemoryLinks))


async def test_messages_calls_and_bulk_uses():
    async with tls_nodes(2) as (a, b):
        await a.links.signal(b.ref, b"hello")
        assert await a.links.call(b.ref, DATA[:64_000]) == DATA[:64_000][::-1]
        assert await b.links.call(a.ref, b"abc") == b"cba"
        await until(lambda: b.handlers.signals == [b"hello"])
        assert {peer.node_id for peer in b.handlers.peers} == {a.ref.node_id}
        for _ in range(3):
            with trio.fail_after(60):
                assert await use(await a.links.open_bulk(b.ref, OPENING), DATA) == DATA
        assert b.handlers.openings == [OPENING] * 3
        assert len(a.links.neighbours()) == len(b.links.neighbours()) == 1


async def test_simultaneous_dials_lose_nothing():
    async with tls_nodes(2) as (a, b):

        async def chat(one, other):
            for number in range(30):
                await one.links.signal(other.ref, b"%d" % number)
                assert await one.links.call(other.ref, b"ab") == b"ba"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(chat, a, b)
            nursery.start_soon(chat, b, a)
        for node in (a, b):
            assert node.handlers.signals == [b"%d" % number for number in range(30)]
            await until(lambda node=node: node.links.statistics()["signalling_links"] == 1)
            assert "lost_messages" not in +node.links._counts


async def test_bulk_links_through_a_relay():
    async with tls_nodes(3) as (a, relay, b):

        async def pass_on(bulk):
            onward = await relay.links.open_bulk(b.ref, OPENING)
            layers = [ChainedStream(bytes(64), outer=outer) for outer in (False, True)]
            relay.links.join(bulk, onward, *layers)

        relay.handlers.on_bulk = pass_on
        for _ in range(2):
            with trio.fail_after(60):
                # What the relay puts on there, it takes off again on the way back.
                assert await use(await a.links.open_bulk(relay.ref, OPENING), DATA) == DATA
        await until(lambda: relay.links.statistics()["bulk_in_use"] == 0)


async def test_a_burst_of_uses():
    async with tls_nodes(2) as (a, b):
        limiter = trio.CapacityLimiter(50)

        async def one(number):
            async with limiter:
                data = b"%d" % number * 100
                assert await use(await a.links.open_bulk(b.ref, OPENING), data) == data

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(150):
                    nursery.start_soon(one, number)
        assert a.links.statistics()["bulk_in_use"] == 0
        assert len(b.handlers.openings) == 150


async def test_who_can_not_be_dialed_is_reached():
    async with tls_nodes(1, undialable=1) as (a, hidden):
        await hidden.links.ensure(a.ref)
        await until(a.links.neighbours)
        assert await a.links.call(hidden.ref, b"ab") == b"ba"
        for _ in range(2):
            assert await use(await a.links.open_bulk(hidden.ref, OPENING), DATA) == DATA
        assert hidden.links.statistics()["strangers"] == 0


async def test_a_node_reaches_itself():
    async with tls_nodes(1) as (a,):
        assert await a.links.call(a.ref, b"ab") == b"ba"
        assert await use(await a.links.open_bulk(a.ref, OPENING), DATA) == DATA


async def test_no_link_resumes_another_though_a_browser_can():
    async with tls_nodes(2) as (a, b):
        links = [await a.links._dial_other(b.ref, LinkKind.BULK) for _ in range(3)]
        sockets = [link._socket for link in links]
        assert not any(tls.session_reused for tls in sockets)
        session = sockets[0].session
        assert session.has_ticket
        tcp = await connect_tcp(LOOPBACK, b.ref.port, LinkLimits())
        with sockets[0].context.wrap_socket(
            tcp, do_handshake_on_connect=False, session=session
        ) as browser:
            with trio.fail_after(30):
                await HandshakeSteps(1).shake(browser)
            assert browser.session_reused
        for link in links:
            link.close()


async def test_a_reader_that_stops_stops_the_sender_and_loses_nothing():
    async with tls_nodes(2, LinkLimits(unsent=16_384)) as (a, b):
        go_on, found = trio.Event(), []

        async def slow(bulk):
            await go_on.wait()
            found.append(await receive_all(bulk))
            await bulk.send_fin()

        b.handlers.on_bulk = slow
        bulk = await a.links.open_bulk(b.ref, OPENING)
        sent = bytearray()
        buffer = Buffer()

        async def flood():
            while not go_on.is_set():
                part = random.randbytes(60_000)
                sent.extend(part)
                buffer.fill(part)
                await bulk.send(buffer)
            await bulk.send_fin()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            before = -1
            while len(sent) != before:
                before = len(sent)
                await trio.testing.wait_all_tasks_blocked(0.1)
            assert before < 20_000_000  # what the kernel holds at most
            go_on.set()
        assert await receive_all(bulk) == b""
        await bulk.aclose()
        assert found == [bytes(sent)]


async def test_idle_bulk_links_of_a_stopped_node_are_noticed():
    async with tls_nodes(2) as (a, b):
        assert await use(await a.links.open_bulk(b.ref, OPENING)) == b"data"
        for neighbour in b.links._neighbours.values():
            neighbour.close()
        assert await use(await a.links.open_bulk(b.ref, OPENING)) == b"data"


async def test_a_reset_reaches_the_other_side():
    async with tls_nodes(2) as (a, b):
        ended = trio.Event()

        async def wait(bulk):
            with pytest.raises(LinkBroken):
                await bulk.receive_exactly(1000)
            ended.set()

        b.handlers.on_bulk = wait
        bulk = await a.links.open_bulk(b.ref, OPENING)
        await bulk.send_bytes(b"abc")
        bulk.reset()
        with trio.fail_after(30):
            await ended.wait()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_nothing_is_left_open():
    rest()  # one for all links, as long as the process runs
    before = open_files()
    async with tls_nodes(2) as (a, b):
        await a.links.ensure(b.ref)
        bulk = await a.links.open_bulk(b.ref, OPENING)
        assert await use(await b.links.open_bulk(a.ref, OPENING)) == b"data"
    with pytest.raises(LinkBroken):
        await bulk.receive_exactly(1)
    assert open_files() == before


async def test_running_out_of_descriptors_is_survived():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with tls_nodes(2, LinkLimits(dial_deadline=1.0, spares=0)) as (a, b):
        await a.links.ensure(b.ref)
        fillers = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 20, hard))
        try:
            with pytest.raises(OSError):
                while True:
                    fillers.append(os.dup(0))
            with pytest.raises(LinkBroken):
                await a.links.open_bulk(b.ref, OPENING)
            os.close(fillers.pop())
            with pytest.raises(DeadlineExpired):  # one descriptor is enough to dial, not to accept
                await a.links.open_bulk(b.ref, OPENING)
            assert b.links.statistics()["accept_failed"] >= 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for filler in fillers:
                os.close(filler)
        await until(lambda: b.links.statistics()["strangers"] == 0)
        assert await use(await a.links.open_bulk(b.ref, OPENING)) == b"data"


def test_handlers_are_what_links_expect():
    from phantom_tun.net.links.links import LinkHandlers

    handlers: LinkHandlers = Handlers()
    assert handlers is not None
