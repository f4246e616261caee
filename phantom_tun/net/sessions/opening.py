"""The side that connects: from an address to an established channel (docs/spec/session.md,
"Connecting").

The routes of the target are tried in random order, those that failed lately last. One that says
nothing for several times as long as a connection usually takes gets company by the next, through
another exit path; the first answer that authenticates counts, the other attempts are given up. When
no route has answered, the target's record is looked up afresh, again and again for some seconds,
while the silent ones go on: whose paths have died builds and publishes new ones.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple
from weakref import WeakValueDictionary

import trio

from phantom_tun.clock import Clock, Rng
from phantom_tun.crypto.certificates import certificate_hash
from phantom_tun.endpoints import Endpoint
from phantom_tun.errors import (
    NoAnswer,
    PathUnavailable,
    PeerError,
    ProtocolViolation,
    Refused,
    StreamReset,
    Unreachable,
    WorldError,
)
from phantom_tun.ids import ApAddress, PublicKey
from phantom_tun.net.sessions.calls import Call, CallerRole, Calls
from phantom_tun.net.sessions.contexts import ContextCache
from phantom_tun.net.sessions.ending import finish, release_unused
from phantom_tun.net.sessions.further import keep, open_next
from phantom_tun.net.sessions.handshake import EARLY_FLIGHT_WAIT, FLIGHT_WAIT, hold_flight
from phantom_tun.net.sessions.kept import KEPT_FOR, Kept, KeptSessions
from phantom_tun.net.sessions.ports import Connector, Directory, Identity, ResolvedAp
from phantom_tun.net.sessions.race import Attempt, Race
from phantom_tun.net.sessions.routes import Route, Suspects
from phantom_tun.net.sessions.secure_tunnel import SecureTunnel, Spawn
from phantom_tun.net.sessions.tickets import HeldTickets
from phantom_tun.net.tunnels.patience import Patience
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.tunnel.answer import caller_wrap, unlock_answer
from phantom_tun.tunnel.channel import CallerHandshake
from phantom_tun.tunnel.early import EarlyOpener
from phantom_tun.tunnel.request import seal_request
from phantom_tun.tunnel.resumption import Resuming
from phantom_tun.wire.session import (
    SESSION_ID_LEN,
    Answer,
    FrameKind,
    Outcome,
    Protocol,
    Request,
    Ticket,
)

OPEN_WITHIN = 20.0
"""Seconds for everything from the lookup on."""
SOONEST_FALLBACK, FALLBACK_AFTER = 1.0, 5.0
"""Seconds of silence after which a route gets company, at least and at most. The longest is more
than a crowd of connections makes a working route wait."""
MAX_EXTRA = 16
"""Attempts beside silent ones that are under way at one time, of all connections together; beyond
that every connection waits for the longest time before it makes another: a crowd that is slow must
not become twice the crowd."""
SLOW_AFTER = 3.0
"""A route that has said nothing for this long when it is given up, whoever does that, is tried last
for a while."""
MAX_ROUTES = 4
"""Attempts over the routes of one record."""
MAX_KEPT_TRIED = 4
"""Kept sessions that a connection finds closed by the callee before it gets a new one."""
LOOK_AFRESH_AFTER = (0.0, 1.0, 2.0, 3.0, 4.0, 4.0)
"""Seconds from each time that no route worked to the next look at the record. A node that lost all
its ways in at once has new ones within this time."""


class Opened(NamedTuple):
    """A tunnel whose far end has accepted."""

    secure: SecureTunnel
    call: Call
    """For other tunnels of the same session, which take nothing along."""
    route: Route | None


class SessionOpener:
    """Makes connections."""

    def __init__(
        self,
        *,
        network: NetworkParams,
        directory: Directory,
        connector: Connector,
        contexts: ContextCache,
        spawn: Spawn,
        clock: Clock,
        rng: Rng,
        counts: Counter[str],
        keeps: bool = True,
        survives: bool = True,
    ) -> None:
        """``keeps``: whether sessions may serve several connections; ``survives``: whether they may
        be resumed."""
        self._network_id = network.network_id
        self._directory = directory
        self._connector = connector
        self._calls = Calls(contexts, clock, rng)
        self._spawn = spawn
        self._clock = clock
        self._rng = rng
        self._counts = counts
        self._suspects = Suspects(clock)
        self._tickets = HeldTickets(clock)
        self._keeps = keeps
        self._survives = survives
        self._kept = KeptSessions(spawn)
        self._patience: defaultdict[str, Patience] = defaultdict(
            lambda: Patience(SOONEST_FALLBACK, FALLBACK_AFTER)
        )
        self._extra = 0
        self._successes: WeakValueDictionary[tuple[str, ApAddress], trio.Event] = (
            WeakValueDictionary()
        )
        """Set when a connection to the address succeeds; kept by those that wait for that."""

    async def open(
        self,
        identity: Identity,
        source_port: int,
        target: Endpoint,
        protocol: Protocol,
        *,
        is_ephemeral: bool,
        first: bytes = b"",
    ) -> Opened:
        """Connect to ``target``, from a random port if ``source_port`` is 0, and send ``first``, at
        most ``MAX_FIRST`` bytes.

        :raises ConnectFailed: see :class:`~phantom_tun.endpoints.Overlay`.
        :raises WorldError: this node has no way out at the moment.
        """
        role = self._calls.role(identity, source_port, is_ephemeral=is_ephemeral)
        try:
            with trio.move_on_after(OPEN_WITHIN):
                resolved = await self._resolve(identity.name, target.address)
                callee = resolved.public_key
                is_tcp = protocol is Protocol.TCP
                call = Call(
                    identity.name,
                    role,
                    resolved,
                    protocol,
                    target,
                    session_id=self._rng.randbytes(SESSION_ID_LEN),
                    ticket=self._ticket(role, callee) if is_tcp else None,
                    first=first,
                    keep=is_tcp and self._expects_more(role, callee),
                    survives=is_tcp and self._survives,
                )
                race = await self._race(call, Race())
                winner = race.result()
                if is_tcp:
                    self._tickets.worked(identity.signing.public, target, callee)
                lasting = replace(call, ticket=None, first=b"", keep=False)
                return Opened(winner, lasting, race.route)
            raise NoAnswer("nobody answered in time")
        except WorldError:
            self._tickets.failed(identity.signing.public, target)
            raise

    async def resume(self, lost: Opened, resuming: Resuming) -> tuple[Opened, int]:
        """Another tunnel for the session that has ``lost`` one, if possible over none of its two
        paths; and what has arrived at the callee.

        :raises Refused: the callee doesn't know the session any more.
        :raises WorldError: there is no way at the moment.
        """
        call = lost.call
        with trio.move_on_after(OPEN_WITHIN):
            resolved = await self._resolve(call.identity, call.target.address)
            if resolved.public_key != call.resolved.public_key:
                raise Refused("the address has another owner now")
            race = Race()
            race.given_up.add(lost.secure.path_number)
            race.last_choice = lost.route
            await self._race(replace(call, resolved=resolved, resuming=resuming), race)
            return Opened(race.result(), call, race.route), race.received
        raise NoAnswer("nobody answered in time")

    def is_steady(self, identity: Identity, target: Endpoint) -> bool:
        """Whether a TCP connection to ``target`` would take its first bytes along, and most likely
        come to be."""
        return self._tickets.is_steady(identity.signing.public, target)

    def _ticket(self, role: CallerRole, callee: PublicKey) -> Ticket | None:
        """With which a TCP connection can take its first bytes along."""
        return None if role.is_ephemeral else self._tickets.get(role.signing.public, callee)

    def _expects_more(self, role: CallerRole, callee: PublicKey) -> bool:
        """Whether further TCP connections are likely: there was one a moment ago."""
        return (
            self._keeps
            and not role.is_ephemeral
            and self._tickets.called_within(KEPT_FOR, role.signing.public, callee)
        )

    def end_kept(self) -> None:
        """End all sessions that wait for a further connection."""
        self._kept.drop_all()

    async def _resolve(self, identity: str, address: ApAddress) -> ResolvedAp:
        """What is known, or what is new if nothing that is known seems to work."""
        resolved = await self._directory.resolve(identity, address)
        routes = _valid(resolved, self._clock.now())
        if routes and all(self._suspects.suspects(identity, route) for route in routes):
            with suppress(Unreachable):
                return await self._directory.resolve(identity, address, fresh=True)
        return resolved

    # --- routes ---------------------------------------------------------------------------------

    async def _race(self, call: Call, race: Race) -> Race:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._start_attempts, call, race)
                await race.decided.wait()
                nursery.cancel_scope.cancel()
        except BaseException:
            if race.winner is not None:
                finish(race.winner, FrameKind.RESET)
            raise
        return race

    async def _start_attempts(self, call: Call, race: Race) -> None:
        async with trio.open_nursery() as nursery:
            await self._try_kept(call, race, nursery)
            await self._try_routes(call, race, nursery)
            for pause in LOOK_AFRESH_AFTER:
                await self._wait_success_of_others(call, pause)
                if race.failure is not None:
                    break
                self._counts["open_lookups_repeated"] += 1
                try:
                    resolved = await self._directory.resolve(
                        call.identity, call.target.address, fresh=True
                    )
                except Unreachable as error:
                    race.lookup_failure = error
                    break
                # The address may have gone to somebody else.
                is_same = resolved.public_key == call.resolved.public_key
                if call.resuming is not None and not is_same:
                    race.lookup_failure = Unreachable("the address has another owner now")
                    break
                ticket = call.ticket if is_same else None
                await self._try_routes(
                    replace(call, resolved=resolved, ticket=ticket), race, nursery
                )
        race.decided.set()

    async def _try_kept(self, call: Call, race: Race, nursery: trio.Nursery) -> None:
        """An attempt over a session that was kept, if there is one; returns when it has failed or
        is slow. One that the callee had no room for meanwhile is none."""
        if not call.is_of_known or call.resuming is not None:
            return
        for _ in range(MAX_KEPT_TRIED):
            if (kept := self._kept.take(call.parties)) is None:
                return
            attempt = Attempt(kept.route, is_extra=False, way=kept.way)
            race.running.add(attempt)
            scope = trio.CancelScope()
            nursery.start_soon(self._attempt_kept, call, attempt, race, kept, scope)
            await self._wait_failed(call.identity, attempt, 0)
            if not kept.secure.was_let_go:
                self._doubt_kept(call, race, kept, attempt, scope)
                return

    def _doubt_kept(
        self, call: Call, race: Race, kept: Kept, attempt: Attempt, scope: trio.CancelScope
    ) -> None:
        """An attempt over a session that was kept has failed or is slow."""
        self._kept.drop_like(kept)
        race.given_up.add(kept.way.number)
        attempt.doubts_way = True  # a tunnel has died, which speaks against no route
        if not call.first:
            # The callee may have connected to the service, and lets nobody else have it. With first
            # bytes on their way there would be no other attempt.
            scope.cancel()

    async def _attempt_kept(
        self, call: Call, attempt: Attempt, race: Race, kept: Kept, scope: trio.CancelScope
    ) -> None:
        try:
            with scope:
                await self._go_on(call, kept, race)
        except StreamReset:
            self._counts["open_kept_failed"] += 1
            attempt.failed.set()
        finally:
            race.running.discard(attempt)

    async def _try_routes(self, call: Call, race: Race, nursery: trio.Nursery) -> None:
        """One attempt after the other; returns when the last one has failed or is slow."""
        routes = _valid(call.resolved, self._clock.now())
        if not routes:
            race.errors.append(Unreachable("no way in to this AP address is published"))
        in_order = self._suspects.in_order(call.identity, routes, self._rng)
        waiting = race.in_order(in_order)[:MAX_ROUTES]
        silent = 0
        for _ in range(MAX_ROUTES):
            route = next((route for route in waiting if self._may_try(call, race, route)), None)
            if route is None and not all(race.is_tried(route) for route in waiting):
                race.errors.append(Unreachable("the ways in have just failed for others"))
            if route is None or race.failure is not None:
                return
            waiting.remove(route)
            attempt = Attempt(route, is_extra=silent > 0)
            race.running.add(attempt)
            self._extra += attempt.is_extra
            nursery.start_soon(self._attempt, call, attempt, race)
            await self._wait_failed(call.identity, attempt, silent)
            if not attempt.failed.is_set():
                silent += 1
                if self._blame(call.identity, attempt):
                    waiting.append(route)

    def _may_try(self, call: Call, race: Race, route: Route) -> bool:
        return not race.is_tried(route) and self._suspects.may_be_tried(call.identity, route)

    async def _wait_success_of_others(self, call: Call, within: float) -> None:
        """Wait for so long, or until another connection to the same address found a way in."""
        news = self._successes.setdefault((call.identity, call.target.address), trio.Event())
        with trio.move_on_after(within):
            await news.wait()

    async def _wait_failed(self, identity: str, attempt: Attempt, silent: int) -> None:
        """Wait until the attempt has failed, or has been silent for so long that another one shall
        be made; ``silent`` others are already."""
        soon = min(self._patience[identity].seconds() * 2.0 ** max(0, silent - 1), FALLBACK_AFTER)
        with trio.move_on_after(soon):
            await attempt.failed.wait()
            return
        if self._extra >= MAX_EXTRA:
            with trio.move_on_after(FALLBACK_AFTER - soon):
                await attempt.failed.wait()

    def _blame(self, identity: str, attempt: Attempt) -> bool:
        """An attempt is slow: whose fault is it? Returns whether it's the exit path's, or there's
        none, so that the same route may work another way."""
        attempt.doubts_way = attempt.way is None or not attempt.way.heard_since(attempt.began)
        if not attempt.doubts_way:
            self._suspects.add(identity, attempt.route)
        return attempt.doubts_way

    async def _attempt(self, call: Call, attempt: Attempt, race: Race) -> None:
        identity, route = call.identity, attempt.route
        try:
            with self._suspects.trying(identity, route):
                await self._connect(call, attempt, race)
            self._suspects.clear(identity, route)
            if (news := self._successes.pop((identity, call.target.address), None)) is not None:
                news.set()
            self._patience[identity].took(trio.current_time() - attempt.began)
        except (WorldError, PeerError) as error:
            self._counts[f"open_route_failed_{type(error).__name__}"] += 1
            # Otherwise it's our own path's fault.
            if not (isinstance(error, PathUnavailable) or attempt.doubts_way):
                self._suspects.add(identity, route)
            race.errors.append(error)
            attempt.failed.set()
        except trio.Cancelled:
            if trio.current_time() >= attempt.began + SLOW_AFTER:
                self._blame(identity, attempt)
            raise
        finally:
            self._extra -= attempt.is_extra
            race.running.discard(attempt)

    async def _connect(self, call: Call, attempt: Attempt, race: Race) -> None:
        apart = {other.way.number for other in race.running if other.way is not None}
        attempt.way = await self._connector.way_out(call.identity, apart | race.given_up)
        handshake = CallerHandshake(call.role.context)
        request = self._calls.request(call, handshake.hello)
        sealed = seal_request(
            request,
            call.role.signing,
            call.resolved.public_key,
            call.resolved.request_key,
            self._network_id,
        )
        locked, tunnel = await attempt.way.connect(*attempt.route, sealed)
        try:
            answer = unlock_answer(locked, request)
            if answer.outcome is not Outcome.CONNECTED:
                if not self._spawn(lambda: release_unused(tunnel)):
                    tunnel.reset()
                race.answered(answer.outcome)
                return
            pin = certificate_hash(call.resolved.certificate)
            early = _early_opener(call.ticket, request, answer)
            if answer.received and call.resuming is None:
                raise ProtocolViolation("the callee resumes what has just begun")
            channel = handshake.finish(answer.flight, pin, caller_wrap(request, answer), early)
        except PeerError:
            tunnel.reset()
            raise
        secure = SecureTunnel(channel, tunnel, self._spawn)
        if call.resuming is None:
            secure.awaits_secret = call.survives
            if call.is_of_known:
                self._expect_ticket(call, secure)
        if call.keep:
            kept = Kept(call.parties, secure, attempt.route, attempt.way, trio.current_time())
            self._keep(kept)
        secure.took_first = answer.took_early
        self._counts["open_early"] += answer.took_early
        hold_flight(secure, EARLY_FLIGHT_WAIT if answer.took_early else FLIGHT_WAIT)
        race.connected(secure, attempt.route, answer.received)

    async def _go_on(self, call: Call, kept: Kept, race: Race) -> None:
        """Make the connection within a session that was kept.

        :raises StreamReset: the callee has ended it, or its tunnel has died.
        """
        secure = kept.secure
        self._expect_ticket(call, secure)
        self._keep(kept)
        try:
            outcome = await open_next(secure, self._calls.opening(call))
        except StreamReset:
            finish(secure, None)
            raise
        except BaseException:
            finish(secure, FrameKind.RESET)
            raise
        if outcome is Outcome.CONNECTED:
            self._counts["open_kept"] += 1
            race.connected(secure, kept.route)
        else:
            self._kept.put(kept)
            race.answered(outcome)

    def _keep(self, kept: Kept) -> None:
        """Put the session aside when its connection has ended."""

        def put(idle: SecureTunnel) -> None:
            kept.secure = idle
            self._kept.put(kept)

        keep(kept.secure, put)

    def _expect_ticket(self, call: Call, secure: SecureTunnel) -> None:
        caller, callee = call.role.signing.public, call.resolved.public_key
        secure.take_ticket(lambda ticket: self._tickets.keep(caller, callee, ticket))


def _early_opener(ticket: Ticket | None, request: Request, answer: Answer) -> EarlyOpener | None:
    if not answer.took_early:
        return None
    if ticket is None:
        raise ProtocolViolation("the callee has taken early data that there weren't")
    return EarlyOpener(ticket, request, answer)


def _valid(resolved: ResolvedAp, now: float) -> list[Route]:
    return [route[:2] for route in resolved.routes if route[2] > now]
