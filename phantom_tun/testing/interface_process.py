"""One interface joined to others by a :class:`~phantom_tun.testing.tcp_overlay.TcpOverlay`, as a
process: ``python -m phantom_tun.testing.interface_process '{…}'``.

Settings (JSON): ``name`` of the interface, own ``addresses``, underlay address to ``listen`` at,
the ``directory`` of everybody's addresses, ``filtered`` ports, and ``timeouts`` to change. Commands
are lines on standard input, answers are lines of JSON: ``ready`` comes first; then ``statistics``,
``flows``, ``add ADDRESS``, ``remove ADDRESS``, ``cpu``; the end of input stops it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from ipaddress import ip_address
from typing import Any

import structlog
import trio

from phantom_tun.testing.tcp_overlay import TcpOverlay
from phantom_tun.tun.device import open_tun
from phantom_tun.tun.interface import Interface
from phantom_tun.tun.settings import InterfaceConfig, Timeouts


async def _run(settings: dict[str, Any]) -> None:
    config = InterfaceConfig(
        name=settings["name"],
        addresses=tuple(map(ip_address, settings["addresses"])),
        timeouts=Timeouts(**settings.get("timeouts", {})),
    )
    directory = {ip_address(a): (w[0], w[1]) for a, w in settings["directory"].items()}
    overlay = TcpOverlay(directory, frozenset(settings.get("filtered", ())))
    interface = Interface(config, open_tun(config.name))
    async with trio.open_nursery() as nursery:
        await interface.guard()
        nursery.start_soon(interface.keep_guard)
        await nursery.start(interface.run, overlay)
        await nursery.start(overlay.serve, interface, tuple(settings["listen"]))
        _say("ready")
        async for line in _lines():
            _say(await _obey(interface, line))
        nursery.cancel_scope.cancel()


async def _obey(interface: Interface, command: str) -> Any:
    match command.split():
        case ["statistics"]:
            return interface.statistics()
        case ["flows"]:
            return [
                [f.transport, f.direction, str(f.source.address), str(f.target.address),
                 f.target.port, f.state, f.sent, f.received]
                for f in interface.flows()
            ]  # fmt: skip
        case ["add", address]:
            added = (*interface.addresses, ip_address(address))
            await interface.set_addresses(lambda: added)
        case ["remove", address]:
            left = [found for found in interface.addresses if found != ip_address(address)]
            await interface.set_addresses(lambda: left)
        case ["cpu"]:
            return time.process_time()
        case _:
            return f"what is {command!r}?"
    return "done"


async def _lines() -> Any:
    source = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
    pending = b""
    async for data in source:
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            yield line.decode()


def _say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    # Standard output is for answers.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    trio.run(_run, json.loads(sys.argv[1]))
