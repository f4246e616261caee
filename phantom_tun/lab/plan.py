"""What a lab shall be: the options, checked, and everything that follows from them alone.

Pure: nothing here touches the machine. Addresses of node *i*:

==========  ===================  =========================================
underlay    ``10.i.0.1/8``       its own /16; the whole /8 is on-link
underlay6   ``fd50:i::1/16``     its own /32; the whole /16 is on-link
MAC         ``02:50:54:00:0:i``  fixed, so that the delaying switch need not learn
==========  ===================  =========================================
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from phantom_tun.lab.errors import BadHops, BadLabOption, TooFewNodes, UnknownNode

DEFAULT_NAME = "lab"
MAX_NODES = 250
MAX_HOPS = 8
USUAL_HOPS = 3
MAX_DELAY_MS = 10_000.0
BOOTSTRAP_NODES = 3
MIN_NODES = 2

UNDERLAY4_PREFIX_LENGTH = 8
UNDERLAY6_PREFIX_LENGTH = 16

TomlScalar = str | int | float | bool
TomlValue = TomlScalar | list[TomlScalar]

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_RATE = re.compile(r"(\d+(?:\.\d+)?)(gbit|mbit|kbit|bit)")
_RATE_UNITS = {"gbit": 1e9, "mbit": 1e6, "kbit": 1e3, "bit": 1.0}
_MIN_RATE = 64_000.0
_OVERRIDE = re.compile(
    r"(?:(?P<node>n\d+):)?(?P<section>[a-z_]+)\.(?P<key>[a-z0-9_]+)=(?P<value>.*)"
)


@dataclass(frozen=True, slots=True)
class Override:
    """One ``--set``: a configuration value that differs from what the lab would write."""

    node: str | None
    """For this node only; ``None``: for every node."""
    section: str
    key: str
    value: TomlValue


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node of a lab."""

    index: int
    """1 … number of nodes."""
    relay_only: bool

    @property
    def name(self) -> str:
        """``n1`` …, as users call it."""
        return f"n{self.index}"

    @property
    def underlay(self) -> IPv4Address:
        """Its address on the lab's network, alone in its /16."""
        return IPv4Address(f"10.{self.index}.0.1")

    @property
    def underlay6(self) -> IPv6Address:
        """Its IPv6 address on the lab's network, alone in its /32."""
        return IPv6Address(f"fd50:{self.index:x}::1")

    @property
    def mac(self) -> str:
        """Its Ethernet address."""
        return f"02:50:54:00:00:{self.index:02x}"

    @property
    def bootstrap(self) -> bool:
        """Is it one of the nodes the profile names?"""
        return self.index <= BOOTSTRAP_NODES

    @property
    def roles(self) -> tuple[str, ...]:
        """What ``lab status`` calls it."""
        kind = "relay-only" if self.relay_only else "owner"
        return ("bootstrap", kind) if self.bootstrap else (kind,)


@dataclass(frozen=True, slots=True)
class LabPlan:
    """A lab as it shall be. Made by :func:`plan_lab`, which checks it."""

    name: str
    nodes: tuple[NodePlan, ...]
    exit_hops: int
    entry_hops: int
    rate: float | None
    """Bits per second of each node's link, each way; ``None``: as fast as the machine."""
    delay_ms: float
    """One way, between any two nodes; 0: none."""
    overrides: tuple[Override, ...]

    @property
    def switch_namespace(self) -> str:
        """The namespace in which the switch lives."""
        return f"{namespace_prefix(self.name)}sw"

    def namespace(self, node: NodePlan) -> str:
        """The namespace of one node."""
        return f"{namespace_prefix(self.name)}{node.name}"


def namespace_prefix(name: str) -> str:
    """What the names of all namespaces of lab ``name`` begin with, and no other lab's."""
    # A lab name never holds a dot, so "a" and "a-n1" can't be confused.
    return f"phantom.{name}."


def nodes_needed(hops: int) -> int:
    """The smallest lab in which a path of ``hops`` X-nodes can be built.

    Owner, ``hops`` X-nodes, as many Y-nodes again and ``hops - 1`` more, and one to spare
    (25 for 8 hops).
    """
    return 3 * hops + 1 if hops else MIN_NODES


