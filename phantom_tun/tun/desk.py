"""Decides about packets that no table knows: the only place where a packet's contents matter.

    packet ─► late segment of a closed connection? ─────────► rewritten and written back
       │
       ├────► malformed, wrong source, wrong destination … ─► dropped and counted
       │
       └────► SYN ───────────────────────────────────────► held; the overlay is asked (outbound)
              first datagram, first echo request ────────► queued; the overlay is asked (datagrams)
              segment of no connection ──────────────────► answered with RST
              RST ───────────────────────────────────────► ends the wait for the overlay
              ICMP "nobody takes this" ──────────────────► ends the flow it is about

Runs in the pump's thread. Answers to programs on this machine only, so a flood of odd packets slows
down nobody but its sender.
"""

from __future__ import annotations

from typing import Protocol

from phantom_tun.errors import WireError
from phantom_tun.ids import ApAddress
from phantom_tun.packet.answer import reset_for
from phantom_tun.packet.classify import Kind, classify
from phantom_tun.packet.framing import datagram_of
from phantom_tun.packet.header import FlowKey, read_ip_header
from phantom_tun.packet.rewrite import SHORTEST_BUFFER, Translator, is_syn, make_translator
from phantom_tun.tun.flows import Counters, DatagramTransport
from phantom_tun.tun.shared import Shared


class StreamDesk(Protocol):
    """Where connection attempts go. All methods are called in the pump's thread."""

    def repeat(self, key: FlowKey, syn: bytes) -> bool:
        """Note a repeated SYN; false if none is held for this flow."""
        ...

    def hold(self, key: FlowKey, syn: bytes) -> str | None:
        """Keep a SYN until the overlay answers; or say why it was dropped."""
        ...

    def give_up(self, key: FlowKey) -> None:
        """The application doesn't want the connection any more."""
        ...


class DatagramDesk(Protocol):
    """Where first messages go. All methods are called in the pump's thread."""

    def begin(
        self, transport: DatagramTransport, key: FlowKey, packet: bytes, message: bytes
    ) -> str | None:
        """Open a flow for a UDP datagram or echo request; or say why it was dropped."""
        ...

    def refuse(self, key: FlowKey) -> bool:
        """Nobody takes what the flow of this key delivers; false if there is no such flow."""
        ...


class ConnectDesk(Protocol):
    """Where inbound connection attempts wait for the local service."""

    def refuse(self, key: FlowKey) -> bool:
        """The host has rejected the attempt; false if there is none. In the pump's thread."""
        ...


class Desk:
    """Call it with a packet."""

    def __init__(
        self,
        shared: Shared,
        streams: StreamDesk,
        datagrams: DatagramDesk,
        connects: ConnectDesk,
        counters: Counters,
    ) -> None:
        self._plan = shared.plan
        self._write = shared.write
        self._streams = streams
        self._datagrams = datagrams
        self._connects = connects
        self._counters = counters
        self._translate_live = make_translator(shared.nat.rewrites)
        self._translate_late = make_translator(shared.nat.lingering)

    def __call__(self, packet: bytes) -> None:
        """Decide about one packet from a local program."""
        if self._translated(packet, self._translate_late, unless_syn=True):
            return
        try:
            header = read_ip_header(packet)
        except WireError:
            reason: str | None = "malformed"
        else:
            reason = self._plan.why_drop(header) or self._decide(packet, header.destination)
        if reason is not None:
            self._counters.add(f"dropped_{reason}")

    def _decide(self, packet: bytes, destination: ApAddress) -> str | None:
        try:
            found = classify(packet)
        except WireError as error:
            return str(error).replace(" ", "_")
        match found.kind:
            case Kind.SYN:
                return self._hold(found.key, packet)
            case Kind.DATAGRAM:
                return self._begin("udp", packet)
            case Kind.ECHO:
                if not self._plan.is_ap(destination):
                    return "destination_reserved"
                return self._begin("echo", packet)
            case Kind.SEGMENT:
                self._counters.add("answered_stray_segment")
                self._write_back(reset_for(packet))
            case Kind.RESET:
                self._streams.give_up(found.key)
            case Kind.UNREACHABLE:
                if not (self._datagrams.refuse(found.key) or self._connects.refuse(found.key)):
                    return "stray_icmp"
        return None

    def _hold(self, key: FlowKey, syn: bytes) -> str | None:
        if self._streams.repeat(key, syn):
            return None
        # Held no more, perhaps because the overlay answered while scapy was looking at it.
        if self._translated(syn, self._translate_live):
            return None
        return self._streams.hold(key, syn)

    def _begin(self, transport: DatagramTransport, packet: bytes) -> str | None:
        found = datagram_of(packet)
        if found is None:
            return "malformed"
        key, message = found
        return self._datagrams.begin(transport, key, packet, bytes(message))

    def _translated(
        self, packet: bytes, translate: Translator, *, unless_syn: bool = False
    ) -> bool:
        buffer = bytearray(packet) + bytes(SHORTEST_BUFFER)
        if not translate(buffer, len(packet)) or (unless_syn and is_syn(packet)):
            return False
        self._write_back(memoryview(buffer)[: len(packet)])
        return True

    def _write_back(self, packet: bytes | memoryview) -> None:
        if not self._write(packet):
            self._counters.add("dropped_by_kernel")
