"""Starting worker processes of a node (docs/spec/workers.md, "Processes")."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import trio

import phantom_tun
from phantom_tun.config import LogConfig
from phantom_tun.daemon import slim

MODULE = "phantom_tun.daemon.worker_start"


class WorkerSpawner:
    """Starts them as :class:`~phantom_tun.net.links.workers.Spawn` says: the same program and
    account as this process, with the channel as standard input."""

    def __init__(self, log: LogConfig) -> None:
        self._log = log

    async def __call__(self, channel: socket.socket) -> trio.Process:
        """
        :raises OSError: no process can be started.
        """
        style = "json" if self._log.json else "text"
        return await trio.lowlevel.open_process(
            [sys.executable, *slim.flags(), "-P", "-m", MODULE, self._log.level, style],
            stdin=channel,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": _python_path()},
        )


def _python_path() -> str:
    """Where this process found the package, before everything else."""
    own = str(Path(phantom_tun.__file__).resolve().parents[1])
    inherited = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join([own, inherited]) if inherited else own
