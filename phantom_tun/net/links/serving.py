"""Bulk links on which neighbours start uses (docs/spec/links.md, "Bulk links").

A task serves each of them, one use after the other. A use that is kept when its handler returns
(:attr:`~phantom_tun.net.links.bulk.Bulk.kept`) ends that task, and begins another one when it is
over: what is joined with something else has no need of any.
"""

from __future__ import annotations

import math
from collections import Counter

import trio

from phantom_tun.errors import LinkBroken, PeerError, PhantomError
from phantom_tun.net.links.bulk import BulkLink, Ending
from phantom_tun.net.links.crowds import BulkPlaces
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.neighbour import Neighbour
from phantom_tun.net.links.peers import LinkHandlers
from phantom_tun.net.links.splice import Spawn

EXPIRED = -math.inf
"""When a link has become idle that is closed for it."""


class Service:
    """What all of them share, and how many there may be."""

    def __init__(self, spawn: Spawn, *, limits: LinkLimits, counts: Counter[str]) -> None:
        self.handlers: LinkHandlers | None = None
        """What to do with uses, as soon as that is known."""
        self.places = BulkPlaces(limits)
        self.spawn = spawn
        self.limits = limits
        self.counts = counts

    def is_full(self, neighbour: Neighbour) -> bool:
        """Whether it can't have one more."""
        return len(neighbour.served) >= self.limits.bulk_per_neighbour

    def expire(self, neighbour: Neighbour) -> None:
        """Close links on which nothing has begun for too long. (A deadline for each of them would
        stay in memory for as long as that, though most begin something in time.)"""
        allowed = self.limits.bulk_idle_other
        for link in list(neighbour.served):
            if trio.current_time() - link.idle_since >= allowed:
                link.idle_since = EXPIRED
                link.connection.close()

    async def serve(self, neighbour: Neighbour, link: BulkLink) -> None:
        """Own ``link``; returns when it is closed, or while a use of it is kept."""
        if self.is_full(neighbour) or not self.places.take(link.peer.address):
            self.counts["drop_bulk_limit"] += 1
            link.connection.close()
            return
        await _ServedLink(self, neighbour, link).serve()


class _ServedLink:
    """One of them."""

    __slots__ = ("_ending", "_has_task", "_link", "_neighbour", "_service")

    def __init__(self, service: Service, neighbour: Neighbour, link: BulkLink) -> None:
        self._link = link
        self._service = service
        self._neighbour = neighbour
        self._ending: Ending | None = Ending.CLEAN
        """How its last use ended; ``None`` while there is one."""
        self._has_task = False
        neighbour.served.add(link)

    async def serve(self) -> None:
        """Until it is closed, or while a use of it is kept."""
        self._has_task = True
        try:
            while self._ending is not None and await self._is_good(self._ending):
                if not await self._serve_use():
                    break
            self._has_task = self._ending is not None
        except LinkBroken:
            if self._link.idle_since != EXPIRED:
                self._service.counts["bulk_broken"] += 1
        except PeerError:
            self._service.counts["drop_bulk_violation"] += 1
        finally:
            if self._has_task:
                self._leave()

    async def _serve_use(self) -> bool:
        """Whether there was one."""
        service, link = self._service, self._link
        link.idle_since = trio.current_time()
        opening = await link.receive_opening()
        if opening is None or service.handlers is None:
            return False
        self._ending = None
        link.idle_since = math.inf
        self._neighbour.uses_served += 1
        bulk = link.new_use(self._ended)
        released = False
        try:
            await service.handlers.bulk_opened(link.peer, opening, bulk)
            if not bulk.kept:
                await bulk.aclose()
            released = True
        except PhantomError:
            service.counts["bulk_handler_failed"] += 1
        finally:
            if not released:
                bulk.reset()
        return True

    async def _is_good(self, ending: Ending) -> bool:
        """Whether another use can follow one that ended like this; waits for a FIN that is due."""
        if ending is Ending.HALF:
            with trio.move_on_after(self._service.limits.fin_deadline):
                await self._link.receive_fin()
                return True
        return ending is Ending.CLEAN

    def _ended(self, _link: BulkLink, ending: Ending) -> None:
        self._ending = ending
        self._neighbour.uses_served -= 1
        # Without a task it is left to whoever kept the use; nothing follows a broken one.
        if not self._has_task and (ending is Ending.BROKEN or not self._service.spawn(self.serve)):
            self._leave()

    def _leave(self) -> None:
        self._service.places.leave(self._link.peer.address)
        self._neighbour.served.discard(self._link)
        self._link.connection.close()
