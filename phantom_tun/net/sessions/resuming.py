"""Which sessions survive their tunnel, and how (docs/spec/session.md, "Sessions that survive").

The caller makes a request over another path (:class:`CallerResumer`); the callee waits for it
(:class:`Resumable`). A request names the session, a higher epoch than any before, what has arrived,
and proves the secret that was handed out inside TLS.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import trio

from phantom_tun.clock import Rng
from phantom_tun.errors import (
    CapacityExceeded,
    PeerError,
    ProtocolViolation,
    Refused,
    WorldError,
)
from phantom_tun.ids import PublicKey
from phantom_tun.net.sessions.acknowledging import LateAcks
from phantom_tun.net.sessions.ending import finish
from phantom_tun.net.sessions.local_services import Service
from phantom_tun.net.sessions.offers import Offer
from phantom_tun.net.sessions.opening import Opened, SessionOpener
from phantom_tun.net.sessions.secure_tunnel import SecureTunnel, Spawn
from phantom_tun.net.sessions.stream import Durable, Resumer, SessionStream
from phantom_tun.net.sessions.unacknowledged import Memory
from phantom_tun.tunnel.resumption import Resuming, check_resumption
from phantom_tun.wire.session import FrameKind, Request

RESUME_WITHIN = 60.0
"""Seconds that a caller looks for another tunnel."""
WAIT_FOR_CALLER = 90.0
"""Seconds that a callee waits for one: the caller may have noticed later."""
WAIT_AFTER_END = 20.0
"""The same if the caller has sent END already: it can't say RESET any more, and only tears its
tunnel down."""
AT_ONCE = 0.3
"""Seconds within which the first look begins, so that connections that were lost together don't
begin together."""
SOONEST, LATEST = 1.0, 8.0
"""Seconds until the next look, doubled each time."""
MAX_ATTEMPTS = 4
"""Of one caller to resume one session, at a time: as many as it has routes."""
CALM_AFTER = 60.0
"""Seconds after which a tunnel's death has nothing to do with the one before."""
AGAIN_WITHIN = 600.0
"""Seconds within which one connection doesn't lose two tunnels by chance."""


class RepeatedDeaths:
    """How often a connection lost a tunnel again that it had lost one shortly before."""

    __slots__ = ("_moments",)

    def __init__(self) -> None:
        self._moments: deque[float] = deque(maxlen=1000)

    def note(self, before: float) -> float:
        """A connection has lost its tunnel, and the one before at that moment; returns this one."""
        now = trio.current_time()
        if now - before < AGAIN_WITHIN:
            self._moments.append(now)
        return now

    def recent(self) -> int:
        """Within the last ``AGAIN_WITHIN`` seconds."""
        oldest = trio.current_time() - AGAIN_WITHIN
        return sum(moment > oldest for moment in self._moments)


class Survival:
    """What all streams of a node share that may survive their tunnel."""

    def __init__(self, memory: int, spawn: Spawn, rng: Rng, counts: Counter[str]) -> None:
        """``memory``: bytes to keep; 0: no stream survives."""
        self.memory = Memory(memory)
        self.late = LateAcks(spawn)
        self.spawn = spawn
        self.rng = rng
        self.counts = counts
        self.deaths = RepeatedDeaths()

    @property
    def is_on(self) -> bool:
        """Whether there is any memory for it."""
        return self.memory.limit > 0

    def durable(self, resumer: Resumer) -> Durable:
        """For a stream whose next tunnel ``resumer`` finds."""
        return Durable(resumer, self.memory, self.late, self.spawn, self.counts)


# --- the caller ----------------------------------------------------------------------------------


class CallerResumer:
    """Implements :class:`~phantom_tun.net.sessions.stream.Resumer` for one stream."""

    __slots__ = ("_epoch", "_latest", "_lost_at", "_opener", "_pause", "_scope", "_survival")

    def __init__(self, survival: Survival, opener: SessionOpener, opened: Opened) -> None:
        self._survival = survival
        self._opener = opener
        self._latest = opened
        self._epoch = 0
        self._lost_at = -inf
        self._pause = 0.0
        self._scope: trio.CancelScope | None = None

    def lost(self, stream: SessionStream) -> bool:
        """See :class:`~phantom_tun.net.sessions.stream.Resumer`."""
        if trio.current_time() - self._lost_at >= CALM_AFTER:
            self._pause = 0.0
        self._lost_at = self._survival.deaths.note(self._lost_at)
        return self._survival.spawn(lambda: self._resume(stream))

    def over(self) -> None:
        """See :class:`~phantom_tun.net.sessions.stream.Resumer`."""
        if self._scope is not None:
            self._scope.cancel()

    async def _resume(self, stream: SessionStream) -> None:
        try:
            with trio.CancelScope() as self._scope, trio.move_on_after(RESUME_WITHIN):
                while stream.is_lost:
                    await self._wait()
                    await self._try(stream)
        except (PeerError, Refused):
            pass  # there is nothing to go on with
        finally:
            self._scope = None
            if stream.is_lost:
                self._survival.counts["sessions_lost"] += 1
                stream.give_up()

    async def _wait(self) -> None:
        random = self._survival.rng.random()
        await trio.sleep(random * AT_ONCE if not self._pause else self._pause * (0.5 + random / 2))
        self._pause = min(LATEST, max(SOONEST, 2 * self._pause))

    async def _try(self, stream: SessionStream) -> None:
        """Go on with it over another tunnel, if there is one at the moment.

        :raises Refused: the callee doesn't know it any more.
        :raises ProtocolViolation: the callee has something else.
        """
        if stream.secret is None:
            raise Refused("the callee never gave the secret")
        self._epoch += 1
        resuming = Resuming(stream.secret, self._epoch, stream.received)
        try:
            self._latest, received = await self._opener.resume(self._latest, resuming)
        except Refused:
            raise
        except WorldError:
            self._survival.counts["resume_failed"] += 1
            return
        try:
            stream.go_on(self._latest.secure, received)
        except PeerError:
            finish(self._latest.secure, FrameKind.RESET)
            raise
        self._survival.counts["sessions_resumed"] += 1


