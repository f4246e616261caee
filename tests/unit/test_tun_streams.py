"""TCP through the interface: what the application sees for each thing the overlay may say."""

from __future__ import annotations

import dataclasses
import errno
import socket
import struct
from typing import Any

import pytest
import trio
from scapy.layers.inet import ICMP, TCP
from scapy.layers.inet6 import ICMPv6DestUnreach
from tun_harness import CONFIG, FAR, GATEWAY, LISTENER, OWN, World, end, ip, syn, world

from phantom_tun.errors import Filtered, PathUnavailable, Refused, StreamReset, Unreachable
from phantom_tun.testing.fake_overlay import Call, MemoryStream
from phantom_tun.tun.settings import Limits

versions = pytest.mark.parametrize("version", [4, 6])


async def ask(w: World, version: int = 4) -> Call:
    await w.send(syn(version))
    return await w.overlay.wait_call()


@versions
async def test_a_syn_is_held_until_the_overlay_answers(mock_clock: Any, version: int) -> None:
    async with world(mock_clock) as w:
        call = await ask(w, version)
        assert (call.kind, call.source, call.target) == (
            "stream",
            end(OWN[version], 5000),
            end(FAR[version], 80),
        )
        await w.all_decided()
        assert w.flows() == [("tcp", "out", "opening")]


@versions
async def test_refused_is_rst(mock_clock: Any, version: int) -> None:
    async with world(mock_clock) as w:
        (await ask(w, version)).fail(Refused("closed"))
        answer = await w.receive()
        assert (answer.src, answer.dst) == (FAR[version], OWN[version])
        assert (str(answer[TCP].flags), answer[TCP].ack) == ("RA", 2)
        assert w.count("answered_refused") == 1
        await ask(w, version)  # forgotten: the next SYN is a new attempt


@versions
async def test_unreachable_is_icmp(mock_clock: Any, version: int) -> None:
    async with world(mock_clock) as w:
        (await ask(w, version)).fail(Unreachable("nobody"))
        answer = await w.receive()
        assert (answer.src, answer.dst) == (GATEWAY[version], OWN[version])
        error = answer[ICMP] if version == 4 else answer[ICMPv6DestUnreach]
        assert (error.type, error.code) == ((3, 1) if version == 4 else (1, 3))
        assert bytes(error.payload) == syn(version)


