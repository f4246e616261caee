"""UDP flows and echo exchanges: what the program sees for each thing the overlay may say."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import trio
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoReply
from scapy.packet import Raw
from tun_harness import CONFIG, FAR, GATEWAY, OWN, World, datagram, echo, end, ip, world

from phantom_tun.errors import Filtered, PathUnavailable, Refused, Unreachable
from phantom_tun.testing.fake_overlay import Call, memory_datagrams
from phantom_tun.tun import datagrams
from phantom_tun.tun.settings import Limits


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stands still in most tests, so nothing can wait for company."""
    monkeypatch.setattr(datagrams, "GATHER_TIME", 0.0)


versions = pytest.mark.parametrize("version", [4, 6])


async def ask(w: World, packet: bytes) -> Call:
    await w.send(packet)
    return await w.overlay.wait_call()


def error_of(answer: Any) -> tuple[int, int]:
    layer = answer[ICMP] if answer.version == 4 else answer[ICMPv6DestUnreach]
    return layer.type, layer.code


@versions
async def test_first_messages_wait_and_order_is_kept(mock_clock: Any, version: int) -> None:
    async with world(mock_clock) as w:
        messages = [b"%d" % i for i in range(20)]
        call = await ask(w, datagram(version, messages[0]))
        assert (call.kind, call.source, call.target) == (
            "datagrams",
            end(OWN[version], 5000),
            end(FAR[version], 53),
        )
        await w.send(*(datagram(version, message) for message in messages[1:]))
        await w.all_decided()
        far = call.accept_datagrams()
        assert [await far.receive() for _ in messages] == messages
        assert w.overlay.calls_waiting() == 0
        await w.send(datagram(version, b"later"))
        assert await far.receive() == b"later"
        assert w.flows() == [("udp", "out", "open")]


async def test_what_comes_close_behind_waits_for_company(
    mock_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "GATHER_TIME", 0.002)
    async with world(mock_clock) as w:
        far = (await ask(w, datagram(4, b"alone"))).accept_datagrams()
        assert await far.receive() == b"alone"
        await w.send(datagram(4, b"close"), datagram(4, b"behind"))
        await w.all_decided()
        with trio.move_on_after(0) as too_early:
            await far.receive()
        assert too_early.cancelled_caught
        mock_clock.jump(datagrams.GATHER_TIME)
        assert [await far.receive() for _ in range(2)] == [b"close", b"behind"]


@versions
async def test_replies_come_from_whom_was_asked(mock_clock: Any, version: int) -> None:
    async with world(mock_clock) as w:
        far = (await ask(w, datagram(version, b"who?"))).accept_datagrams()
        for message in (b"reply", b"", b"x" * 60_000):
            await far.send(message)
            packet = await w.tun.receive()
            answer = ip(version, FAR[version], OWN[version])
            if version == 4:
                answer.id, answer.flags = 0, "DF"
            assert packet == bytes(answer / UDP(sport=53, dport=5000) / message)


@versions
async def test_refused_is_port_unreachable(mock_clock: Any, version: int) -> None:
    async with world(mock_clock) as w:
        (await ask(w, datagram(version, b"hello"))).fail(Refused("closed"))
        answer = await w.receive()
        assert error_of(answer) == ((3, 3) if version == 4 else (1, 4))
        assert answer.src == FAR[version]
        await ask(w, datagram(version, b"again"))


@versions
async def test_unreachable_is_host_unreachable(mock_clock: Any, version: int) -> None:
    async with world(mock_clock) as w:
        for packet in (datagram(version, b"hello"), echo(version)):
            (await ask(w, packet)).fail(Unreachable("nobody"))
            answer = await w.receive()
            assert error_of(answer) == ((3, 1) if version == 4 else (1, 3))
            assert answer.src == GATEWAY[version]
            assert bytes(answer.payload.payload) == packet


