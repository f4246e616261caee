"""A chain of relays that are all different: the client and the service of our lab choose theirs
independently, and of a few relays one often stands in both their paths. With a rate limit its
host's line then carries a stream twice, which hardly ever happens in a network of usual size.

Product and defaults stay as they are: the two ends are asked for their own paths, and to replace
those that have something in common, as anybody may.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import count

from phantom_tun.config import PathsConfig
from phantom_tun.control.client import ControlClient
from phantom_tun.control.model import PathInfo
from phantom_tun.control.schema import ListPaths, RebuildPaths
from phantom_tun.errors import PhantomError
from phantom_tun.lab.bench.systems import Say

RELAYS = 26
"""At least so many has a lab where it matters: with three hops a new path has nothing in common
with the other side's two in every third case or so."""
RELAYS_PER_HOP = 8
TRIES = 20
WAIT_SECONDS = 30.0
"""For paths that are being built anyway."""
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class End:
    """The client's node or the service's."""

    node_id: str
    control: ControlClient


@dataclass(frozen=True, slots=True)
class Chain:
    """Keeps what a connection may pass free of relays that stand there twice."""

    client: End
    service: End
    say: Say
    learned: dict[str, PathInfo] = field(default_factory=dict)
    """Entry paths that the client may have heard of. They are served until they expire, so it may
    still use one that was replaced."""

    def part(self) -> str:
        """Have paths replaced until no relay can be passed twice, and neither end is a relay of the
        other. Returns what is still amiss after :data:`TRIES`, in words; empty: nothing.

        Exit paths are preferred: the client knows of new ones at once.

        :raises PhantomError: an end doesn't answer.
        """
        wanted = PathsConfig()
        for done in count():
            exits = self._standing(self.client, "exit", wanted.exit_paths)
            entries = self._standing(self.service, "entry", wanted.entry_paths)
            possible = list((self.learned | {path.id: path for path in entries}).values())
            worse_exits = clashing(exits, possible, self.service.node_id)
            worse_entries = [path for path in entries if self.client.node_id in path.nodes]
            if not (worse_exits or worse_entries) or done == TRIES:
                break
            self.say("   a relay stands on both sides: paths are rebuilt")
            for path in worse_entries:
                _replace(self.service.control, path)
            # What they have to differ from has changed otherwise.
            for path in () if worse_entries else worse_exits:
                _replace(self.client.control, path)
        self.learned.update({path.id: path for path in entries})
        if len(exits) < wanted.exit_paths or len(entries) < wanted.entry_paths:
            return "not all paths stood when it began, so a relay may have been passed twice"
        if worse_exits or any(self.client.node_id in path.nodes for path in possible):
            return f"a relay may have been passed twice, {TRIES} rebuilds of paths notwithstanding"
        return ""

    def _standing(self, end: End, kind: str, wanted: int) -> list[PathInfo]:
        """The paths that new tunnels may take, ``wanted`` of them if they come in time."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            found = _ready(end.control, kind)
            if len(found) >= wanted or time.monotonic() > deadline:
                return found
            time.sleep(POLL_SECONDS)


def relays_for(hops: int) -> int:
    """How many relays a lab needs, so that paths of this length come apart soon."""
    return max(RELAYS, RELAYS_PER_HOP * hops)


def clashing(
    exits: Sequence[PathInfo], entries: Collection[PathInfo], service: str
) -> list[PathInfo]:
    """The exit paths in which a node of an entry path stands, or the service's own."""
    taken = {service}.union(*(path.nodes for path in entries))
    return [path for path in exits if not taken.isdisjoint(path.nodes)]


def keep_out(control: ControlClient, kind: str, node_id: str, say: Say) -> None:
    """Have paths of this kind replaced until none goes through that node, or :data:`TRIES` times.

    :raises PhantomError: their owner doesn't answer.
    """
    for _ in range(TRIES):
        found = [path for path in _ready(control, kind) if node_id in path.nodes]
        if not found:
            return
        say("   one end is a relay of the other: paths are rebuilt")
        for path in found:
            _replace(control, path)


def _ready(control: ControlClient, kind: str) -> list[PathInfo]:
    """The paths of this kind that new tunnels may take."""
    found = control.call(ListPaths())
    return [path for path in found if (path.kind, path.state) == (kind, "ready")]


def _replace(control: ControlClient, path: PathInfo) -> None:
    """A path that is gone by itself, or isn't replaced in time, is looked at again anyway."""
    try:
        control.call(RebuildPaths(path.id))
    except PhantomError:
        time.sleep(POLL_SECONDS)