async def test_filtered_is_silence_and_not_asked_again_at_once(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        (await ask(w)).fail(Filtered("not exposed"))
        await w.all_decided()
        for _ in range(14):  # an application that repeats its SYN every second
            await w.pass_time(1)
            await w.send(syn(4))
            await w.all_decided()
        assert w.overlay.calls_waiting() == 0
        assert w.count("answered_silence") == 1
        await w.pass_time(2)
        await ask(w)


async def test_our_own_trouble_lets_the_next_syn_try_again(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        (await ask(w)).fail(PathUnavailable("no path yet"))
        await w.all_decided()
        assert w.count("open_failed") == 1
        await ask(w)


async def test_an_overlay_that_never_answers_is_left_after_a_while(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        call = await ask(w)
        for _ in range(130):
            await w.send(syn(4))
            await w.all_decided()
            await w.pass_time(1)
        assert call.is_cancelled
        assert w.count("answered_silence") == 1


async def test_repeated_syns_ask_once(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        call = await ask(w)
        await w.send(syn(4), syn(4), syn(4, seq=9))
        await w.all_decided()
        assert w.overlay.calls_waiting() == 0
        call.accept_stream()
        injected = await w.receive()
        assert injected[TCP].seq == 9  # the latest of them is let through


async def test_an_application_that_resets_is_not_waited_for(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        call = await ask(w)
        await w.send(bytes(ip(4) / TCP(sport=5000, dport=80, flags="R")))
        await w.all_decided()
        assert call.is_cancelled
        assert w.flows() == []


async def test_an_application_that_falls_silent_is_not_waited_for(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        call = await ask(w)
        await w.pass_time(4)
        await w.send(syn(4))  # Linux repeats after 1, 2, 4 … seconds
        await w.all_decided()
        await w.pass_time(9)
        assert not call.is_cancelled
        await w.pass_time(2)
        assert call.is_cancelled
        assert w.count("gave_up") == 1


async def test_bounds_of_waiting_and_established_connections(mock_clock: Any) -> None:
    config = dataclasses.replace(CONFIG, limits=Limits(pending=2, streams=1))
    async with world(mock_clock, config) as w:
        first = await ask(w)
        await w.send(syn(4, sport=5001), syn(4, sport=5002))
        await w.all_decided()
        assert w.count("dropped_pending_full") == 1
        first.accept_stream()
        with await w.handshake():
            await w.send(syn(4, sport=5003))
            await w.all_decided()
            assert w.count("dropped_streams_full") == 1


async def test_an_application_gone_before_the_handshake(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        far = (await ask(w)).accept_stream()
        await w.receive()  # the injected SYN; nobody answers
        await w.pass_time(11)
        assert w.count("application_gone") == 1
        with pytest.raises(StreamReset):
            await far.receive()


@pytest.mark.parametrize("version", [4, 6])
async def test_an_application_that_closed_while_it_connected_is_not_waited_for(
    mock_clock: Any, version: int
) -> None:
    async with world(mock_clock) as w:
        far = (await ask(w, version)).accept_stream()
        injected = await w.receive()
        # Its kernel says so as soon as it hears that the connection stands.
        await w.send(bytes(ip(version) / TCP(sport=5000, dport=80, flags="R", seq=2)))
        passed = await w.receive()
        assert passed[TCP].flags == "R"
        assert (passed[TCP].sport, passed.dst) == (injected[TCP].sport, injected.dst)
        await w.all_decided()
        assert w.flows() == []
        assert w.count("application_gone") == 1
        with pytest.raises(StreamReset):
            await far.receive()


# --- established --------------------------------------------------------------------------------


async def establish(w: World) -> tuple[socket.socket, MemoryStream]:
    far = (await ask(w)).accept_stream()
    sock = await w.handshake()
    return sock, far


async def recv(sock: socket.socket) -> bytes:
    return await trio.to_thread.run_sync(sock.recv, 1 << 20)


async def test_bytes_and_ends_pass_both_ways(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        sock, far = await establish(w)
        with sock:
            sock.sendall(b"question")
            assert await far.receive() == b"question"
            sock.shutdown(socket.SHUT_WR)
            assert await far.receive() == b""
            await far.send_all(memoryview(b"answer"))
            assert await recv(sock) == b"answer"
            assert w.flows() == [("tcp", "out", "half-closed here")]
            info = w.interface.flows()[0]
            assert (info.sent, info.received) == (8, 6)
            await far.send_end()
            assert await recv(sock) == b""
            await trio.testing.wait_all_tasks_blocked(0.05)
            mock_clock.rate = 1  # the look at the last bytes comes after some milliseconds
            while w.flows():
                await trio.sleep(0.01)
        assert w.count("tcp_lingering") == 1
        mock_clock.rate = 0
        await w.pass_time(67)
        assert w.count("tcp_lingering") == 0


async def test_a_reset_from_the_far_side_is_a_reset(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        sock, far = await establish(w)
        with sock:
            far.abort()
            with pytest.raises(ConnectionResetError):
                await recv(sock)


async def test_a_reset_from_the_application_is_a_reset(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        sock, far = await establish(w)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        with pytest.raises(StreamReset):
            await far.receive()
        await trio.testing.wait_all_tasks_blocked()
        assert w.flows() == []


async def test_a_far_side_that_resets_after_its_end_is_noticed(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        sock, far = await establish(w)
        with sock:
            await far.send_end()
            assert await recv(sock) == b""
            await trio.testing.wait_all_tasks_blocked(0.05)
            await w.pass_time(2)
            assert w.flows() == [("tcp", "out", "half-closed there")]
            far.abort()
            await w.pass_time(2)
            assert w.flows() == []
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE


async def test_a_reset_that_nobody_waits_for_is_found(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        sock, far = await establish(w)
        sock.sendall(b"x" * 2_000_000)  # more than the memory stream holds
        await trio.testing.wait_all_tasks_blocked(0.05)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        await w.pass_time(2)
        assert w.flows() == []
        with pytest.raises(StreamReset):
            await far.receive()


async def test_a_listener_lets_nobody_in_who_was_not_let_through(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        (await ask(w)).accept_stream()
        injected = await w.receive()
        with socket.socket() as intruder:
            intruder.bind(("127.0.0.9", 0))
            intruder.connect((LISTENER, injected[TCP].dport))
            intruder.settimeout(10)
            with pytest.raises(ConnectionResetError):
                await recv(intruder)
        assert w.count("stray_connection") == 1


async def test_a_new_connection_of_the_same_numbers_is_asked_about_anew(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        sock, far = await establish(w)
        far.abort()
        await trio.testing.wait_all_tasks_blocked()
        assert w.count("tcp_lingering") == 1
        late = bytes(ip(4) / TCP(sport=5000, dport=80, flags="A", seq=5))
        await w.send(late)
        assert (await w.receive()).dst == LISTENER  # a late segment still goes where it belongs
        sock.close()
        far = (await ask(w)).accept_stream()
        with await w.handshake() as again:
            again.sendall(b"second")
            assert await far.receive() == b"second"


async def test_stopping_resets_everything(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        sock, far = await establish(w)
        kept = sock.dup()
        await w.send(syn(4, sport=5001))
        waiting = await w.overlay.wait_call()
    with kept, pytest.raises(ConnectionResetError):
        kept.recv(1)
    with pytest.raises(StreamReset):
        await far.receive()
    assert waiting.is_cancelled


# --- inbound ------------------------------------------------------------------------------------


async def test_a_closed_local_port_is_refused(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        with pytest.raises(Refused):
            await w.interface.connect_stream(end(FAR[4], 6000), end(OWN[4], 80))
        assert w.flows() == []
        assert w.count("tcp_bound") == 0


async def test_a_service_that_resets_at_once_is_not_silent(
    mock_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reset may be there before the connection was seen to stand."""
    async with world(mock_clock) as w:
        monkeypatch.setattr(socket.socket, "connect_ex", lambda *_: errno.ECONNRESET)
        with pytest.raises(Refused):
            await w.interface.connect_stream(end(FAR[4], 6000), end(OWN[4], 80))
        assert w.flows() == []


@pytest.mark.parametrize(
    ("caller", "target"),
    [
        (end(FAR[4], 6000), end("127.9.9.9", 80)),  # not ours
        (end(OWN[4], 6000), end(OWN[4], 80)),  # ourselves
        (end(LISTENER, 6000), end(OWN[4], 80)),  # the listener
        (end(GATEWAY[4], 6000), end(OWN[4], 80)),  # what the listener sees as peer
        (end("10.0.0.1", 6000), end(OWN[4], 80)),  # outside the overlay
        (end(FAR[6], 6000), end(OWN[4], 80)),  # of another IP version
        (end(FAR[4], 0), end(OWN[4], 80)),
        (end(FAR[4], 6000), end(OWN[4], 0)),
        (end(FAR[4], 65_536), end(OWN[4], 80)),
    ],
)
async def test_impossible_callers_are_filtered(mock_clock: Any, caller: Any, target: Any) -> None:
    async with world(mock_clock) as w:
        with pytest.raises(Filtered):
            await w.interface.connect_stream(caller, target)
        with pytest.raises(Filtered):
            await w.interface.open_datagrams(caller, target)
        assert w.count("inbound_bad_ends") == 2


async def test_a_nat_peer_may_call(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        with pytest.raises(Refused):
            await w.interface.connect_stream(end("127.0.7.7", 6000), end(OWN[4], 80))


async def test_inbound_connections_are_bounded(mock_clock: Any) -> None:
    async with world(mock_clock, dataclasses.replace(CONFIG, limits=Limits(streams=0))) as w:
        with pytest.raises(Filtered):
            await w.interface.connect_stream(end(FAR[4], 6000), end(OWN[4], 80))
        assert w.count("inbound_streams_full") == 1
