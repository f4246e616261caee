"""TCP connections of local programs to AP addresses.

::

    application              pump                   trio                        overlay
      │ SYN ──────────────► desk: hold ──────────► open_stream ───────────────► …
      │ SYN (repeated) ───► noted
      │                                            Refused      ◄──────────────
      │ ◄─────────────────────────────────────────  RST
      │                                            Unreachable  ◄──────────────
      │ ◄─────────────────────────────────────────  ICMP host unreachable
      │                                            Filtered     ◄──────────────
      │                                             (silence)
      │                                            stream       ◄──────────────
      │                     rewritten ◄─────────── bind, inject the SYN
      │ ◄──── SYN-ACK of our listener, rewritten
      │ ACK ──────────────► rewritten ───────────► accept: bridge socket and stream

A service that was there a moment ago is taken to be there still
(:meth:`~phantom_tun.endpoints.Overlay.is_steady`): the SYN is let through at once, and the overlay
is asked together with the first bytes, so that their answer takes one round trip and not two::

      │ SYN ──────────────► desk: hold ──────────► bind, inject the SYN
      │ ACK, first bytes ─► rewritten ───────────► accept, open_stream ────────► …
      │                                            stream       ◄──────────────
      │                     bridge socket and stream
      │                                            anything else ◄─────────────
      │ ◄─────────────────────────────────────────  RST

An application that gives up says nothing on the wire; that it doesn't repeat its SYN any more when
Linux would is how it is noticed (RFC 6298: intervals double).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

import trio

from phantom_tun.endpoints import MAX_FIRST, ByteStream, Endpoint, Overlay
from phantom_tun.errors import (
    CapacityExceeded,
    Filtered,
    Refused,
    Unreachable,
    UsageError,
    WorldError,
)
from phantom_tun.packet.answer import host_unreachable, reset_for
from phantom_tun.packet.header import FlowKey, endpoints_of
from phantom_tun.packet.nat import Binding
from phantom_tun.packet.rewrite import SHORTEST_BUFFER, is_reset, make_translator
from phantom_tun.tasks import Tasks
from phantom_tun.tun.bridge import prepare, release, reset
from phantom_tun.tun.device import TunDevice
from phantom_tun.tun.flows import Flow
from phantom_tun.tun.shared import Shared

BACKLOG = 4096
FIRST_WITHIN = 0.002
"""Seconds that an application which was told early that it is connected has for its first bytes to
go along with the request. One that lets the service speak first waits so much longer."""
_FIRST_INTERVAL = 3.0
"""Seconds between a SYN and its first repetition, at most (RFC 6298 §2.1: 1, formerly 3)."""
_PATIENCE = 2.0
"""A repetition may be this many seconds late."""
_TEMPORARY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_TEMPORARY_PAUSE = 0.1
_NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


class _Held:
    """A SYN that waits for the overlay's answer."""

    __slots__ = ("flow", "heard", "interval", "key", "silent_since", "syn")

    def __init__(self, key: FlowKey, syn: bytes, now: float) -> None:
        self.key = key
        self.syn = syn
        """The latest: its timestamp is the one the application's kernel measures by."""
        self.flow = Flow("tcp", "out", *endpoints_of(key), now)
        self.heard = now
        self.interval = _FIRST_INTERVAL
        self.silent_since: float | None = None
        """Since when the answer is known to be silence."""

    def repeat(self, syn: bytes, now: float) -> None:
        """The application has asked again."""
        self.syn = syn
        self.interval = max(now - self.heard, _FIRST_INTERVAL / 2)
        self.heard = now

    def is_given_up(self, now: float) -> bool:
        """The next repetition is overdue."""
        return now > self.heard + 2 * self.interval + _PATIENCE


@dataclass(slots=True)
class _Rendezvous:
    """Where the acceptor leaves the socket of an injected SYN."""

    arrived: trio.Event = field(default_factory=trio.Event)
    """Set, too, if there is nobody any more who could come."""
    sock: socket.socket | None = None


