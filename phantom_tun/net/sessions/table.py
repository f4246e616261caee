"""The connections that exist at the moment, for ``tunnels list`` and ``tunnels close``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from phantom_tun.clock import Clock
from phantom_tun.endpoints import Endpoint
from phantom_tun.errors import CapacityExceeded, UsageError
from phantom_tun.ids import PublicKey
from phantom_tun.wire import session

Direction = Literal["out", "in"]


class Carrier(Protocol):
    """The stream or datagram flow of a connection."""

    bytes_in: int
    bytes_out: int

    @property
    def path_number(self) -> int:
        """The path of ours that carries it."""
        ...

    @property
    def resumed(self) -> int:
        """How often it has changed to another tunnel."""
        ...

    @property
    def is_lost(self) -> bool:
        """Whether its tunnel has failed, and another one is looked for."""
        ...

    def abort(self) -> None:
        """End it now."""
        ...

    async def wait_closed(self) -> None:
        """Wait until nothing of it is in use any more."""
        ...


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One line of ``tunnels list``."""

    number: int
    identity: str
    direction: Direction
    """``out``: a local program called; ``in``: a remote one did."""
    remote: Endpoint
    """The other end: what was called, or what the local service sees as its peer."""
    port: int
    """The called port if ``in``, the calling one if ``out``."""
    protocol: str
    """``tcp``, ``udp`` or ``echo``."""
    path_number: int
    """The path that carries it."""
    age: float
    """Seconds."""
    bytes_in: int
    """Payload bytes from the other end."""
    bytes_out: int
    resumed: int
    """How often it has lost its tunnel and went on over another one."""
    is_lost: bool
    """Whether it has lost it now."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known when a connection begins."""

    identity: str
    direction: Direction
    remote: Endpoint
    port: int
    protocol: session.Protocol
    peer: PublicKey | None
    """Inbound: the caller's key."""


class SessionTable:
    """Bounded, in all and for each caller."""

    def __init__(self, clock: Clock, limit: int, limit_per_caller: int) -> None:
        self._clock = clock
        self._limit = limit
        self._limit_per_caller = limit_per_caller
        self._next_number = 1
        self._entries: dict[int, tuple[Entry, Carrier, float]] = {}
        self._per_caller: Counter[PublicKey] = Counter()

    def check_room(self, caller: PublicKey | None = None) -> None:
        """
        :raises CapacityExceeded: no more connections, or not with this caller.
        """
        if len(self._entries) >= self._limit:
            raise CapacityExceeded("too many connections")
        if caller is not None and self._per_caller[caller] >= self._limit_per_caller:
            raise CapacityExceeded("too many connections from one caller")

    @contextmanager
    def listed(self, entry: Entry, carrier: Carrier) -> Iterator[None]:
        """The connection is listed while this is open."""
        number = self._next_number
        self._next_number += 1
        self._entries[number] = entry, carrier, self._clock.now()
        if entry.peer is not None:
            self._per_caller[entry.peer] += 1
        try:
            yield
        finally:
            del self._entries[number]
            if entry.peer is not None:
                self._per_caller[entry.peer] -= 1
                self._per_caller += Counter()  # drops zeros

    def infos(self) -> list[SessionInfo]:
        """All connections, oldest first."""
        now = self._clock.now()
        return [
            SessionInfo(
                number=number,
                identity=entry.identity,
                direction=entry.direction,
                remote=entry.remote,
                port=entry.port,
                protocol=entry.protocol.name.lower(),
                path_number=carrier.path_number,
                age=now - since,
                bytes_in=carrier.bytes_in,
                bytes_out=carrier.bytes_out,
                resumed=carrier.resumed,
                is_lost=carrier.is_lost,
            )
            for number, (entry, carrier, since) in self._entries.items()
        ]

    def close(self, number: int) -> None:
        """Reset a connection.

        :raises UsageError: there is none with this number.
        """
        if number not in self._entries:
            raise UsageError(f"there is no connection {number}; 'tunnels list' shows all")
        self._entries[number][1].abort()

    def abort_all(self) -> None:
        """Reset every connection."""
        for _, carrier, _ in list(self._entries.values()):
            carrier.abort()

    def __len__(self) -> int:
        return len(self._entries)
