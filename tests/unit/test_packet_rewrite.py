"""The hot function: what it rewrites is what scapy would have built; everything else is left."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment

from phantom_tun.endpoints import Endpoint
from phantom_tun.packet.header import MAX_PACKET, flow_key
from phantom_tun.packet.nat import NatTable
from phantom_tun.packet.rewrite import make_translator

FAMILIES = {
    4: ("241.1.2.3", "250.9.8.7", "240.0.0.1", "240.0.0.2"),
    6: ("2001:2f:1::3", "2001:2f:9::7", "2001:2f::1", "2001:2f::2"),
}


def ip(version: int, source: str, destination: str) -> Any:
    return (IP if version == 4 else IPv6)(src=source, dst=destination)


def table_for(version: int) -> tuple[NatTable, int]:
    app, remote, listener, peer = map(ip_address, FAMILIES[version])
    table = NatTable(linger=1)
    key = flow_key(Endpoint(app, 50_000), Endpoint(remote, 443))
    return table, table.bind(key, Endpoint(listener, 40_000), peer).peer.port


def run(table: NatTable, packet: bytes) -> tuple[bool, bytes]:
    buffer = bytearray(MAX_PACKET)
    buffer[: len(packet)] = packet
    done = make_translator(table.rewrites)(buffer, len(packet))
    return done, bytes(buffer[: len(packet)])


@pytest.mark.parametrize("version", [4, 6])
@given(payload=st.binary(max_size=200), seq=st.integers(0, 2**32 - 1), flags=st.integers(0, 255))
def test_both_directions_equal_packets_built_from_scratch(
    version: int, payload: bytes, seq: int, flags: int
) -> None:
    app, remote, listener, peer = FAMILIES[version]
    table, port = table_for(version)

    def packet(source: str, sport: int, destination: str, dport: int) -> bytes:
        tcp = TCP(sport=sport, dport=dport, seq=seq, flags=flags)
        return bytes(ip(version, source, destination) / tcp / payload)

    assert run(table, packet(app, 50_000, remote, 443)) == (
        True,
        packet(peer, port, listener, 40_000),
    )
    assert run(table, packet(listener, 40_000, peer, port)) == (
        True,
        packet(remote, 443, app, 50_000),
    )


@pytest.mark.parametrize("version", [4, 6])
def test_other_flows_and_protocols_are_left_alone(version: int) -> None:
    app, remote, _, _ = FAMILIES[version]
    table, _ = table_for(version)
    for transport in (
        TCP(sport=50_001, dport=443),
        TCP(sport=50_000, dport=444),
        UDP(sport=50_000, dport=443) / b"looks like the same ports",
    ):
        packet = bytes(ip(version, app, remote) / transport)
        assert run(table, packet) == (False, packet)
    packet = bytes(ip(version, remote, app) / TCP(sport=50_000, dport=443))
    assert run(table, packet) == (False, packet)


def test_fragments_options_and_short_packets_are_left_alone() -> None:
    app, remote, _, _ = FAMILIES[4]
    table, _ = table_for(4)
    tcp = TCP(sport=50_000, dport=443) / b"data"
    for packet in (
        bytes(IP(src=app, dst=remote, flags="MF") / tcp),
        bytes(IP(src=app, dst=remote, frag=1) / tcp),
        bytes(IP(src=app, dst=remote, options=[IPOption_NOP()]) / tcp),
        bytes(IP(src=app, dst=remote) / TCP(sport=50_000, dport=443))[:39],
    ):
        assert run(table, packet) == (False, packet)
    app6, remote6, _, _ = FAMILIES[6]
    table6, _ = table_for(6)
    fragment = bytes(IPv6(src=app6, dst=remote6) / IPv6ExtHdrFragment() / tcp)
    assert run(table6, fragment) == (False, fragment)
    short = bytes(IPv6(src=app6, dst=remote6) / TCP(sport=50_000, dport=443))[:59]
    assert run(table6, short) == (False, short)


@given(st.binary(max_size=120))
def test_random_bytes_are_harmless(packet: bytes) -> None:
    table, _ = table_for(4)
    assert run(table, packet) == (False, packet)


@given(st.binary(min_size=60, max_size=120), st.sampled_from([4, 6]))
def test_random_bytes_with_a_known_key_never_raise(noise: bytes, version: int) -> None:
    """Whatever surrounds a known key, only key and checksums can change."""
    app, remote, _, _ = FAMILIES[version]
    table, _ = table_for(version)
    key = flow_key(Endpoint(ip_address(app), 50_000), Endpoint(ip_address(remote), 443))
    packet = bytearray(noise)
    at, sums = (12, {10, 11, 36, 37}) if version == 4 else (8, {56, 57})
    packet[0] = 0x45 if version == 4 else 0x60
    packet[at : at + len(key)] = key
    done, after = run(table, bytes(packet))
    changed = {i for i, (a, b) in enumerate(zip(packet, after, strict=True)) if a != b}
    assert changed <= sums | set(range(at, at + len(key)))
    assert done or not changed
