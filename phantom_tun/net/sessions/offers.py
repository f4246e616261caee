"""One local service for all attempts of a call (docs/spec/session.md, "Being connected to").

A caller whose route is slow tries another one beside it, and an application repeats its SYN. To the
local service all these requests are one caller with one port. They share one connection to it, and
the first attempt that completes TLS has it. A later call of the same two ends replaces it: the
caller knows that the earlier one is dead, and we may not have noticed yet.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import trio

from phantom_tun.errors import Filtered

ONE_CALL = 30
"""Seconds by which the times of a call's requests differ at most: they are made within 20 s
(``opening.OPEN_WITHIN``) and rounded down to multiples of 15. Somebody who holds one back
for longer can't pass it off as another call's."""


class Abortable(Protocol):
    """A local service that has accepted."""

    def abort(self) -> None:
        """Give it up."""
        ...


ServiceT = TypeVar("ServiceT", bound=Abortable)


@dataclass(slots=True)
class Offer(Generic[ServiceT]):
    """A local service that waits for one of the attempts of a call."""

    service: ServiceT
    made: int
    """When the request was made for which it was asked."""
    is_taken: bool = False
    is_lost: bool = False
    """Whoever has it has lost its tunnel: who makes the call anew goes first."""

    def take(self) -> None:
        """Have the service for oneself alone.

        :raises Filtered: another attempt has it.
        """
        if self.is_taken:
            raise Filtered("another attempt of this call has the service")
        self.is_taken = True


@dataclass(slots=True)
class _Call(Generic[ServiceT]):
    """All attempts between the same two ends."""

    attempts: int = 0
    made: int = 0
    """Attempts until now, those that have left included."""
    offer: Offer[ServiceT] | None = None
    connecting: trio.Lock = field(default_factory=trio.Lock)


class Offers(Generic[ServiceT]):
    """All services that have been asked for a caller, by the two ends of the call."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, _Call[ServiceT]] = {}

    @asynccontextmanager
    async def joined(
        self,
        ends: Hashable,
        made: int,
        connect: Callable[[], Awaitable[ServiceT]],
        *,
        gives_way: bool = False,
    ) -> AsyncIterator[Offer[ServiceT]]:
        """The offer for ``ends``, while this is open. The first attempt makes it with ``connect``;
        when the last one has left and none took it, the service is given up.

        :param made: the time in the request.
        :param gives_way: later attempts go first: the caller has given this one up for them.

        :raises Filtered: an earlier attempt has the service already, or a later one shall.
        :raises ConnectFailed: as ``connect``.
        """
        old = self._calls.get(ends)
        if old is not None and (given_up := _given_up(old, made)):
            given_up.service.abort()
            del self._calls[ends]
        call = self._calls.setdefault(ends, _Call())
        call.attempts += 1
        call.made += 1
        number = call.made
        try:
            async with call.connecting:
                if call.offer is None:
                    call.offer = Offer(await connect(), made)
            if call.offer.is_taken:
                raise Filtered("this call is connected already")
            if gives_way and call.made > number:
                raise Filtered("the caller has made another attempt")
            yield call.offer
        finally:
            call.attempts -= 1
            if not call.attempts:
                if self._calls.get(ends) is call:
                    del self._calls[ends]
                if call.offer is not None and not call.offer.is_taken:
                    call.offer.service.abort()


def _given_up(call: _Call[ServiceT], made: int) -> Offer[ServiceT] | None:
    """What the call has, if a request is of a later one."""
    offer = call.offer
    if offer is None or not offer.is_taken:
        return None
    return offer if offer.is_lost or made - offer.made > ONE_CALL else None
