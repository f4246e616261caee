"""What passed an interface: recorded with tcpdump, read back without it.

The files are in the classic pcap format (pcap-savefile(5)): a header of 24 bytes that ends with the
link type, then 16 bytes and the data for each packet.
"""

from __future__ import annotations

import ipaddress
import re
import signal
import struct
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from phantom_tun.lab import nodes as lab_nodes
from phantom_tun.lab.errors import LabFailed
from phantom_tun.lab.processes import ProcessRef, is_alive, send_signal, spawn, wait_gone
from phantom_tun.lab.record import LabStore

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_START_SECONDS = 20.0
_BUFFER_KIB = 8192
_BLOCK_SECONDS = 1.2
_DROPPED = re.compile(r"^(\d+) packets? dropped by kernel$", re.MULTILINE)

_FILE_HEADER = struct.Struct("<IHHiIII")
_PACKET_HEADER = struct.Struct("<IIII")
_MAGIC = 0xA1B2C3D4
_ETHERNET, _RAW_IP = 1, 101
_ETHERNET_HEADER = {_ETHERNET: 14, _RAW_IP: 0}


class RecordingIncomplete(LabFailed):
    """The machine was too busy to record everything."""


@dataclass(frozen=True, slots=True)
class Capture:
    """A running or finished recording of one interface of one node."""

    node: str
    interface: str
    file: Path
    log: Path
    process: ProcessRef


def start_captures(
    store: LabStore, interfaces: list[tuple[str, str]], directory: Path
) -> list[Capture]:
    """Record all packets of (node, interface) pairs until :func:`stop_captures`.

    :raises LabFailed: tcpdump is missing, or doesn't start; quotes it.
    """
    captures = []
    for node, interface in interfaces:
        prefix, environment = lab_nodes.inside(store, node)
        file, log = (directory / f"{node}-{interface}.{end}" for end in ("pcap", "log"))
        command = ["tcpdump", "-i", interface, "-n", "-U", "-Z", "root"]
        command += ["-B", str(_BUFFER_KIB), "-w", str(file)]
        captures.append(
            Capture(node, interface, file, log, spawn([*prefix, *command], environment, log))
        )
    deadline = time.monotonic() + _START_SECONDS
    for capture in captures:
        while "listening on" not in capture.log.read_text():
            if not is_alive(capture.process) or time.monotonic() > deadline:
                raise LabFailed(
                    f"tcpdump did not start at {capture.node}: {capture.log.read_text().strip()}"
                )
            time.sleep(0.02)
    return captures


def stop_captures(captures: list[Capture]) -> None:
    """End the recordings and wait until the files are complete.

    :raises RecordingIncomplete: tcpdump lost packets: nothing can be concluded then.
    :raises LabFailed: it doesn't end.
    """
    # The kernel hands packets over in blocks, at the latest after a second: what passed before this
    # call is then recorded. Of the last moments something is missing, which "received" counts.
    time.sleep(_BLOCK_SECONDS)
    for capture in captures:
        send_signal(capture.process, signal.SIGINT)
    if wait_gone([capture.process for capture in captures], _START_SECONDS):
        raise LabFailed("tcpdump does not end")
    for capture in captures:
        check_complete(capture.node, capture.log.read_text())


def check_complete(node: str, log: str) -> None:
    """Did tcpdump record all there was, according to its own last words?

    :raises RecordingIncomplete: no; nothing can be concluded then.
    """
    dropped = _DROPPED.search(log)
    if dropped is None or dropped[1] != "0":
        raise RecordingIncomplete(f"tcpdump lost packets at {node}: {log.strip()}")


def packets(file: Path) -> Iterator[bytes]:
    """The IP packets in a capture file; whatever else was captured is left out.

    :raises LabFailed: it isn't a capture of Ethernet or of bare IP packets.
    """
    data = file.read_bytes()
    if len(data) < _FILE_HEADER.size:
        raise LabFailed(f"{file} is no capture")
    magic, *_, link_type = _FILE_HEADER.unpack_from(data)
    if magic != _MAGIC or link_type not in _ETHERNET_HEADER:
        raise LabFailed(f"{file} is a capture of an unknown kind")
    skip = _ETHERNET_HEADER[link_type]
    at = _FILE_HEADER.size
    while at + _PACKET_HEADER.size <= len(data):
        captured = _PACKET_HEADER.unpack_from(data, at)[2]
        at += _PACKET_HEADER.size
        packet = data[at + skip : at + captured]
        at += captured
        if packet and packet[0] >> 4 in (4, 6):
            yield packet


def count_containing(file: Path, text: bytes) -> int:
    """How many of the packets contain ``text``."""
    return sum(text in packet for packet in packets(file))


def bytes_by_peer(file: Path, own: set[IpAddress]) -> Counter[IpAddress]:
    """Bytes exchanged with each other address, both directions together."""
    found: Counter[IpAddress] = Counter()
    for packet in packets(file):
        source, destination = _addresses(packet)
        if source in own:
            found[destination] += len(packet)
        elif destination in own:
            found[source] += len(packet)
    return found


def _addresses(packet: bytes) -> tuple[IpAddress, IpAddress]:
    if packet[0] >> 4 == 4:
        return ipaddress.IPv4Address(packet[12:16]), ipaddress.IPv4Address(packet[16:20])
    return ipaddress.IPv6Address(packet[8:24]), ipaddress.IPv6Address(packet[24:40])
