"""One :class:`~phantom_tun.net.addresses.publisher.Publisher` for each AP identity of this node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import trio

from phantom_tun.clock import Clock, Rng
from phantom_tun.errors import UsageError
from phantom_tun.guard import Guard
from phantom_tun.net.addresses.ap_database import ApDatabase, Route
from phantom_tun.net.addresses.identities import ApIdentity, IdentityStore
from phantom_tun.net.addresses.publisher import Publisher
from phantom_tun.tasks import Tasks

START_SPREAD = 60.0
"""Identities after the first one appear at a moment drawn from this many seconds, so that they
can't be told to be one node's by appearing together."""


class Publishers:
    """Keeps every identity published."""

    def __init__(
        self,
        identities: IdentityStore,
        database: ApDatabase,
        entry_routes: Callable[[str], Sequence[Route]],
        *,
        on_lease: Callable[[ApIdentity], None],
        clock: Clock,
        rng: Rng,
    ) -> None:
        """See :class:`~phantom_tun.net.addresses.publisher.Publisher`."""
        self._identities = identities
        self._database = database
        self._entry_routes = entry_routes
        self._on_lease = on_lease
        self._clock = clock
        self._rng = rng
        self._publishers: dict[str, Publisher] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._counts: Counter[str] = Counter()
        self._guard = Guard(self._counts)
        self._tasks = Tasks(self._guard)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Publish until cancelled."""
        await self._tasks.run(task_status)

    def add(self, identity: ApIdentity, *, hurry: bool) -> None:
        """Begin to publish an identity; ``hurry``: at once, since its owner is waiting for it or
        it is the only one.

        :raises UsageError: :meth:`run` isn't running.
        """
        if not self._tasks.is_open:
            raise UsageError("the publishers aren't running")
        publisher = Publisher(
            identity,
            self._identities,
            self._database,
            self._entry_routes,
            on_lease=self._on_lease,
            clock=self._clock,
            rng=self._rng,
            start_delay=0.0 if hurry else self._rng.uniform(0, START_SPREAD),
        )
        self._publishers[identity.name] = publisher
        self._tasks.start(self._run, identity.name, publisher)

    async def _run(self, name: str, publisher: Publisher) -> None:
        with trio.CancelScope() as self._scopes[name]:
            await self._guard.forever(publisher.run)

    def remove(self, name: str) -> None:
        """Stop publishing an identity. Idempotent."""
        self._publishers.pop(name, None)
        scope = self._scopes.pop(name, None)
        if scope is not None:
            scope.cancel()

    def routes_changed(self, name: str) -> None:
        """An entry path of an identity came up or went."""
        publisher = self._publishers.get(name)
        if publisher is not None:
            publisher.routes_changed()

    def warnings(self) -> list[str]:
        """What the owner should know, as sentences."""
        return [line for publisher in self._publishers.values() for line in publisher.warnings()]

    def statistics(self) -> dict[str, int]:
        """Sums of counters by name."""
        total = self._counts.copy()
        for publisher in self._publishers.values():
            total.update(publisher.statistics())
        return dict(total)
