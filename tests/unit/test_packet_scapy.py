"""Headers, classification and answers: what scapy is asked, and what random bytes do to it."""

from __future__ import annotations

import warnings
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, ICMPerror, IPerror, IPOption_NOP, TCPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    ICMPv6ND_RS,
    IPv6,
)
from scapy.packet import Raw

from phantom_tun.endpoints import Endpoint
from phantom_tun.errors import WireError
from phantom_tun.packet.answer import host_unreachable, port_unreachable, reset_for
from phantom_tun.packet.classify import Classified, Kind, classify
from phantom_tun.packet.header import IpHeader, flow_key, read_ip_header

PAIRS = {4: ("241.1.2.3", "250.9.8.7"), 6: ("2001:2f:1::3", "2001:2f:9::7")}
versions = pytest.mark.parametrize("version", [4, 6])


def ip(version: int, *, back: bool = False, **fields: Any) -> Any:
    source, target = PAIRS[version] if not back else PAIRS[version][::-1]
    return (IP if version == 4 else IPv6)(src=source, dst=target, **fields)


def key(version: int, from_port: int, to_port: int) -> bytes:
    source, target = map(ip_address, PAIRS[version])
    return flow_key(Endpoint(source, from_port), Endpoint(target, to_port))


# --- header -------------------------------------------------------------------------------------


@versions
def test_header_is_read(version: int) -> None:
    packet = bytes(ip(version) / UDP(sport=5, dport=6) / b"data")
    source, target = map(ip_address, PAIRS[version])
    assert read_ip_header(packet) == IpHeader(source, target, 17, False, False)


def test_options_and_fragments_are_seen() -> None:
    tcp = TCP(sport=5, dport=6)
    assert read_ip_header(bytes(ip(4, options=[IPOption_NOP()]) / tcp)).has_options
    assert read_ip_header(bytes(ip(4, flags="MF") / tcp)).is_fragment
    assert read_ip_header(bytes(ip(4, frag=3) / tcp)).is_fragment
    assert not read_ip_header(bytes(ip(4, flags="DF") / tcp)).is_fragment


@versions
def test_contradicting_lengths_are_refused(version: int) -> None:
    packet = bytes(ip(version) / UDP(sport=5, dport=6) / b"data")
    for wrong in (b"", packet[:1], packet[:19], packet[:-1], packet + b"x"):
        with pytest.raises(WireError):
            read_ip_header(wrong)
    with pytest.raises(WireError):
        read_ip_header(b"\x50" + packet[1:])
    if version == 4:
        for first in (b"\x44", b"\x4f"):
            with pytest.raises(WireError):
                read_ip_header(first + packet[1:])


# --- classification -----------------------------------------------------------------------------


@versions
@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("S", Kind.SYN),
        ("SEC", Kind.SYN),
        ("SA", Kind.SEGMENT),
        ("SF", Kind.SEGMENT),
        ("A", Kind.SEGMENT),
        ("FA", Kind.SEGMENT),
        ("", Kind.SEGMENT),
        ("R", Kind.RESET),
        ("RA", Kind.RESET),
        ("SR", Kind.RESET),
    ],
)
def test_tcp_kinds(version: int, flags: str, kind: Kind) -> None:
    packet = bytes(ip(version) / TCP(sport=5, dport=6, flags=flags) / b"data")
    assert classify(packet) == Classified(kind, key(version, 5, 6))


@versions
def test_udp_and_echo(version: int) -> None:
    datagram = bytes(ip(version) / UDP(sport=5, dport=6) / bytes(2000))
    assert classify(datagram) == Classified(Kind.DATAGRAM, key(version, 5, 6))
    echo = ICMP(id=77, seq=1) if version == 4 else ICMPv6EchoRequest(id=77, seq=1)
    packet = bytes(ip(version) / echo / bytes(2000))
    assert classify(packet) == Classified(Kind.ECHO, key(version, 77, 0))


@versions
@pytest.mark.parametrize("transport", [TCP(sport=6, dport=5), UDP(sport=6, dport=5) / b"data"])
def test_complaints_name_the_complainers_flow(version: int, transport: Any) -> None:
    offending = bytes(ip(version, back=True) / transport)
    error = ICMP(type=3, code=3) if version == 4 else ICMPv6DestUnreach(code=4)
    packet = bytes(ip(version) / error / Raw(offending))
    assert classify(packet) == Classified(Kind.UNREACHABLE, key(version, 5, 6))


