"""Tunnels built ahead of need, used first in, first out (docs/spec/tunnel.md, "Ready tunnels").

Owner and entry node hold one pool per path. The pool asks for as many new tunnels as it lacks; it
grows when it runs dry and shrinks slowly when it doesn't.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import trio

from phantom_tun.errors import DeadlineExpired, PathUnavailable, StreamReset
from phantom_tun.net.links.rates import RateTable
from phantom_tun.net.tunnels.tunnel import Tunnel

SHRINK_EVERY = 30.0
"""Seconds of never running dry after which the pool aims for one tunnel less."""

REPLACED_RATE, REPLACED_BURST = 1.0, 64.0
"""Ready tunnels ended by the other end that are replaced at once, per second and burst."""
REPLACING_PAUSE = 10.0
"""Seconds until any more of them are."""


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How many ready tunnels a pool aims for, and how long one may wait for use."""

    low: int = 3
    high: int = 48
    max_building: int = 24
    """At one time; a crowd of builds would only make each other late."""
    recycle_min_s: float = 60.0
    recycle_max_s: float = 120.0


class ReadyPool:
    """The ready tunnels of one path."""

    def __init__(self, limits: PoolLimits, build: Callable[[], None]) -> None:
        """``build`` starts building one tunnel in the background; its outcome is told to the pool
        by :meth:`offer_and_watch` or :meth:`build_failed`."""
        self._limits = limits
        self._build = build
        self._ready: deque[tuple[Tunnel, trio.CancelScope]] = deque()
        self._waiting: deque[_Waiter] = deque()
        self._building = 0
        self._target = limits.low
        self._last_dry = 0.0
        self._last_came = 0.0
        self._closed = False
        self._low = trio.Event()
        """Set, and made anew, whenever less than half of the aim is ready."""
        self._replaced: RateTable[None] = RateTable(REPLACED_RATE, REPLACED_BURST)

    @property
    def ready(self) -> int:
        """Tunnels that can be taken at once."""
        return len(self._ready)

    @property
    def waiting(self) -> int:
        """Users that wait for a tunnel."""
        return len(self._waiting)

    def refill(self) -> None:
        """Start as many builds as are missing."""
        now = trio.current_time()
        if now - self._last_dry > SHRINK_EVERY and self._target > self._limits.low:
            self._target -= 1
            self._last_dry = now
        lacking = self._target + len(self._waiting) - len(self._ready) - self._building
        lacking = min(lacking, self._limits.max_building - self._building)
        if self._closed:
            return
        for _ in range(lacking):
            self._building += 1
            self._build()

    def build_failed(self) -> None:
        """One build that was asked for came to nothing. Doesn't ask for another."""
        self._building -= 1

    def adopt(self, *, asked_for: bool) -> None:
        """A tunnel arrived. One the pool didn't ask for, or no longer waits for, is counted as if
        it had been, so that :meth:`offer_and_watch` finds its books in order."""
        if not asked_for:
            self._building += 1

    async def take(
        self, within: float, patience: Callable[[], float], *, hurry: bool = False
    ) -> Tunnel:
        """The oldest ready tunnel, or the next one that gets ready.

        :param within: seconds to wait, if others get tunnels meanwhile.
        :param patience: seconds to wait while nobody gets one.
        :param hurry: wait before all that don't.
        :raises DeadlineExpired: none in time.
        :raises PathUnavailable: the path is closed.
        """
        if self._closed:
            raise PathUnavailable("the path is closed")
        if self._ready:
            tunnel, watch = self._ready.popleft()
            watch.cancel()
            if not self._ready:
                self._grow()
            self._tell_low()
            self.refill()
            return tunnel
        self._grow()
        self._tell_low()
        waiter = _Waiter(hurry)
        ahead = sum(other.hurry for other in self._waiting) if hurry else len(self._waiting)
        self._waiting.insert(ahead, waiter)
        self.refill()
        try:
            await self._wait(waiter, within, patience)
        except trio.Cancelled:
            if waiter.tunnel is not None:
                waiter.tunnel.reset()
            raise
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
        if waiter.tunnel is not None:
            return waiter.tunnel
        if self._closed:
            raise PathUnavailable("the path was closed")
        raise DeadlineExpired("no tunnel got ready in time")

    async def _wait(self, waiter: _Waiter, within: float, patience: Callable[[], float]) -> None:
        began = trio.current_time()
        while not waiter.event.is_set():
            hopeless = max(began, self._last_came) + patience()
            deadline = min(began + within, hopeless)
            if deadline <= trio.current_time():
                return
            with trio.move_on_at(deadline):
                await waiter.event.wait()

    def _grow(self) -> None:
        self._last_dry = trio.current_time()
        self._target = min(self._limits.high, self._target * 2)

    @property
    def _is_low(self) -> bool:
        return len(self._ready) * 2 < self._target

    def _tell_low(self) -> None:
        if self._is_low:
            self._low.set()
            self._low = trio.Event()

    async def wait_low(self, at_most: float) -> None:
        """Return when less than half of what the pool aims for is ready, or after ``at_most``
        seconds: what is built for the time being needn't hurry."""
        if not self._is_low:
            with trio.move_on_after(at_most):
                await self._low.wait()

    async def offer_and_watch(self, tunnel: Tunnel, keep: float) -> bool:
        """Put a new tunnel into the pool and wait until it is taken.

        Returns False if it was not: it died, the other end said something out of turn, ``keep``
        seconds passed, or the pool was closed. The caller then closes it.
        """
        self._building -= 1
        self._last_came = trio.current_time()
        if self._closed:
            return False
        if self._waiting:
            waiter = self._waiting.popleft()
            waiter.tunnel = tunnel
            waiter.event.set()
            self.refill()
            return True
        entry = (tunnel, trio.CancelScope())
        self._ready.append(entry)
        ended = False
        with entry[1], trio.move_on_after(keep):
            with contextlib.suppress(StreamReset):
                await tunnel.wait_readable()
            ended = True
        if entry not in self._ready:
            return True
        self._ready.remove(entry)
        if ended:
            tunnel.reset()
            await self._pause_replacing()
        self.refill()
        return False

    async def _pause_replacing(self) -> None:
        """The other end could have us build and build by ending each tunnel at once."""
        if not self._replaced.allow(None, trio.current_time()):
            self._building += 1  # so that nothing else takes its place meanwhile
            await trio.sleep(REPLACING_PAUSE)
            self._building -= 1

    def discard_ready(self) -> None:
        """Drop all ready tunnels; new ones are built instead."""
        for _, watch in self._ready:
            watch.cancel()

    def close(self) -> None:
        """Drop all ready tunnels and turn waiters away."""
        self._closed = True
        self.discard_ready()
        for waiter in self._waiting:
            waiter.event.set()
        self._waiting.clear()


class _Waiter:
    __slots__ = ("event", "hurry", "tunnel")

    def __init__(self, hurry: bool) -> None:
        self.hurry = hurry
        self.event = trio.Event()
        self.tunnel: Tunnel | None = None
