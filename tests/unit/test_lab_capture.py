"""Capture files, read without tcpdump."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from phantom_tun.lab.capture import bytes_by_peer, check_complete, count_containing, packets
from phantom_tun.lab.errors import LabFailed

A4, B4, C4 = (IPv4Address(f"10.{i}.0.1") for i in (1, 2, 3))
A6, B6 = (IPv6Address(f"fd50:{i}::1") for i in (1, 2))


def ipv4(source: IPv4Address, destination: IPv4Address, body: bytes) -> bytes:
    return b"\x45" + bytes(11) + source.packed + destination.packed + body


def ipv6(source: IPv6Address, destination: IPv6Address, body: bytes) -> bytes:
    return b"\x60" + bytes(7) + source.packed + destination.packed + body


def pcap(path: Path, link_type: int, frames: list[bytes], *, tail: bytes = b"") -> Path:
    data = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, link_type)
    for frame in frames:
        data += struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame
    path.write_bytes(data + tail)
    return path


ARP = bytes(12) + b"\x08\x06" + bytes(28)


def ethernet(packet: bytes) -> bytes:
    return bytes(12) + (b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd") + packet


def test_ethernet_headers_and_arp_are_left_out(tmp_path: Path) -> None:
    sent = [ipv4(A4, B4, b"one"), ipv6(A6, B6, b"two")]
    file = pcap(tmp_path / "c", 1, [ethernet(sent[0]), ARP, ethernet(sent[1])])
    assert list(packets(file)) == sent


def test_bare_ip(tmp_path: Path) -> None:
    sent = [ipv4(A4, B4, b"one")]
    assert list(packets(pcap(tmp_path / "c", 101, sent))) == sent


def test_a_file_that_ends_in_the_middle_of_a_header(tmp_path: Path) -> None:
    file = pcap(tmp_path / "c", 101, [ipv4(A4, B4, b"one")], tail=b"\0" * 7)
    assert len(list(packets(file))) == 1


@pytest.mark.parametrize("data", [b"", b"x" * 100])
def test_no_capture(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "c").write_bytes(data)
    with pytest.raises(LabFailed):
        list(packets(tmp_path / "c"))


def test_other_link_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LabFailed, match="unknown kind"):
        list(packets(pcap(tmp_path / "c", 113, [])))


def test_text_is_found_in_packets(tmp_path: Path) -> None:
    frames = [ipv4(A4, B4, b"..needle.."), ipv4(A4, B4, b"need"), ipv4(A4, B4, b"le needle")]
    file = pcap(tmp_path / "c", 101, frames)
    assert count_containing(file, b"needle") == 2
    assert count_containing(file, b"thread") == 0


def test_bytes_by_peer_count_both_ways_and_only_ours(tmp_path: Path) -> None:
    frames = [
        ipv4(A4, B4, b"x" * 80),
        ipv4(B4, A4, b"x" * 30),
        ipv6(B6, A6, b"x" * 60),
        ipv4(B4, C4, b"x" * 500),
    ]
    file = pcap(tmp_path / "c", 101, frames)
    assert bytes_by_peer(file, {A4, A6}) == {B4: 150, B6: 100}


LAST_WORDS = "listening on eth0\n12 packets captured\n13 packets received by filter\n"


def test_a_complete_recording() -> None:
    check_complete("n1", LAST_WORDS + "0 packets dropped by kernel\n")


@pytest.mark.parametrize("log", ["", LAST_WORDS, LAST_WORDS + "10 packets dropped by kernel\n"])
def test_an_incomplete_recording_proves_nothing(log: str) -> None:
    with pytest.raises(LabFailed, match="lost packets at n1"):
        check_complete("n1", log)
