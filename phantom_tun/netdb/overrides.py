"""Override commands: signed corrections of everybody's view of the network
(docs/spec/netdb.md, "Override commands").

Whoever holds an override key of the profile can ban a node or a prefix, delete the records of an AP
key or pin one; never more, and bans only within a budget. What is in force follows from the *set*
of valid commands: for each subject the one with the highest number counts, whatever order they
came in. So replaying or delaying a command changes nothing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from phantom_tun.clock import DAY, MINUTE
from phantom_tun.errors import CryptoError, RecordRefused, WireError
from phantom_tun.ids import ApAddress, NodeId, PublicKey
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.netdb.limits import SourceLimits
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.netdb.rules import MAX_SKEW
from phantom_tun.netdb.signing import verify_signature
from phantom_tun.wire.nodes import IpAddress
from phantom_tun.wire.records import (
    APKeyRecord,
    NodeRecord,
    OverrideAction,
    OverrideRecord,
    decode,
)

MAX_COMMAND_LIFETIME = 90 * DAY
MAX_COMMANDS = 1_024
"""Unexpired commands that a node keeps."""
BAN_SHARE = 0.05
"""Part of the known nodes that all bans together may cover; one node is always allowed."""
SHORTEST_PREFIX = {4: 8, 6: 16}
COMMANDS_PER_MINUTE = 30.0
COMMANDS_AT_ONCE = 100.0
"""From one neighbour, old ones included; what exceeds them is ignored."""

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_SUBJECT_GROUP = {
    OverrideAction.BAN_PREFIX: "prefix",
    OverrideAction.UNBAN_PREFIX: "prefix",
    OverrideAction.BAN_NODE: "node",
    OverrideAction.UNBAN_NODE: "node",
    OverrideAction.DELETE_RECORD: "ap",
    OverrideAction.PIN_RECORD: "ap",
}
"""Commands of one group about the same subject replace one another."""


@dataclass(frozen=True, slots=True)
class InForce:
    """What the commands amount to at a moment, for a set of known nodes."""

    banned_nodes: frozenset[NodeId] = frozenset()
    banned_prefixes: tuple[IpNetwork, ...] = ()
    deleted_keys: frozenset[bytes] = frozenset()
    pinned_keys: Mapping[ApAddress, bytes] = field(default_factory=dict)
    """Addresses that belong to an AP key whatever the votes say."""
    pinned_records: tuple[APKeyRecord, ...] = ()
    over_budget: tuple[OverrideRecord, ...] = ()
    """Bans that would cover too many nodes, or a trusted one, and are not in force."""

    def bans(self, record: NodeRecord) -> bool:
        """Whether a node is banned, itself or by any of its addresses."""
        return record.node_id in self.banned_nodes or any(
            self.bans_address(ip) for ip in record.ips
        )

    def bans_address(self, address: IpAddress) -> bool:
        """Whether an underlay address is banned."""
        return any(
            address.version == prefix.version and address in prefix
            for prefix in self.banned_prefixes
        )


NOTHING_IN_FORCE = InForce()


class Overrides:
    """The commands that a node knows."""

    def __init__(
        self,
        network: NetworkParams,
        keys: Collection[PublicKey],
        trusted: Collection[NodeId],
        *,
        enabled: bool = True,
    ) -> None:
        """``keys``: override verification keys of the profile; ``trusted``: nodes that are never
        banned; not ``enabled``: commands are checked and passed on, but none is in force."""
        self._network = network
        self._keys = frozenset(keys)
        self._trusted = frozenset(trusted)
        self._enabled = enabled
        self._commands: dict[tuple[bytes, int], OverrideRecord] = {}
        """By signer and number."""
        self._limits = SourceLimits(rate=COMMANDS_PER_MINUTE / MINUTE, burst=COMMANDS_AT_ONCE)

    def __len__(self) -> int:
        return len(self._commands)

    def commands(self) -> list[OverrideRecord]:
        """All commands known, lowest number first: what a new neighbour is told."""
        return sorted(self._commands.values(), key=_order)

    def receive(self, encoded: bytes, source: NodeId | None, now: float) -> OverrideRecord | None:
        """Take a command that ``source`` sent (None: a person here). Returns it if it is new and
        has to be passed on to all other neighbours; None if it is known or came too fast.

        :raises WireError: it does not parse.
        :raises RecordRefused: it is not signed by an override key, out of date, impossible, or its
            number was used for another command.
        """
        if source is not None and not self._limits.allows(source, now):
            return None
        command = decode(OverrideRecord, encoded)
        place = (command.signer, command.number)
        known = self._commands.get(place)
        if known == command:
            return None
        self._check(command, now)
        if known is not None:
            raise RecordRefused("the number was used for another override command")
        if len(self._commands) >= MAX_COMMANDS:
            self.expire(now)
            if len(self._commands) >= MAX_COMMANDS:
                raise RecordRefused("too many override commands are in force")
        self._commands[place] = command
        return command

    def expire(self, now: float) -> None:
        """Forget commands that ran out."""
        self._commands = {
            place: command for place, command in self._commands.items() if command.expires > now
        }

    def in_force(self, known: Collection[NodeRecord], now: float) -> InForce:
        """What counts now. ``known``: all nodes known, banned ones included, by which the budget
        for bans is reckoned."""
        if not self._enabled:
            return NOTHING_IN_FORCE
        budget = max(1, int(BAN_SHARE * len(known)))
        nodes: set[NodeId] = set()
        prefixes: list[IpNetwork] = []
        deleted: set[bytes] = set()
        pinned: dict[ApAddress, bytes] = {}
        records: list[APKeyRecord] = []
        refused: list[OverrideRecord] = []
        covered: set[NodeId] = set()
        for command in self._current(now):
            action = OverrideAction(command.action)
            if action in {OverrideAction.BAN_NODE, OverrideAction.BAN_PREFIX}:
                hit = self._covers(command, known)
                if len(covered | hit) > budget or hit & self._trusted:
                    refused.append(command)
                    continue
                covered |= hit
                if action is OverrideAction.BAN_NODE:
                    nodes.add(NodeId(command.subject))
                else:
                    prefixes.append(parse_prefix(command.subject))
            elif action is OverrideAction.DELETE_RECORD:
                deleted.add(command.subject)
            elif action is OverrideAction.PIN_RECORD:
                record = decode(APKeyRecord, command.record)
                records.append(record)
                pinned |= self._pins(record)
        return InForce(
            frozenset(nodes),
            tuple(prefixes),
            frozenset(deleted),
            pinned,
            tuple(records),
            tuple(refused),
        )

    def _check(self, command: OverrideRecord, now: float) -> None:
        if command.signer not in self._keys:
            raise RecordRefused("the override key isn't one of this network's")
        try:
            verify_signature(command, self._network.network_id)
        except CryptoError as error:
            raise RecordRefused("the override command isn't signed by its key") from error
        if command.created > now + MAX_SKEW or command.expires <= now:
            raise RecordRefused("the override command is not valid yet or no longer")
        if not 0 < command.expires - command.created <= MAX_COMMAND_LIFETIME:
            raise RecordRefused("an override command lasts at most 90 days")
        self._check_subject(command)

    def _check_subject(self, command: OverrideRecord) -> None:
        match OverrideAction(command.action):
            case OverrideAction.BAN_PREFIX | OverrideAction.UNBAN_PREFIX:
                parse_prefix(command.subject)
            case OverrideAction.PIN_RECORD:
                record = decode(APKeyRecord, command.record)
                try:
                    verify_signature(record, self._network.network_id)
                except CryptoError as error:
                    raise RecordRefused("only a record that its owner signed can be pinned") from (
                        error
                    )
                if command.subject != record.public_key:
                    raise RecordRefused("a pinned record belongs to the key that is named")
                return
            case _:
                if len(command.subject) != 32:
                    raise RecordRefused("the override command names no node or key")
        if command.record:
            raise RecordRefused("only pinning takes a record")

    def _current(self, now: float) -> list[OverrideRecord]:
        """For each subject the command with the highest number, lowest number first."""
        latest: dict[tuple[str, bytes], OverrideRecord] = {}
        for command in self.commands():
            if command.expires > now:
                group = _SUBJECT_GROUP[OverrideAction(command.action)]
                latest[group, command.subject] = command
        return sorted(latest.values(), key=_order)

    def _covers(self, command: OverrideRecord, known: Iterable[NodeRecord]) -> set[NodeId]:
        if command.action == OverrideAction.BAN_NODE:
            return {NodeId(command.subject)}
        alone = InForce(banned_prefixes=(parse_prefix(command.subject),))
        return {record.node_id for record in known if alone.bans(record)}

    def _pins(self, record: APKeyRecord) -> dict[ApAddress, bytes]:
        pins: dict[ApAddress, bytes] = {
            ap6_address(self._network, record.public_key): record.public_key
        }
        if record.ap4_n is not None:
            pins[ap4_candidate(self._network, record.public_key, record.ap4_n)] = record.public_key
        return pins


def pack_prefix(prefix: IpNetwork) -> bytes:
    """The subject of a command about a prefix: address ‖ length u8."""
    return prefix.network_address.packed + bytes([prefix.prefixlen])


def parse_prefix(subject: bytes) -> IpNetwork:
    """Undo :func:`pack_prefix`.

    :raises WireError: no prefix, bits beyond its length, or so short that it covers a good part of
        the Internet.
    """
    if len(subject) not in {5, 17}:
        raise WireError("the override command names no prefix")
    try:
        prefix = ipaddress.ip_network((subject[:-1], subject[-1]))
    except ValueError as error:
        raise WireError("the override command names no prefix") from error
    if prefix.prefixlen < SHORTEST_PREFIX[prefix.version]:
        raise WireError("the override command names too large a part of the Internet")
    return prefix


def _order(command: OverrideRecord) -> tuple[int, bytes]:
    return command.number, command.signer
