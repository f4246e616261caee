"""The thread that moves every packet between the device and the kernel's sockets.

It reads one packet at a time. A TCP packet of a known flow is rewritten and written back; a UDP
datagram or echo request of a known flow goes into that flow's queue; all others go to the desk
(:mod:`phantom_tun.tun.desk`). The first two cost 2–3 µs and never touch trio or scapy, bar one
wake-up of a waiting task.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Mapping
from typing import Protocol

import trio

from phantom_tun.errors import WorldError
from phantom_tun.guard import Guard
from phantom_tun.packet.framing import datagram_of
from phantom_tun.packet.header import MAX_PACKET, FlowKey
from phantom_tun.packet.rewrite import Translator
from phantom_tun.tun.device import TunDevice
from phantom_tun.tun.flows import Counters

_ROOM = MAX_PACKET + 1


class Inlet(Protocol):
    """Where messages of a known datagram flow go."""

    def offer(self, message: bytes) -> bool:
        """Take a message; false if it had to be dropped."""
        ...


class Pump:
    """The only reader of the device.

    :param translate: rewrites TCP packets of known flows (:mod:`phantom_tun.packet.rewrite`).
    :param inlets: known datagram flows; may change meanwhile.
    :param desk: told about every other packet, in the pump's thread.
    """

    def __init__(
        self,
        device: TunDevice,
        translate: Translator,
        inlets: Mapping[FlowKey, Inlet],
        desk: Callable[[bytes], None],
    ) -> None:
        self._device = device
        self._fd = device.fileno()
        self._translate = translate
        self._inlets = inlets
        self._desk = desk
        self._wake: int | None = None
        self._is_stopping = False
        self.counters = Counters()
        self._guard = Guard(self.counters.counts)

    async def run(self) -> None:
        """Pump until :meth:`stop`, whatever is cancelled: the kernel's last segments have to pass
        while flows are being closed."""
        self._wake = wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._loop, wake)
        finally:
            self._wake = None
            os.close(wake)

    def stop(self) -> None:
        """End :meth:`run`. Idempotent."""
        self._is_stopping = True
        if self._wake is not None:
            os.eventfd_write(self._wake, 1)

    def _loop(self, wake: int) -> None:
        buffer = bytearray(_ROOM)
        view = memoryview(buffer)
        buffers = [buffer]
        fd, translate = self._fd, self._translate
        readv, write = os.readv, os.write
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        poller.register(wake, select.POLLIN)
        while not self._is_stopping:
            try:
                length = readv(fd, buffers)
            except BlockingIOError:
                poller.poll()
                continue
            except OSError as error:
                raise WorldError(self._removed) from error
            outcome = translate(buffer, length)
            if not outcome:
                self._sort(view[:length])
                continue
            try:
                write(fd, view[:length])
            except OSError:
                self.counters.add("dropped_by_kernel")
            if outcome is not True:
                outcome(view[:length])

    @property
    def _removed(self) -> str:
        return f"the interface {self._device.name} was removed"

    def _sort(self, packet: memoryview) -> None:
        if not packet:
            raise WorldError(self._removed)
        found = datagram_of(packet)
        if found is not None:
            inlet = self._inlets.get(found[0])
            if inlet is not None:
                if not inlet.offer(bytes(found[1])):
                    self.counters.add("dropped_queue_full")
                return
        try:
            self._desk(bytes(packet))
        except Exception:  # noqa: BLE001
            # Anybody on this machine can send a packet; none may end the node.
            self._guard.failed(self._desk)
