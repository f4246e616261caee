"""The end-to-end layer of one node (docs/spec/session.md; protocol section 7).

:class:`SessionService` is what the interface calls when a local program connects
(:class:`~phantom_tun.endpoints.Overlay`), and what entry paths call when a request arrives. Its
parts: ``opening``, ``calls``, ``race`` and ``kept`` (connecting), ``serving`` (being connected
to), ``admission``, ``expose`` and ``callers`` (who may, and as whom), ``local_services`` (to what),
``stream`` and ``datagrams`` (what is carried) over ``secure_tunnel``, which has ``handshake``,
``further`` and ``ending`` beside it, and ``ahead``, ``pipe`` and ``frames`` below.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import trio

from phantom_tun.clock import Clock, Rng
from phantom_tun.endpoints import Endpoint, LocalHost
from phantom_tun.errors import CapacityExceeded, StreamReset, Unreachable, WorldError
from phantom_tun.guard import Guard
from phantom_tun.net.sessions.admission import Admission
from phantom_tun.net.sessions.callers import Callers, NatPeers
from phantom_tun.net.sessions.contexts import ContextCache
from phantom_tun.net.sessions.datagrams import SessionDatagrams
from phantom_tun.net.sessions.expose import ExposeRules
from phantom_tun.net.sessions.local_services import EchoService, LocalServices
from phantom_tun.net.sessions.opening import Opened, SessionOpener
from phantom_tun.net.sessions.ports import Accept, Connector, Directory, Identities
from phantom_tun.net.sessions.resuming import CallerResumer, Survival
from phantom_tun.net.sessions.serving import SessionServer
from phantom_tun.net.sessions.stream import SessionStream
from phantom_tun.net.sessions.table import Carrier, Entry, SessionInfo, SessionTable
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.wire.session import Protocol

_CarrierT = TypeVar("_CarrierT", bound=Carrier)

MAX_OPENING = 512
"""Connections being made at the same time."""

LAST_WORDS_WITHIN = 5.0
"""Seconds at the end for telling all peers that their connections are reset, and for what is on its
way before that to get through."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What the user decides."""

    nat4: ipaddress.IPv4Network
    """Part of the reserved AP4 block, for callers without an address."""
    nat6: ipaddress.IPv6Network
    """The same of the reserved AP6 block."""
    answer_echo: bool = True
    early: bool = True
    """Whether programs may be told that they are connected before the far side has answered."""
    keep: bool = True
    """Whether a session may serve several connections, one after the other."""
    resume_memory: int = 134_217_728
    """Bytes that all connections together may keep so that they can be resumed; 0: none is."""
    ephemeral: frozenset[str] = frozenset()
    """Names of the identities that call without showing who they are."""
    max_sessions: int = 4096
    """Connections at the same time, both directions together."""
    max_sessions_per_caller: int = 1024


