"""The running daemon: a node, its control socket, signals, readiness and an ordered end."""

from __future__ import annotations

import signal
import socket

import structlog
import trio

from phantom_tun.control.listener import Access
from phantom_tun.control.server import ControlServer
from phantom_tun.daemon.interpreter import share_the_processor, spare_what_stays
from phantom_tun.daemon.memory import give_memory_back
from phantom_tun.daemon.notify import READY, STOPPING, notify, status
from phantom_tun.daemon.whereabouts import Whereabouts
from phantom_tun.daemon.wiring import DaemonNode

STOP_DEADLINE_S = 15
"""From the wish to stop to the end of the process, in order or not."""
IMPATIENT_DEADLINE_S = 1
"""The same after a second signal."""

_log = structlog.get_logger(__name__)


class _Stopping:
    """The transition from running to stopping; it happens once."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope = scope
        self._begun = False

    def begin(self) -> None:
        """Ask the node to stop. From now on the kernel ends the process at the deadline, even if
        nothing in it runs any more."""
        if not self._begun:
            self._begun = True
            signal.alarm(STOP_DEADLINE_S)
            notify(STOPPING, status("stopping"))
            _log.info("stopping")
            self._scope.cancel()

    def insist(self) -> None:
        """As :meth:`begin`; asked again, it shortens the deadline."""
        if self._begun:
            signal.alarm(IMPATIENT_DEADLINE_S)
        self.begin()


async def serve(
    node: DaemonNode, control: socket.socket, access: Access, whereabouts: Whereabouts
) -> None:
    """Run ``node`` and answer ``control`` until a signal or a command says stop.

    The control socket works from before the node starts until after it has stopped.

    :raises PhantomError: the node could not start, or failed.
    """
    try:
        async with trio.open_nursery() as nursery:
            node_scope = trio.CancelScope()
            stopping = _Stopping(node_scope)
            await nursery.start(_obey_signals, stopping)
            server = ControlServer(node.backend, access, stopping.begin)
            await nursery.start(server.serve, control)
            notify(status("starting"))
            with node_scope:
                await _run_node(node, whereabouts)
            nursery.cancel_scope.cancel()
    finally:
        signal.alarm(0)


async def _run_node(node: DaemonNode, whereabouts: Whereabouts) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        nursery.start_soon(whereabouts.watch, node.machine)
        nursery.start_soon(give_memory_back)
        spare_what_stays()
        share_the_processor()
        notify(READY, status("ready"))
        _log.info("ready")


async def _obey_signals(
    stopping: _Stopping, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _number in signals:
            stopping.insist()
