"""What every end and hop of a tunnel at this node shares: links, switchboard, time, chance,
limits, counters, and the tasks they start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from phantom_tun.clock import Clock, Rng
from phantom_tun.errors import UsageError
from phantom_tun.guard import Guard
from phantom_tun.net.tunnels.ready_pool import PoolLimits
from phantom_tun.net.tunnels.switchboard import Switchboard
from phantom_tun.net.tunnels.workshop import Workshop
from phantom_tun.tasks import Tasks

if TYPE_CHECKING:
    from phantom_tun.net.links.links import Links


class TunnelHub:
    """One per node."""

    __slots__ = (
        "_tasks",
        "board",
        "clock",
        "counts",
        "guard",
        "limits",
        "links",
        "rng",
        "workshop",
    )

    def __init__(
        self,
        links: Links,
        board: Switchboard,
        limits: PoolLimits,
        clock: Clock,
        rng: Rng,
        *,
        workshop: Workshop | None = None,
    ) -> None:
        self.links = links
        self.board = board
        self.limits = limits
        self.clock = clock
        self.rng = rng
        self.workshop = workshop or Workshop(rng)
        self.counts: Counter[str] = Counter()
        self.guard = Guard(self.counts)
        """Of all tasks that have to do with tunnels."""
        self._tasks = Tasks(self.guard)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the tasks of all tunnels until cancelled."""
        await self._tasks.run(task_status)

    def start(self, work: Callable[..., Awaitable[object]], *args: object) -> None:
        """Run ``work`` in the background, unless the node is stopping.

        :raises UsageError: :meth:`run` hasn't begun.
        """
        if not (self._tasks.start(work, *args) or self._tasks.is_over):
            raise UsageError("the tunnel hub isn't running")

    def start_or(
        self,
        work: Callable[..., Awaitable[object]],
        otherwise: Callable[[], None],
        *args: object,
    ) -> None:
        """Run ``work`` in the background; if the node is stopping, do ``otherwise`` instead."""
        if not self._tasks.start(work, *args):
            otherwise()

    def now(self) -> float:
        """Seconds since the epoch."""
        return self.clock.now()
