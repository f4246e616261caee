"""When what has arrived is acknowledged (docs/spec/session.md, "Sessions that survive").

A message of its own costs every node on the way half a millisecond. So most acknowledgements go
along with what is sent anyway, and others are rare: after some megabytes, or a moment after some
kilobytes.
"""

from __future__ import annotations

from typing import Protocol

import trio

from phantom_tun.net.sessions.secure_tunnel import Spawn

ACK_EVERY = 4_194_304
"""Bytes after which they are acknowledged at once."""
ACK_LEAST = 4_096
"""Bytes that needn't be acknowledged if nothing goes the other way: a sender keeps so little
without harm."""
LATE = 1.0
"""Seconds between two looks at streams of which more than that has arrived."""


class Acknowledging(Protocol):
    """A stream."""

    def acknowledge_now(self) -> None:
        """Do so, if it is still needed."""
        ...


class LateAcks:
    """Streams that soon acknowledge what has arrived; one task for all, while there are any."""

    __slots__ = ("_due", "_is_running", "_spawn")

    def __init__(self, spawn: Spawn) -> None:
        self._spawn = spawn
        self._due: list[Acknowledging] = []
        self._is_running = False

    def add(self, stream: Acknowledging) -> bool:
        """``stream`` is told in a moment; whether it will be."""
        if not self._is_running:
            self._is_running = self._spawn(self._run)
        if self._is_running:
            self._due.append(stream)
        return self._is_running

    async def _run(self) -> None:
        try:
            while self._due:
                await trio.sleep(LATE)
                due, self._due = self._due, []
                for stream in due:
                    stream.acknowledge_now()
        finally:
            self._is_running = False
