"""Sessions between two connections, at the side that connects (docs/spec/session.md, "Kept
sessions").

The one that was used last is used first, so that what a crowd has left behind expires.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

import trio

from phantom_tun.ids import PublicKey
from phantom_tun.net.sessions.ending import finish
from phantom_tun.net.sessions.ports import WayOut
from phantom_tun.net.sessions.routes import Route
from phantom_tun.net.sessions.secure_tunnel import SecureTunnel, Spawn

KEPT_FOR = 10.0
"""Seconds that a session waits for its next connection; and for so long after a connection to a
callee another one is expected."""
KEPT_AT_MOST = 600.0
"""Seconds after which a session serves no further connection."""
MAX_KEPT = 256
"""Sessions that wait at one time."""
MAX_KEPT_OF_ONE = 64
"""Of these, to one callee."""

SWEEP_EVERY = 1.0
"""Seconds."""

Parties = tuple[PublicKey, IPv4Address | None, PublicKey]
"""Caller, the AP4 that it has shown itself with, and callee."""


@dataclass(slots=True, eq=False)
class Kept:
    """A session that waits for its next connection."""

    parties: Parties
    secure: SecureTunnel
    route: Route
    way: WayOut
    """The exit path."""
    began: float
    """When the session did, in trio's time, as all here."""
    since: float = 0.0

    def serves(self, now: float) -> bool:
        """Whether it can have another connection."""
        is_young = now - self.began < KEPT_AT_MOST and now - self.since < KEPT_FOR
        return is_young and not self.way.ended


class KeptSessions:
    """All that wait, bounded."""

    def __init__(self, spawn: Spawn) -> None:
        self._spawn = spawn
        self._waiting: dict[Parties, list[Kept]] = {}
        self._is_swept = False

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def put(self, kept: Kept) -> None:
        """Wait for the next connection, unless too many do."""
        kept.since = trio.current_time()
        waiting = self._waiting.get(kept.parties, [])
        has_room = len(self) < MAX_KEPT and len(waiting) < MAX_KEPT_OF_ONE
        if not has_room or not kept.serves(kept.since):
            finish(kept.secure, None)
            return
        self._waiting[kept.parties] = waiting
        waiting.append(kept)
        if not self._is_swept:
            self._is_swept = self._spawn(self._sweep)
            if not self._is_swept:
                self.drop_all()  # the node ends, and nobody would

    def take(self, parties: Parties) -> Kept | None:
        """One for the next connection; it is the taker's."""
        now = trio.current_time()
        waiting = self._waiting.get(parties)
        while waiting:
            kept = waiting.pop()
            if kept.serves(now):
                return kept
            finish(kept.secure, None)
        return None

    def drop_like(self, doubted: Kept) -> None:
        """One of them has failed: end all that go the same way."""
        self._end(lambda kept: (kept.way, kept.route) == (doubted.way, doubted.route))

    def drop_all(self) -> None:
        """End all."""
        self._end(lambda _kept: True)

    def _end(self, is_over: Callable[[Kept], bool]) -> None:
        for parties, waiting in list(self._waiting.items()):
            going_on = []
            for kept in waiting:
                if is_over(kept):
                    finish(kept.secure, None)
                else:
                    going_on.append(kept)
            if going_on:
                self._waiting[parties] = going_on
            else:
                del self._waiting[parties]

    async def _sweep(self) -> None:
        """End those whose time is over, as long as there are any."""
        try:
            while self._waiting:
                await trio.sleep(SWEEP_EVERY)
                now = trio.current_time()
                self._end(lambda kept: not kept.serves(now))  # noqa: B023 - called at once
        finally:
            self._is_swept = False
