"""Which sessions survive their tunnel, and how (docs/spec/session.md, "Sessions that survive").

The caller makes a request over another path (:class:`CallerResumer`); the callee waits for it
(:class:`Resumable`). A request names the session, a higher epoch than any before, what has arrived,
and proves the secret that was handed out inside TLS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from phantom_tun.clock import Rng
from phantom_tun.errors import PeerError, ProtocolViolation, Refused, WorldError
from phantom_tun.ids import PublicKey
from phantom_tun.net.sessions.acknowledging import LateAcks
from phantom_tun.net.sessions.secure_tunnel import SecureTunnel, Spawn
from phantom_tun.net.sessions.stream import Durable, Resumer, SessionStream
from phantom_tun.tunnel.resumption import Memory, Resuming, check_resumption
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
CALM_AFTER = 60.0
"""Seconds after which a tunnel's death has nothing to do with the one before."""
TOO_OFTEN, TOO_OFTEN_WITHIN = 5, 600.0
"""So many deaths within so many seconds aren't chance."""


class Deaths:
    """How often connections have lost their tunnel lately."""

    def __init__(self) -> None:
        self._recent: list[float] = []

    def add(self) -> None:
        """It has happened."""
        self._recent = [*self._lately(), trio.current_time()][-1000:]

    def count(self) -> int:
        """Of the last ``TOO_OFTEN_WITHIN`` seconds."""
        return len(self._lately())

    def _lately(self) -> list[float]:
        oldest = trio.current_time() - TOO_OFTEN_WITHIN
        return [moment for moment in self._recent if moment > oldest]


class Survival:
    """What all streams of a node share that may survive their tunnel."""

    def __init__(self, memory: int, spawn: Spawn, rng: Rng, counts: Counter[str]) -> None:
        """``memory``: bytes to keep; 0: no stream survives."""
        self.memory = Memory(memory)
        self.late = LateAcks(spawn, counts)
        self.spawn = spawn
        self.rng = rng
        self.counts = counts
        self.deaths = Deaths()

    @property
    def is_on(self) -> bool:
        """Whether there is any memory for it."""
        return self.memory.limit > 0

    def durable(self, resumer: Resumer) -> Durable:
        """For a stream whose next tunnel ``resumer`` finds."""
        return Durable(resumer, self.memory, self.late, self.spawn)


# --- the caller ----------------------------------------------------------------------------------

Reconnect = Callable[[Resuming, int], Awaitable[tuple[SecureTunnel, int]]]
"""Given what to say and the number of the path to avoid: another tunnel, and what has arrived at
the callee."""


class CallerResumer:
    """Implements :class:`~phantom_tun.net.sessions.stream.Resumer` for one stream."""

    __slots__ = ("_epoch", "_lost_at", "_pause", "_reconnect", "_scope", "_survival")

    def __init__(self, survival: Survival, reconnect: Reconnect) -> None:
        self._survival = survival
        self._reconnect = reconnect
        self._epoch = 0
        self._lost_at = -CALM_AFTER
        self._pause = 0.0
        self._scope: trio.CancelScope | None = None

    def lost(self, stream: SessionStream) -> bool:
        """See :class:`~phantom_tun.net.sessions.stream.Resumer`."""
        now = trio.current_time()
        if now - self._lost_at >= CALM_AFTER:
            self._pause = 0.0
        self._lost_at = now
        self._survival.deaths.add()
        return self._survival.spawn(lambda: self._resume(stream))

    def over(self) -> None:
        """See :class:`~phantom_tun.net.sessions.stream.Resumer`."""
        if self._scope is not None:
            self._scope.cancel()

    async def _resume(self, stream: SessionStream) -> None:
        counts = self._survival.counts
        with trio.CancelScope() as self._scope, trio.move_on_after(RESUME_WITHIN):
            while stream.is_lost:
                await self._wait()
                if await self._try(stream):
                    counts["sessions_resumed"] += 1
                    return
        self._scope = None
        if stream.is_lost:
            counts["sessions_lost"] += 1
            stream.give_up()

    async def _wait(self) -> None:
        random = self._survival.rng.random()
        await trio.sleep(random * AT_ONCE if not self._pause else self._pause * (0.5 + random / 2))
        self._pause = min(LATEST, max(SOONEST, 2 * self._pause))

    async def _try(self, stream: SessionStream) -> bool:
        """Whether it goes on; if it never will, it is over."""
        secret = stream.secret
        if secret is None:
            stream.give_up()
            return False
        self._epoch += 1
        resuming = Resuming(secret, self._epoch, stream.received)
        try:
            secure, received = await self._reconnect(resuming, stream.path_number)
        except Refused:
            stream.give_up()
            return False
        except WorldError:
            self._survival.counts["resume_failed"] += 1
            return False
        try:
            stream.go_on(secure, received)
        except PeerError:
            secure.finish(FrameKind.RESET)
            stream.give_up()
            return False
        return True


# --- the callee ----------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Held:
    """One session that its caller can resume; also the
    :class:`~phantom_tun.net.sessions.stream.Resumer` of its stream."""

    caller: PublicKey
    survival: Survival
    stream: SessionStream | None = None
    epoch: int = 0
    times: int = 0
    """How often it was lost."""

    def lost(self, stream: SessionStream) -> bool:
        """Wait for the caller."""
        self.times += 1
        times = self.times
        self.survival.deaths.add()

        async def wait() -> None:
            await trio.sleep(WAIT_AFTER_END if stream.got_end else WAIT_FOR_CALLER)
            if stream.is_lost and self.times == times:
                self.survival.counts["sessions_lost"] += 1
                stream.give_up()

        return self.survival.spawn(wait)

    def over(self) -> None:
        """The stream ends; whoever carries it forgets this."""

    def begin(self, request: Request) -> tuple[int, int] | None:
        """Its caller wants to go on: what has arrived here, and there. Nothing is taken
        from its old tunnel any more. ``None`` if it can't go on from there.

        :raises PeerError: whoever asks doesn't know the secret.
        """
        stream = self.stream
        if stream is None or stream.secret is None or request.caller != self.caller:
            return None
        there = check_resumption(request, stream.secret)
        if request.epoch <= self.epoch or not stream.can_go_on(there):
            return None
        return stream.suspend(), there

    def go_on(self, secure: SecureTunnel, epoch: int, received: int) -> None:
        """Over ``secure``, whose TLS stands.

        :raises ProtocolViolation: another attempt was faster, or it is over.
        """
        if self.stream is None or epoch <= self.epoch:
            raise ProtocolViolation("the session has gone on already")
        self.stream.go_on(secure, received)
        self.epoch = epoch
        self.survival.counts["sessions_resumed"] += 1


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
            if is_first:
                del self._all[key]

    def find(self, identity: str, session_id: bytes) -> Held | None:
        """The session of ``identity`` with this id."""
        return self._all.get((identity, session_id))
