"""What a node tells its owner about itself (docs/spec/control.md, "Answers").

All of it is the owner's own view and none of it is for others: path members and remote addresses
appear here and nowhere else. Ids are lower-case hex, AP and underlay addresses are text, times are
seconds. Decoding ignores fields it doesn't know, so that an older tool reads a newer node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

NodeState = Literal["starting", "joining", "building", "ready", "stopping"]
LeaseState = Literal["claiming", "held", "lost"]
Direction = Literal["out", "in"]
Kind = Literal["exit", "entry"]
PathState = Literal["building", "ready", "retired"]
Protocol = Literal["tcp", "udp"]
FlowProtocol = Literal["tcp", "udp", "icmp"]


class Answer(msgspec.Struct, frozen=True):
    """Base of all answers and events."""


class NetworkStatus(Answer, frozen=True):
    """Which network this is."""

    name: str
    network_id: str
    update_number: int


class IdentityStatus(Answer, frozen=True):
    """One AP identity: can it be reached, can it reach others?"""

    name: str
    ap4: str | None
    """``None`` until a lease was claimed."""
    ap4_state: LeaseState
    ap6: str
    exit_paths_ready: int
    entry_paths_ready: int


class NetdbStatus(Answer, frozen=True):
    """This node's part of the network database."""

    known_nodes: int
    records: int
    unusable: dict[str, int] = {}
    """How many of the known nodes can't be members of this node's paths, by reason."""


class LinkStatus(Answer, frozen=True):
    """Open links by use."""

    signalling: int
    bulk_idle: int
    bulk_busy: int


class TunnelStatus(Answer, frozen=True):
    """Routing tunnels: our own that wait and that work, and those we relay for others."""

    ready: int
    active: int
    relayed: int
    resumed: int = 0
    """Times that a connection lost its tunnel and went on over another one, since the start."""
    lost: int = 0
    """Connections that could have, and found none in time."""
    unprotected: int = 0
    """Connections that kept less than the far side hadn't confirmed, for some time at least."""


class BuildStatus(Answer, frozen=True):
    """Path builds since the start."""

    tried: int
    succeeded: int
    median_s: float | None
    """Median duration of the successful ones; ``None`` before the first."""
    shortage: str = ""
    """What the network lacks for paths of the length wished: nodes, or reachable guards."""


class Status(Answer, frozen=True):
    """The node at a glance."""

    version: str
    state: NodeState
    node_id: str
    pid: int
    uptime_s: float
    network: NetworkStatus
    dialable: bool | None
    """Whether other nodes reach our port; ``None`` while nobody tried."""
    relay_only: bool
    interface: str | None
    """Name of the interface, ``None`` without one."""
    identities: tuple[IdentityStatus, ...]
    netdb: NetdbStatus
    links: LinkStatus
    tunnels: TunnelStatus
    builds: BuildStatus
    drops: dict[str, int]
    """What was refused or dropped since the start, by reason; reasons with 0 are left out."""
    bootstrap: tuple[str, ...] = ()
    """How a network profile names this node: one line for each address; none if not dialable."""
    warnings: tuple[str, ...] = ()
    """Sentences: what is wrong or weaker than the owner may think, and what to do."""


class ExposeRule(Answer, frozen=True):
    """A service that others may reach: inbound is denied without one."""

    identity: str
    port: int
    protocol: Protocol
    to: tuple[str, ...]
    """Who may: AP addresses, or ``any`` alone for everybody."""
    target_port: int
    """Where the service listens on this machine."""
    hint: str = ""
    """When it is made: what is missing at the service, if this can be seen."""


class AddressInfo(Answer, frozen=True):
    """One AP identity and what it offers."""

    name: str
    ap4: str | None
    ap4_state: LeaseState
    ap6: str
    created: float
    """Seconds since the epoch."""
    exposed: tuple[ExposeRule, ...] = ()
    missing: tuple[str, ...] = ()
    """What it still waits for, in words; empty once it can be reached and can reach others."""


class PathInfo(Answer, frozen=True):
    """One of our routing paths."""

    id: str
    identity: str
    kind: Kind
    hops: int
    state: PathState
    age_s: float
    expires_in_s: float
    build_s: float | None
    """How long the build took; ``None`` while it lasts."""
    nodes: tuple[str, ...]
    """Node ids from our neighbour outward; the last is the terminating node."""
    tunnels_ready: int
    tunnels_active: int


class TunnelInfo(Answer, frozen=True):
    """One of our routing tunnels in use."""

    id: str
    path_id: str
    """The path that carries it, as in :class:`PathInfo`: our exit path or, inward, entry path."""
    identity: str
    direction: Direction
    remote: str
    """AP address and port of the far end; of an echo (``icmp``) the address alone."""
    protocol: FlowProtocol
    age_s: float
    bytes_in: int
    bytes_out: int
    resumed: int = 0
    """How often it has lost its tunnel and went on over another one."""
    state: Literal["open", "looking"] = "open"
    """``looking``: it has lost its tunnel and waits for another one."""


class PeerInfo(Answer, frozen=True):
    """A node we have links with."""

    node_id: str
    addresses: tuple[str, ...]
    links: int
    guard: bool
    roles: tuple[str, ...]
    """What it is to us: signalling, relay, path member, netdb …"""


