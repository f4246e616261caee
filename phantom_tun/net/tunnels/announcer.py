"""The end of a path that sends tunnel blocks (docs/spec/tunnel.md, "Ready tunnels").

That is the owner of an exit path and the entry node of an entry path. Both are an
:class:`Announcer`, so that they send, wait, repeat, refill and give up in the same way at the same
moments, and no hop between can tell which of the two it hears from.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from phantom_tun.errors import DeadlineExpired, PeerError, StreamReset, WorldError
from phantom_tun.ids import TunnelBlock
from phantom_tun.net.tunnels.hub import TunnelHub
from phantom_tun.net.tunnels.patience import Patience
from phantom_tun.net.tunnels.ready_pool import ReadyPool
from phantom_tun.net.tunnels.tunnel import Tunnel
from phantom_tun.wire.tunnel import Body, Package

KNOCKS = (0.0, 0.15, 0.3, 0.6, 1.2, 2.4, 4.8)
"""Seconds between blocks until a first tunnel came: the rest of the path may not stand yet."""

BUILD_TIMEOUT = 5.0
"""Seconds from sending a block to the other end's init package."""

REPLACING_PAUSE = (0.015, 0.045)
"""Seconds, at least and at most, until a tunnel that was taken is replaced while half of all are
ready: what it was taken for goes first."""

RETRY_PAUSES = (0.5, 2.0)
"""Seconds after each failed attempt at one ready tunnel but the last."""

FAILURES_UNTIL_SILENT = 3
"""Attempts in a row, for whichever tunnels, that nobody answered: then the path is given up. One
that was overtaken by another isn't counted: the path works, it only has more to do than it can."""

SILENT_PATIENCE = 0.5
"""Seconds that a tunnel is waited for on a path that nobody has answered on of late: who is told no
soon can take another way."""
SHORTEST_PATIENCE = 1.5
"""Seconds of silence, at least, after which a path is doubted that has said nothing meanwhile."""


@dataclass(eq=False, slots=True)
class Announced:
    """A block that was sent."""

    since: float = field(default_factory=trio.current_time)
    over: trio.Event = field(default_factory=trio.Event)
    """Set once its tunnel stands, or nobody waits for it any more."""


class Announcer:
    """Sends blocks and keeps the tunnels that come of them until they are used."""

    def __init__(
        self,
        hub: TunnelHub,
        *,
        draw: Callable[[], TunnelBlock],
        send: Callable[[TunnelBlock], Awaitable[None]],
        on_silence: Callable[[], None],
        on_doubt: Callable[[], None],
    ) -> None:
        """
        :param draw: the block of the next tunnel, as it will be named when the tunnel comes; may
            raise :class:`PeerError` or :class:`WorldError`.
        :param send: sends it; may raise :class:`WorldError`.
        :param on_silence: called, perhaps repeatedly, when nobody answers any more.
        :param on_doubt: called, perhaps repeatedly, when nobody has answered for several times as
            long as is usual; that may pass.
        """
        self._hub = hub
        self._draw = draw
        self._send = send
        self._on_silence = on_silence
        self._on_doubt = on_doubt
        self._expected: dict[TunnelBlock, Announced] = {}
        self._pool = ReadyPool(hub.limits, self._start_build)
        self._first = trio.Event()
        self._filled = trio.Event()
        self._failures = 0
        self._last_came = 0.0
        self._last_result = 0.0
        self._silent = False
        self._patience = Patience(SHORTEST_PATIENCE, BUILD_TIMEOUT)
        self._stopped = False

    @property
    def ready(self) -> int:
        """Ready tunnels."""
        return self._pool.ready

    @property
    def waiting(self) -> int:
        """Users that wait for a tunnel."""
        return self._pool.waiting

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

    async def take(self, within: float, *, hurry: bool = False) -> Tunnel:
        """A ready tunnel, or the next one; with ``hurry`` before others that wait. It isn't waited
        for so long as ``within`` if none at all has come for several times as long as one usually
        takes.

        :raises DeadlineExpired: none in time.
        :raises PathUnavailable: the path is closed.
        """
        return await self._pool.take(
            within,
            lambda: SILENT_PATIENCE if self._silent else self._patience.seconds(),
            hurry=hurry,
        )

    def heard_since(self, moment: float) -> bool:
        """Whether the path has brought anything since then: if so, silence isn't its fault."""
        return max(self._last_came, self._last_result) > moment

    async def receive_result(self, tunnel: Tunnel, within: float) -> Body:
        """The answer to a request that was sent in ``tunnel``. While there's none, and nothing else
        comes either, and when the tunnel dies or brings something altered, all ready tunnels are
        replaced, which shows whether the path still works.

        :raises StreamReset: the tunnel died.
        :raises DeadlineExpired: nothing came.
        :raises PeerError: what came is no result.
        """
        asked = trio.current_time()
        try:
            with trio.move_on_after(min(within, self._patience.seconds())) as silence:
                await tunnel.wait_readable()
            if silence.cancelled_caught and not self.heard_since(asked):
                self.discard_ready()
                self._doubt()
            left = max(0.0, asked + within - trio.current_time())
            result = await tunnel.receive_package(Package.RESULT, left)
        except (StreamReset, PeerError):
            self.discard_ready()
            raise
        self._last_result = trio.current_time()
        return result

    # --- what comes back ------------------------------------------------------------------------

    def expects(self, block: TunnelBlock) -> Announced | None:
        """A bulk link named ``block``: what it belongs to, once; ``None`` if to nothing that is
        still waited for."""
        return self._expected.pop(block, None)

    async def keep(self, tunnel: Tunnel, announced: Announced) -> bool:
        """The tunnel stands: keep it ready. Returns whether somebody took it; otherwise the caller
        closes it."""
        waited_for = not announced.over.is_set()
        announced.over.set()
        self._failures = 0
        self._silent = False
        self._last_came = trio.current_time()
        self._patience.took(self._last_came - announced.since)
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
        await self._pool.wait_low(self._hub.rng.uniform(*REPLACING_PAUSE))
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
            self._silent = True
            self._on_silence()

    async def _announce(self) -> bool:
        """Send one block; whether a tunnel came of it in time."""
        try:
            block = self._draw()
        except (PeerError, WorldError):
            return False
        announced = self._expected[block] = Announced()
        try:
            with trio.move_on_after(BUILD_TIMEOUT):
                await self._send(block)
                with trio.move_on_after(self._patience.seconds()):
                    await announced.over.wait()
                    return True
                if not self.heard_since(announced.since):
                    self._doubt()
                await announced.over.wait()
                return True
        except WorldError:
            return False
        finally:
            self._expected.pop(block, None)
            announced.over.set()
        return False

    def _doubt(self) -> None:
        if self._first.is_set() and not self._stopped:
            self._hub.counts["paths_doubted"] += 1
            self._on_doubt()