# --- the callee ----------------------------------------------------------------------------------


class Held:
    """One session that its caller can resume; also the
    :class:`~phantom_tun.net.sessions.stream.Resumer` of its stream."""

    __slots__ = (
        "_attempts",
        "_begun",
        "_deadline",
        "_epoch",
        "_lost_at",
        "_offer",
        "_scope",
        "_survival",
        "caller",
        "stream",
    )

    def __init__(self, caller: PublicKey, survival: Survival, offer: Offer[Service]) -> None:
        self.caller = caller
        self.stream: SessionStream | None = None
        """Once there is one."""
        self._survival = survival
        self._offer = offer
        self._epoch = 0
        """Of the tunnel that carries it."""
        self._begun = 0
        """The highest one that was answered: the caller has left all that were before."""
        self._attempts = 0
        self._lost_at = -inf
        self._deadline = 0.0
        self._scope: trio.CancelScope | None = None

    def lost(self, stream: SessionStream) -> bool:
        """Wait for the caller."""
        self._lost_at = self._survival.deaths.note(self._lost_at)
        self._offer.is_lost = True
        self._deadline = self._lost_at + (WAIT_AFTER_END if stream.got_end else WAIT_FOR_CALLER)
        if self._scope is not None:
            return True
        return self._survival.spawn(lambda: self._wait(stream))

    async def _wait(self, stream: SessionStream) -> None:
        while stream.is_lost and trio.current_time() < self._deadline:
            with trio.CancelScope() as self._scope:
                await trio.sleep_until(self._deadline)
        self._scope = None
        if stream.is_lost:
            self._survival.counts["sessions_lost"] += 1
            stream.give_up()

    def over(self) -> None:
        """The stream needs no tunnel any more."""
        if self._scope is not None:
            self._scope.cancel()

    def is_never_known(self) -> bool:
        """For somebody who hears the caller make its call anew: the caller doesn't know that it is
        connected, and never will. Then it isn't any more."""
        stream = self.stream
        if stream is None or not stream.is_lost:
            return False
        stream.give_up()
        return True

    def begin(self, request: Request) -> tuple[int, int] | None:
        """Its caller wants to go on: what has arrived here, and there. Nothing is taken
        from its old tunnel any more. ``None`` if it can't go on from there.

        :raises PeerError: whoever asks doesn't know the secret.
        :raises CapacityExceeded: it asks too often at a time.
        """
        stream = self.stream
        if stream is None or stream.secret is None or request.caller != self.caller:
            return None
        there = check_resumption(request, stream.secret)
        if request.epoch <= self._epoch or request.epoch < self._begun:
            return None
        if not stream.can_go_on(there):
            stream.give_up()  # the caller has no other place to go on from
            return None
        if self._attempts >= MAX_ATTEMPTS:
            raise CapacityExceeded("too many attempts to resume a session")
        self._begun = request.epoch
        here = stream.suspend()
        latest = self._lost_at + WAIT_FOR_CALLER
        soon = trio.current_time() + WAIT_AFTER_END
        self._deadline = max(self._deadline, min(soon, latest))
        return here, there

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """An attempt is under way."""
        self._attempts += 1
        try:
            yield
        finally:
            self._attempts -= 1

    def go_on(self, secure: SecureTunnel, epoch: int, received: int) -> None:
        """Over ``secure``, whose TLS stands.

        :raises ProtocolViolation: another attempt was faster, a later one is under way, or it is
            over.
        """
        if self.stream is None or epoch <= self._epoch or epoch < self._begun:
            raise ProtocolViolation("the session has gone on already")
        self.stream.go_on(secure, received)
        self._epoch = epoch
        self._offer.is_lost = False
        self._survival.counts["sessions_resumed"] += 1
        self.over()


class Resumable:
    """All sessions of a node's callers that can be resumed."""

    def __init__(self) -> None:
        self._all: dict[tuple[str, bytes], Held] = {}

    def __len__(self) -> int:
        return len(self._all)

    @contextmanager
    def held(self, identity: str, session_id: bytes, held: Held) -> Iterator[None]:
        """It can be found while this is open. Of two with one id, which no honest caller has, the
        first."""
        key = identity, session_id
        is_first = self._all.setdefault(key, held) is held
        try:
            yield
        finally:
            held.stream = None
            if is_first:
                del self._all[key]

    def find(self, identity: str, session_id: bytes) -> Held | None:
        """The session of ``identity`` with this id."""
        return self._all.get((identity, session_id))
