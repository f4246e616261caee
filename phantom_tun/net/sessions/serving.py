"""The side that is connected to: from a sealed request to a local service (docs/spec/session.md,
"Being connected to").

In this order: the request is let in and a rule admits its caller (``admission``); its TLS is
acceptable. Only then the local service is touched, and only then something is answered. What fails
before the rules gets no answer at all; what the rules don't allow is told so.

A request with a ticket of ours takes the first bytes along: the service has them as soon as it
accepts, and what it says goes out before the caller's end of TLS is complete.

A session whose caller wants it kept serves further connections: whoever asks for them is known
already, everything else is decided as for the first one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from math import inf

import trio

from phantom_tun.clock import Clock, Rng
from phantom_tun.crypto.certificates import certificate_hash
from phantom_tun.errors import (
    CapacityExceeded,
    Filtered,
    PeerError,
    Refused,
    StreamReset,
    UsageError,
    WorldError,
)
from phantom_tun.ids import PublicKey
from phantom_tun.net.sessions.admission import Admission, Admitted, Visit
from phantom_tun.net.sessions.contexts import ContextCache
from phantom_tun.net.sessions.ending import abandon, finish, release_unused
from phantom_tun.net.sessions.further import answer_next, keep, wait_next
from phantom_tun.net.sessions.handshake import give_secret, hold_answer, wait_established
from phantom_tun.net.sessions.local_services import Carry, Service
from phantom_tun.net.sessions.offers import Offer
from phantom_tun.net.sessions.ports import Accept
from phantom_tun.net.sessions.resuming import Held, Resumable, Survival
from phantom_tun.net.sessions.secure_tunnel import SecureTunnel, Spawn
from phantom_tun.net.sessions.stream import SessionStream
from phantom_tun.net.sessions.table import Entry, SessionTable
from phantom_tun.net.sessions.tickets import IssuedTickets
from phantom_tun.netdb.limits import SourceLimits
from phantom_tun.tunnel.answer import callee_wrap, lock_answer
from phantom_tun.tunnel.channel import CalleeHandshake, Channel
from phantom_tun.tunnel.early import EarlySealer, unlock_early
from phantom_tun.wire.session import (
    RANDOM_LEN,
    RESUME_SECRET_LEN,
    Answer,
    FrameKind,
    Opening,
    Outcome,
    Protocol,
    Request,
    Ticket,
)

HANDSHAKE_WITHIN = 20.0
"""Seconds for the caller to complete TLS after the answer."""
KEEP_WITHIN = 15.0
"""Seconds that a kept session waits for its next connection: longer than its caller does
(``kept.KEPT_FOR``), who therefore ends it most of the time."""
MAX_IDLE, MAX_IDLE_OF_ONE = 512, 64
"""Sessions that wait so at one time, in all and of one caller."""
NEXT_RATE, NEXT_BURST = 500.0, 100.0
"""Further connections of one caller, per second and at once, before the next one waits."""


@dataclass(frozen=True, slots=True)
class _Early:
    """What a request with a ticket took along."""

    ticket: Ticket
    data: bytes


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a CONNECTED answer promises."""

    admitted: Admitted
    offer: Offer[Service]
    handshake: CalleeHandshake
    early: _Early | None


@dataclass(frozen=True, slots=True)
class _Resumed:
    """A session that goes on over another tunnel, and what has arrived at both ends."""

    held: Held
    handshake: CalleeHandshake
    here: int
    there: int


_Idle = tuple[Visit, SecureTunnel]
"""A session between two connections, and what the last one was."""


