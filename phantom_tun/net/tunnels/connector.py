"""The ways in and out of this node's AP identities: which paths stand, and using them
(docs/spec/tunnel.md, "Owner")."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import trio

from phantom_tun.errors import PathUnavailable, PeerError, WorldError
from phantom_tun.ids import NodeId
from phantom_tun.net.addresses.ap_database import Route
from phantom_tun.net.tunnels.entry_node import EntryDesk
from phantom_tun.net.tunnels.exit_node import EntryDialer, ExitDatabase
from phantom_tun.net.tunnels.hub import TunnelHub
from phantom_tun.net.tunnels.owned_entry import Accept, DirectEntry, OwnedEntry
from phantom_tun.net.tunnels.owned_exit import DirectExit, OwnedExit
from phantom_tun.path.hop import OwnedPath

FIRST_TUNNEL_TIMEOUT = 8.0
"""Seconds for a freshly built path to give its first tunnel."""

WAIT_FOR_PATH = 15.0
"""Seconds that a connect waits for an exit path when there is none yet."""


MAX_ENDING = 8
"""Paths used once that are kept until they retire."""


class OwnerEvents(Protocol):
    """What the connector needs from the layers beside it."""

    async def handle_request(self, identity: str, sealed_request: bytes, accept: Accept) -> None:
        """Serve one inbound connection until it has ended."""
        ...

    async def throwaway_exit(self, identity: str) -> OwnedPath:
        """Build an exit path that will be used once.

        :raises WorldError: no path could be built.
        """
        ...

    def path_died(self, path: OwnedPath) -> None:
        """A standing path gives no tunnels any more."""
        ...

    def path_doubted(self, path: OwnedPath) -> None:
        """A standing path gives none at the moment."""
        ...


class Connector:
    """Holds every standing path of this node."""

    def __init__(
        self,
        hub: TunnelHub,
        desk: EntryDesk,
        database: ExitDatabase,
        dialer: EntryDialer,
        events: OwnerEvents,
    ) -> None:
        self._hub = hub
        self._desk = desk
        self._dialer = dialer
        self._database = database
        self._events = events
        self._exits: dict[str, list[OwnedExit | DirectExit]] = {}
        self._entries: dict[str, list[OwnedEntry | DirectEntry]] = {}
        self._retired: list[OwnedExit | DirectExit | OwnedEntry | DirectEntry] = []
        self._ending: list[OwnedExit] = []
        self._changed = trio.Event()

    # --- paths come and go ----------------------------------------------------------------------

    async def adopt(self, path: OwnedPath) -> None:
        """Use a freshly built path; returns when its first tunnel answered.

        :raises DeadlineExpired: it gave none; the path is dropped again.
        """
        user = self._plug_in(path)
        try:
            if isinstance(user, OwnedExit | OwnedEntry):
                await user.wait_first(FIRST_TUNNEL_TIMEOUT)
        except BaseException:
            user.unplug()
            raise
        if isinstance(user, OwnedExit | DirectExit):
            self._exits.setdefault(path.identity, []).append(user)
        else:
            self._entries.setdefault(path.identity, []).append(user)
        self._changed.set()
        self._changed = trio.Event()

    def drop(self, path: OwnedPath) -> None:
        """No new tunnels on ``path``; those in use finish by themselves. Idempotent."""
        for table in (self._exits, self._entries):
            for users in table.values():
                for user in [found for found in users if found.path is path]:
                    users.remove(user)  # type: ignore[arg-type]
                    user.retire()
                    self._retired.append(user)

    def _plug_in(self, path: OwnedPath) -> OwnedExit | DirectExit | OwnedEntry | DirectEntry:
        events = self._events
        user: OwnedExit | OwnedEntry | DirectEntry
        if path.kind == "exit":
            if not path.members:
                return DirectExit(path, self._hub, self._dialer, self._database)
            user = OwnedExit(path, self._hub, events.path_died, events.path_doubted)
        elif path.members:
            user = OwnedEntry(
                path, self._hub, events.handle_request, events.path_died, events.path_doubted
            )
        else:
            user = DirectEntry(path, self._desk, events.handle_request)
        user.plug_in()
        return user

    # --- looking --------------------------------------------------------------------------------

    def users(self) -> list[OwnedExit | DirectExit | OwnedEntry | DirectEntry]:
        """Every standing path with its tunnels."""
        found: list[OwnedExit | DirectExit | OwnedEntry | DirectEntry] = []
        for exits in self._exits.values():
            found += exits
        for entries in self._entries.values():
            found += entries
        return found

    def retired(self) -> list[OwnedExit | DirectExit | OwnedEntry | DirectEntry]:
        """Paths that take no new tunnels but still carry old ones."""
        self._retired = [user for user in self._retired if user.active]
        return list(self._retired)

    def routes(self, identity: str) -> list[Route]:
        """The ways in that stand."""
        return [
            Route(self._entry_node(user.path), user.path.entry_id, user.path.retires)
            for user in self._entries.get(identity, ())
            if user.path.entry_id is not None
        ]

    def _entry_node(self, path: OwnedPath) -> NodeId:
        return path.members[-1].node_id if path.members else self._hub.links.node_id

    def exit_count(self, identity: str) -> int:
        """Standing exit paths."""
        return len(self._exits.get(identity, ()))

    def entry_count(self, identity: str) -> int:
        """Standing entry paths."""
        return len(self._entries.get(identity, ()))

    # --- using ----------------------------------------------------------------------------------

    async def way_out(self, identity: str, apart: Collection[int] = ()) -> OwnedExit | DirectExit:
        """One of the identity's exit paths, if possible not one of those with a number in
        ``apart``.

        :raises PathUnavailable: none stands.
        """
        return await self._wait_exit(identity, None, apart)

    async def netdb_call(
        self, identity: str, call: bytes, *, path_index: int | None = None, private: bool = False
    ) -> bytes:
        """One strict-API call through an exit path: the ``path_index``-th of those that stand, or
        one built for just this call.

        :raises WorldError: no path, or no usable answer.
        """
        if private:
            async with self._private_exit(identity) as way:
                return await way.netdb_call(call)
        way = await self._wait_exit(identity, path_index)
        return await way.netdb_call(call)

    def _private_exit(self, identity: str) -> AbstractAsyncContextManager[OwnedExit | DirectExit]:
        @asynccontextmanager
        async def use() -> AsyncIterator[OwnedExit | DirectExit]:
            path = await self._events.throwaway_exit(identity)
            way = self._plug_in(path)
            assert isinstance(way, OwnedExit | DirectExit)  # noqa: S101
            try:
                if isinstance(way, OwnedExit):
                    await way.wait_filled(FIRST_TUNNEL_TIMEOUT)
                yield way
            finally:
                self._let_end(way)

        return use()

    def _let_end(self, way: OwnedExit | DirectExit) -> None:
        """A path that was used once goes on looking like any other until its time is over: one that
        is given up at once would be known for an exit path, and its owner's side with it."""
        self._ending = [ending for ending in self._ending if not ending.ended]
        if isinstance(way, OwnedExit) and len(self._ending) < MAX_ENDING:
            self._ending.append(way)
            self._hub.start_or(self._idle_until_retired, way.unplug, way)
        else:
            way.unplug()

    async def _idle_until_retired(self, way: OwnedExit) -> None:
        try:
            await trio.sleep(max(0.0, way.path.retires - self._hub.now()))
        finally:
            way.unplug()

    def queue_update(self, identity: str, call: bytes) -> None:
        """Have one of the identity's entry nodes carry out a netdb call, as soon as it opens a
        tunnel. With an entry path of length zero this node does it itself.

        :raises PathUnavailable: there's no entry path.
        """
        entries = self._entries.get(identity)
        if not entries:
            raise PathUnavailable("no entry path stands")
        entry = self._hub.rng.choice(entries)
        if isinstance(entry, OwnedEntry):
            entry.queue_update(call)
        else:
            self._hub.start(self._perform_here, call)

    async def _perform_here(self, call: bytes) -> None:
        try:
            await self._database.perform_for_entry(call)
        except (PeerError, WorldError):
            self._hub.counts["updates_failed"] += 1

    async def _wait_exit(
        self, identity: str, index: int | None, apart: Collection[int] = ()
    ) -> OwnedExit | DirectExit:
        with trio.move_on_after(WAIT_FOR_PATH):
            while not self._exits.get(identity):
                await self._changed.wait()
        exits = self._exits.get(identity)
        if not exits:
            raise PathUnavailable("no exit path stands yet; `phantom-tun status` says why")
        if index is not None:
            return exits[index % len(exits)]
        # Prefer paths that can answer at once; among those, choose by chance.
        fresh = [way for way in exits if way.number not in apart]
        ready = [way for way in fresh or exits if way.ready]
        return self._hub.rng.choice(ready or fresh or exits)