class PingReply(Answer, frozen=True):
    """The fate of one echo request."""

    sequence: int
    size: int
    """Bytes of ICMP that came back."""
    rtt_ms: float | None
    """``None``: no answer in time, or ``error`` says why."""
    error: str | None = None


class PingSummary(Answer, frozen=True):
    """All of them."""

    sent: int
    received: int
    min_ms: float | None
    mean_ms: float | None
    max_ms: float | None

    @classmethod
    def of(cls, rtts_ms: Sequence[float | None]) -> PingSummary:
        """Sum up the round trips of all that were sent; ``None`` is one without an answer."""
        answered = [rtt for rtt in rtts_ms if rtt is not None]
        if not answered:
            return cls(len(rtts_ms), 0, None, None, None)
        mean = sum(answered) / len(answered)
        return cls(len(rtts_ms), len(answered), min(answered), mean, max(answered))


class NetdbRecord(Answer, frozen=True):
    """A record as the quorum gave it."""

    table: str
    """node, ap_key or ap_route."""
    fields: dict[str, str | int | float | bool]
    expires_in_s: float
    votes: int
    """Storers that gave this very record."""
    dissent: int
    """Storers that gave another valid one."""
    encoded: str = ""
    """An AP key record as it is, base64: what an override command can pin."""


class NetdbVote(Answer, frozen=True):
    """One edition of a key record, or of a node's record, and who vouches for it."""

    key: str
    """The AP key, or the node's key."""
    sequence: int
    """Editions rise: the record's sequence number, or when the node's record was made."""
    storers: int
    """Nodes that hold it."""


class NetdbPoll(Answer, frozen=True):
    """What one who was asked found out."""

    path_id: str
    """The exit path that the question took, ``private`` if it was built for it; empty for a node
    record, which is asked directly."""
    answerer: str
    """Node id of the exit node, or of the node that was asked; empty if it isn't known."""
    outcome: Literal["found", "nothing", "failed"]
    detail: str
    """Why it failed."""
    votes: tuple[NetdbVote, ...] = ()
    """What it believes first; what is behind that is dissent."""
    asked: int = 0
    """Storers that it asked."""
    answered: int = 0
    """Storers that answered it."""
    routes: int = 0


class NetdbAnswer(Answer, frozen=True):
    """What the network database says about an address or a node."""

    key: str
    records: tuple[NetdbRecord, ...]
    asked: int
    """Nodes that answered."""
    polls: tuple[NetdbPoll, ...] = ()
    """Everybody who was asked, if votes were wanted."""
    warning: str = ""
    """What is wrong with it: another owner than the pinned one, answers that don't agree."""


class PinChangeInfo(Answer, frozen=True):
    """A key that was refused because another one is pinned."""

    fingerprint: str
    confirmations: int
    """Different exit paths that gave it."""
    seen: float
    """Seconds since the epoch, last time."""
    explanation: str
    """What it may mean and what can be done."""


class PinInfo(Answer, frozen=True):
    """The key that an AP4 address had at first contact."""

    address: str
    fingerprint: str
    """The key in hex, in groups of 8."""
    confirmations: int
    """Different exit paths over which it was seen at first contact."""
    since: float
    """Seconds since the epoch."""
    change: PinChangeInfo | None = None
    """Another key that waits for the owner's decision."""


class OverrideInfo(Answer, frozen=True):
    """An override command that the node knows."""

    number: int
    signer: str
    """Public override key."""
    action: str
    subject: str
    """Node id, prefix or AP key."""
    created: float
    """Seconds since the epoch."""
    expires: float
    standing: Literal["in_force", "replaced", "over_budget", "too_few_known", "trusted", "off"]
    """What it amounts to here."""
    new: bool = False
    """Whether it wasn't known before; only when it is sent."""


class OverridesInfo(Answer, frozen=True):
    """All override commands that the node knows."""

    enabled: bool
    """Whether it obeys them."""
    keys: tuple[str, ...]
    """Who may give them: public keys of the network profile."""
    ban_limit: int
    """How many of the nodes known here all bans together may cover."""
    commands: tuple[OverrideInfo, ...]
    """Lowest number first."""


class Statistics(Answer, frozen=True):
    """Every counter of the node by part: ``{"links": {"opened": 12, …}, …}``."""

    groups: dict[str, dict[str, int | float]]


class Progress(Answer, frozen=True):
    """How far a long command is."""

    message: str
    done: int
    total: int


class WhyStep(Answer, frozen=True):
    """One thing that has to work on the way to an address."""

    name: str
    """interface, network, path, record, handshake or service."""
    outcome: Literal["trying", "ok", "failed", "skipped"]
    """``trying`` comes first, the outcome in an event of its own."""
    detail: str
    took_ms: float


WhyReason = Literal[
    "",
    "no_interface",
    "not_running",
    "no_links",
    "no_path",
    "no_ipv4_yet",
    "not_an_ap_address",
    "not_published",
    "owner_changed",
    "no_way_in",
    "no_answer",
    "refused",
    "not_exposed",
    "out_of_time",
    "other",
]


class Verdict(Answer, frozen=True):
    """The answer to `why`: does it work, where not, and what can be done."""

    reachable: bool
    summary: str
    fix: str
    """Empty when nothing needs to be done."""
    reason: WhyReason = ""
    """The same for programs; empty when it works."""


class Done(Answer, frozen=True):
    """It happened; there is nothing more to say."""