class SessionService:
    """Implements :class:`~phantom_tun.endpoints.Overlay` and answers requests."""

    def __init__(
        self,
        *,
        network: NetworkParams,
        identities: Identities,
        directory: Directory,
        connector: Connector,
        rules: ExposeRules,
        settings: SessionSettings,
        clock: Clock,
        rng: Rng,
    ) -> None:
        self._network = network
        self._identities = identities
        self._directory = directory
        self._rules = rules
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._counts: Counter[str] = Counter()
        self._guard = Guard(self._counts)
        self._contexts = ContextCache()
        self._table = SessionTable(clock, settings.max_sessions, settings.max_sessions_per_caller)
        self._opening = 0
        self._nursery: trio.Nursery | None = None
        self._server: SessionServer | None = None
        self._survival = Survival(settings.resume_memory, self._spawn, rng, self._counts)
        self._opener = SessionOpener(
            network=network,
            directory=directory,
            connector=connector,
            contexts=self._contexts,
            spawn=self._spawn,
            clock=clock,
            rng=rng,
            counts=self._counts,
            keeps=settings.keep,
            survives=self._survival.is_on,
        )

    async def run(
        self,
        local_host: LocalHost,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; then every connection is reset, and for ``LAST_WORDS_WITHIN`` the
        peers are told. ``local_host`` is where exposed services are reached."""
        nat_peers = NatPeers(self._settings.nat4, self._settings.nat6)
        background = trio.CancelScope()
        is_over = trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._run_background, background, is_over)
            background.shield = True
            services = LocalServices(
                local_host, EchoService(is_enabled=self._settings.answer_echo), self._spawn
            )
            admission = Admission(
                network=self._network,
                identities=self._identities,
                rules=self._rules,
                callers=Callers(self._network, self._directory, nat_peers, self._clock),
                table=self._table,
                services=services,
                clock=self._clock,
            )
            self._server = SessionServer(
                admission=admission,
                contexts=self._contexts,
                table=self._table,
                spawn=self._spawn,
                clock=self._clock,
                rng=self._rng,
                counts=self._counts,
                survival=self._survival,
            )
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._server = None
                self._table.abort_all()
                self._opener.end_kept()
                background.deadline = trio.current_time() + LAST_WORDS_WITHIN
                is_over.set()

    async def _run_background(
        self,
        scope: trio.CancelScope,
        is_over: trio.Event,
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        """Have tasks until it is over and they have ended."""
        try:
            with scope:
                async with trio.open_nursery() as self._nursery:
                    task_status.started()
                    await is_over.wait()
        finally:
            self._nursery = None

    # --- being connected to ---------------------------------------------------------------------

    async def handle_request(self, identity: str, sealed_request: bytes, accept: Accept) -> None:
        """Decide about a request that came over an entry path of ``identity``; returns when what
        it led to is over. Returning without having called ``accept`` means: no answer."""
        if self._server is None:
            self._counts["request_dropped_not_running"] += 1
            return
        await self._server.serve(identity, sealed_request, accept)

    # --- connecting -----------------------------------------------------------------------------

    def is_steady(self, source: Endpoint, target: Endpoint) -> bool:
        """See :meth:`phantom_tun.endpoints.Overlay.is_steady`."""
        identity = self._identities.owner_of(source.address)
        return (
            self._settings.early
            and identity is not None
            and identity.name not in self._settings.ephemeral
            and self._opening < MAX_OPENING // 2
            and self._opener.is_steady(identity, target)
        )

    async def open_stream(
        self, source: Endpoint, target: Endpoint, first: bytes = b""
    ) -> SessionStream:
        """See :meth:`phantom_tun.endpoints.Overlay.open_stream`."""
        stream = await self._open(source, target, Protocol.TCP, self._stream_over, first)
        try:
            await stream.send_first(first)
        except StreamReset:
            pass  # whoever uses the stream is told so
        except BaseException:
            stream.abort()  # nobody gets to know it
            raise
        return stream

    async def open_datagrams(self, source: Endpoint, target: Endpoint) -> SessionDatagrams:
        """See :meth:`phantom_tun.endpoints.Overlay.open_datagrams`."""
        datagrams = await self._open(source, target, Protocol.UDP, _datagrams_over)
        self._spawn(datagrams.run)
        return datagrams

    async def open_echo(self, source: Endpoint, target: Endpoint) -> SessionDatagrams:
        """See :meth:`phantom_tun.endpoints.Overlay.open_echo`."""
        echo = await self._open(source, target, Protocol.ECHO, _datagrams_over)
        self._spawn(echo.run)
        return echo

    async def _open(
        self,
        source: Endpoint,
        target: Endpoint,
        protocol: Protocol,
        carrier_over: Callable[[Opened], _CarrierT],
        first: bytes = b"",
    ) -> _CarrierT:
        identity = self._identities.owner_of(source.address)
        if identity is None:
            raise Unreachable("the source is not one of our AP addresses")
        self._table.check_room()
        if self._opening >= MAX_OPENING:
            raise CapacityExceeded("too many connections are being made")
        self._opening += 1
        try:
            opened = await self._opener.open(
                identity,
                source.port,
                target,
                protocol,
                is_ephemeral=identity.name in self._settings.ephemeral,
                first=first,
            )
        except WorldError as error:
            self._counts[f"open_failed_{type(error).__name__}"] += 1
            raise
        finally:
            self._opening -= 1
        self._counts["open_succeeded"] += 1
        carrier = carrier_over(opened)
        entry = Entry(identity.name, "out", target, source.port, protocol, None)
        if not self._spawn(lambda: self._list(entry, carrier)):
            carrier.abort()
        return carrier

    def _stream_over(self, opened: Opened) -> SessionStream:
        if not opened.call.survives:
            return SessionStream(opened.secure)
        resumer = CallerResumer(self._survival, self._opener, opened)
        return SessionStream(opened.secure, self._survival.durable(resumer))

    async def _list(self, entry: Entry, carrier: Carrier) -> None:
        with self._table.listed(entry, carrier):
            try:
                await carrier.wait_closed()
            finally:
                carrier.abort()

    # --- what there is --------------------------------------------------------------------------

    def sessions(self) -> list[SessionInfo]:
        """All connections, oldest first."""
        return self._table.infos()

    def repeated_deaths(self) -> int:
        """How often within ten minutes a connection lost a tunnel again."""
        return self._survival.deaths.recent()

    def close(self, number: int) -> None:
        """Reset the connection with this number.

        :raises UsageError: there is none.
        """
        self._table.close(number)

    def statistics(self) -> dict[str, int]:
        """Counters by name; every drop has one."""
        return {"sessions": len(self._table), "opening": self._opening, **self._counts}

    def _spawn(self, task: Callable[[], Awaitable[None]]) -> bool:
        if self._nursery is None:
            return False
        self._nursery.start_soon(self._guard.once, task)
        return True


def _datagrams_over(opened: Opened) -> SessionDatagrams:
    return SessionDatagrams(opened.secure)
