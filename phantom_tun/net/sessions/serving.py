"""The side that is connected to: from a sealed request to a local service (docs/spec/session.md,
"Being connected to").

In this order: the request opens, is signed by its caller for this identity, is new, and never came
before; there is room; a rule lets this caller in; its TLS is acceptable. Only then the local
service is touched, and only then something is answered. What fails before the rules gets no answer
at all; what the rules don't allow is told so.

A request with a ticket of ours takes the first bytes along: the service has them as soon as it
accepts, and what it says goes out before the caller's end of TLS is complete.

A session whose caller wants it kept serves further connections: whoever asks for them is known
already, everything else is decided as for the first one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from math import inf

import trio

from phantom_tun.clock import Clock, Rng
from phantom_tun.crypto.certificates import certificate_hash
from phantom_tun.endpoints import DatagramStream, Endpoint, LocalDatagrams, LocalHost
from phantom_tun.errors import (
    CapacityExceeded,
    Filtered,
    PeerError,
    ProtocolViolation,
    Refused,
    StreamReset,
    UsageError,
    WorldError,
)
from phantom_tun.ids import PublicKey
from phantom_tun.net.sessions.callers import Callers
from phantom_tun.net.sessions.contexts import ContextCache
from phantom_tun.net.sessions.datagrams import SessionDatagrams
from phantom_tun.net.sessions.expose import ExposeRule, ExposeRules, Transport
from phantom_tun.net.sessions.offers import ONE_CALL, Offer, Offers
from phantom_tun.net.sessions.ports import Accept, Identities, Identity
from phantom_tun.net.sessions.secure_tunnel import SecureTunnel, Spawn, release_unused
from phantom_tun.net.sessions.stream import SessionStream
from phantom_tun.net.sessions.table import Carrier, Entry, SessionTable
from phantom_tun.net.sessions.tickets import IssuedTickets
from phantom_tun.netdb.limits import SourceLimits
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.tunnel.answer import callee_wrap, lock_answer
from phantom_tun.tunnel.channel import CalleeHandshake, Channel
from phantom_tun.tunnel.early import EarlySealer, unlock_early
from phantom_tun.tunnel.replay import ReplayCache
from phantom_tun.tunnel.request import check_time, open_request
from phantom_tun.wire import session
from phantom_tun.wire.session import (
    RANDOM_LEN,
    Answer,
    FrameKind,
    Opening,
    Outcome,
    Request,
    Ticket,
)

LOCAL_WITHIN = 5.0
"""Seconds for the local service to accept."""
HANDSHAKE_WITHIN = 20.0
"""Seconds for the caller to complete TLS after the answer."""
ECHO_IDLE = 90.0
"""Seconds without a message after which an echo exchange ends."""
REMEMBERED_REQUESTS = 32_768
"""Nonces kept for each identity, each for about three minutes; and session ids of calls whose first
bytes were taken."""
MAX_PENDING = 256
"""Requests that are being decided at the same time."""
KEEP_WITHIN = 15.0
"""Seconds that a kept session waits for its next connection: longer than its caller does
(``kept.KEPT_FOR``), who therefore ends it most of the time."""
MAX_IDLE, MAX_IDLE_OF_ONE = 512, 64
"""Sessions that wait so at one time, in all and of one caller."""
NEXT_RATE, NEXT_BURST = 500.0, 100.0
"""Further connections of one caller, per second and at once, before the next one waits."""


_Carry = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Service:
    """A local service that has accepted and waits for its caller."""

    abort: Callable[[], None]
    """Gives it up."""
    attach: Callable[[SecureTunnel], tuple[Carrier, _Carry]]
    """Makes what carries the session, and what runs it to its end."""


@dataclass(frozen=True, slots=True)
class _Visit:
    """An authentic, new request."""

    identity: Identity
    request: Request
    remember_until: float
    """When requests of its age are refused anyway."""


@dataclass(frozen=True, slots=True)
class _Early:
    """What a request with a ticket took along."""

    ticket: Ticket
    data: bytes


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A request that a rule lets in, and the two ends of the connection to the service."""

    visit: _Visit
    remote: Endpoint
    """The caller, as the service sees it."""
    target: Endpoint


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a CONNECTED answer promises."""

    admitted: _Admitted
    offer: Offer[_Service]
    handshake: CalleeHandshake
    early: _Early | None


_Idle = tuple[_Visit, SecureTunnel]
"""A session between two connections, and what the last one was."""


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


class SessionServer:
    """Answers requests and carries what they lead to."""

    def __init__(
        self,
        *,
        network: NetworkParams,
        identities: Identities,
        rules: ExposeRules,
        callers: Callers,
        contexts: ContextCache,
        table: SessionTable,
        echo: EchoService,
        local_host: LocalHost,
        spawn: Spawn,
        clock: Clock,
        rng: Rng,
        counts: Counter[str],
    ) -> None:
        self._network = network
        self._identities = identities
        self._rules = rules
        self._callers = callers
        self._contexts = contexts
        self._table = table
        self._offers: Offers[_Service] = Offers()
        self._echo = echo
        self._local_host = local_host
        self._spawn = spawn
        self._clock = clock
        self._rng = rng
        self._counts = counts
        self._started = clock.now()
        self._seen: dict[str, ReplayCache] = {}
        self._seen_calls: dict[str, ReplayCache] = {}
        """Session ids of calls whose first bytes were taken."""
        self._tickets = IssuedTickets(clock, rng)
        self._pending = 0
        self._idle: Counter[PublicKey] = Counter()
        """Kept sessions that wait for their next connection, by caller."""
        self._next_limits = SourceLimits(rate=NEXT_RATE, burst=NEXT_BURST)

    async def serve(self, identity: str, sealed_request: bytes, accept: Accept) -> None:
        """Decide about a request, answer it, and return when what came of it is over.

        Returning without having called ``accept`` means that there is no answer.
        """
        try:
            async with AsyncExitStack() as stack:
                idle = await self._serve(identity, sealed_request, accept, stack)
            while idle is not None:
                async with AsyncExitStack() as stack:
                    idle = await self._serve_next(*idle, stack)
        except WorldError as error:
            self._counts[f"session_failed_{type(error).__name__}"] += 1

    async def _serve(
        self, name: str, sealed_request: bytes, accept: Accept, stack: AsyncExitStack
    ) -> _Idle | None:
        """Serve a request and the connection it leads to; returns the session if it is kept for
        another one. ``stack`` is closed when the connection is over."""
        try:
            with self._deciding():
                visit = self._let_in(name, sealed_request)
                decision = await self._decide(visit, stack)
        except (PeerError, CapacityExceeded, UsageError) as error:
            self._counts[f"request_dropped_{type(error).__name__}"] += 1
            return None
        random = self._rng.randbytes(RANDOM_LEN)
        if isinstance(decision, Outcome):
            self._counts[f"request_answered_{decision.name.lower()}"] += 1
            tunnel = await accept(lock_answer(Answer(decision, random), visit.request))
            await release_unused(tunnel)
            return None
        self._counts["request_answered_connected"] += 1
        offer, early = decision.offer, decision.early
        answer = Answer(Outcome.CONNECTED, random, decision.handshake.flight, early is not None)
        tunnel = await accept(lock_answer(answer, visit.request), hold=answer.took_early)
        channel = _open_channel(visit.request, decision, answer)
        secure = SecureTunnel(channel, tunnel, self._spawn)

        async def run(carry: _Carry) -> None:
            await secure.wait_established(HANDSHAKE_WITHIN)
            offer.take()
            self._expect_first(visit)
            self._hand_out_ticket(visit, secure)
            await carry()

        async def run_early(carry: _Carry) -> None:
            await self._carry_early(visit, secure, carry)

        if early is None:
            return await self._carry(decision.admitted, offer, secure, run)
        secure.hold_answer()
        return await self._carry(decision.admitted, offer, secure, run_early)

    def _let_in(self, name: str, sealed_request: bytes) -> _Visit:
        """Everything that can be decided at once, without asking anybody."""
        identity = self._identities.get(name)
        own_key = identity.signing.public
        request = open_request(
            sealed_request, identity.request_keys, own_key, self._network.network_id
        )
        visit = self._visit(identity, request)
        _cache(self._seen, visit).add(request.nonce, visit.remember_until, self._clock.now())
        return visit

    def _visit(self, identity: Identity, request: Request) -> _Visit:
        """
        :raises PeerError: the request isn't acceptable.
        :raises CapacityExceeded: there's no room for another connection.
        """
        if request.destination not in (identity.ap4, identity.ap6):
            raise ProtocolViolation("the request is for another address")
        remember_until = check_time(request, self._clock.now(), self._started)
        self._table.check_room(request.caller)
        return _Visit(identity, request, remember_until)

    @contextmanager
    def _deciding(self) -> Iterator[None]:
        """One of those that are being decided.

        :raises CapacityExceeded: there are too many.
        """
        if self._pending >= MAX_PENDING:
            raise CapacityExceeded("too many requests at a time")
        self._pending += 1
        try:
            yield
        finally:
            self._pending -= 1

    async def _decide(self, visit: _Visit, stack: AsyncExitStack) -> _Opened | Outcome:
        """The answer.

        :raises PeerError: the caller's TLS or early data are not acceptable.
        :raises CapacityExceeded: there's no address to show the caller under.
        """
        identity, request = visit.identity, visit.request
        if request.epoch:
            return Outcome.UNSUPPORTED  # resuming sessions
        admitted = await self._admit(visit, stack)
        if admitted is None:
            return Outcome.FILTERED
        contexts = ContextCache() if request.ephemeral else self._contexts
        context = contexts.callee(identity.certificate, request.certificate)
        handshake = CalleeHandshake(context, request.client_hello)
        if self._is_known_call(visit):
            return Outcome.FILTERED
        early = self._take_early(visit)
        try:
            offer = await self._ask_service(admitted, stack)
            if early is not None and early.data and not self._remember_call(visit):
                early = None
            if early is not None:
                _take(offer, stack)
        except (WorldError, UsageError, trio.TooSlowError) as error:
            return _outcome(error)
        return _Opened(admitted, offer, handshake, early)

    async def _admit(self, visit: _Visit, stack: AsyncExitStack) -> _Admitted | None:
        """Whether and as whom the caller may connect.

        :raises CapacityExceeded: there's no address to show the caller under.
        """
        request = visit.request
        is_echo = request.protocol is session.Protocol.ECHO
        rule = None if is_echo else self._find_rule(visit)
        if rule is None and not is_echo:
            return None
        # An echo exchange touches no service: for the listing alone nobody is asked anything.
        version = 6 if is_echo else request.destination.version
        caller = await self._callers.identify(
            visit.identity.name,
            request,
            with_ap4=version == 4 or (rule is not None and rule.names_ap4),
        )
        if rule is not None and not rule.admits(caller.addresses):
            return None
        address = stack.enter_context(self._callers.peer_address(caller, version))
        remote = Endpoint(address, request.source_port)
        target = Endpoint(request.destination, rule.target_port if rule is not None else 0)
        return _Admitted(visit, remote, target)

    async def _ask_service(
        self, admitted: _Admitted, stack: AsyncExitStack, *, gives_way: bool = False
    ) -> Offer[_Service]:
        """The service, for this request and others of the same call.

        :raises ConnectFailed: it doesn't accept, or another attempt has it.
        """
        request, remote, target = admitted.visit.request, admitted.remote, admitted.target
        # Pings of one caller have no ports to tell them apart by, and need none.
        is_echo = request.protocol is session.Protocol.ECHO
        ends = request.nonce if is_echo else (request.protocol, remote, target)
        joined = self._offers.joined(
            ends,
            request.time,
            lambda: self._reach(request.protocol, remote, target),
            gives_way=gives_way,
        )
        return await stack.enter_async_context(joined)

    # --- further connections --------------------------------------------------------------------

    async def _serve_next(
        self, visit: _Visit, secure: SecureTunnel, stack: AsyncExitStack
    ) -> _Idle | None:
        """Wait for the next connection of a kept session and serve it; returns the session if it is
        kept for yet another one. ``visit`` is of the connection before."""
        try:
            opening = await self._wait_next(visit.request.caller, secure)
            if opening is not None:
                with self._deciding():
                    visit = self._visit_again(visit, opening)
                    decision = await self._decide_next(visit, bool(opening.first), stack)
                outcome = decision if isinstance(decision, Outcome) else Outcome.CONNECTED
                self._counts[f"further_answered_{outcome.name.lower()}"] += 1
                await secure.answer_next(outcome)
                if isinstance(decision, Outcome):
                    return visit, secure
                self._hand_out_ticket(visit, secure)
                return await self._carry(*decision, secure, _at_once)
        except (PeerError, CapacityExceeded, UsageError) as error:
            self._counts[f"further_dropped_{type(error).__name__}"] += 1
        except StreamReset as error:
            self._counts[f"session_failed_{type(error).__name__}"] += 1
        except BaseException:
            secure.finish(FrameKind.RESET)
            raise
        secure.finish(None if secure.is_idle else FrameKind.RESET)
        await secure.closed.wait()
        return None

    async def _wait_next(self, caller: PublicKey, secure: SecureTunnel) -> Opening | None:
        """What the caller asks for; ``None`` once the session is over.

        :raises CapacityExceeded: too many wait.
        :raises StreamReset: it ended otherwise than it should.
        """
        if self._idle.total() >= MAX_IDLE or self._idle[caller] >= MAX_IDLE_OF_ONE:
            raise CapacityExceeded("too many sessions wait for further connections")
        self._idle[caller] += 1
        try:
            with trio.move_on_after(KEEP_WITHIN):
                opening = await secure.wait_next()
                # Nobody could tell when.
                while not self._next_limits.allows(caller, trio.current_time()):  # noqa: ASYNC110
                    await trio.sleep(1 / NEXT_RATE)
                return opening
        except StreamReset:
            if not secure.was_let_go:
                raise
        finally:
            self._idle[caller] -= 1
            self._idle += Counter()  # drops zeros
        return None

    def _visit_again(self, visit: _Visit, opening: Opening) -> _Visit:
        """What a request for the same would be.

        :raises PeerError: it wouldn't be acceptable.
        :raises CapacityExceeded: there's no room for it.
        :raises UsageError: the identity isn't ours any more.
        """
        identity = self._identities.get(visit.identity.name)
        if identity.signing.public != visit.identity.signing.public:
            raise ProtocolViolation("the identity was replaced")
        request = replace(
            visit.request,
            session_id=opening.session_id,
            time=opening.time,
            destination=opening.destination,
            port=opening.port,
            source_port=opening.source_port,
        )
        return self._visit(identity, request)

    async def _decide_next(
        self, visit: _Visit, has_first: bool, stack: AsyncExitStack
    ) -> tuple[_Admitted, Offer[_Service]] | Outcome:
        """The answer.

        :raises CapacityExceeded: there's no address to show the caller under, or too many calls
            are remembered.
        """
        admitted = await self._admit(visit, stack)
        if admitted is None or self._is_known_call(visit):
            return Outcome.FILTERED
        if has_first:
            _cache(self._seen_calls, visit).check_room(self._clock.now())
        try:
            # One without first bytes is given up before another attempt is made.
            offer = await self._ask_service(admitted, stack, gives_way=not has_first)
            _take(offer, stack)
        except (WorldError, UsageError, trio.TooSlowError) as error:
            return _outcome(error)
        if has_first and not self._remember_call(visit):
            raise CapacityExceeded("too many calls are remembered")
        return admitted, offer

    # --- first bytes ----------------------------------------------------------------------------

    def _is_known_call(self, visit: _Visit) -> bool:
        """Whether first bytes of this call were taken, whatever has become of that attempt."""
        return visit.request.session_id in _cache(self._seen_calls, visit)

    def _remember_call(self, visit: _Visit) -> bool:
        """First bytes are taken once, whatever becomes of it: the service may have acted on them.
        False if too many calls are remembered: then they aren't taken at all.

        :raises ProtocolViolation: they were taken before.
        """
        # Attempts of this call may be younger than this one.
        until = visit.remember_until + ONE_CALL
        try:
            calls = _cache(self._seen_calls, visit)
            calls.add(visit.request.session_id, until, self._clock.now())
        except CapacityExceeded:
            return False
        return True

    def _expect_first(self, visit: _Visit) -> None:
        """First bytes that weren't taken come over TLS now. An opening that takes them along, too,
        may still be under way.

        :raises Filtered: it was faster.
        """
        if not visit.request.has_first:
            return
        if self._is_known_call(visit):
            raise Filtered("the first bytes were taken")
        self._remember_call(visit)

    def _take_early(self, visit: _Visit) -> _Early | None:
        """The bytes that the request took along, if its ticket is known.

        :raises CryptoError: its sender doesn't know the ticket's secret.
        """
        ticket = self._tickets.find(visit.identity.signing.public, visit.request)
        if ticket is None:
            return None
        return _Early(ticket, unlock_early(ticket, visit.request))

    def _find_rule(self, visit: _Visit) -> ExposeRule | None:
        transport: Transport = "tcp" if visit.request.protocol is session.Protocol.TCP else "udp"
        return self._rules.find(visit.identity.name, transport, visit.request.port)

    async def _reach(
        self, protocol: session.Protocol, caller: Endpoint, target: Endpoint
    ) -> _Service:
        with trio.fail_after(LOCAL_WITHIN):
            return await self._connect(protocol, caller, target)

    async def _connect(
        self, protocol: session.Protocol, caller: Endpoint, target: Endpoint
    ) -> _Service:
        if protocol is session.Protocol.TCP:
            connection = await self._local_host.connect_stream(caller, target)

            def attach_stream(secure: SecureTunnel) -> tuple[Carrier, _Carry]:
                stream = SessionStream(secure)
                return stream, lambda: connection.carry(stream)

            return _Service(connection.abort, attach_stream)
        local: LocalDatagrams
        if protocol is session.Protocol.UDP:
            local = await self._local_host.open_datagrams(caller, target)
        else:
            local = await self._echo.connect()

        def attach_datagrams(secure: SecureTunnel) -> tuple[Carrier, _Carry]:
            datagrams = SessionDatagrams(secure)
            self._spawn(datagrams.run)
            return datagrams, lambda: local.carry(datagrams)

        return _Service(local.abort, attach_datagrams)

    # --- carrying -------------------------------------------------------------------------------

    async def _carry(
        self,
        admitted: _Admitted,
        offer: Offer[_Service],
        secure: SecureTunnel,
        run: Callable[[_Carry], Awaitable[None]],
    ) -> _Idle | None:
        """Carry a connection with its service until it is over; returns the session if it is kept.

        :param run: gets what carries it.
        """
        visit, request = admitted.visit, admitted.visit.request
        rest: list[SecureTunnel] = []
        if request.keep:
            secure.keep(rest.append)
        carrier, carry = offer.service.attach(secure)
        entry = Entry(
            identity=visit.identity.name,
            direction="in",
            remote=admitted.remote,
            port=request.port,
            protocol=request.protocol,
            peer=request.caller,
            path_number=secure.path_number,
        )
        with self._table.listed(entry, carrier):
            try:
                await run(carry)
            finally:
                carrier.abort()
            await secure.closed.wait()
        return (visit, rest[0]) if rest else None

    async def _carry_early(self, visit: _Visit, secure: SecureTunnel, carry: _Carry) -> None:
        """Carry at once, and give up if TLS doesn't stand soon."""
        self._counts["early_taken"] += 1
        with trio.move_on_after(HANDSHAKE_WITHIN) as handshake:

            def go_on() -> None:
                handshake.deadline = inf
                self._hand_out_ticket(visit, secure)

            secure.when_established(go_on)
            await carry()
        if handshake.cancelled_caught:
            self._counts["early_unfinished"] += 1

    def _hand_out_ticket(self, visit: _Visit, secure: SecureTunnel) -> None:
        request = visit.request
        if request.ephemeral or request.protocol is not session.Protocol.TCP:
            return
        own_key = visit.identity.signing.public
        secure.hand_out(lambda: self._tickets.issue(own_key, request.caller))


async def _at_once(carry: _Carry) -> None:
    await carry()


def _take(offer: Offer[_Service], stack: AsyncExitStack) -> None:
    """Have the service for this attempt, whose caller may never hear of it.

    :raises Filtered: another attempt has it.
    """
    offer.take()
    stack.callback(offer.service.abort)


def _outcome(error: Exception) -> Outcome:
    """What a caller is told whom the service doesn't get."""
    if isinstance(error, Refused):
        return Outcome.REFUSED
    if isinstance(error, Filtered | trio.TooSlowError):
        return Outcome.FILTERED
    return Outcome.UNREACHABLE


def _cache(caches: dict[str, ReplayCache], visit: _Visit) -> ReplayCache:
    return caches.setdefault(visit.identity.name, ReplayCache(REMEMBERED_REQUESTS))


def _open_channel(request: Request, opened: _Opened, answer: Answer) -> Channel:
    certificate, wrap = certificate_hash(request.certificate), callee_wrap(request, answer)
    early = opened.early
    if early is None:
        return opened.handshake.open(certificate, wrap)
    sealer = EarlySealer(early.ticket, request, answer)
    return opened.handshake.open_early(certificate, wrap, sealer, early.data)
