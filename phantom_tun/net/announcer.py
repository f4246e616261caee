"""The end of a path that sends tunnel blocks (docs/spec/tunnel.md, "Ready tunnels").

That is the owner of an exit path and the entry node of an entry path. Both are an
:class:`Announcer`, so that they send, wait, repeat, refill and give up in the same way at the same
moments, and no hop between can tell which of the two it hears from.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from phantom_tun.errors import DeadlineExpired, PeerError, WorldError
from phantom_tun.ids import TunnelBlock
from phantom_tun.net.hub import TunnelHub
from phantom_tun.net.ready_pool import ReadyPool
from phantom_tun.net.tunnels import Tunnel

KNOCKS = (0.0, 0.15, 0.3, 0.6, 1.2, 2.4, 4.8)
"""Seconds between blocks until a first tunnel came: the rest of the path may not stand yet."""

BUILD_TIMEOUT = 5.0
"""Seconds from sending a block to the other end's init package."""

RETRY_PAUSES = (0.5, 2.0)
"""Seconds after each failed attempt at one ready tunnel but the last."""

FAILURES_UNTIL_SILENT = 3
"""Attempts in a row, for whichever tunnels, that nobody answered: then the path is given up. One
that was overtaken by another isn't counted: the path works, it only has more to do than it can."""


Announced = trio.Event
"""A block that was sent: set once its tunnel stands, or nobody waits for it any more."""


class Announcer:
    """Sends blocks and keeps the tunnels that come of them until they are used."""

    def __init__(
        self,
        hub: TunnelHub,
        *,
        draw: Callable[[], TunnelBlock],
        send: Callable[[TunnelBlock], Awaitable[None]],
        on_silence: Callable[[], None],
    ) -> None:
        """
        :param draw: the block of the next tunnel, as it will be named when the tunnel comes; may
            raise :class:`PeerError` or :class:`WorldError`.
        :param send: sends it; may raise :class:`WorldError`.
        :param on_silence: called, perhaps repeatedly, when nobody answers any more.
        """
        self._hub = hub
        self._draw = draw
        self._send = send
        self._on_silence = on_silence
        self._expected: dict[TunnelBlock, trio.Event] = {}
        self._pool = ReadyPool(hub.limits, self._start_build)
        self._first = trio.Event()
        self._filled = trio.Event()
        self._failures = 0
        self._last_came = 0.0
        self._stopped = False

    @property
    def ready(self) -> int:
        """Ready tunnels."""
        return self._pool.ready

    def start(self) -> None:
        """Begin with the first tunnel; once it came, the pool fills."""
        self._hub.start(self._knock)

    def stop(self) -> None:
        """Send no more blocks and give up ready tunnels; those in use finish by themselves.
        Idempotent."""
        self._stopped = True
        self._pool.close()

    def discard_ready(self) -> None:
        """Replace all ready tunnels, which shows whether the path still works."""
        self._pool.discard_ready()

    async def wait_first(self, within: float) -> None:
        """Wait until the path has given its first tunnel.

        :raises DeadlineExpired: it didn't.
        """
        with trio.move_on_after(within):
            await self._first.wait()
            return
        raise DeadlineExpired("the path gave no tunnel")

    async def wait_filled(self, within: float) -> None:
        """Wait, no longer than that, until the path has as many ready tunnels as it begins with:
        to take one earlier would have more built."""
        with trio.move_on_after(within):
            await self._filled.wait()

    async def take(self, within: float) -> Tunnel:
        """See :meth:`ReadyPool.take`."""
        return await self._pool.take(within)

    # --- what comes back ------------------------------------------------------------------------

    def expects(self, block: TunnelBlock) -> Announced | None:
        """A bulk link named ``block``: what it belongs to, once; ``None`` if to nothing that is
        still waited for."""
        return self._expected.pop(block, None)

    async def keep(self, tunnel: Tunnel, announced: Announced) -> bool:
        """The tunnel stands: keep it ready. Returns whether somebody took it; otherwise the caller
        closes it."""
        waited_for = not announced.is_set()
        announced.set()
        self._failures = 0
        self._last_came = trio.current_time()
        self._pool.adopt(asked_for=waited_for)
        if not self._first.is_set():
            self._first.set()
            self._pool.refill()
        limits = self._hub.limits
        if self._pool.ready + 1 >= limits.low:
            self._filled.set()
        keep = self._hub.rng.uniform(limits.recycle_min_s, limits.recycle_max_s)
        return await self._pool.offer_and_watch(tunnel, keep)

    # --- sending --------------------------------------------------------------------------------

    async def _knock(self) -> None:
        for delay in KNOCKS:
            await trio.sleep(delay)
            if self._stopped or self._first.is_set():
                return
            self._pool.adopt(asked_for=False)
            self._hub.start(self._knock_once)

    async def _knock_once(self) -> None:
        if not await self._announce():
            self._pool.build_failed()
            if self._first.is_set():
                self._pool.refill()

    def _start_build(self) -> None:
        self._hub.start(self._build)

    async def _build(self) -> None:
        for pause in (*RETRY_PAUSES, 0.0):
            began = trio.current_time()
            if self._stopped or await self._announce():
                return
            self._hub.counts["blocks_unanswered"] += 1
            self._failures += self._last_came < began
            if self._failures >= FAILURES_UNTIL_SILENT:
                break
            await trio.sleep(pause)
        self._pool.build_failed()
        if not self._stopped:
            self._on_silence()

    async def _announce(self) -> bool:
        """Send one block; whether a tunnel came of it in time."""
        try:
            block = self._draw()
        except (PeerError, WorldError):
            return False
        announced = self._expected[block] = trio.Event()
        try:
            with trio.move_on_after(BUILD_TIMEOUT):
                await self._send(block)
                await announced.wait()
                return True
        except WorldError:
            return False
        finally:
            self._expected.pop(block, None)
            announced.set()
        return False
