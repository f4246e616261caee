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
from phantom_tun.net.links.rest import rest

LITTLE = 16_384
"""Bytes that a tunnel at rest moves at once: a TLS record."""

SMALL = 4_096
"""Behind more payload than that, more is to be expected."""

FEW, SPARSE = 4, 0.5
"""So often in a row, less than so many seconds apart, and it is at rest no longer: a task for each
direction costs less for each message, and more to begin."""


Spawn = Callable[..., bool]
"""Starts a task; false if it doesn't any more."""


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


class Unsent(NamedTuple):
    """What a sink hasn't taken yet of a buffer that is otherwise done with."""

    way: Way
    buffer: Buffer
    at_end: bool


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

    def pass_on_now(self, buffer: Buffer) -> Unsent | None:
        """The same, without waiting, for a buffer with segments; what the sink doesn't take goes to
        :meth:`end_passing_on`.

        :raises LinkBroken: the sink has failed.
        """
        at_end, is_all = self.source.at_end, True
        try:
            for start, end in buffer.segments:
                self.layer.process(buffer.view, start, end)
            is_all = self.sink.begin_send(buffer, fin=at_end)
        finally:
            if is_all:
                POOL.give_back(buffer)
        return None if is_all else Unsent(self, buffer, at_end)

    async def end_passing_on(self, unsent: Unsent) -> bool:
        """Send the rest; whether that was the last.

        :raises LinkBroken: the sink has failed.
        """
        try:
            await self.sink.end_send()
            return unsent.at_end
        finally:
            POOL.give_back(unsent.buffer)


class _Splice:
    """Two directions. While bytes flow, a task moves those of each. At rest
    (:mod:`phantom_tun.net.links.rest`) there is none: what little arrives is moved at once, by whom
    all that rest have in common, and more starts a task."""

    __slots__ = (
        "_count",
        "_handles",
        "_has_moved",
        "_has_task",
        "_is_quiet",
        "_is_watched",
        "_mistake",
        "_moved_at",
        "_nursery",
        "_on_over",
        "_open",
        "_quick",
        "_spawn",
        "_unsent",
        "_uses",
        "_waiting",
    )

    def __init__(
        self,
        ways: list[Way],
        spawn: Spawn,
        on_over: Callable[[], None],
        count: Callable[[int], None],
    ) -> None:
        self._open = ways
        """Those that FIN hasn't gone through yet."""
        self._uses = tuple(way.source for way in ways)
        self._handles = _handles(ways)
        self._spawn = spawn
        self._on_over = on_over
        self._count = count
        self._has_task = False
        """Whether a task works on it, or it is over."""
        self._is_watched = False
        """Whether it is told what arrives."""
        self._quick = 0
        """How often in a row something came soon after something else."""
        self._moved_at = 0.0
        self._nursery: trio.Nursery | None = None
        """Of the tasks while bytes flow."""
        self._waiting = 0
        """How many of them wait for something to arrive."""
        self._has_moved = False
        """Whether they moved anything since the last look."""
        self._is_quiet = False
        """Whether they have to end, and leave what comes at this moment where it is."""
        self._unsent: Unsent | None = None
        """What has to be sent one way before anything else."""
        self._mistake: Exception | None = None
        """Of ours, while there was no task whose guard would see it."""

    def begin(self) -> None:
        """Move bytes from now on."""
        self._be_looked_at()
        if not self._come_to_rest():
            self._wake()

    # --- at rest --------------------------------------------------------------------------------

    def _come_to_rest(self) -> bool:
        """Whether it needs no task from now on: few bytes come, and none are there.

        :raises LinkBroken: the side that has sent FIN, from which nobody reads, has failed.
        """
        if self._unsent is not None:
            return False
        if len(self._open) < len(self._uses):
            for way in self._open:
                way.sink.check_after_fin()
        if self._quick >= FEW or not self._watch():
            return False
        if not all(way.source.is_quiet() for way in self._open):
            return False
        self._has_task = False
        return True

    def _watch(self) -> bool:
        if not self._is_watched and self._handles:
            try:
                rest().begin(self, self._handles)
            except (OSError, ValueError):  # too many for the kernel, or one is closed
                return False
            self._is_watched = True
        return self._is_watched

    def _unwatch(self) -> None:
        if self._is_watched:
            self._is_watched = False
            rest().end(self, self._handles)

    def arrived(self, handle: int) -> None:
        """See :class:`~phantom_tun.net.links.rest.Sleeper`."""
        if self._has_task:
            return
        try:
            if self._move_at_once(handle):
                return
        except (LinkBroken, PeerError):
            self._end()
            return
        except Exception as mistake:  # noqa: BLE001 - for the guard of a task
            self._mistake = mistake
        self._wake()

    def _move_at_once(self, handle: int) -> bool:
        """Move what little has come at one socket; whether it is still at rest.

        :raises LinkBroken: either side has failed.
        :raises PeerError: or broken the framing.
        """
        way = next((way for way in self._open if way.source.handle == handle), None)
        if way is None:
            return False  # there nothing comes any more but a failure
        buffer = way.source.take_now(LITTLE)
        if buffer is None:
            return way.source.is_quiet()  # a part of a record, or of a frame
        if not buffer.segments:
            POOL.give_back(buffer)
            return False  # FIN
        size = buffer.payload_len()
        self._unsent = way.pass_on_now(buffer)
        self._has_moved = True
        self._count(size)
        self._be_looked_at()
        if self._unsent is not None:
            self._quick = FEW  # neither way may hold up the other
            return False
        if way.source.at_end:
            self._open.remove(way)
            return False
        self._count_quick()
        return size <= SMALL and self._quick < FEW and way.source.is_quiet()

    def closing(self) -> None:
        """See :class:`~phantom_tun.net.links.rest.Sleeper`. A task would see it by itself."""
        if not self._has_task:
            self._end()

    def _wake(self) -> None:
        self._has_task = True
        if not self._spawn(self._work):
            self._end()

    # --- with a task ----------------------------------------------------------------------------

    async def _work(self) -> None:
        """Until it is at rest, or FIN went through both ways, or either side has failed."""
        try:
            if self._mistake is not None:
                raise self._mistake
            while self._open and not self._come_to_rest():
                self._be_looked_at()
                if self._is_watched and self._quick < FEW:
                    await self._move_little()
                else:
                    await self._flow()
            if not self._open:
                for use in self._uses:
                    await use.aclose()
        except* (LinkBroken, PeerError):
            pass
        finally:
            if self._has_task:
                self._end()

    def _end(self) -> None:
        """It is over, and nobody works on it: close links that are still in use."""
        self._has_task = True
        self._unwatch()
        if self._handles:
            rest().unwatch(self)
        if self._unsent is not None:
            POOL.give_back(self._unsent.buffer)
            self._unsent = None
        for use in self._uses:
            use.reset()
        self._on_over()

    async def _move_little(self) -> None:
        """What has come one way, in this task, which must not wait for room: it can't move what
        comes the other way meanwhile."""
        self._count_quick()
        for way in self._open:
            if not way.source.is_quiet():
                if not way.sink.has_room():
                    self._quick = FEW
                    return
                buffer = await way.source.take(LITTLE)
                if buffer is None:
                    await trio.lowlevel.checkpoint()  # a part of a record, or of a frame
                else:
                    await self._move(way, buffer)
                return

    def _count_quick(self) -> None:
        now = trio.current_time()
        self._quick = self._quick + 1 if now - self._moved_at < SPARSE else 0
        self._moved_at = now

    def _be_looked_at(self) -> None:
        if self._handles:
            rest().watch(self)

    def look(self) -> None:
        """See :class:`~phantom_tun.net.links.rest.Restless`."""
        if self._has_moved:
            self._has_moved = False
        elif not self._has_task:
            for way in self._open:
                way.layer.rest()
            rest().unwatch(self)
        elif (
            self._nursery is not None
            and self._waiting == len(self._open)
            and all(way.source.is_quiet() for way in self._open)
        ):
            self._is_quiet = True
            self._nursery.cancel_scope.cancel()

    async def _flow(self) -> None:
        """Until FIN went through both ways, or nothing moved for a while."""
        self._unwatch()
        self._quick = 0
        self._waiting = 0
        self._is_quiet = False
        try:
            async with trio.open_nursery() as self._nursery:
                for way in self._open:
                    self._nursery.start_soon(self._pump, way)
        finally:
            self._nursery = None
            self._moved_at = trio.current_time()

    async def _pump(self, way: Way) -> None:
        unsent = self._unsent
        if unsent is not None and unsent.way is way:
            self._unsent = None
            if await way.end_passing_on(unsent):
                self._open.remove(way)
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


