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

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from phantom_tun.control.model import PathInfo


@dataclass(frozen=True, slots=True)
class Ends:
    """The two nodes of a transfer, by name."""

    client: str
    server: str


def choose_ends(paths: Mapping[str, Iterable[PathInfo]], names: Mapping[str, str]) -> Ends | None:
    """Two nodes whose paths have no neighbour of theirs in common and avoid each other.

    In a network of a dozen nodes two users often share the node next to them, by chance and
    unknown to both; that node then sees both. With hundreds of nodes it is rare.

    :param paths: each node's own paths.
    :param names: node id to name.
    :returns: the last two that will do (the first ones are bootstrap nodes), or ``None``.
    """
    nodes = list(paths)
    for server in reversed(nodes):
        for client in reversed(nodes):
            if client == server:
                continue
            exits = [p for p in paths[client] if p.kind == "exit" and p.state == "ready"]
            entries = [p for p in paths[server] if p.kind == "entry" and p.state == "ready"]
            if not exits or not entries:
                continue
            near_client = {names.get(p.nodes[0]) for p in exits if p.nodes}
            near_server = {names.get(p.nodes[0]) for p in entries if p.nodes}
            members = {names.get(node) for p in [*exits, *entries] for node in p.nodes}
            if not near_client & near_server and not {client, server} & members:
                return Ends(client, server)
    return None


def way(
    ends: Ends, exit_path: PathInfo, entry_path: PathInfo, names: Mapping[str, str]
) -> list[str]:
    """The names of all nodes from client to server."""
    outward = [names.get(node, node[:8]) for node in exit_path.nodes]
    inward = [names.get(node, node[:8]) for node in reversed(entry_path.nodes)]
    return [ends.client, *outward, *inward, ends.server]


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
