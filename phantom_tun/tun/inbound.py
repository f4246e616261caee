"""TCP connections of remote callers to services on this machine.

::

    overlay                    trio                           pump              local service
     connect_stream ─────────► bind, connect L:l → M:m ─────► rewritten ─────► R:q → A:port
                               (connected) ◄───────────────── rewritten ◄───── SYN-ACK
     LocalConnection ◄───────  accepted
     Refused  ◄──────────────  ECONNREFUSED, or the host's ICMP
     Filtered ◄──────────────  no answer in time

The service sees the caller's AP address and port, because that is what its packets carry. It has to
listen at its AP address, or at all addresses.
"""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from dataclasses import dataclass

import trio

from phantom_tun.endpoints import ByteStream, Endpoint
from phantom_tun.errors import CapacityExceeded, Refused, UsageError
from phantom_tun.ids import ApAddress
from phantom_tun.packet.header import FlowKey, flow_key
from phantom_tun.packet.nat import Binding
from phantom_tun.tun.bridge import prepare, reset
from phantom_tun.tun.device import TunDevice
from phantom_tun.tun.flows import Flow
from phantom_tun.tun.shared import Shared


class Connection:
    """An accepted connection; implements :class:`phantom_tun.endpoints.LocalConnection`."""

    def __init__(self, shared: Shared, sock: socket.socket, binding: Binding, flow: Flow) -> None:
        self._shared = shared
        self._sock = sock
        self._binding = binding
        self._flow = flow
        self._is_carried = False

    async def carry(self, stream: ByteStream) -> None:
        """See :class:`~phantom_tun.endpoints.LocalConnection`."""
        self._is_carried = True
        try:
            with self._flow.scope:
                await self._shared.bridge(self._sock, stream, self._flow)
        finally:
            self._leave()

    def abort(self) -> None:
        """See :class:`~phantom_tun.endpoints.LocalConnection`."""
        if self._is_carried:
            self._flow.scope.cancel()
        else:
            reset(self._sock)
            self._leave()

    def _leave(self) -> None:
        self._shared.flows.discard(self._flow)
        self._shared.nat.release(self._binding, self._shared.now())


@dataclass(slots=True)
class _Attempt:
    """A local service is being asked."""

    scope: trio.CancelScope
    is_refused: bool = False

    def refuse(self) -> None:
        """The host has said so by ICMP instead of RST."""
        self.is_refused = True
        self.scope.cancel()


class Inbound:
    """Makes connections; implements :class:`phantom_tun.tun.desk.ConnectDesk`."""

    def __init__(self, shared: Shared, device: TunDevice) -> None:
        self._shared = shared
        self._device = device
        self._attempts: dict[FlowKey, _Attempt] = {}

    def refuse(self, key: FlowKey) -> bool:
        """See :class:`~phantom_tun.tun.desk.ConnectDesk`."""
        attempt = self._attempts.get(key)
        if attempt is None:
            return False
        self._shared.token.run_sync_soon(attempt.refuse)
        return True

    async def connect(self, caller: Endpoint, target: Endpoint) -> Connection:
        """Connect to the service at ``target`` as ``caller``; see
        :meth:`phantom_tun.endpoints.LocalHost.connect_stream`."""
        shared = self._shared
        shared.check_ends(caller, target)
        if len(shared.nat) >= shared.limits.streams:
            raise shared.filtered("inbound_streams_full", "too many connections")
        with ExitStack() as undo:
            sock = self._socket(shared.plan.roles[target.address.version].listener)
            undo.callback(sock.close)
            binding = self._bind(sock, caller, target)
            undo.callback(lambda: shared.nat.release(binding, shared.now()))
            flow = Flow("tcp", "in", caller, target, shared.now())
            shared.flows.add(flow)
            undo.callback(shared.flows.discard, flow)
            await self._shake_hands(sock, binding)
            undo.pop_all()
        return Connection(shared, sock, binding, flow)

    def _socket(self, listener: ApAddress) -> socket.socket:
        family = socket.AF_INET if listener.version == 4 else socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._device.confine(sock)
            prepare(sock, self._shared.limits.socket_buffer)
            sock.bind((str(listener), 0))
        except OSError as error:
            sock.close()
            raise self._shared.filtered("inbound_no_port", "no local port is free") from error
        return sock

    def _bind(self, sock: socket.socket, caller: Endpoint, target: Endpoint) -> Binding:
        roles = self._shared.plan.roles[target.address.version]
        local = Endpoint(roles.listener, sock.getsockname()[1])
        try:
            return self._shared.nat.bind(flow_key(target, caller), local, roles.service)
        except (CapacityExceeded, UsageError) as error:
            # An old connection of the same four numbers: its caller will notice that it is dead.
            raise self._shared.filtered("inbound_no_binding", str(error)) from error

    async def _shake_hands(self, sock: socket.socket, binding: Binding) -> None:
        peer = (str(binding.peer.address), binding.peer.port)
        with trio.move_on_after(self._shared.timeouts.local_connect) as scope:
            attempt = _Attempt(scope)
            self._attempts[binding.application] = attempt
            try:
                failure = sock.connect_ex(peer)
                if failure == errno.EINPROGRESS:
                    await trio.lowlevel.wait_writable(sock)
                    failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            finally:
                del self._attempts[binding.application]
            if not failure:
                return
            if failure == errno.ECONNREFUSED:
                raise Refused("nothing listens at this port")
            if failure == errno.ECONNRESET:
                raise Refused("the service has reset the connection at once")
        if attempt.is_refused:
            raise Refused("the host rejects connections to this port")
        raise self._shared.filtered("inbound_no_answer", "the service didn't answer")