class Outbound:
    """See the module's description; implements :class:`phantom_tun.tun.desk.StreamDesk`."""

    def __init__(self, shared: Shared, overlay: Overlay, device: TunDevice) -> None:
        self._shared = shared
        self._overlay = overlay
        self._device = device
        self._held: dict[FlowKey, _Held] = {}
        self._expected: dict[Endpoint, _Rendezvous] = {}
        self._listeners: dict[int, Endpoint] = {}
        self._translate = make_translator(shared.nat.rewrites)
        self._tasks = Tasks(shared.guard)

    # --- the pump's thread ----------------------------------------------------------------------

    def repeat(self, key: FlowKey, syn: bytes) -> bool:
        """See :class:`~phantom_tun.tun.desk.StreamDesk`."""
        held = self._held.get(key)
        if held is None:
            return False
        held.repeat(syn, self._shared.now())
        return True

    def hold(self, key: FlowKey, syn: bytes) -> str | None:
        """See :class:`~phantom_tun.tun.desk.StreamDesk`."""
        if len(self._held) >= self._shared.limits.pending:
            return "pending_full"
        if len(self._shared.nat) >= self._shared.limits.streams:
            return "streams_full"
        held = _Held(key, syn, self._shared.now())
        self._held[key] = held
        self._shared.token.run_sync_soon(self._start, held)
        return None

    def give_up(self, key: FlowKey) -> None:
        """See :class:`~phantom_tun.tun.desk.StreamDesk`."""
        self._shared.token.run_sync_soon(self._cancel, key)

    # --- trio's thread --------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept what was let through; reset everything when cancelled."""
        listeners = [self._listen(version) for version in (4, 6)]
        try:
            async with self._tasks.open() as nursery:
                for listener in listeners:
                    if listener is not None:
                        nursery.start_soon(self._shared.guard.forever, self._accept, listener)
                task_status.started()
                await trio.sleep_forever()
        finally:
            for listener in listeners:
                if listener is not None:
                    listener.close()

    def tick(self) -> None:
        """Forget attempts whose application has given up. Called about once a second."""
        now = self._shared.now()
        for held in list(self._held.values()):
            if held.is_given_up(now):
                self._shared.counters.add("gave_up")
                self._cancel(held.key)
            elif (
                held.silent_since is not None
                and now > held.silent_since + self._shared.timeouts.filtered_retry
            ):
                self._forget(held)

    def _listen(self, version: int) -> socket.socket | None:
        address = self._shared.plan.roles[version].listener
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with ExitStack() as undo:
            try:
                sock = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
                self._device.confine(sock)
                prepare(sock, self._shared.limits.socket_buffer)
                sock.bind((str(address), 0))
                sock.listen(BACKLOG)
            except OSError as error:
                if version == 6 and error.errno in _NO_IPV6:
                    # The host has said so already; no IPv6 packet will come.
                    return None
                raise WorldError(f"can't listen on {address}: {error.strerror}") from error
            undo.pop_all()
        self._listeners[version] = Endpoint(address, sock.getsockname()[1])
        return sock

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                while True:
                    sock, peer = listener.accept()
                    self._admit(sock, peer)
            except BlockingIOError:
                continue
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in _TEMPORARY:
                    raise
                self._shared.counters.add("accept_failed")
                await trio.sleep(_TEMPORARY_PAUSE)

    def _admit(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        """Any local program can connect to the listener, but only an injected SYN comes from N and
        a port that is expected."""
        rendezvous = self._expected.pop(Endpoint(ip_address(peer[0]), peer[1]), None)
        if rendezvous is None:
            self._shared.counters.add("stray_connection")
            reset(sock)
            return
        prepare(sock, self._shared.limits.socket_buffer)
        rendezvous.sock = sock
        rendezvous.arrived.set()

    def _start(self, held: _Held) -> None:
        if not self._tasks.start(self._serve, held):
            self._forget(held)

    def _cancel(self, key: FlowKey) -> None:
        held = self._held.get(key)
        if held is not None:
            held.flow.scope.cancel()
            self._forget(held)

    def _forget(self, held: _Held) -> None:
        if self._held.get(held.key) is held:
            del self._held[held.key]

    async def _serve(self, held: _Held) -> None:
        self._shared.flows.add(held.flow)
        try:
            with held.flow.scope:
                if self._overlay.is_steady(held.flow.source, held.flow.target):
                    await self._connect_early(held)
                elif (stream := await self._ask(held)) is not None:
                    await self._connect(held, stream)
        finally:
            self._shared.flows.discard(held.flow)
            if held.silent_since is None:
                self._forget(held)

    async def _ask(self, held: _Held) -> ByteStream | None:
        """The overlay's stream; or ``None`` once the application has got the answer it gets."""
        shared, flow = self._shared, held.flow
        try:
            with trio.fail_after(shared.timeouts.open):
                return await self._overlay.open_stream(flow.source, flow.target)
        except Refused:
            shared.counters.add("answered_refused")
            shared.write_or_count(reset_for(held.syn))
        except Unreachable:
            shared.counters.add("answered_unreachable")
            gateway = shared.plan.roles[flow.target.address.version].peer
            shared.write_or_count(host_unreachable(held.syn, gateway))
        except (Filtered, trio.TooSlowError):
            shared.counters.add("answered_silence")
            held.silent_since = shared.now()
        except WorldError:
            # Nothing is known about the target, so the next repetition of the SYN may try again.
            shared.counters.add("open_failed")
        return None

    async def _connect(self, held: _Held, stream: ByteStream) -> None:
        is_joined = False
        try:
            async with self._accepted(held) as sock:
                if sock is not None:
                    is_joined = True
                    await self._shared.bridge(sock, stream, held.flow)
        finally:
            if not is_joined:
                await release(stream)

    async def _connect_early(self, held: _Held) -> None:
        shared, flow = self._shared, held.flow
        async with self._accepted(held) as sock:
            if sock is None:
                return
            stream = None
            try:
                first = await _first_bytes(sock)
                with trio.fail_after(shared.timeouts.open):
                    stream = await self._overlay.open_stream(flow.source, flow.target, first)
            except (WorldError, OSError, trio.TooSlowError):
                shared.counters.add("early_failed")
            finally:
                if stream is None:
                    reset(sock)
            if stream is not None:
                shared.counters.add("early_connected")
                flow.sent += len(first)
                await shared.bridge(sock, stream, flow)

    @asynccontextmanager
    async def _accepted(self, held: _Held) -> AsyncIterator[socket.socket | None]:
        """The socket that leads to the application, known to the address table while this is open;
        ``None`` if there is none, which is counted. Whoever gets it closes it."""
        shared, version = self._shared, held.flow.source.address.version
        rendezvous = _Rendezvous()

        def witness(packet: memoryview) -> None:
            # A program that closes before it is connected says nothing; its kernel does, as soon as
            # it is told that it is.
            if is_reset(packet):
                shared.token.run_sync_soon(rendezvous.arrived.set)

        try:
            binding = shared.nat.bind(
                held.key, self._listeners[version], shared.plan.roles[version].peer, witness
            )
        except (CapacityExceeded, UsageError):
            shared.counters.add("no_binding")
            yield None
            return
        try:
            sock = await self._handshake(held, binding, rendezvous)
            shared.nat.settle(binding)
            if sock is None:
                shared.counters.add("application_gone")
            yield sock
        finally:
            shared.nat.release(binding, shared.now())

    async def _handshake(
        self, held: _Held, binding: Binding, rendezvous: _Rendezvous
    ) -> socket.socket | None:
        """Let the SYN through and wait for what comes of it."""
        self._expected[binding.peer] = rendezvous
        self._forget(held)
        try:
            syn = bytearray(held.syn) + bytes(SHORTEST_BUFFER)
            if self._translate(syn, len(held.syn)):
                self._shared.write_or_count(memoryview(syn)[: len(held.syn)])
            with trio.move_on_after(self._shared.timeouts.accept):
                await rendezvous.arrived.wait()
        except trio.Cancelled:
            if rendezvous.sock is not None:
                reset(rendezvous.sock)
            raise
        finally:
            self._expected.pop(binding.peer, None)
        return rendezvous.sock


async def _first_bytes(sock: socket.socket) -> bytes:
    """What the application says first; nothing if it waits or has ended.

    :raises OSError: it has reset the connection.
    """
    with trio.move_on_after(FIRST_WITHIN):
        await trio.lowlevel.wait_readable(sock)
        return sock.recv(MAX_FIRST)
    return b""
