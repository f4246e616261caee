"""The interface as a whole: start and end, addresses, and everything that goes no further."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import GRE, ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6MLReport2,
    ICMPv6ND_RS,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from tun_harness import CONFIG, FAR, LISTENER, OWN, PEER, end, ip, syn, world

from phantom_tun.errors import Filtered, UsageError, WorldError
from phantom_tun.packet.header import MAX_PACKET
from phantom_tun.packet.nat import NatTable
from phantom_tun.testing.fake_overlay import MemoryOverlay
from phantom_tun.testing.fake_tun import FakeHost, FakeTun
from phantom_tun.tun.desk import Desk
from phantom_tun.tun.flows import BufferPool, Counters
from phantom_tun.tun.interface import Interface
from phantom_tun.tun.plan import AddressPlan
from phantom_tun.tun.settings import Limits, Timeouts
from phantom_tun.tun.shared import Shared

TCP_SYN = TCP(sport=5000, dport=80, flags="S")
OUTSIDE = {4: "10.1.2.3", 6: "2001:db8::7"}

NO_FURTHER = [
    (b"\0", "malformed"),
    (b"\x45" + bytes(10), "malformed"),
    (syn(4) + b"x", "malformed"),
    (syn(6)[:-1], "malformed"),
    (bytes(IP(src=OWN[4], dst=FAR[4], proto=6) / bytes(TCP_SYN)[:12]), "malformed"),
    (bytes(ip(4, target="224.0.0.251") / UDP()), "multicast"),
    (bytes(ip(4, target="255.255.255.255") / UDP()), "multicast"),
    (bytes(IPv6(src="::", dst="ff02::16") / IPv6ExtHdrHopByHop() / ICMPv6MLReport2()), "multicast"),
    (bytes(IPv6(src="fe80::1", dst="ff02::2") / ICMPv6ND_RS()), "multicast"),
    (bytes(ip(4, source=OUTSIDE[4]) / TCP_SYN), "source_not_ours"),
    (bytes(ip(6, source=OUTSIDE[6]) / TCP_SYN), "source_not_ours"),
    (bytes(ip(4, source="127.1.0.2") / TCP_SYN), "source_not_ours"),
    (bytes(ip(4, source=PEER) / TCP_SYN), "source_not_ours"),
    (bytes(ip(4, source=LISTENER) / TCP_SYN), "no_flow"),
    (bytes(ip(4, target=OUTSIDE[4]) / TCP_SYN), "destination_outside"),
    (bytes(ip(6, target=OUTSIDE[6]) / UDP()), "destination_outside"),
    (bytes(ip(4, target=PEER) / TCP_SYN), "destination_reserved"),
    (bytes(ip(4, target=LISTENER) / UDP()), "destination_reserved"),
    (bytes(ip(4, target=PEER) / ICMP()), "destination_reserved"),
    (bytes(ip(6, target="2001:2f::ffff") / TCP_SYN), "destination_reserved"),
    (bytes(ip(4) / GRE()), "protocol"),
    (bytes(ip(6) / IPv6ExtHdrFragment() / UDP()), "protocol"),
    (bytes(ip(6) / IPv6ExtHdrHopByHop() / TCP_SYN), "protocol"),
    (bytes(ip(6) / ICMP()), "protocol"),
    (bytes(IP(src=OWN[4], dst=FAR[4], flags="MF") / TCP_SYN), "fragment"),
    (bytes(IP(src=OWN[4], dst=FAR[4], frag=7) / UDP()), "fragment"),
    (bytes(IP(src=OWN[4], dst=FAR[4], options=[IPOption_NOP()]) / TCP_SYN), "ip_options"),
    (bytes(ip(4) / ICMP(type=0)), "icmp_kind"),
    (bytes(ip(6) / ICMPv6EchoReply()), "icmp_kind"),
    (bytes(ip(4) / ICMP(type=13)), "icmp_kind"),
]


async def test_what_goes_no_further_is_counted_under_its_reason(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        for packet, reason in NO_FURTHER:
            before = w.interface.statistics()
            await w.send(packet)
            await w.all_decided()
            after = w.interface.statistics()
            name = f"dropped_{reason}"
            assert after.get(name, 0) == before.get(name, 0) + 1, (reason, packet.hex())
            dropped = [k for k in after if k.startswith("dropped") and after[k] != before.get(k, 0)]
            assert dropped == [name]
        assert w.overlay.calls_waiting() == 0


async def test_a_stray_segment_is_reset_and_a_stray_reset_is_not(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        await w.send(bytes(ip(4) / TCP(sport=9, dport=8, flags="R")))
        await w.send(bytes(ip(6) / TCP(sport=9, dport=8, flags="PA", ack=5) / b"data"))
        answer = await w.receive()
        assert (answer.src, answer[TCP].dport, str(answer[TCP].flags)) == (FAR[6], 9, "R")


# --- random bytes through the desk ----------------------------------------------------------------


class Nobody:
    """A desk's neighbours, who accept everything and do nothing."""

    def repeat(self, key: bytes, syn: bytes) -> bool:
        return False

    def hold(self, key: bytes, syn: bytes) -> str | None:
        return None

    def give_up(self, key: bytes) -> None:
        pass

    def begin(self, transport: str, key: bytes, packet: bytes, message: bytes) -> str | None:
        return None

    def refuse(self, key: bytes) -> bool:
        return False


