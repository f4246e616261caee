"""What is wrong with a node, or weaker than its owner may think (``status``, "warning:")."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from phantom_tun.clock import MINUTE
from phantom_tun.net.addresses.pins import PinChanged
from phantom_tun.netdb.overrides import Standing
from phantom_tun.path.hop import PathKind
from phantom_tun.view.overrides import is_ban

if TYPE_CHECKING:
    from phantom_tun.node import Node
    from phantom_tun.wire.nodes import NodeRef

DEATHS = 3
"""Paths that die within :data:`DEATHS_WITHIN` before their owner is told."""
DEATHS_WITHIN = 10 * MINUTE
DIALED_WITHIN = 10 * MINUTE
"""In a network of any size a dialable node is dialed much sooner."""
JOINED_WITHIN = 10.0
"""Seconds after which it is worth a word that nobody has taken note of this node."""
TRIED_SHOWN = 6
"""Addresses of nodes that didn't answer which are named."""
REPEATED_DEATHS = 3
"""Times within ten minutes that a connection loses a tunnel again, before its owner is told."""
BUILT_WITHIN = 20.0
"""Seconds after the start from which on a missing path is worth a word even if no build failed."""


class PathDeaths:
    """Remembers when paths died before their time."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=1000)

    def note(self, now: float) -> None:
        """A path died."""
        self._times.append(now)

    def recent(self, now: float) -> int:
        """How many died within :data:`DEATHS_WITHIN`."""
        return sum(1 for time in self._times if now - DEATHS_WITHIN < time <= now)

    def warnings(self, now: float, or_banned: str = "") -> list[str]:
        """A sentence if there are too many; ``or_banned``: another cause that they may have."""
        count = self.recent(now)
        if count < DEATHS:
            return []
        return [
            f"{count} paths died before their time within {DEATHS_WITHIN / MINUTE:.0f} minutes: "
            "this machine's connection is bad, or nodes come and go, or somebody breaks paths so "
            f"that they are rebuilt through nodes of his{or_banned}; if it goes on, use guards you "
            "trust (guards.trusted) and avoid what must not be found out"
        ]


def warnings(node: Node) -> list[str]:
    """Sentences, the most urgent ones first."""
    if node.state == "joining":
        return [*node.interface_warnings(), *_joining(node)]
    if node.state in {"starting", "stopping"}:
        return []
    return [
        *node.interface_warnings(),
        *(str(PinChanged(change)) for change in node.pins.changes()),
        *_links(node),
        *_paths(node),
        *node.publisher_warnings(),
        *_bans(node),
        *node.deaths.warnings(node.clock.now(), "" if linked(node) else or_banned(node)),
        *_tunnels(node),
        *_files(node),
        *_dialing(node),
        *_exposure(node),
    ]


def _tunnels(node: Node) -> list[str]:
    """That connections lose one tunnel after the other."""
    count = node.repeated_deaths()
    if count < REPEATED_DEATHS:
        return []
    return [
        f"{count} times within ten minutes a connection lost a tunnel again: this machine's "
        "connection is bad, or nodes come and go, or somebody ends tunnels to see where they go "
        "next; if it goes on, close such connections ('phantom-tun tunnels list')"
    ]


def _files(node: Node) -> list[str]:
    reasons = [*node.netdb.unwritten.values(), node.guard_file.problem, node.pins.problem]
    return [
        f"{reason}; until then a restart may know less than this node does now"
        for reason in reasons
        if reason is not None
    ]


def _joining(node: Node) -> list[str]:
    if node.uptime() < JOINED_WITHIN:
        return []
    return [
        f"none of the nodes that the profile names has answered for {node.uptime():.0f} s"
        f"{_tried(node)}: is this machine connected, and is the profile of today"
        f"{or_banned(node)}? 'phantom-tun network show' shows it, and a member makes a new one "
        "with 'phantom-tun network invite'"
    ]


def _tried(node: Node) -> str:
    """Where they were looked for, and what came of it."""
    failures = node.netdb.unanswered()
    if not failures:
        return ""
    said = [f"{_place(ref)}: {reason}" for ref, reason in failures[:TRIED_SHOWN]]
    if len(failures) > TRIED_SHOWN:
        said.append(f"and {len(failures) - TRIED_SHOWN} other addresses")
    return f" ({'; '.join(said)})"


def _place(ref: NodeRef) -> str:
    host = f"[{ref.address}]" if ref.address.version == 6 else str(ref.address)
    return f"{host}:{ref.port}"


def _links(node: Node) -> list[str]:
    """That all others are gone, if there were any."""
    if linked(node) or node.uptime() < JOINED_WITHIN or is_alone(node):
        return []
    return [
        "no link to any other node stands: this machine's connection is gone"
        f"{or_banned(node)}; it goes on trying"
    ]


def linked(node: Node) -> int:
    """With how many other nodes a link for messages stands."""
    return sum(
        found.signalling and found.node_id != node.keys.node_id for found in node.links.neighbours()
    )


def is_alone(node: Node) -> bool:
    """Whether this node knows of no other, neither from the profile nor from meeting it."""
    named = any(found.node_id != node.keys.node_id for found in node.profile.bootstrap)
    return not named and not node.netdb.all_records()


def or_banned(node: Node) -> str:
    """What it may be, too, if nobody answers: a banned node isn't told."""
    possible = node.profile.override_keys and not _bans(node)
    return ", or the network has banned this node (nobody tells a banned node)" if possible else ""