class SessionServer:
    """Answers requests and carries what they lead to."""

    def __init__(
        self,
        *,
        admission: Admission,
        contexts: ContextCache,
        table: SessionTable,
        spawn: Spawn,
        clock: Clock,
        rng: Rng,
        counts: Counter[str],
        survival: Survival,
    ) -> None:
        self._admission = admission
        self._survival = survival
        self._resumable = Resumable()
        self._contexts = contexts
        self._table = table
        self._spawn = spawn
        self._rng = rng
        self._counts = counts
        self._tickets = IssuedTickets(clock, rng)
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
            with self._admission.deciding():
                visit = self._admission.let_in(name, sealed_request)
                decision = await self._decide(visit, stack)
        except (PeerError, CapacityExceeded, UsageError) as error:
            self._counts[f"request_dropped_{type(error).__name__}"] += 1
            return None
        random = self._rng.randbytes(RANDOM_LEN)
        if isinstance(decision, _Resumed):
            await self._go_on(visit, decision, random, accept)
            return None
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

        async def run(carry: Carry) -> None:
            await wait_established(secure, HANDSHAKE_WITHIN)
            offer.take()
            self._admission.expect_first(visit)
            self._hand_out(visit, secure)
            await carry()

        async def run_early(carry: Carry) -> None:
            await self._carry_early(visit, secure, carry)

        if early is None:
            return await self._carry(decision.admitted, offer, secure, run)
        hold_answer(secure)
        return await self._carry(decision.admitted, offer, secure, run_early)

    async def _decide(self, visit: Visit, stack: AsyncExitStack) -> _Opened | _Resumed | Outcome:
        """The answer.

        :raises PeerError: the caller's TLS or early data are not acceptable.
        :raises CapacityExceeded: there's no address to show the caller under.
        """
        request = visit.request
        if request.epoch:
            return self._decide_resumption(visit)
        admitted = await self._admission.admit(visit, stack)
        if admitted is None:
            return Outcome.FILTERED
        handshake = self._shake_hands(visit)
        self._forget_never_known(visit)
        if self._admission.is_known_call(visit):
            return Outcome.FILTERED
        early = self._take_early(visit)
        try:
            offer = await self._admission.ask_service(admitted, stack)
            if early is not None and early.data and not self._admission.remember_call(visit):
                early = None
            if early is not None:
                _take(offer, stack)
        except (WorldError, UsageError, trio.TooSlowError) as error:
            return _outcome(error)
        return _Opened(admitted, offer, handshake, early)

    def _shake_hands(self, visit: Visit) -> CalleeHandshake:
        """
        :raises PeerError: the caller's TLS isn't acceptable.
        """
        request = visit.request
        contexts = ContextCache() if request.ephemeral else self._contexts
        context = contexts.callee(visit.identity.certificate, request.certificate)
        return CalleeHandshake(context, request.client_hello)

    # --- sessions that survive ------------------------------------------------------------------

    def _forget_never_known(self, visit: Visit) -> None:
        """A call that is made anew: what became of it before has been lost, if it came to anything,
        and its caller doesn't know."""
        held = self._resumable.find(visit.identity.name, visit.request.session_id)
        if held is not None and held.caller == visit.request.caller and held.is_never_known():
            self._counts["sessions_never_known"] += 1

    def _decide_resumption(self, visit: Visit) -> _Resumed | Outcome:
        """The answer to somebody who wants to go on with a session.

        :raises PeerError: they have nothing to do with it, or their TLS isn't acceptable.
        """
        request = visit.request
        held = self._resumable.find(visit.identity.name, request.session_id)
        if held is None:
            return Outcome.GONE
        handshake = self._shake_hands(visit)
        begun = held.begin(request)
        if begun is None:
            self._counts["resume_refused"] += 1
            return Outcome.GONE
        here, there = begun
        return _Resumed(held, handshake, here, there)

    async def _go_on(self, visit: Visit, resumed: _Resumed, random: bytes, accept: Accept) -> None:
        """Answer, go on as soon as TLS stands, and return when this tunnel is over."""
        request, flight = visit.request, resumed.handshake.flight
        answer = Answer(Outcome.CONNECTED, random, flight, received=resumed.here)
        with resumed.held.attempt():
            tunnel = await accept(lock_answer(answer, request))
            certificate, wrap = certificate_hash(request.certificate), callee_wrap(request, answer)
            secure = SecureTunnel(resumed.handshake.open(certificate, wrap), tunnel, self._spawn)
            try:
                await wait_established(secure, HANDSHAKE_WITHIN)
                resumed.held.go_on(secure, request.epoch, resumed.there)
            except PeerError as error:
                self._counts[f"resume_dropped_{type(error).__name__}"] += 1
                abandon(secure)  # not RESET: that would be the session's end
            except BaseException:
                abandon(secure)
                raise
        await secure.closed.wait()

    # --- further connections --------------------------------------------------------------------

    async def _serve_next(
        self, visit: Visit, secure: SecureTunnel, stack: AsyncExitStack
    ) -> _Idle | None:
        """Wait for the next connection of a kept session and serve it; returns the session if it is
        kept for yet another one. ``visit`` is of the connection before."""
        try:
            opening = await self._wait_next(visit.request.caller, secure)
            if opening is not None:
                with self._admission.deciding():
                    visit = self._admission.again(visit, opening)
                    decision = await self._decide_next(visit, bool(opening.first), stack)
                outcome = decision if isinstance(decision, Outcome) else Outcome.CONNECTED
                self._counts[f"further_answered_{outcome.name.lower()}"] += 1
                await answer_next(secure, outcome)
                if isinstance(decision, Outcome):
                    return visit, secure
                self._hand_out(visit, secure)
                return await self._carry(*decision, secure, _at_once)
        except (PeerError, CapacityExceeded, UsageError) as error:
            self._counts[f"further_dropped_{type(error).__name__}"] += 1
        except StreamReset as error:
            self._counts[f"session_failed_{type(error).__name__}"] += 1
        except BaseException:
            finish(secure, FrameKind.RESET)
            raise
        finish(secure, None if secure.is_idle else FrameKind.RESET)
        await secure.closed.wait()
        return None

    async def _wait_next(self, caller: PublicKey, secure: SecureTunnel) -> Opening | None:
        """What the caller asks for; ``None`` once the session is over, or if too many wait already.

        :raises StreamReset: it ended otherwise than it should.
        """
        if self._idle.total() >= MAX_IDLE or self._idle[caller] >= MAX_IDLE_OF_ONE:
            self._counts["sessions_not_kept"] += 1
            return None
        self._idle[caller] += 1
        try:
            with trio.move_on_after(KEEP_WITHIN):
                opening = await wait_next(secure)
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

    async def _decide_next(
        self, visit: Visit, has_first: bool, stack: AsyncExitStack
    ) -> tuple[Admitted, Offer[Service]] | Outcome:
        """The answer.

        :raises CapacityExceeded: there's no address to show the caller under, or too many calls
            are remembered.
        """
        admitted = await self._admission.admit(visit, stack)
        self._forget_never_known(visit)
        if admitted is None or self._admission.is_known_call(visit):
            return Outcome.FILTERED
        if has_first:
            self._admission.check_memory(visit)
        try:
            # One without first bytes is given up before another attempt is made.
            offer = await self._admission.ask_service(admitted, stack, gives_way=not has_first)
            _take(offer, stack)
        except (WorldError, UsageError, trio.TooSlowError) as error:
            return _outcome(error)
        if has_first and not self._admission.remember_call(visit):
            raise CapacityExceeded("too many calls are remembered")
        return admitted, offer

    def _take_early(self, visit: Visit) -> _Early | None:
        """The bytes that the request took along, if its ticket is known.

        :raises CryptoError: its sender doesn't know the ticket's secret.
        """
        ticket = self._tickets.find(visit.identity.signing.public, visit.request)
        if ticket is None:
            return None
        return _Early(ticket, unlock_early(ticket, visit.request))

    # --- carrying -------------------------------------------------------------------------------

    async def _carry(
        self,
        admitted: Admitted,
        offer: Offer[Service],
        secure: SecureTunnel,
        run: Callable[[Carry], Awaitable[None]],
    ) -> _Idle | None:
        """Carry a connection with its service until it is over; returns the session if it is kept.

        :param run: gets what carries it.
        """
        visit, request = admitted.visit, admitted.visit.request
        rest: list[SecureTunnel] = []
        if request.keep:
            keep(secure, rest.append)
        survives = request.resumes and self._survival.is_on
        held = Held(request.caller, self._survival, offer)
        durable = self._survival.durable(held) if survives else None
        carrier, carry = offer.service.attach(secure, durable)
        if durable is not None and isinstance(carrier, SessionStream):
            held.stream = carrier
        entry = Entry(
            identity=visit.identity.name,
            direction="in",
            remote=admitted.remote,
            port=request.port,
            protocol=request.protocol,
            peer=request.caller,
        )
        name = visit.identity.name
        with (
            self._table.listed(entry, carrier),
            self._resumable.held(name, request.session_id, held),
        ):
            try:
                await run(carry)
            finally:
                carrier.abort()
            await carrier.wait_closed()
        return (visit, rest[0]) if rest else None

    async def _carry_early(self, visit: Visit, secure: SecureTunnel, carry: Carry) -> None:
        """Carry at once, and give up if TLS doesn't stand soon."""
        self._counts["early_taken"] += 1
        with trio.move_on_after(HANDSHAKE_WITHIN) as handshake:

            def go_on() -> None:
                handshake.deadline = inf
                self._hand_out(visit, secure)

            secure.when_established(go_on)
            await carry()
        if handshake.cancelled_caught:
            self._counts["early_unfinished"] += 1

    def _hand_out(self, visit: Visit, secure: SecureTunnel) -> None:
        """What goes along with what the service says first."""
        request = visit.request
        if request.resumes and self._survival.is_on and secure.secret is None:
            give_secret(secure, self._rng.randbytes(RESUME_SECRET_LEN))
        if request.ephemeral or request.protocol is not Protocol.TCP:
            return
        own_key = visit.identity.signing.public
        secure.ahead.hand_out(lambda: self._tickets.issue(own_key, request.caller))


async def _at_once(carry: Carry) -> None:
    await carry()


def _take(offer: Offer[Service], stack: AsyncExitStack) -> None:
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


def _open_channel(request: Request, opened: _Opened, answer: Answer) -> Channel:
    certificate, wrap = certificate_hash(request.certificate), callee_wrap(request, answer)
    early = opened.early
    if early is None:
        return opened.handshake.open(certificate, wrap)
    sealer = EarlySealer(early.ticket, request, answer)
    return opened.handshake.open_early(certificate, wrap, sealer, early.data)
