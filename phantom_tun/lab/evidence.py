"""What the demonstration concludes from paths and captures. Pure, so that it can be tested.

Claims are about one transfer through a client's exit path and a server's entry path:

* the text that was transferred is in packets on the two ends' ``phantom0`` and in none on any
  node's ``eth0``;
* no node but the ends exchanged as much as half of the transfer with the client's underlay
  address *and* with the server's.

The second can't be said of every byte: nodes also exchange small messages of the network database
with whomever they like, and what they then know is that both are nodes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, groupby, pairwise, permutations

from phantom_tun.control.model import Kind, PathInfo


@dataclass(frozen=True, slots=True)
class Ends:
    """The two nodes of a transfer, by name."""

    client: str
    server: str


def choose_ends(paths: Mapping[str, Iterable[PathInfo]], names: Mapping[str, str]) -> Ends | None:
    """Two nodes whose paths have no neighbour of theirs in common and avoid each other.

    In a network of a dozen nodes two users often share the node next to them, by chance and
    unknown to both; that node then sees both. With hundreds of nodes it is rare. Of all pairs it
    is the one whose paths have the fewest members in common, since that is easiest to look at.

    :param paths: each node's own paths.
    :param names: node id to name.
    """
    exits = {node: _ready(own, "exit", names) for node, own in paths.items()}
    entries = {node: _ready(own, "entry", names) for node, own in paths.items()}
    best: tuple[int, Ends] | None = None
    for client, server in permutations(paths, 2):
        out, into = exits[client], entries[server]
        near_both = {path[0] for path in out if path} & {path[0] for path in into if path}
        out_members, into_members = set(chain(*out)), set(chain(*into))
        if not out or not into or near_both or {client, server} & (out_members | into_members):
            continue
        common = len(out_members & into_members)
        if best is None or common < best[0]:
            best = common, Ends(client, server)
    return best[1] if best is not None else None


def _ready(paths: Iterable[PathInfo], kind: Kind, names: Mapping[str, str]) -> list[list[str]]:
    """The members' names of the paths of a kind that can be used."""
    return [
        [names.get(node, node[:8]) for node in path.nodes]
        for path in paths
        if path.kind == kind and path.state == "ready"
    ]


@dataclass(frozen=True, slots=True)
class Way:
    """The nodes between two ends, by name, from client to server."""

    ends: Ends
    out: tuple[str, ...]
    """The client's exit path, the exit node last."""
    into: tuple[str, ...]
    """The server's entry path, the entry node first."""

    @property
    def nodes(self) -> list[str]:
        """All of them in order, the ends included. A node that is exit and entry appears once."""
        every = [self.ends.client, *self.out, *self.into, self.ends.server]
        return [name for name, _ in groupby(every)]


def possible_ways(
    ends: Ends, exits: Iterable[PathInfo], entries: Iterable[PathInfo], names: Mapping[str, str]
) -> list[Way]:
    """Every way that the two owners' paths allow."""
    entries = list(entries)
    return [
        Way(
            ends,
            tuple(names.get(node, node[:8]) for node in out.nodes),
            tuple(names.get(node, node[:8]) for node in reversed(into.nodes)),
        )
        for out in exits
        for into in entries
    ]


def travelled(ways: Iterable[Way], carried: Mapping[str, Collection[str]]) -> Way | None:
    """The way all of whose neighbours moved the transfer's bytes for each other."""
    for way in ways:
        if all(b in carried.get(a, ()) for a, b in pairwise(way.nodes)):
            return way
    return None


def carriers(traffic: Mapping[str, Mapping[str, int]], size: int) -> dict[str, set[str]]:
    """With whom each node exchanged at least half of a transfer of ``size`` bytes.

    :param traffic: bytes exchanged, by node and the node at the other end.
    """
    heavy = {
        node: {peer for peer, count in peers.items() if 2 * count >= size}
        for node, peers in traffic.items()
    }
    return {node: peers for node, peers in heavy.items() if peers}


def seeing_both(contacts: Mapping[str, Iterable[str]], ends: Ends) -> list[str]:
    """The nodes, ends excepted, that have both ends among their contacts."""
    both = {ends.client, ends.server}
    return [node for node, peers in contacts.items() if node not in both and both <= set(peers)]