def _handles(ways: list[Way]) -> tuple[int, ...]:
    """Sockets to watch at rest; none if it can't be at rest, or is over."""
    try:
        found = [way.source.handle for way in ways]
    except LinkBroken:
        return ()
    return () if None in found else tuple(handle for handle in found if handle is not None)


def ignore(_count: int = 0) -> None:
    """For those who don't count, or needn't know when it is over."""


def join(
    a: Bulk,
    b: Bulk,
    a_to_b: Layer,
    b_to_a: Layer,
    *,
    spawn: Spawn,
    on_over: Callable[[], None] = ignore,
    on_bytes: Callable[[int], None] = ignore,
) -> None:
    """Join two uses until FIN went through both ways, then release them; a reset, end or failure of
    either resets both. This doesn't wait: tasks of ``spawn`` do the work while there is any, and
    if it starts none any more, both are reset. ``on_over`` is called once, when that is over;
    ``on_bytes`` is told every chunk's size."""
    a.kept = b.kept = True
    _Splice([Way(b, a, b_to_a), Way(a, b, a_to_b)], spawn, on_over, on_bytes).begin()


async def splice(
    a: Bulk,
    b: Bulk,
    a_to_b: Layer,
    b_to_a: Layer,
    *,
    spawn: Spawn,
    on_bytes: Callable[[int], None] = ignore,
) -> None:
    """:func:`join`, and wait until it is over; if this is cancelled, it is. Doesn't raise for the
    peers' sake."""
    over = trio.Event()
    try:
        join(a, b, a_to_b, b_to_a, spawn=spawn, on_over=over.set, on_bytes=on_bytes)
        await over.wait()
    finally:
        a.reset()
        b.reset()
