"""Where idle tunnels wait, without a task of their own (docs/spec/links.md, "Rest").

Trio lets a task wait for one socket, so whoever waits for two needs two tasks, a nursery and the
frames of all that called them: 11 KB. Sockets of tunnels at rest are in an epoll of their own
instead, and one task of the whole process waits for that.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import trio
from trio.lowlevel import RunVar, wait_readable

from phantom_tun.errors import LinkBroken

LOOK_EVERY = 0.5
"""Seconds between two looks at tunnels that aren't at rest; one may come to rest when nothing has
moved for so long, and does before twice as long."""

_ARRIVAL = select.EPOLLIN | select.EPOLLET


class Resting(Protocol):
    """Keeps something that can be made again."""

    def rest(self) -> None:
        """Let go of it."""
        ...


class Restless(Protocol):
    """A tunnel that may come to rest."""

    def look(self) -> None:
        """It is asked now and then. Never raises."""
        ...


class Sleeper(Protocol):
    """A tunnel that is at rest, or was just now: it knows itself whether it is still."""

    def arrived(self, handle: int) -> None:
        """Something has come at this socket of its. Never raises."""
        ...

    def closing(self) -> None:
        """One of its sockets is about to be closed by this process. Never raises."""
        ...


class Rest:
    """All tunnels that are at rest, and those that might be soon."""

    __slots__ = ("_epoll", "_has_restless", "_restless", "_sleepers")

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._sleepers: dict[int, Sleeper] = {}
        """By each of their sockets."""
        self._restless: set[Restless] = set()
        """Those to look at."""
        self._has_restless = trio.Event()

    async def run(self) -> None:
        """Wake tunnels and look at others, until cancelled."""
        with self._epoll:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._look_regularly)
                while True:
                    await wait_readable(self._epoll.fileno())
                    for handle, _ in self._epoll.poll(0):
                        if handle in self._sleepers:
                            self._sleepers[handle].arrived(handle)

    async def _look_regularly(self) -> None:
        while True:
            await self._has_restless.wait()
            await trio.sleep(LOOK_EVERY)
            for one in list(self._restless):
                one.look()
            if not self._restless:
                self._has_restless = trio.Event()

    def watch(self, one: Restless) -> None:
        """Look at it from now on."""
        self._restless.add(one)
        self._has_restless.set()

    def unwatch(self, one: Restless) -> None:
        """Don't look at it any more. Idempotent."""
        self._restless.discard(one)

    def begin(self, sleeper: Sleeper, handles: Sequence[int]) -> None:
        """Tell ``sleeper`` what arrives at its sockets from now on. What was there before doesn't
        count.

        :raises OSError: the kernel can't watch so many.
        :raises ValueError: one of them is closed.
        """
        complete = False
        try:
            for handle in handles:
                self._epoll.register(handle, _ARRIVAL)
                self._sleepers[handle] = sleeper
            complete = True
        finally:
            if not complete:
                self.end(sleeper, handles)

    def end(self, sleeper: Sleeper, handles: Sequence[int]) -> None:
        """Don't any more. Idempotent."""
        for handle in handles:
            if self._sleepers.get(handle) is sleeper:
                self._forget(handle)

    def forget(self, handle: int) -> None:
        """See the function."""
        sleeper = self._sleepers.get(handle)
        if sleeper is not None:
            self._forget(handle)
            sleeper.closing()

    def _forget(self, handle: int) -> None:
        del self._sleepers[handle]
        if not self._epoll.closed:
            self._epoll.unregister(handle)


_REST: RunVar[Rest | None] = RunVar("rest", None)


def rest() -> Rest:
    """That of this process, which begins when it is first needed."""
    found = _REST.get()
    if found is None:
        found = Rest()
        _REST.set(found)
        trio.lowlevel.spawn_system_task(found.run)
    return found


@contextmanager
def watching(handle: int | None, on_arrival: Callable[[], None]) -> Iterator[None]:
    """Call ``on_arrival``, which never raises, whenever something arrives at this socket meanwhile,
    and before this process closes it.

    :raises LinkBroken: it can't be watched, or is closed already.
    """
    if handle is None:
        raise LinkBroken("the link can't be watched")
    sleeper, place, handles = _Watch(on_arrival), rest(), (handle,)
    try:
        place.begin(sleeper, handles)
    except (OSError, ValueError) as error:
        raise LinkBroken("the link can't be watched") from error
    try:
        yield
    finally:
        place.end(sleeper, handles)


class _Watch:
    """A :class:`Sleeper` that passes on what it hears."""

    __slots__ = ("closing",)

    def __init__(self, on_arrival: Callable[[], None]) -> None:
        self.closing = on_arrival

    def arrived(self, handle: int) -> None:
        del handle
        self.closing()


def forget(handle: int) -> None:
    """This socket is about to be closed: tell the tunnel that rests on it."""
    found = _REST.get()
    if found is not None:
        found.forget(handle)


def has_room(handle: int) -> bool:
    """Whether the kernel would take bytes for this socket at once."""
    poll = select.poll()
    poll.register(handle, select.POLLOUT)
    return bool(poll.poll(0))