async def test_filtered_is_silence_for_a_while(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        (await ask(w, datagram(4, b"1"))).fail(Filtered("not exposed"))
        await w.send(datagram(4, b"2"))
        await w.all_decided()
        assert w.flows() == [("udp", "out", "silent")]
        await w.pass_time(16)
        assert w.flows() == []
        await ask(w, datagram(4, b"3"))


async def test_our_own_trouble_lets_the_next_message_try_again(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        (await ask(w, datagram(4, b"1"))).fail(PathUnavailable("no path yet"))
        await w.all_decided()
        assert w.count("open_failed") == 1
        await ask(w, datagram(4, b"2"))


async def test_an_overlay_that_never_answers_is_left_after_a_while(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        call = await ask(w, datagram(4, b"1"))
        await w.pass_time(131)
        assert call.is_cancelled
        assert w.flows() == [("udp", "out", "silent")]


@versions
async def test_a_far_side_that_closes_unasked_has_refused(mock_clock: Any, version: int) -> None:
    async with world(mock_clock) as w:
        far = (await ask(w, datagram(version, b"hello"))).accept_datagrams()
        await far.receive()
        await far.aclose()
        assert error_of(await w.receive()) == ((3, 3) if version == 4 else (1, 4))
        assert w.flows() == []


async def test_a_far_side_that_closes_after_its_answer_has_just_closed(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        far = (await ask(w, datagram(4, b"hello"))).accept_datagrams()
        await far.receive()
        await far.send(b"answer")
        assert (await w.receive())[UDP].sport == 53
        await far.aclose()
        await w.all_decided()
        assert w.flows() == []
        assert w.count("answered_refused") == 0


async def test_a_dead_tunnel_ends_the_flow_without_a_word(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        far = (await ask(w, datagram(4, b"hello"))).accept_datagrams()
        await far.receive()
        far.break_down()
        await w.all_decided()
        assert w.flows() == []
        await ask(w, datagram(4, b"next"))


async def test_idle_flows_end_and_busy_ones_dont(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        far = (await ask(w, datagram(4, b"hello"))).accept_datagrams()
        await far.receive()
        for _ in range(3):
            await w.pass_time(50)
            await far.send(b"still here")
            await w.receive()
        await w.pass_time(59)
        assert w.flows() == [("udp", "out", "open")]
        await w.pass_time(2)
        assert w.flows() == []
        assert await far.receive() is None


async def test_bounds(mock_clock: Any) -> None:
    limits = Limits(datagram_flows=2, echo_flows=1, queued_messages=3, queued_bytes=1000)
    async with world(mock_clock, dataclasses.replace(CONFIG, limits=limits)) as w:
        await ask(w, datagram(4, b"1"))
        await ask(w, datagram(4, b"1", sport=5001))
        await w.send(datagram(4, b"1", sport=5002))
        await w.all_decided()
        assert w.count("dropped_udp_flows_full") == 1
        with pytest.raises(Filtered):
            await w.interface.open_datagrams(end(FAR[4], 6000), end(OWN[4], 53))
        await ask(w, echo(4, identifier=1))
        await w.send(echo(4, identifier=2))
        await w.all_decided()
        assert w.count("dropped_echo_flows_full") == 1
        await w.send(*[datagram(4, b"x")] * 3)
        await w.all_decided()
        assert w.count("dropped_queue_full") == 1  # three messages are queued
        await w.send(datagram(4, bytes(990), sport=5001), datagram(4, bytes(10), sport=5001))
        await w.all_decided()
        assert w.count("dropped_queue_full") == 2  # 991 bytes are queued
        await w.send(datagram(4, bytes(1001), sport=5003))
        await w.all_decided()
        assert w.count("dropped_udp_flows_full") == 2


async def test_all_queues_together_are_bounded(mock_clock: Any) -> None:
    limits = Limits(queued_bytes=100_000, queued_bytes_all=300_000)
    async with world(mock_clock, dataclasses.replace(CONFIG, limits=limits)) as w:
        calls = [await ask(w, datagram(4, b"1", sport=port)) for port in range(5001, 5005)]
        await w.send(datagram(4, bytes(60_000), sport=5001))
        await w.send(datagram(4, bytes(20_000), sport=5001))  # a quarter is 75,000
        await w.all_decided()
        assert w.count("dropped_queue_full") == 1
        for call in calls[1:]:
            call.fail(PathUnavailable("no path"))
        await w.pass_time(1)
        await w.send(datagram(4, bytes(20_000), sport=5001))
        await w.all_decided()
        assert w.count("dropped_queue_full") == 1


async def test_a_first_message_too_large_for_the_queue(mock_clock: Any) -> None:
    async with world(mock_clock, dataclasses.replace(CONFIG, limits=Limits(queued_bytes=5))) as w:
        await w.send(datagram(4, b"123456"))
        await w.all_decided()
        assert w.count("dropped_queue_full") == 1
        assert w.flows() == []


# --- echo ---------------------------------------------------------------------------------------


@versions
async def test_ping(mock_clock: Any, version: int) -> None:
    async with world(mock_clock) as w:
        call = await ask(w, echo(version, 77, 1, b"data" * 2000))
        assert (call.kind, call.source, call.target) == (
            "echo",
            end(OWN[version], 0),
            end(FAR[version], 0),
        )
        far = call.accept_datagrams()
        message = await far.receive()
        assert message == b"\0\x4d\0\1" + b"data" * 2000
        await far.send(message)
        reply = await w.receive()
        assert (reply.src, reply.dst) == (FAR[version], OWN[version])
        inner = reply[ICMP] if version == 4 else reply[ICMPv6EchoReply]
        assert (inner.type, inner.id, inner.seq) == (0 if version == 4 else 129, 77, 1)
        await w.send(echo(version, 77, 2))
        assert (await far.receive() or b"")[:4] == b"\0\x4d\0\2"
        assert w.overlay.calls_waiting() == 0


async def test_an_answer_for_another_program_is_dropped(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        far = (await ask(w, echo(4, 77))).accept_datagrams()
        await far.send(b"\0\x4e\0\1ping")
        await far.send(b"")
        await far.send(b"\0\x4d\0\1ping")
        assert (await w.receive())[ICMP].id == 77
        assert w.count("dropped_bad_message") == 2


async def test_a_refused_or_closed_ping_says_nothing(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        (await ask(w, echo(4))).fail(Refused("odd"))
        await w.all_decided()
        far = (await ask(w, echo(4))).accept_datagrams()
        await far.receive()
        await far.aclose()
        await w.all_decided()
        assert w.flows() == []


async def test_a_ping_longer_than_a_message_is_dropped(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        far = (await ask(w, echo(4, data=bytes(65_504)))).accept_datagrams()
        await w.send(echo(4, sequence=2, data=bytes(65_503)))
        message = await far.receive()
        assert message is not None
        assert message[3] == 2
        assert w.count("dropped_too_long") == 1


# --- inbound ------------------------------------------------------------------------------------


@versions
async def test_a_local_service_sees_the_caller(mock_clock: Any, version: int) -> None:
    async with world(mock_clock) as w, trio.open_nursery() as nursery:
        caller, service = end(FAR[version], 6000), end(OWN[version], 53)
        association = await w.interface.open_datagrams(caller, service)
        near, far = memory_datagrams()
        nursery.start_soon(association.carry, near)
        await far.send(b"question")
        packet = await w.receive()
        assert (packet.src, packet[UDP].sport) == (FAR[version], 6000)
        assert (packet.dst, packet[UDP].dport) == (OWN[version], 53)
        await w.send(datagram(version, b"answer", sport=53, dport=6000))
        assert await far.receive() == b"answer"
        assert w.flows() == [("udp", "in", "open")]
        await far.aclose()


@versions
async def test_a_closed_local_port_ends_the_stream(mock_clock: Any, version: int) -> None:
    async with world(mock_clock) as w, trio.open_nursery() as nursery:
        caller, service = end(FAR[version], 6000), end(OWN[version], 53)
        association = await w.interface.open_datagrams(caller, service)
        near, far = memory_datagrams()
        nursery.start_soon(association.carry, near)
        await far.send(b"question")
        rejected = await w.tun.receive()
        error = ICMP(type=3, code=3) if version == 4 else ICMPv6DestUnreach(code=4)
        await w.send(bytes(ip(version) / error / Raw(rejected)))
        assert await far.receive() is None
        assert w.flows() == []


async def test_an_association_given_up_is_forgotten(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        association = await w.interface.open_datagrams(end(FAR[4], 6000), end(OWN[4], 53))
        association.abort()
        association.abort()
        assert w.flows() == []
        await ask(w, datagram(4, b"now a call of our own", sport=53, dport=6000))


async def test_both_sides_may_call_at_once(mock_clock: Any) -> None:
    """Our program has called first: what it sends goes on in its own flow, and what the caller
    sends is delivered."""
    async with world(mock_clock) as w, trio.open_nursery() as nursery:
        ours = (await ask(w, datagram(4, b"1", sport=53, dport=6000))).accept_datagrams()
        association = await w.interface.open_datagrams(end(FAR[4], 6000), end(OWN[4], 53))
        near, theirs = memory_datagrams()
        nursery.start_soon(association.carry, near)
        await theirs.send(b"hello")
        assert (await w.receive())[UDP].dport == 53
        await w.send(datagram(4, b"2", sport=53, dport=6000))
        assert [await ours.receive(), await ours.receive()] == [b"1", b"2"]
        await theirs.aclose()


async def test_a_program_that_has_gone_ends_its_flow(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        far = (await ask(w, datagram(4, b"1"))).accept_datagrams()
        await far.receive()
        await far.send(b"too late")
        late = await w.tun.receive()
        await w.send(bytes(ip(4) / ICMP(type=3, code=3) / Raw(late)))
        assert await far.receive() is None


async def test_an_icmp_error_about_nothing_is_counted(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        about = bytes(IP(src=FAR[4], dst=OWN[4]) / UDP(sport=1, dport=2))
        await w.send(bytes(ip(4) / ICMP(type=3, code=3) / Raw(about)))
        await w.all_decided()
        assert w.count("dropped_stray_icmp") == 1
