"""What keeps the trouble of one task from ending all the others.

Trio ends everything when a task fails, which is right for our own start-up and wrong for work that
a stranger has begun: one mistake of ours would let him stop the daemon. Every task that works on
what came from outside therefore runs under a :class:`Guard`, which logs and counts what nobody
expected. Errors that can be expected are still handled where they arise, each with its own name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import structlog
import trio

RESTART_AFTER = 5.0
"""Seconds until work that has to go on is begun again."""

COUNTER = "internal_errors"

_log = structlog.get_logger(__name__)


class Guard:
    """For the tasks of one part of the node."""

    __slots__ = ("_counts",)

    def __init__(self, counts: Counter[str]) -> None:
        """``counts``: where failures are counted, as ``internal_errors``."""
        self._counts = counts

    async def once(self, work: Callable[..., Awaitable[object]], *args: object) -> None:
        """Do ``work``; if it fails, that is all that happens."""
        try:
            await work(*args)
        except* Exception:  # noqa: BLE001
            self.failed(work)

    async def forever(self, work: Callable[..., Awaitable[object]], *args: object) -> None:
        """Do ``work``, which never returns by itself, and begin it again whenever it fails."""
        while True:
            await self.once(work, *args)
            await trio.sleep(RESTART_AFTER)

    def failed(self, work: object) -> None:
        """Log and count the exception that is being handled."""
        self._counts[COUNTER] += 1
        _log.exception("a task failed", task=getattr(work, "__qualname__", repr(work)))
