"""A node for the daemon that has no network: a :class:`FakeBackend` that says how far it is."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from phantom_tun.config import Address
from phantom_tun.control.model import NodeState
from phantom_tun.errors import PhantomError
from phantom_tun.testing.fake_backend import FakeBackend

BeforeReady = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class FakeNode:
    """Implements :class:`phantom_tun.daemon.wiring.DaemonNode`."""

    listeners: list[socket.socket] = field(default_factory=list)
    backend: FakeBackend = field(default_factory=lambda: FakeBackend(state="starting"))
    before_ready: BeforeReady | None = None
    """Awaited before the node says that it is ready."""
    failure: PhantomError | None = None
    """Raised instead of becoming ready."""
    stop_s: float = 0.0
    """How long an ordered stop takes."""
    history: list[NodeState] = field(default_factory=list)
    moved_to: tuple[Address, ...] | None = None
    """The addresses it was last told."""
    wakings: int = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ready at once, unless told otherwise; then idle until cancelled."""
        self._is("joining")
        try:
            if self.failure is not None:
                raise self.failure
            if self.before_ready is not None:
                await self.before_ready()
            self._is("ready")
            task_status.started()
            await trio.sleep_forever()
        finally:
            self._is("stopping")
            with trio.CancelScope(shield=True):
                await trio.sleep(self.stop_s)

    @property
    def machine(self) -> FakeNode:
        """It hears itself what happens to its machine."""
        return self

    def moved(self, addresses: Sequence[Address]) -> None:
        """Nothing to do."""
        self.moved_to = tuple(addresses)

    def woke(self) -> None:
        """Nothing to do."""
        self.wakings += 1

    def _is(self, state: NodeState) -> None:
        self.backend.state = state
        self.history.append(state)