def _paths(node: Node) -> list[str]:
    """One sentence for each identity and direction without a path."""
    consequences: dict[PathKind, str] = {
        "exit": "it can't reach anybody",
        "entry": "nobody can reach it",
    }
    found = []
    for identity in node.identities.all():
        standing = {
            "exit": node.connector.exit_count(identity.name),
            "entry": node.connector.entry_count(identity.name),
        }
        for kind, consequence in consequences.items():
            reason = node.paths.problem(identity.name, kind)
            if standing[kind] or (reason is None and node.uptime() < BUILT_WITHIN):
                continue
            reason = reason or "none is built yet"
            found.append(f"no {kind} path for {identity.name!r}, so {consequence}: {reason}")
    return found


def _bans(node: Node) -> list[str]:
    """Override commands against this node itself, as far as it heard of them."""
    own = node.netdb.own_record
    for command, standing in node.netdb.commands():
        if standing in {Standing.REPLACED, Standing.OVER_BUDGET}:
            continue
        if is_ban(command, own.node_id, own.ips):
            return [
                "an override command bans this node, so others cut their links with it: "
                "'phantom-tun override list' shows it and its signer; whoever holds that key can "
                "lift it"
            ]
    return []


def _exposure(node: Node) -> list[str]:
    """What paths without hops give away."""
    if not node.identities.all():
        return []
    found = []
    wishes = node.paths.wishes
    if wishes.exit_hops == 0:
        also = (
            ", and so where the address is that you connect from, which your entry paths hide from "
            "others (interface.ephemeral_callers doesn't name it)"
            if wishes.entry_hops
            else ""
        )
        found.append(
            f"exit paths have no hops, so whoever you connect to sees where this node is{also}: "
            "set paths.exit_hops, unless you want speed only"
        )
    if wishes.entry_hops == 0:
        also = (
            ", also those you connect to from them over exit paths with hops "
            "(interface.ephemeral_callers doesn't name them)"
            if wishes.exit_hops
            else ""
        )
        found.append(
            "entry paths have no hops, so everybody can find out where this node's addresses are"
            f"{also}: set paths.entry_hops, unless you want them to"
        )
    return found


def _dialing(node: Node) -> list[str]:
    if not node.config.node.dialable:
        return [
            "nobody can dial this node, so its neighbours can tell that it owns the paths it "
            "uses: prefer guards you trust (guards.trusted)"
        ]
    if node.dialable is None and node.uptime() >= DIALED_WITHIN:
        return [
            f"no other node has reached port {node.config.node.port} since the start: a firewall "
            "or router may be in the way; let it through, or set node.dialable to false"
        ]
    return []