def make_desk() -> tuple[Desk, Counters, list[bytes]]:
    """A desk on no interface; returns what it counts and what it writes."""
    plan = AddressPlan(CONFIG.ap4, CONFIG.ap6)
    plan.own = frozenset(CONFIG.addresses)
    written: list[bytes] = []

    def write(*parts: bytes) -> bool:
        written.append(b"".join(parts))
        return True

    shared = Shared(
        plan=plan,
        nat=NatTable(1),
        timeouts=Timeouts(),
        limits=Limits(),
        token=None,  # type: ignore[arg-type]
        clock=trio.testing.MockClock(),
        write=write,
        buffers=BufferPool(1),
    )
    counters = Counters()
    nobody = Nobody()
    return Desk(shared, nobody, nobody, nobody, counters), counters, written


def addressed(version: int, protocol: int, body: bytes) -> bytes:
    if version == 4:
        return bytes(IP(src=OWN[4], dst=FAR[4], proto=protocol)) + body
    return bytes(IPv6(src=OWN[6], dst=FAR[6], nh=protocol, plen=len(body))) + body


bodies = st.tuples(st.sampled_from([4, 6]), st.sampled_from([1, 6, 17, 58, 4, 41]), st.binary())


@given(
    st.one_of(
        st.binary(max_size=200),
        bodies.map(lambda body: addressed(*body)),
        bodies.map(lambda body: bytes(IP(addressed(4, *body[1:]), len=20 + len(body[2])))),
    )
)
def test_random_bytes_are_decided_without_a_word_of_complaint(packet: bytes) -> None:
    desk, counters, written = make_desk()
    desk(packet)
    assert len(counters.snapshot()) <= 1
    for answer in written:
        assert answer[9 if answer[0] >> 4 == 4 else 6] == 6  # nothing but RST


# --- start and end --------------------------------------------------------------------------------


async def test_guard_first_addresses_last_and_all_undone(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        assert w.host.steps == ["guard", "up", "firewall open", "addresses"]
        assert w.host.addresses == w.interface.addresses == CONFIG.addresses
    assert w.host.steps[-1] == "firewall closed"
    assert w.tun.fileno() == -1
    assert w.interface.flows() == []
    assert w.interface.statistics() == {}
    with pytest.raises(Filtered):
        await w.interface.connect_stream(end(FAR[4], 1), end(OWN[4], 1))
    with pytest.raises(UsageError):
        await w.interface.set_addresses(lambda: [ip_address("127.1.0.2")])


async def test_a_failing_host_is_reported_as_it_is(autojump_clock: Any) -> None:
    tun, host = FakeTun(), FakeHost()
    host.failure = WorldError("no such device")
    with pytest.raises(WorldError, match="no such device"):
        await Interface(CONFIG, tun, host).run(MemoryOverlay())
    assert host.steps[-1] == "firewall closed"
    assert tun.fileno() == -1
    tun.hang_up()


async def test_a_device_that_is_taken_away_ends_it(autojump_clock: Any) -> None:
    tun, host = FakeTun(), FakeHost()
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            interface = Interface(CONFIG, tun, host)
            await nursery.start(interface.run, MemoryOverlay())
            tun.hang_up()
            await trio.sleep_forever()
    (reason,) = caught.value.exceptions
    assert isinstance(reason, WorldError)
    assert str(reason) == "the interface fake0 was removed"


async def test_addresses_come_and_go(mock_clock: Any) -> None:
    extra = ip_address("127.1.0.2")
    async with world(mock_clock) as w:
        packet = bytes(ip(4, source=str(extra)) / TCP_SYN)
        await w.send(packet)
        await w.all_decided()
        assert w.count("dropped_source_not_ours") == 1
        await w.interface.set_addresses(lambda: [extra, *CONFIG.addresses])
        assert w.host.addresses == w.interface.addresses == (extra, *CONFIG.addresses)
        steps = list(w.host.steps)
        await w.interface.set_addresses(lambda: [extra, *CONFIG.addresses])
        assert w.host.steps == steps
        await w.send(packet)
        call = await w.overlay.wait_call()
        mock_clock.rate = 1000
        await w.interface.set_addresses(lambda: CONFIG.addresses)
        mock_clock.rate = 0
        await trio.testing.wait_all_tasks_blocked()
        assert call.is_cancelled
        assert w.host.addresses == CONFIG.addresses
        await w.send(packet)
        await w.all_decided()
        assert w.count("dropped_source_not_ours") == 2


@pytest.mark.parametrize("address", ["10.0.0.1", LISTENER, "127.0.9.9", "2001:2f::5", "2001:db8::"])
async def test_only_ap_addresses_can_be_ours(mock_clock: Any, address: str) -> None:
    async with world(mock_clock) as w:
        with pytest.raises(UsageError):
            await w.interface.set_addresses(lambda: [*CONFIG.addresses, ip_address(address)])
        assert w.interface.addresses == CONFIG.addresses


async def test_the_last_wish_for_addresses_counts(autojump_clock: Any) -> None:
    first, second = ip_address("127.1.0.2"), ip_address("127.1.0.3")
    wanted = [first]
    async with world(autojump_clock) as w:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.interface.set_addresses, lambda: list(wanted))
            nursery.start_soon(w.interface.set_addresses, lambda: list(wanted))
            await trio.lowlevel.checkpoint()
            wanted[:] = [second]
        assert w.host.addresses == (second,)


async def test_the_largest_packet_is_read_whole(mock_clock: Any) -> None:
    async with world(mock_clock) as w:
        await w.send(bytes(ip(4) / UDP(sport=5, dport=6) / bytes(MAX_PACKET - 28)))
        far = (await w.overlay.wait_call()).accept_datagrams()
        assert await far.receive() == bytes(MAX_PACKET - 28)
