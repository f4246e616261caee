"""Whose bytes are moved next (docs/spec/links.md, "Fairness").

Moving a full buffer through a node takes about half a millisecond. When many tunnels have full
buffers, each waits for its turn, and between two turns the scheduler looks at all sockets: a tunnel
with little to say waits behind one buffer at most, however many downloads there are.
"""

from __future__ import annotations

import trio

BULK = 32_768
"""A tunnel that moved as many bytes at once asks for a turn before it moves more."""


class Turns:
    """One turn at a time, in the order of asking; for one thread."""

    __slots__ = ("_is_given", "_last", "_waiting")

    def __init__(self) -> None:
        self._is_given = False
        self._last: int | None = None
        """Who had the last turn that was asked for with a name."""
        self._waiting = trio.lowlevel.ParkingLot()

    async def wait(self, name: int | None = None) -> None:
        """Wait for a turn, which lasts until the caller waits for anything. The next one begins
        when the scheduler has looked at all sockets, at the earliest.

        :param name: of a caller that has waited for something since its last turn. If nobody else
            had one since, sockets were looked at meanwhile, and it needn't wait again.
        """
        if self._is_given:
            await self._waiting.park()  # if this is cancelled, no turn was given
            self._pass_on()
        elif name is not None and name == self._last:
            return
        else:
            self._is_given = True
            try:
                await trio.lowlevel.checkpoint()
            finally:
                self._pass_on()
        self._last = name

    def _pass_on(self) -> None:
        if self._waiting:
            self._waiting.unpark()
        else:
            self._is_given = False


TURNS = Turns()
"""Shared by everything of the process that moves tunnel bytes (one thread does)."""
