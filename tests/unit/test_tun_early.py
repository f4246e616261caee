"""TCP through the interface to a service that is steady: connected at once, asked with the first
bytes."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio
from scapy.layers.inet import TCP
from tun_harness import FAR, OWN, PEER, World, end, ip, syn, world

from phantom_tun.endpoints import MAX_FIRST
from phantom_tun.errors import Filtered, PathUnavailable, PhantomError, Refused, Unreachable
from phantom_tun.testing.fake_overlay import Call
from phantom_tun.tun.outbound import FIRST_WITHIN

TARGET = end(FAR[4], 80)


async def connected(w: World) -> socket.socket:
    """An application that was told at once that it is connected."""
    w.overlay.steady.add(TARGET)
    await w.send(syn(4))
    return await w.handshake()


async def asked(w: World) -> Call:
    """What the overlay is asked once the application has had its time to speak."""
    await trio.testing.wait_all_tasks_blocked(0.05)
    w.clock.jump(2 * FIRST_WITHIN)
    return await w.overlay.wait_call()


async def receive(sock: socket.socket, length: int) -> bytes:
    return await trio.to_thread.run_sync(sock.recv, length)


async def test_the_first_bytes_go_along_with_the_question(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        sock = await connected(w)
        assert w.overlay.calls_waiting() == 0
        sock.sendall(b"GET /")
        call = await w.overlay.wait_call()
        assert (call.source, call.target) == (end(OWN[4], 5000), TARGET)
        assert call.first == b"GET /"
        far = call.accept_stream()
        await far.send_all(memoryview(b"page"))
        assert await receive(sock, 10) == b"page"
        sock.sendall(b"more")
        assert bytes(await far.receive()) == b"more"
        sock.close()
        assert bytes(await far.receive()) == b""
        await far.send_end()
        assert w.count("early_connected") == 1


async def test_an_application_that_waits_lets_the_service_speak_first(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        sock = await connected(w)
        call = await asked(w)
        assert call.first == b""
        await call.accept_stream().send_all(memoryview(b"220 ready"))
        assert await receive(sock, 20) == b"220 ready"


async def test_what_is_too_long_to_go_along_follows(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        sock = await connected(w)
        data = bytes(range(256)) * 40
        sock.sendall(data)
        call = await w.overlay.wait_call()
        assert call.first == data[:MAX_FIRST]
        far, found = call.accept_stream(), bytearray(call.first)
        while len(found) < len(data):
            found += await far.receive()
        assert found == data


async def test_an_application_that_has_ended_already(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        sock = await connected(w)
        sock.shutdown(socket.SHUT_WR)
        call = await w.overlay.wait_call()
        assert call.first == b""
        far = call.accept_stream()
        assert bytes(await far.receive()) == b""


@pytest.mark.parametrize(
    "failure",
    [Refused("no"), Filtered("no"), Unreachable("no"), PathUnavailable("no")],
    ids=lambda failure: type(failure).__name__,
)
async def test_whatever_fails_is_a_reset(mock_clock: Any, failure: PhantomError) -> None:
    async with world(mock_clock) as w:
        sock = await connected(w)
        sock.sendall(b"GET /")
        (await w.overlay.wait_call()).fail(failure)
        with pytest.raises(ConnectionResetError):
            await receive(sock, 10)
        await trio.testing.wait_all_tasks_blocked()
        assert w.count("early_failed") == 1
        assert w.flows() == []


async def test_an_application_that_is_gone_before_it_is_connected(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        w.overlay.steady.add(TARGET)
        await w.send(syn(4))
        injected = await w.receive()
        assert injected.src == PEER
        await w.send(bytes(ip(4) / TCP(sport=5000, dport=80, flags="R")))
        await w.pass_time(4)
        assert w.overlay.calls_waiting() == 0
        assert w.count("application_gone") == 1
        assert w.flows() == []


async def test_an_application_that_resets_while_the_overlay_is_asked(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        sock = await connected(w)
        sock.sendall(b"GET /")
        call = await w.overlay.wait_call()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
        far = call.accept_stream()
        with pytest.raises(PhantomError):
            await far.receive()
        await w.pass_time(10)
        assert w.flows() == []


async def test_other_services_are_asked_before(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        w.overlay.steady.add(end(FAR[4], 81))
        await w.send(syn(4))
        call = await w.overlay.wait_call()
        assert call.first == b""
        await w.all_decided()
        call.fail(Refused("closed"))
        assert str((await w.receive())[TCP].flags) == "RA"


async def test_an_overlay_that_never_answers_is_left_after_a_while(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        sock = await connected(w)
        sock.sendall(b"GET /")
        call = await w.overlay.wait_call()
        await w.pass_time(131)
        assert call.is_cancelled
        with pytest.raises(ConnectionResetError):
            await receive(sock, 10)
