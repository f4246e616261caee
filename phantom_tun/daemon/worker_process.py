"""The program of a worker process. Its arguments say how to log; its standard input is its end of
the control channel.

It imports what a relay needs and no more, has no capabilities, and ends when the daemon closes the
channel or ends.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from typing import Literal, cast

import trio

from phantom_tun.clock import SYSTEM_RNG, SystemClock
from phantom_tun.config import LogConfig
from phantom_tun.crypto.streams import use_fastest_keystream
from phantom_tun.daemon import logs
from phantom_tun.daemon.account import current_account
from phantom_tun.daemon.interpreter import spare_what_stays
from phantom_tun.daemon.memory import give_memory_back
from phantom_tun.daemon.privileges import drop_privileges, raise_open_files
from phantom_tun.errors import LinkBroken
from phantom_tun.net.links.worker import RelayWorker
from phantom_tun.net.links.worker_channel import WorkerChannel
from phantom_tun.wire.worker import Setup, unpack_to_worker


async def serve(end: socket.socket) -> None:
    """Be a worker until the daemon closes its end."""
    channel = WorkerChannel(end)
    try:
        setup = unpack_to_worker((await channel.receive()).data)
        if isinstance(setup, Setup):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(give_memory_back)
                await RelayWorker(channel, setup, clock=SystemClock(), rng=SYSTEM_RNG).run()
                nursery.cancel_scope.cancel()
    except* LinkBroken:
        pass  # before it had anything for us to do
    finally:
        channel.close()


def main() -> int:
    """Returns the exit code."""
    level, style = sys.argv[1:]
    # The terminal's and the service manager's signals go to the daemon too; it stops in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    log_level = cast('Literal["debug", "info", "warning", "error"]', level)
    logs.configure(LogConfig(level=log_level, json=style == "json"))
    raise_open_files()
    drop_privileges(current_account(), ())
    spare_what_stays()
    use_fastest_keystream(time.perf_counter)
    trio.run(serve, socket.socket(fileno=os.dup(sys.stdin.fileno())))
    return 0
