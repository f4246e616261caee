"""Where a part of the node keeps the tasks it starts in the background.

Trio starts tasks in a nursery until its last child has ended, and raises ``RuntimeError``
afterwards. A node that stops ends its parts in no order anybody should have to know: whoever asks
a part for a task then is told that there is none any more, from the moment that it begins to stop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from phantom_tun.guard import Guard


class Tasks:
    """The background tasks of one part, each under its guard."""

    __slots__ = ("_guard", "_nursery", "is_over")

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._nursery: trio.Nursery | None = None
        self.is_over = False
        """Whether they have begun to stop, or have stopped."""

    @property
    def is_open(self) -> bool:
        """Whether :meth:`start` starts anything."""
        return self._nursery is not None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[trio.Nursery]:
        """Start tasks from here to the end of the block, and wait there until they have ended.
        What has to be started without the guard can use the nursery."""
        async with trio.open_nursery() as nursery:
            self._nursery, self.is_over = nursery, False
            try:
                yield nursery
            finally:
                self._nursery, self.is_over = None, True

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start tasks until cancelled."""
        async with self.open():
            task_status.started()
            await trio.sleep_forever()

    def start(self, work: Callable[..., Awaitable[object]], *args: object) -> bool:
        """Do ``work`` in the background; false, and nothing is done, unless they are open."""
        if self._nursery is None:
            return False
        self._nursery.start_soon(self._guard.once, work, *args)
        return True
