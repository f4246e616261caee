"""A relay's hot loop: bytes from one bulk link, through one layer, to another
(docs/spec/links.md, "Splice").

Cost of a 64 KiB chunk on one core of a Xeon (``scripts/bench_splice``), about 95 µs: TLS in and out
30, kernel 27, keystream and authentication 7, the scheduler, OpenSSL's ways and Python 30.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import trio

from phantom_tun.errors import LinkBroken, PeerError
from phantom_tun.net.links.buffers import POOL, SLACK, Buffer
from phantom_tun.net.links.bulk import Bulk
from phantom_tun.net.links.rest import Rest, Sleeper, rest

LITTLE = 16_384
"""Bytes that a tunnel at rest moves at once: a TLS record."""

FEW, SPARSE = 4, 0.5
"""So often in a row, less than so many seconds apart, and it is at rest no longer."""


class Layer(Protocol):
    """What is done to the bytes of one direction."""

    def process(self, view: memoryview, start: int, end: int) -> None:
        """Transform ``view[start:end]`` in place."""
        ...

    def rest(self) -> None:
        """Nothing comes for a while: let go of what can be made again."""
        ...


def process_bytes(layer: Layer, data: bytes) -> bytes:
    """``data`` through ``layer``; for what isn't in a buffer."""
    if not data:
        return data
    view = memoryview(bytearray(len(data) + SLACK))
    view[: len(data)] = data
    layer.process(view, 0, len(data))
    return bytes(view[: len(data)])


class Way(NamedTuple):
    """One direction."""

    source: Bulk
    sink: Bulk
    layer: Layer

    async def pump(self) -> None:
        """Pass on what comes until FIN went through.

        :raises LinkBroken: either side has failed.
        :raises PeerError: or broken the framing.
        """
        while not await self.pass_on(await self.source.receive_pooled()):
            pass

    async def pass_on(self, buffer: Buffer) -> bool:
        """Send what was received and give the buffer back; whether it was the last.

        :raises LinkBroken: the sink has failed.
        """
        try:
            at_end = self.source.at_end
            view, process = buffer.view, self.layer.process
            for start, end in buffer.segments:
                process(view, start, end)
            await self.sink.send(buffer, fin=at_end)
            return at_end
        finally:
            POOL.give_back(buffer)


class _Splice:
    """Two directions. While bytes flow, a task moves those of each. At rest
    (:mod:`phantom_tun.net.links.rest`) one task waits for either and moves what little comes."""

    __slots__ = ("_count", "_has_moved", "_is_quiet", "_nursery", "_open", "_waiting")

    def __init__(self, ways: list[Way], count: Callable[[int], None]) -> None:
        self._open = ways
        """Those that FIN hasn't gone through yet."""
        self._count = count
        self._nursery: trio.Nursery | None = None
        """Of the tasks while bytes flow."""
        self._waiting = 0
        """How many of them wait for something to arrive."""
        self._has_moved = False
        """Whether they moved anything since the last look."""
        self._is_quiet = False
        """Whether they have to end, and leave what comes at this moment where it is."""

    async def run(self) -> None:
        """Until FIN went through both ways.

        :raises LinkBroken: either side has failed.
        :raises PeerError: or broken the framing.
        """
        if None in (way.source.handle for way in self._open):
            await self._flow()  # such links can't rest
            return
        place = rest()
        try:
            while self._open:
                place.watch(self)
                if not await self._rest(place):
                    place.watch(self)
                    await self._flow()
        finally:
            place.unwatch(self)

    async def _rest(self, place: Rest) -> bool:
        """Until FIN went through one way; false as soon as there is more to move than one task
        should, since it can't do so both ways at once."""
        ways = {way.source.handle or -1: way for way in self._open}
        try:
            sleeper = place.begin([*ways])
        except (OSError, ValueError):  # too many for the kernel, or one is closed
            return False
        try:
            quick = 0
            while quick < FEW:
                began = trio.current_time()
                way = await self._arrival(sleeper, ways)
                quick = quick + 1 if trio.current_time() - began < SPARSE else 0
                if not way.sink.has_room():
                    return False
                buffer = await way.source.take(LITTLE)
                if buffer is not None:
                    place.watch(self)
                    await self._move(way, buffer)
                    if way not in self._open:
                        return True
            return False
        finally:
            place.end(sleeper)

    async def _arrival(self, sleeper: Sleeper, ways: dict[int, Way]) -> Way:
        for way in ways.values():
            if not way.source.is_quiet():
                await way.source.wait_arrival()
                return way
        return ways[await sleeper.wait()]

    def look(self) -> None:
        """See :class:`~phantom_tun.net.links.rest.Restless`."""
        if self._has_moved:
            self._has_moved = False
        elif self._nursery is None:
            for way in self._open:
                way.layer.rest()
            rest().unwatch(self)
        elif self._waiting == len(self._open) and all(way.source.is_quiet() for way in self._open):
            self._is_quiet = True
            self._nursery.cancel_scope.cancel()

    async def _flow(self) -> None:
        """Until FIN went through both ways, or nothing moved for a while."""
        self._waiting = 0
        self._is_quiet = False
        try:
            async with trio.open_nursery() as self._nursery:
                for way in self._open:
                    self._nursery.start_soon(self._pump, way)
        finally:
            self._nursery = None

    async def _pump(self, way: Way) -> None:
        while way in self._open:
            self._waiting += 1
            await way.source.wait_arrival()  # yields once per chunk: that is the fairness
            self._waiting -= 1
            if self._is_quiet:
                return
            buffer = await way.source.take()
            if buffer is not None:
                await self._move(way, buffer)

    async def _move(self, way: Way, buffer: Buffer) -> None:
        self._has_moved = True
        size = buffer.payload_len()
        if await way.pass_on(buffer):
            self._open.remove(way)
        self._count(size)


def ignore(_count: int) -> None:
    """For those who don't count."""


async def splice(
    a: Bulk,
    b: Bulk,
    a_to_b: Layer,
    b_to_a: Layer,
    on_bytes: Callable[[int], None] = ignore,
) -> None:
    """Join two uses until FIN went through both ways; a reset, end or failure of either resets
    both. Doesn't raise for the peers' sake; ``on_bytes`` is told every chunk's size."""
    try:
        await _Splice([Way(b, a, b_to_a), Way(a, b, a_to_b)], on_bytes).run()
    except* (LinkBroken, PeerError):
        a.reset()
        b.reset()
