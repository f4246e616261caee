"""Namespaces with the lab's topology for systems that aren't ours, and programs inside them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from phantom_tun.lab import namespaces, processes, signals, topology
from phantom_tun.lab.bench.model import Condition
from phantom_tun.lab.errors import LabFailed
from phantom_tun.lab.plan import LabPlan, plan_lab
from phantom_tun.lab.processes import ProcessRef

_LISTEN_SECONDS = 20.0
_POLL_SECONDS = 0.02
_LOG_TAIL = 600


class Inside(msgspec.Struct, frozen=True):
    """How to run a command at a host."""

    prefix: tuple[str, ...]
    environment: Mapping[str, str]


class Hosts:
    """Hosts 1 … ``count``, each with ``eth0``, joined by a switch; gone when the block ends."""

    def __init__(self, name: str, count: int, condition: Condition, directory: Path) -> None:
        self._plan: LabPlan = plan_lab(
            name=name,
            nodes=count,
            exit_hops=0,
            entry_hops=0,
            rate=condition.rate,
            delay_ms=condition.delay_ms,
        )
        self.directory = directory
        at = namespaces.choose_directory(directory / "netns")
        names = [self._plan.switch_namespace, *map(self._plan.namespace, self._plan.nodes)]
        self._holders = {name: at / name for name in names}

    def __enter__(self) -> Self:
        try:
            topology.build(self._plan, self._holders)
            if self._plan.delay_ms:
                topology.start_switch(self._plan, self._holders, self.directory)
            topology.bring_up(self._plan, self._holders)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End whatever runs in the namespaces and remove them. Not to be interrupted.

        :raises LabFailed: a process would not die.
        """
        with signals.held_back():
            holders = list(self._holders.values())
            found = [processes.reference(pid) for pid in namespaces.processes_inside(holders)]
            left = processes.kill([process for process in found if process is not None])
            for holder in holders:
                namespaces.remove(holder)
        if left:
            raise LabFailed(f"processes would not die: {', '.join(str(p.pid) for p in left)}")

    def address(self, host: int) -> str:
        """Its IPv4 address."""
        return str(self._plan.nodes[host - 1].underlay)

    def add_addresses(self, prefix: IPv4Network) -> list[str]:
        """Give every host a second address, the first ones of ``prefix``; returns them in order.

        :raises LabFailed: ``ip`` refused.
        """
        addresses = [str(prefix[number]) for number in range(1, len(self._plan.nodes) + 1)]
        device = topology.UNDERLAY_INTERFACE
        for number, own in enumerate(addresses, start=1):
            lines = [f"addr add {own}/{prefix.prefixlen} dev {device}"]
            lines += [
                f"neigh replace {address} lladdr {node.mac} dev {device} nud permanent"
                for address, node in zip(addresses, self._plan.nodes, strict=True)
                if address != own
            ]
            topology.batch(self._holder(number), "ip", lines)
        return addresses

    def inside(self, host: int) -> Inside:
        """How to run a command there."""
        return Inside(("nsenter", f"--net={self._holder(host)}", "--"), dict(os.environ))

    def spawn(self, host: int, command: Sequence[str], log: Path) -> ProcessRef:
        """Start a program there that runs until :meth:`close`."""
        there = self.inside(host)
        return processes.spawn([*there.prefix, *command], there.environment, log)

    def wait_listening(self, host: int, port: int, process: ProcessRef, log: Path) -> None:
        """Wait until ``process`` accepts connections on a TCP port.

        :raises LabFailed: it died, or doesn't in time; quotes its log.
        """
        deadline = time.monotonic() + _LISTEN_SECONDS
        while not self._accepts(host, port):
            if not processes.is_alive(process):
                raise LabFailed(f"a program ended while it started: {quote(log)}")
            if time.monotonic() > deadline:
                raise LabFailed(f"nothing listens on port {port} of host {host}: {quote(log)}")
            time.sleep(_POLL_SECONDS)

    def _accepts(self, host: int, port: int) -> bool:
        # A socket stays in the namespace where it was made.
        with namespaces.inside(self._holder(host)):
            probe = socket.socket()
        with probe:
            return probe.connect_ex((self.address(host), port)) == 0

    def _holder(self, host: int) -> Path:
        return self._holders[self._plan.namespace(self._plan.nodes[host - 1])]


def quote(log: Path) -> str:
    """The end of a log, to be put behind a message."""
    try:
        text = log.read_text(errors="replace").strip()
    except FileNotFoundError:
        return "it wrote nothing"
    return text[-_LOG_TAIL:] or "it wrote nothing"
