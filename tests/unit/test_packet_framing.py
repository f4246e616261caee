"""UDP datagrams and echo messages in and out of packets, checked against scapy."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6

from phantom_tun.endpoints import Endpoint
from phantom_tun.errors import WireError
from phantom_tun.packet.checksum import fold, ones_sum
from phantom_tun.packet.framing import EchoFraming, UdpFraming, datagram_of
from phantom_tun.packet.header import flow_key

PAIRS = {4: ("250.9.8.7", "241.1.2.3"), 6: ("2001:2f:9::7", "2001:2f:1::3")}
versions = pytest.mark.parametrize("version", [4, 6])


def ip(version: int, **fields: Any) -> Any:
    source, target = PAIRS[version]
    if version == 4:
        return IP(src=source, dst=target, **fields)
    return IPv6(src=source, dst=target)


def ends(version: int, from_port: int, to_port: int) -> tuple[Endpoint, Endpoint]:
    source, target = PAIRS[version]
    return Endpoint(ip_address(source), from_port), Endpoint(ip_address(target), to_port)


def built(version: int, transport: Any) -> bytes:
    return bytes(ip(version, id=0, flags="DF") / transport if version == 4 else ip(6) / transport)


@versions
@given(message=st.binary(max_size=300), sport=st.integers(0, 65535), dport=st.integers(1, 65535))
def test_udp_equals_scapy_and_comes_back(
    version: int, message: bytes, sport: int, dport: int
) -> None:
    source, target = ends(version, sport, dport)
    packet = UdpFraming(source, target).header(message) + message
    assert packet == built(version, UDP(sport=sport, dport=dport) / message)
    found = datagram_of(packet)
    assert found is not None
    assert found[0] == flow_key(source, target)
    assert found[1] == message


@versions
@given(rest=st.binary(max_size=300), identifier=st.binary(min_size=2, max_size=2))
def test_echo_reply_equals_scapy(version: int, rest: bytes, identifier: bytes) -> None:
    source, target = ends(version, 0, 0)
    message = identifier + b"\0\7" + rest
    packet = EchoFraming(source, target, identifier).header(message) + message
    fields = {"id": int.from_bytes(identifier, "big"), "seq": 7}
    reply = ICMP(type=0, **fields) / rest if version == 4 else ICMPv6EchoReply(**fields, data=rest)
    assert packet == built(version, reply)


def test_echo_reply_of_nothing_but_zeros_still_verifies() -> None:
    source, target = ends(4, 0, 0)
    message = bytes(8)
    packet = EchoFraming(source, target, b"\0\0").header(message) + message
    assert packet[22:24] == b"\xff\xff"
    assert fold(ones_sum(packet[20:])) == 0xFFFF


@versions
@given(rest=st.binary(max_size=100), identifier=st.integers(0, 65535))
def test_echo_request_is_taken_apart(version: int, rest: bytes, identifier: int) -> None:
    fields = {"id": identifier, "seq": 3}
    request = ICMP(**fields) / rest if version == 4 else ICMPv6EchoRequest(**fields, data=rest)
    found = datagram_of(built(version, request))
    assert found is not None
    key, message = found
    assert key == flow_key(*ends(version, identifier, 0))
    assert message == identifier.to_bytes(2, "big") + b"\0\3" + rest


@versions
def test_foreign_and_overlong_messages_are_refused(version: int) -> None:
    source, target = ends(version, 5, 6)
    echo = EchoFraming(source, target, b"id")
    for wrong in (b"", b"id", b"id\0", b"xd\0\1data"):
        with pytest.raises(WireError):
            echo.header(wrong)
    with pytest.raises(WireError):
        UdpFraming(source, target).header(bytes(65_529))


def test_the_largest_datagram_fits() -> None:
    message = bytes(65_507)
    packet = UdpFraming(*ends(4, 5, 6)).header(message) + message
    assert len(packet) == 65_535
    with pytest.raises(WireError):
        UdpFraming(*ends(4, 5, 6)).header(message + b"x")
    assert len(UdpFraming(*ends(6, 5, 6)).header(message) + message) == 65_555


@versions
def test_anything_doubtful_is_left_to_scapy(version: int) -> None:
    datagram = built(version, UDP(sport=5, dport=6) / b"data")
    wrong = [
        datagram[:-1],
        datagram + b"x",
        built(version, UDP(sport=5, dport=6, len=9) / b"data"),
        built(version, UDP(sport=5, dport=0) / b"data"),
        built(version, ICMP(type=0) / b"reply" if version == 4 else ICMPv6EchoReply()),
        built(version, ICMP(code=1) / b"code" if version == 4 else ICMPv6EchoRequest(code=1)),
        datagram[:20],
        b"",
        b"\x15" + datagram[1:],
    ]
    if version == 4:
        wrong += [
            bytes(ip(4, flags="MF") / UDP(sport=5, dport=6) / b"data"),
            bytes(ip(4, frag=2) / UDP(sport=5, dport=6) / b"data"),
            bytes(ip(4, options=[IPOption_NOP()]) / UDP(sport=5, dport=6) / b"data"),
            bytes(ip(4, proto=58) / ICMP(b"\x08" + bytes(11))),
        ]
    for packet in wrong:
        assert datagram_of(packet) is None


@given(st.binary(max_size=100), st.sampled_from([b"", b"\x45", b"\x60"]))
def test_random_bytes_never_raise(noise: bytes, start: bytes) -> None:
    datagram_of(start + noise)
