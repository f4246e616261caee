"""What an inbound session leads to at this machine: a TCP or UDP service, or the answer to pings
(docs/spec/session.md, "Being connected to")."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from phantom_tun.endpoints import DatagramStream, Endpoint, LocalDatagrams, LocalHost
from phantom_tun.errors import Filtered
from phantom_tun.net.sessions.datagrams import SessionDatagrams
from phantom_tun.net.sessions.secure_tunnel import SecureTunnel, Spawn
from phantom_tun.net.sessions.stream import Durable, SessionStream
from phantom_tun.net.sessions.table import Carrier
from phantom_tun.wire.session import Protocol

LOCAL_WITHIN = 5.0
"""Seconds for the local service to accept."""
ECHO_IDLE = 90.0
"""Seconds without a message after which an echo exchange ends."""

Carry = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Service:
    """A local service that has accepted and waits for its caller."""

    abort: Callable[[], None]
    """Gives it up."""
    attach: Callable[[SecureTunnel, Durable | None], tuple[Carrier, Carry]]
    """Makes what carries the session, and what runs it to its end."""


class EchoService:
    """Answers echo messages itself; stands where a local UDP service would
    (:class:`~phantom_tun.endpoints.LocalDatagrams`)."""

    def __init__(self, *, is_enabled: bool) -> None:
        self._is_enabled = is_enabled

    async def connect(self) -> EchoService:
        """
        :raises Filtered: pings aren't answered.
        """
        if not self._is_enabled:
            raise Filtered("pings are not answered")
        return self

    async def carry(self, stream: DatagramStream) -> None:
        """Send back what comes, until nothing more does."""
        with trio.move_on_after(ECHO_IDLE) as idle:
            while (message := await stream.receive()) is not None:
                idle.deadline = trio.current_time() + ECHO_IDLE
                await stream.send(message)
        await stream.aclose()

    def abort(self) -> None:
        """Nothing was opened."""


class LocalServices:
    """Reaches them."""

    def __init__(self, local_host: LocalHost, echo: EchoService, spawn: Spawn) -> None:
        self._local_host = local_host
        self._echo = echo
        self._spawn = spawn

    async def reach(self, protocol: Protocol, caller: Endpoint, target: Endpoint) -> Service:
        """The service at ``target``, which sees ``caller`` as its peer.

        :raises ConnectFailed: it doesn't accept.
        :raises trio.TooSlowError: nor does it say so in time.
        """
        with trio.fail_after(LOCAL_WITHIN):
            return await self._connect(protocol, caller, target)

    async def _connect(self, protocol: Protocol, caller: Endpoint, target: Endpoint) -> Service:
        if protocol is Protocol.TCP:
            connection = await self._local_host.connect_stream(caller, target)

            def attach_stream(
                secure: SecureTunnel, durable: Durable | None
            ) -> tuple[Carrier, Carry]:
                stream = SessionStream(secure, durable)
                return stream, lambda: connection.carry(stream)

            return Service(connection.abort, attach_stream)
        local: LocalDatagrams
        if protocol is Protocol.UDP:
            local = await self._local_host.open_datagrams(caller, target)
        else:
            local = await self._echo.connect()

        def attach_datagrams(
            secure: SecureTunnel, _durable: Durable | None
        ) -> tuple[Carrier, Carry]:
            datagrams = SessionDatagrams(secure)
            self._spawn(datagrams.run)
            return datagrams, lambda: local.carry(datagrams)

        return Service(local.abort, attach_datagrams)