def default_hops(nodes: int) -> int:
    """Three, or as many as a smaller lab can hold."""
    return max(h for h in range(USUAL_HOPS + 1) if nodes_needed(h) <= nodes or h == 0)


def parse_name(text: str) -> str:
    """A lab's name, checked: it becomes part of file and namespace names."""
    if not _NAME.fullmatch(text):
        raise BadLabOption(
            f"{text!r} can't be a lab's name: use 1 to 32 of a-z, 0-9 and inner hyphens"
        )
    return text


def parse_rate(text: str) -> float:
    """``'100mbit'`` → bits per second, in the units that ``tc`` uses."""
    match = _RATE.fullmatch(text.strip().lower())
    if not match:
        raise BadLabOption(f"{text!r} is no rate: write for example 100mbit, 1gbit or 512kbit")
    rate = float(match[1]) * _RATE_UNITS[match[2]]
    if not _MIN_RATE <= rate <= 1e11:
        raise BadLabOption(f"a rate of {text} is out of range: 64kbit to 100gbit")
    return rate


def parse_override(text: str) -> Override:
    """``[NODE:]section.key=value``; the value as in TOML, anything else is taken as a string."""
    match = _OVERRIDE.fullmatch(text)
    if not match:
        raise BadLabOption(
            f"{text!r} is no setting: write section.key=value, or n3:section.key=value"
        )
    return Override(match["node"], match["section"], match["key"], _toml_value(match["value"]))


def _toml_value(text: str) -> TomlValue:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str | int | float | bool) for item in items):
        raise BadLabOption(f"{text!r}: a setting is a string, a number, true, false or a list")
    plain: TomlValue = value
    return plain


def plan_lab(
    *,
    name: str,
    nodes: int,
    exit_hops: int | None = None,
    entry_hops: int | None = None,
    rate: str | None = None,
    delay_ms: float = 0.0,
    relay_only: int = 0,
    settings: tuple[str, ...] = (),
) -> LabPlan:
    """Check what was asked for and turn it into a plan.

    :raises LabUsageError: one of its kinds, saying what to ask for instead.
    """
    parse_name(name)
    for hops in (exit_hops, entry_hops):
        if hops is not None and not 0 <= hops <= MAX_HOPS:
            raise BadHops(f"{hops} hops can't be had: a path has 0 to {MAX_HOPS}")
    if nodes > MAX_NODES:
        raise BadLabOption(f"a lab has at most {MAX_NODES} nodes, not {nodes}")
    if nodes < MIN_NODES:
        raise TooFewNodes(f"a lab needs at least {MIN_NODES} nodes, not {nodes}")
    exit_hops = default_hops(nodes) if exit_hops is None else exit_hops
    entry_hops = default_hops(nodes) if entry_hops is None else entry_hops
    longest = max(exit_hops, entry_hops)
    if nodes < nodes_needed(longest):
        raise TooFewNodes(
            f"paths of {longest} hop{'s' if longest > 1 else ''} need a lab of at least "
            f"{nodes_needed(longest)} nodes, not {nodes}"
        )
    if not 0 <= relay_only < nodes:
        raise BadLabOption(
            f"{relay_only} of {nodes} nodes can't be relay-only: at least one must own an address"
        )
    if not 0 <= delay_ms <= MAX_DELAY_MS:
        raise BadLabOption(f"a delay of {delay_ms} ms is out of range: 0 to {MAX_DELAY_MS:.0f}")
    overrides = tuple(parse_override(text) for text in settings)
    planned = tuple(NodePlan(i, i > nodes - relay_only) for i in range(1, nodes + 1))
    names = {node.name for node in planned}
    for override in overrides:
        if override.node is not None and override.node not in names:
            raise UnknownNode(f"--set for {override.node}: the lab's nodes are n1 to n{nodes}")
    return LabPlan(
        name=name,
        nodes=planned,
        exit_hops=exit_hops,
        entry_hops=entry_hops,
        rate=parse_rate(rate) if rate is not None else None,
        delay_ms=delay_ms,
        overrides=overrides,
    )
