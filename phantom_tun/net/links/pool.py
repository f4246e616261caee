"""The bulk links of one neighbour on which this side starts uses: idle ones, spares dialed ahead,
and those who wait for one (docs/spec/links.md, "Pools")."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from phantom_tun.errors import (
    CapacityExceeded,
    DeadlineExpired,
    LinkBroken,
    PeerError,
    WorldError,
)
from phantom_tun.net.links.bulk import Bulk, BulkLink, Ending
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.wire.nodes import NodeRef

SPARE_PAUSE = 30.0
"""Seconds without spares after one could not be dialed."""


class Waiter:
    """Somebody who waits for a link."""

    __slots__ = ("done", "error", "link")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.link: BulkLink | None = None
        self.error: WorldError | None = None

    def give(self, link: BulkLink) -> None:
        """Here it is."""
        self.link = link
        self.done.set()

    def fail(self, error: WorldError) -> None:
        """There won't be one."""
        self.error = error
        self.done.set()

    async def wait(self) -> BulkLink:
        """
        :raises WorldError: there is none.
        """
        await self.done.wait()
        if self.link is None:
            raise self.error or LinkBroken("no link")
        return self.link


class BulkPool:
    """Hands out bulk links towards one neighbour and takes them back.

    Who finds no idle link dials one, but takes an idle one if that comes first; what was dialed
    then stays as a spare.
    """

    __slots__ = (
        "_bring",
        "_closings",
        "_counts",
        "_first_opened",
        "_idle",
        "_in_use",
        "_limits",
        "_opened",
        "_pause_until",
        "_spares_coming",
        "_spawn",
        "_waiting",
        "ref",
    )

    def __init__(
        self,
        bring: Callable[[NodeRef], Awaitable[BulkLink]],
        spawn: Callable[..., Any],
        limits: LinkLimits,
        counts: Counter[str],
    ) -> None:
        """``bring`` gets one new link, or raises WorldError; ``spawn`` starts a task."""
        self.ref: NodeRef | None = None
        """With which a link was got last; spares are dialed with it."""
        self._bring = bring
        self._spawn = spawn
        self._limits = limits
        self._counts = counts
        self._closings = 0
        """How often all links were closed: what was being dialed then is not kept."""
        self._idle: list[BulkLink] = []
        self._in_use: set[BulkLink] = set()
        self._waiting: list[Waiter] = []
        self._opened: deque[float] = deque(maxlen=max(1, limits.spares))
        self._first_opened = math.inf
        self._spares_coming = 0
        self._pause_until = 0.0

    @property
    def idle(self) -> int:
        """Links that wait to be used."""
        return len(self._idle)

    @property
    def in_use(self) -> int:
        """Links handed out."""
        return len(self._in_use)

    @property
    def waiting(self) -> int:
        """Uses that wait for a link."""
        return len(self._waiting)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to keep this pool for."""
        return not (self._idle or self._in_use or self._waiting or self._spares_coming)

    async def open(
        self, ref: NodeRef, opening: bytes, first: bytes, *, brief: bool = False
    ) -> Bulk:
        """Begin a use of an idle link, or of one dialed with ``ref``, ``first`` being its first
        payload. An idle link that turns out to be broken is replaced before the opening counts as
        sent. A ``brief`` use calls for no spares: it gives its link back at once.

        :raises LinkBroken: the neighbour can't be reached.
        :raises DeadlineExpired: not in time.
        :raises CapacityExceeded: too many wait already.
        """
        try:
            with trio.fail_after(self._limits.open_deadline):
                link = await self._send_opening(ref, opening, first)
        except trio.TooSlowError as error:
            raise DeadlineExpired("no bulk link in time") from error
        self._in_use.add(link)
        self._counts["bulk_opened"] += 1
        if not brief:
            self._opened.append(trio.current_time())
            self._first_opened = min(self._first_opened, self._opened[-1])
            self.keep_spares()
        return Bulk(link, self._ended)

    async def _send_opening(self, ref: NodeRef, opening: bytes, first: bytes) -> BulkLink:
        while True:
            link = self._take_idle() or await self._get_new(ref)
            begun = False
            try:
                await link.send_opening(opening, first)
                begun = True
            except LinkBroken:
                if link.uses == 0:
                    raise
            finally:
                if not begun:
                    link.connection.close()
            if begun:
                link.uses += 1
                return link
            self._counts["bulk_idle_broken"] += 1

    def _take_idle(self) -> BulkLink | None:
        while self._idle:
            link = self._idle.pop()
            if link.is_quiet():
                return link
            self._counts["bulk_idle_broken"] += 1
            link.connection.close()
        return None

    async def _get_new(self, ref: NodeRef) -> BulkLink:
        if len(self._waiting) >= self._limits.waiting:
            self._counts["drop_bulk_queue_full"] += 1
            raise CapacityExceeded("too many wait for links to this neighbour")
        waiter = Waiter()
        self._waiting.append(waiter)
        self._spawn(self._bring_for, ref, waiter, self._closings)
        taken = False
        try:
            link = await waiter.wait()
            taken = True
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            if waiter.link is not None and not taken:
                self.offer(waiter.link)
        return link

    async def _bring_for(self, ref: NodeRef, waiter: Waiter, closings: int) -> None:
        try:
            link = await self._bring(ref)
        except WorldError as error:
            if waiter in self._waiting:
                waiter.fail(error)
            return
        self.ref = ref
        if waiter in self._waiting:
            self._waiting.remove(waiter)
            waiter.give(link)
        else:
            self._keep(link, closings)

    def _keep(self, link: BulkLink, closings: int) -> None:
        if closings == self._closings:
            self.offer(link)
        else:
            link.connection.close()

    def offer(self, link: BulkLink) -> None:
        """Take a link nobody uses: for who waits longest, or to be kept."""
        if not link.is_quiet():
            link.connection.close()
        elif self._waiting:
            self._waiting.pop(0).give(link)
        else:
            link.idle_since = trio.current_time()
            self._idle.append(link)
            if len(self._idle) > self._limits.idle_bulk:
                self._idle.pop(0).connection.close()

    def _ended(self, link: BulkLink, ending: Ending) -> None:
        self._in_use.discard(link)
        if ending is Ending.CLEAN:
            self.offer(link)
        elif ending is Ending.HALF:
            self._in_use.add(link)
            self._spawn(self._settle, link)

    async def _settle(self, link: BulkLink) -> None:
        settled = False
        try:
            with trio.move_on_after(self._limits.fin_deadline):
                await link.receive_fin()
                settled = True
        except (LinkBroken, PeerError):
            self._counts["bulk_not_settled"] += 1
        finally:
            self._in_use.discard(link)
            if not settled:
                link.connection.close()
        if settled:
            self.offer(link)

    # --- spares ---------------------------------------------------------------------------------

    def _spares_wanted(self) -> int:
        now = trio.current_time()
        limits = self._limits
        known_since = self._first_opened + limits.spare_after
        if now < known_since:
            return 0
        since = max(known_since, now - limits.spare_window)
        recent = sum(moment >= since for moment in self._opened)
        active = bool(self._opened) and now - self._opened[-1] <= limits.spare_active
        return min(limits.spares, max(recent, int(active)))

    def keep_spares(self) -> None:
        """Dial what is missing of the spares that recent use calls for."""
        if self.ref is None or trio.current_time() < self._pause_until:
            return
        missing = self._spares_wanted() - len(self._idle) - self._spares_coming
        for _ in range(missing):
            self._spares_coming += 1
            self._spawn(self._bring_spare, self.ref, self._closings)

    async def _bring_spare(self, ref: NodeRef, closings: int) -> None:
        try:
            self._keep(await self._bring(ref), closings)
            self._counts["bulk_spares_dialed"] += 1
        except WorldError:
            self._pause_until = trio.current_time() + SPARE_PAUSE
        finally:
            self._spares_coming -= 1

    def expire(self) -> None:
        """Close idle links that have ended or aren't needed any more, and keep up the spares."""
        surplus = len(self._idle) - self._spares_wanted()
        for link in list(self._idle):
            allowed = self._limits.bulk_surplus if surplus > 0 else self._limits.bulk_idle
            if trio.current_time() - link.idle_since >= allowed or not link.is_quiet():
                self._idle.remove(link)
                link.connection.close()
                surplus -= 1
        self.keep_spares()

    def close(self) -> None:
        """Close every link, in use or not."""
        self._closings += 1
        for link in [*self._idle, *self._in_use]:
            link.connection.close()
        self._idle.clear()
