"""The ways in and out of this node's AP identities: which paths stand, and using them
(docs/spec/tunnel.md, "Owner")."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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

MAX_PRIVATE = 6
"""Private exit paths of one identity that stand at one time. Beyond that the one that was used
longest ago is used once more."""
MAX_ENDING = 64
"""Paths out of use that are kept up until their time is over, private ones included; beyond that,
those go first on which no tunnel is left."""

LOOK_EVERY = 10.0
"""Seconds between looks at the clock, which may jump."""


class OwnerEvents(Protocol):
    """What the connector needs from the layers beside it."""

    async def handle_request(self, identity: str, sealed_request: bytes, accept: Accept) -> None:
        """Serve one inbound connection until it has ended."""
        ...

    async def private_exit(self, identity: str) -> OwnedPath:
        """Build an exit path for a question about the identity itself, of no fewer hops than its
        entry paths.

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
        self._asides: dict[str, list[OwnedExit | DirectExit]] = {}
        self._entries: dict[str, list[OwnedEntry | DirectEntry]] = {}
        self._entry_hops: dict[str, int] = {}
        """How well the identities' entry paths hide their owner."""
        self._retired: list[OwnedExit | DirectExit | OwnedEntry | DirectEntry] = []
        self._private: list[OwnedExit] = []
        """Those that stand, the one first that was used longest ago."""
        self._ending: dict[OwnedExit | OwnedEntry, trio.CancelScope] = {}
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
            table = self._asides if path.aside else self._exits
            table.setdefault(path.identity, []).append(user)
        else:
            self._entries.setdefault(path.identity, []).append(user)
            self._entry_hops[path.identity] = path.hops
        self._changed.set()
        self._changed = trio.Event()

    def drop(self, path: OwnedPath) -> None:
        """Use ``path`` for nothing new; tunnels in use finish by themselves. Idempotent."""
        for table in (self._exits, self._asides, self._entries):
            for users in table.values():
                for user in [found for found in users if found.path is path]:
                    users.remove(user)  # type: ignore[arg-type]
                    self._let_end(user)
                    self._retired.append(user)

    def _let_end(self, user: OwnedExit | DirectExit | OwnedEntry | DirectEntry) -> None:
        """A path out of use goes on looking like any other until its time is over. If its owner
        ended an exit path as soon as it is replaced, or was used, hops would know it from an entry
        path, and their owner's side with it."""
        if isinstance(user, OwnedExit | DirectExit):
            user.ended = True
        if isinstance(user, DirectExit | DirectEntry):
            user.unplug()
            return
        while len(self._ending) >= MAX_ENDING:
            self._end(min(self._ending, key=lambda one: (one.ready > 0, one.ends)))
        scope = self._ending[user] = trio.CancelScope()
        self._hub.start_or(self._wait_end, lambda: self._end(user), user, scope)

    async def _wait_end(self, user: OwnedExit | OwnedEntry, scope: trio.CancelScope) -> None:
        try:
            with scope:
                left = user.ends - self._hub.now()
                while left > 0:
                    await trio.sleep(min(left, LOOK_EVERY))
                    left = user.ends - self._hub.now()
        finally:
            self._end(user)

    def _end(self, user: OwnedExit | OwnedEntry) -> None:
        scope = self._ending.pop(user, None)
        if scope is not None:
            scope.cancel()
            user.unplug()
        if user in self._private:
            self._private.remove(user)

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
        """Every standing path that connections are made over, with its tunnels."""
        found: list[OwnedExit | DirectExit | OwnedEntry | DirectEntry] = []
        for exits in self._exits.values():
            found += exits
        for entries in self._entries.values():
            found += entries
        return found

    def standing(self) -> list[OwnedPath]:
        """Every path that a pool keeps up, those for questions too."""
        asides = (way.path for ways in self._asides.values() for way in ways)
        return [*(user.path for user in self.users()), *asides]

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

    def exit_count(self, identity: str, *, hidden: bool = False) -> int:
        """Standing exit paths; with ``hidden``: that hide the owner as well as its entry paths."""
        return len(self._ways(identity, hidden=hidden))

    def _ways(self, identity: str, *, hidden: bool) -> Sequence[OwnedExit | DirectExit]:
        exits = self._exits.get(identity, [])
        if not hidden:
            return exits
        least = self._entry_hops.get(identity, 0)
        ways = (*exits, *self._asides.get(identity, ()))
        return [way for way in ways if way.path.hops >= least]

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
        self,
        identity: str,
        call: bytes,
        *,
        path_index: int | None = None,
        hidden: bool = False,
        private: bool = False,
    ) -> bytes:
        """One strict-API call through an exit path: see
        :class:`~phantom_tun.net.addresses.ap_database.ApDatabase`.

        :raises WorldError: no path, or no usable answer.
        """
        if private:
            way = await self._private_exit(identity)
        else:
            way = await self._wait_exit(identity, path_index, hidden=hidden)
        return await way.netdb_call(call)

    async def _private_exit(self, identity: str) -> OwnedExit | DirectExit:
        """An exit path that is used for one question, unless there are too many of them: who gets
        no answer would have one after the other built."""
        own = [way for way in self._private if way.path.identity == identity]
        if len(own) >= MAX_PRIVATE:
            # Never twice in a row: a second question may be there to check the answer to the first.
            usable = next((way for way in own[:-1] if way.ready), None)
            if usable is not None:
                self._private.remove(usable)
                self._private.append(usable)
                return usable
            self._end(own[0])
        way = self._plug_in(await self._events.private_exit(identity))
        assert isinstance(way, OwnedExit | DirectExit)  # noqa: S101
        if isinstance(way, OwnedExit):
            self._private.append(way)
        self._let_end(way)
        if isinstance(way, OwnedExit):
            await way.wait_filled(FIRST_TUNNEL_TIMEOUT)
        return way

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
        self,
        identity: str,
        index: int | None,
        apart: Collection[int] = (),
        *,
        hidden: bool = False,
    ) -> OwnedExit | DirectExit:
        with trio.move_on_after(WAIT_FOR_PATH):
            while not self._ways(identity, hidden=hidden):
                await self._changed.wait()
        exits = self._ways(identity, hidden=hidden)
        if not exits:
            raise PathUnavailable("no exit path stands yet; `phantom-tun status` says why")
        if index is not None:
            return exits[index % len(exits)]
        # Prefer paths that can answer at once; among those, choose by chance.
        fresh = [way for way in exits if way.number not in apart]
        ready = [way for way in fresh or exits if way.ready]
        return self._hub.rng.choice(ready or fresh or exits)
