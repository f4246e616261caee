"""What a system under test is, and which there are."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from phantom_tun.lab.bench.hosts import Inside
from phantom_tun.lab.bench.load_wire import Target
from phantom_tun.lab.bench.model import Condition

SERVICE_PORT = 7000

Say = Callable[[str], None]
"""Takes one line for the person who waits."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a system is brought up."""

    name: str
    """Of its lab, which nothing else has."""
    directory: Path
    """Empty, for its files."""
    condition: Condition
    undo: ExitStack
    """Gets what ends the system."""
    say: Say


@dataclass(frozen=True, slots=True)
class Running:
    """A system that is up: all its daemons are started, but it may not be reachable yet."""

    client: Inside
    """Where the load client runs."""
    target: Target
    roles: Mapping[str, tuple[int, ...]]
    """The processes of the system without the load generator, by what they are:
    ``client``, ``service``, ``relay``."""
    began: float
    """When its first daemon was started, by ``time.monotonic()``."""
    relays_on_way: int
    """Processes between those of the two sides that a byte passes."""
    datagrams: bool = False
    """UDP gets through."""
    prepare: Callable[[], str] | None = None
    """Called before each measurement: puts in order what changes by itself. Returns what is amiss
    nevertheless, in words, else nothing; raises :class:`PhantomError` if it can't be told."""

    @property
    def pids(self) -> list[int]:
        """All of them."""
        return [pid for role in self.roles.values() for pid in role]


class System(Protocol):
    """One way to connect a client to a service."""

    @property
    def key(self) -> str:
        """What options and results call it."""

    @property
    def title(self) -> str:
        """What tables call it."""

    @property
    def programs(self) -> Mapping[str, str]:
        """What has to be installed, and the Debian package each is in."""

    def version(self) -> str:
        """Of what is installed."""

    def start(self, place: Place) -> Running:
        """Start it, with a load server behind it.

        :raises PhantomError: it can't be; whatever was begun is in ``place.undo``.
        """


def missing_packages(system: System) -> list[str]:
    """The packages that would have to be installed first."""
    return sorted(
        {package for program, package in system.programs.items() if not shutil.which(program)}
    )


def package_version(package: str) -> str:
    """The version of an installed Debian package, with its name."""
    done = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", package],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return f"{package} {done.stdout.strip() or '?'}"


def load_server(certificate: Path | None = None) -> list[str]:
    """The command that starts the load server."""
    command = [sys.executable, "-m", "phantom_tun.lab.bench.load", "server", str(SERVICE_PORT)]
    return command if certificate is None else [*command, str(certificate)]