def test_what_the_interface_does_not_carry() -> None:
    for packet, reason in (
        (ip(4) / ICMP(type=0), "icmp kind"),
        (ip(4) / ICMP(type=8, code=1), "icmp kind"),
        (ip(4) / ICMP(type=11) / IPerror(bytes(ip(4))) / TCPerror(), "icmp kind"),
        (ip(4) / ICMP(type=3, code=4) / Raw(bytes(ip(4) / TCP())), "icmp kind"),
        (ip(4) / ICMP(type=3, code=3) / IPerror(bytes(ip(4) / ICMP())) / ICMPerror(), "icmp kind"),
        (ip(4) / ICMP(type=3, code=3), "icmp kind"),
        (ip(6) / ICMPv6EchoReply(), "icmp kind"),
        (ip(6) / ICMPv6EchoRequest(code=1), "icmp kind"),
        (ip(6) / ICMPv6ND_RS(), "icmp kind"),
        (ip(6) / ICMPv6MLReport2(), "icmp kind"),
        (ip(6, nh=58) / Raw(b"\xc8\0\0\0"), "malformed"),
        (ip(4, proto=6) / Raw(b"short"), "malformed"),
        (ip(6, nh=17) / Raw(b"short"), "malformed"),
        (ip(4, proto=6), "malformed"),
        (ip(4) / TCP(sport=5, dport=6, dataofs=4), "malformed"),
        (ip(4) / TCP(sport=5, dport=0), "malformed"),
        (ip(4) / TCP(sport=0, dport=5), "malformed"),
        (ip(4) / UDP(sport=5, dport=0), "malformed"),
        (ip(6) / UDP(sport=5, dport=6, len=7) / b"data", "malformed"),
    ):
        with pytest.raises(WireError, match=reason):
            classify(bytes(packet))


def framed(protocol: int, version: int, body: bytes) -> bytes:
    if version == 4:
        return bytes(ip(4, proto=protocol) / Raw(body))
    return bytes(ip(6, nh=protocol) / Raw(body))


@given(st.sampled_from([1, 6, 17, 58]), st.sampled_from([4, 6]), st.binary(max_size=300))
@example(1, 4, b"\x03\x03" + bytes(6) + b"\x45" + bytes(8) + b"\x04" + b"\x45" * 200)
@example(58, 6, b"\x01\x04" + bytes(6) + b"\x60" + bytes(5) + b"\x29" + b"\x60" * 200)
def test_random_transports_are_classified_or_refused(
    protocol: int, version: int, body: bytes
) -> None:
    packet = framed(protocol, version, body)
    try:
        read_ip_header(packet)
        found = classify(packet)
    except WireError:
        return
    if found.kind in (Kind.SYN, Kind.SEGMENT):
        answer = reset_for(packet)
        assert read_ip_header(answer).protocol == 6
    assert len(found.key) in (12, 36)
    assert len(port_unreachable(packet)) <= 1280


@given(st.sampled_from([3, 4, 5, 11, 12]), st.binary(max_size=120), st.sampled_from([4, 6]))
def test_random_icmp_errors_are_classified_or_refused(
    kind: int, quoted: bytes, version: int
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        body = bytes([kind if version == 4 else 1, 3, 0, 0, 0, 0, 0, 0]) + quoted
        packet = framed(1 if version == 4 else 58, version, body)
    try:
        assert classify(packet).kind is Kind.UNREACHABLE
    except WireError as error:
        assert str(error) in ("malformed", "icmp kind")


# --- answers ------------------------------------------------------------------------------------


def parsed(packet: bytes) -> Any:
    """The answer as scapy reads it, its checksums verified by building it again."""
    version = packet[0] >> 4
    layer = (IP if version == 4 else IPv6)(packet)
    again = layer.copy()
    for part in (again, again.payload):
        for field in ("chksum", "cksum"):
            if field in part.fields:
                del part.fields[field]
    assert bytes(again) == packet
    return layer


@versions
def test_a_refused_syn_is_reset_as_a_closed_port_would(version: int) -> None:
    syn = bytes(ip(version) / TCP(sport=5, dport=6, flags="S", seq=2**32 - 1) / b"early")
    answer = parsed(reset_for(syn))
    assert (answer.src, answer.dst) == PAIRS[version][::-1]
    tcp = answer[TCP]
    assert (tcp.sport, tcp.dport, str(tcp.flags), tcp.seq) == (6, 5, "RA", 0)
    assert tcp.ack == 5  # SYN and five bytes, from 2^32 - 1 on


@versions
def test_a_stray_segment_is_reset_at_its_own_acknowledgement(version: int) -> None:
    stray = bytes(ip(version) / TCP(sport=5, dport=6, flags="PA", seq=9, ack=1234) / b"data")
    tcp = parsed(reset_for(stray))[TCP]
    assert (str(tcp.flags), tcp.seq) == ("R", 1234)
    fin = bytes(ip(version) / TCP(sport=5, dport=6, flags="F", seq=9))
    assert parsed(reset_for(fin))[TCP].ack == 10


@versions
@pytest.mark.parametrize("size", [0, 3000])
def test_unreachables_quote_the_packet(version: int, size: int) -> None:
    packet = bytes(ip(version) / UDP(sport=5, dport=6) / bytes(size))
    gateway = ip_address("240.0.0.2" if version == 4 else "2001:2f::2")
    host, port = parsed(host_unreachable(packet, gateway)), parsed(port_unreachable(packet))
    assert host.src == str(gateway)
    assert port.src == PAIRS[version][1]
    for answer, codes in ((host, (1, 3)), (port, (3, 4))):
        assert answer.dst == PAIRS[version][0]
        error = answer.payload
        assert (error.type, error.code) == ((3, codes[0]) if version == 4 else (1, codes[1]))
        quoted = bytes(error.payload)
        assert packet.startswith(quoted)
        assert len(bytes(answer)) == min(
            len(packet) + len(bytes(answer)) - len(quoted), [576, 1280][version == 6]
        )
