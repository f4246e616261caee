"""Override commands: signed corrections of everybody's view of the network
(docs/spec/netdb.md, "Override commands").

Whoever holds an override key of the profile can ban a node or a prefix, delete the records of an AP
key or pin one; never more, and bans only within a budget. What is in force follows from the *set*
of valid commands: for each subject the one with the highest number counts, whatever order they
came in. So replaying or delaying a command changes nothing.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from phantom_tun.clock import DAY, MINUTE
from phantom_tun.crypto.hashes import h
from phantom_tun.errors import CryptoError, RecordRefused
from phantom_tun.ids import ApAddress, NodeId, PublicKey
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.netdb.banned import IpNetwork, Places, PrefixSet, parse_prefix
from phantom_tun.netdb.limits import SourceLimits
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.netdb.rules import MAX_SKEW
from phantom_tun.netdb.signing import verify_signature
from phantom_tun.wire.netdb import MAX_COMMANDS_IN_ANSWER, OverrideList
from phantom_tun.wire.nodes import IpAddress, NodeRef
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
ENOUGH_KNOWN = 60
"""Nodes to be known before a ban of a prefix is obeyed. When none of so many is in a prefix, at
most 5 % of all nodes are, with 95 % certainty (0.95^60 < 0.05); with fewer known it can be any part
of the network. Bans of single addresses are obeyed before, but each counts as one node at least, as
a ban of an id does."""
COMMANDS_PER_MINUTE = 30.0
COMMANDS_AT_ONCE = 100.0
"""New ones from one neighbour; what exceeds them is refused."""
MAX_AHEAD = 256
"""Nodes to be asked for commands, and sets of them, that are remembered."""
LAG_PAUSE = 10.0
"""Seconds between two times that a node is asked because it brought too many."""
PAGE_LEN = 15_000
"""Bytes of commands in one answer, about."""

_SUBJECT_GROUP = {
    OverrideAction.BAN_PREFIX: "prefix",
    OverrideAction.UNBAN_PREFIX: "prefix",
    OverrideAction.BAN_NODE: "node",
    OverrideAction.UNBAN_NODE: "node",
    OverrideAction.DELETE_RECORD: "ap",
    OverrideAction.PIN_RECORD: "ap",
}
"""Commands of one group about the same subject replace one another."""


class NumberTaken(RecordRefused):
    """The number names another command already."""


class TooManyCommands(RecordRefused):
    """There is no room for another command."""


class TooFast(RecordRefused):
    """A neighbour brings more new commands than it may."""


class Standing(enum.Enum):
    """What a command amounts to at the moment."""

    IN_FORCE = "in_force"
    REPLACED = "replaced"
    """A later one about the same subject counts."""
    OVER_BUDGET = "over_budget"
    """A ban that would make all bans cover too many nodes."""
    TOO_FEW_KNOWN = "too_few_known"
    """A ban of a prefix, and too few nodes are known to tell how many are in it."""
    TRUSTED = "trusted"
    """It would ban a node that is trusted here."""
    OFF = "off"
    """This node obeys none."""


@dataclass(frozen=True, slots=True)
class InForce:
    """What the commands amount to at a moment, for a set of known nodes."""

    banned_nodes: frozenset[NodeId] = frozenset()
    banned_prefixes: tuple[IpNetwork, ...] = ()
    trusted: frozenset[NodeId] = frozenset()
    """Never banned, whatever their addresses."""
    deleted_keys: frozenset[bytes] = frozenset()
    pinned_keys: Mapping[ApAddress, bytes] = field(default_factory=dict)
    """Addresses that belong to an AP key whatever the votes say."""
    pinned_records: tuple[APKeyRecord, ...] = ()
    not_obeyed: Mapping[OverrideRecord, Standing] = field(default_factory=dict)
    """Bans that would cover a trusted node or too many, or for all that is known could."""
    _prefixes: PrefixSet = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_prefixes", PrefixSet(self.banned_prefixes))

    def bans(self, record: NodeRecord) -> bool:
        """Whether a node is banned, itself or by any of its addresses."""
        return any(self.bans_peer(record.node_id, ip) for ip in record.ips)

    def bans_peer(self, node_id: NodeId, address: IpAddress) -> bool:
        """Whether a node at an underlay address is banned."""
        if node_id in self.trusted:
            return False
        return node_id in self.banned_nodes or address in self._prefixes


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
        self.keys = frozenset(keys)
        self.enabled = enabled
        self._trusted = frozenset(trusted)
        self._commands: dict[tuple[int, bytes], OverrideRecord] = {}
        """By number and signer."""
        self._limits = SourceLimits(rate=COMMANDS_PER_MINUTE / MINUTE, burst=COMMANDS_AT_ONCE)
        self._lags = SourceLimits(rate=1 / LAG_PAUSE, burst=1.0)
        self._ahead: dict[NodeRef, bytes] = {}
        """Nodes that may know commands we missed, with the digests they sent."""
        self._asked: dict[bytes, None] = {}
        """Digests of sets that we got in full."""
        self._digest = (-1, 0.0, b"")
        """The one that was worked out last: after which change, until when, which."""
        self.changes = 0
        """Counts what was taken in; whoever writes the commands to disk compares."""

    def __len__(self) -> int:
        return len(self._commands)

    def commands(self) -> list[OverrideRecord]:
        """All commands known, lowest number first."""
        return [self._commands[place] for place in sorted(self._commands)]

    def receive(self, encoded: bytes, source: NodeId | None, now: float) -> OverrideRecord | None:
        """Take a command that ``source`` sent (None: a person here, or we asked for it). Returns it
        if it is new and has to be passed on to all other neighbours; None if it is known.

        :raises WireError: it does not parse.
        :raises TooFast: ``source`` brings too many.
        :raises NumberTaken: its number was used for another command.
        :raises TooManyCommands: there is no room for it.
        :raises RecordRefused: it is not signed by an override key, out of date or impossible.
        """
        command = decode(OverrideRecord, encoded)
        place = (command.number, command.signer)
        known = self._commands.get(place)
        if known == command:
            return None
        if source is not None and not self._limits.allows(source, now):
            raise TooFast("a node brings more override commands than it may")
        self.check(command, now)
        if known is not None:
            raise NumberTaken("the number was used for another override command")
        if len(self._commands) >= MAX_COMMANDS:
            self.expire(now)
            if len(self._commands) >= MAX_COMMANDS:
                raise TooManyCommands("too many override commands are in force")
        self._commands[place] = command
        self.changes += 1
        return command

    def expire(self, now: float) -> None:
        """Forget commands that ran out."""
        expired = [place for place, known in self._commands.items() if known.expires <= now]
        for place in expired:
            del self._commands[place]
        self.changes += len(expired)

    def digest(self, now: float) -> bytes:
        """Names the set of commands known: whoever has another digest may know others. Empty if
        none is known, or none can be, because the network has no override keys."""
        changes, until, digest = self._digest
        if changes != self.changes or now >= until:
            current = [command for command in self.commands() if command.expires > now]
            digest = digest_of(current) if current else b""
            until = min((command.expires for command in current), default=math.inf)
            self._digest = (self.changes, until, digest)
        return digest

    def compare(self, ref: NodeRef, digest: bytes, now: float) -> None:
        """A node said which commands it knows."""
        if digest and self.keys and digest not in self._asked and digest != self.digest(now):
            self._note_ahead(ref, digest)

    def lag(self, ref: NodeRef, now: float) -> None:
        """A node brought more than we took from it: it is asked for the rest, at our own pace."""
        if ref not in self._ahead and self._lags.allows(ref.node_id, now):
            self._note_ahead(ref, b"")

    def next_to_ask(self, now: float) -> tuple[NodeRef, bytes] | None:
        """A node that still seems to know commands we don't, and the digest it sent, or none; it is
        named once."""
        own = self.digest(now)
        while self._ahead:
            ref = next(iter(self._ahead))
            digest = self._ahead.pop(ref)
            if not digest or (digest != own and digest not in self._asked):
                return ref, digest
        return None

    def got(self, digest: bytes) -> None:
        """All commands of the set that ``digest`` names were got: nobody needs to be asked for them
        again, even if not all of them were taken."""
        if len(self._asked) >= MAX_AHEAD:
            del self._asked[next(iter(self._asked))]
        self._asked[digest] = None

    def page(self, number: int, signer: bytes) -> OverrideList:
        """The commands that come after a place in their order, as many as one answer holds."""
        found: list[bytes] = []
        room = PAGE_LEN
        for command in self.commands():
            if (command.number, command.signer) > (number, signer):
                room -= len(command.encoded)
                if room < 0 or len(found) == MAX_COMMANDS_IN_ANSWER:
                    break
                found.append(command.encoded)
        return OverrideList(tuple(found))

    def in_force(
        self, known: Collection[NodeRecord], now: float, *, unmet: Collection[NodeRecord] = ()
    ) -> InForce:
        """What counts now. ``known``: all nodes known, banned ones included, which the budget for
        bans is a part of; ``unmet``: further ones that count against it if a ban covers them."""
        if not self.enabled:
            return NOTHING_IN_FORCE
        places = Places((*known, *unmet) if self._commands else ())
        budget = ban_budget(len(known))
        few = len(known) < ENOUGH_KNOWN
        nodes: set[NodeId] = set()
        prefixes: list[IpNetwork] = []
        deleted: set[bytes] = set()
        pinned: dict[ApAddress, bytes] = {}
        records: list[APKeyRecord] = []
        not_obeyed: dict[OverrideRecord, Standing] = {}
        covered: set[NodeId] = set()
        for command in self._current(now):
            match OverrideAction(command.action):
                case OverrideAction.BAN_NODE | OverrideAction.BAN_PREFIX:
                    hit = _covers(command, places) - self._trusted
                    if not hit and (few or command.action == OverrideAction.BAN_PREFIX):
                        hit = {NodeId(command.digest)}  # who may be there and isn't known yet
                    if command.subject in self._trusted:
                        not_obeyed[command] = Standing.TRUSTED
                    elif few and not _is_one_place(command):
                        not_obeyed[command] = Standing.TOO_FEW_KNOWN
                    elif len(covered | hit) > budget:
                        not_obeyed[command] = Standing.OVER_BUDGET
                    elif command.action == OverrideAction.BAN_NODE:
                        covered |= hit
                        nodes |= hit
                    else:
                        covered |= hit
                        prefixes.append(parse_prefix(command.subject))
                case OverrideAction.DELETE_RECORD:
                    deleted.add(command.subject)
                case OverrideAction.PIN_RECORD:
                    record = decode(APKeyRecord, command.record)
                    records.append(record)
                    pinned |= self._pins(record)
                case OverrideAction.UNBAN_NODE | OverrideAction.UNBAN_PREFIX:
                    pass  # that it replaced a ban is all there is to it
        return InForce(
            frozenset(nodes),
            tuple(prefixes),
            self._trusted if nodes or prefixes else frozenset(),
            frozenset(deleted),
            pinned,
            tuple(records),
            not_obeyed,
        )

    def standings(self, view: InForce, now: float) -> list[tuple[OverrideRecord, Standing]]:
        """Every command and what it amounts to in ``view``, lowest number first."""
        current = set(self._current(now))
        found = []
        for command in self.commands():
            if not self.enabled:
                standing = Standing.OFF
            elif command not in current:
                standing = Standing.REPLACED
            else:
                standing = view.not_obeyed.get(command, Standing.IN_FORCE)
            found.append((command, standing))
        return found

    def _note_ahead(self, ref: NodeRef, digest: bytes) -> None:
        if len(self._ahead) >= MAX_AHEAD:
            del self._ahead[next(iter(self._ahead))]
        self._ahead[ref] = digest

    def check(self, command: OverrideRecord, now: float) -> None:
        """Whether a command may be obeyed, but for its number.

        :raises WireError: something in it does not parse.
        :raises RecordRefused: it is not signed by an override key, out of date or impossible.
        """
        if command.signer not in self.keys:
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
        return sorted(latest.values(), key=lambda command: (command.number, command.signer))

    def _pins(self, record: APKeyRecord) -> dict[ApAddress, bytes]:
        pins: dict[ApAddress, bytes] = {
            ap6_address(self._network, record.public_key): record.public_key
        }
        if record.ap4_n is not None:
            pins[ap4_candidate(self._network, record.public_key, record.ap4_n)] = record.public_key
        return pins


def ban_budget(known: int) -> int:
    """How many of so many known nodes all bans together may cover."""
    return max(1, int(BAN_SHARE * known))


def digest_of(commands: Iterable[OverrideRecord]) -> bytes:
    """What :meth:`Overrides.digest` says of commands in their order."""
    return h("override commands", *(command.digest for command in commands))


def _is_one_place(command: OverrideRecord) -> bool:
    """Whether a ban is of one id, one IPv4 address or one IPv6 /64."""
    if command.action == OverrideAction.BAN_NODE:
        return True
    prefix = parse_prefix(command.subject)
    return prefix.prefixlen >= (32 if prefix.version == 4 else 64)


def _covers(command: OverrideRecord, places: Places) -> set[NodeId]:
    if command.action == OverrideAction.BAN_NODE:
        return {NodeId(command.subject)}
    return places.within(parse_prefix(command.subject))
