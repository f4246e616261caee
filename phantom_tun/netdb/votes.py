"""Counting what storers say about an address (docs/spec/netdb.md, "Reading").

Records are signed by the AP key, so nobody can forge one; what liars can do is withhold, show old
editions, or claim an AP4 address that somebody else leased first. Hence: the key that most storers
hold, if their majority is plain; of its editions the newest that a quorum holds; and every
dissenting vote stays visible.
"""

from __future__ import annotations

import enum
import ipaddress
from collections import Counter
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass

from phantom_tun.crypto.hashes import h
from phantom_tun.errors import ProtocolViolation
from phantom_tun.ids import ApAddress, NodeId
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.netdb.overrides import NOTHING_IN_FORCE, InForce
from phantom_tun.netdb.rules import MAX_SKEW
from phantom_tun.netdb.verifier import Verifier
from phantom_tun.wire.netdb import MAX_ROUTES, MAX_VOTES, Held, Resolution, Vote
from phantom_tun.wire.records import APKeyRecord, APRoute

QUORUM = 3
"""Storers that must hold an edition before it counts, or all that hold any if they are fewer."""
CLEAR_LEAD = 2.0
"""With so many times more storers than all others together name, a key is found at once."""
LEAST_LEAD = 1.2
"""With less than this the network is undecided."""


_NOTHING_HELD = Held(b"", 0, b"", b"", ())


class Standing(enum.Enum):
    """How plain the majority of the storers is."""

    CLEAR = enum.auto()
    """Or nobody holds anything."""
    NARROW = enum.auto()
    """It should be made sure that the right ones were asked; then it counts."""
    NONE = enum.auto()


@dataclass(frozen=True, slots=True)
class _Edition:
    """One key record as storers name it."""

    public_key: bytes
    sequence: int
    digest: bytes


class Tally:
    """The votes on one address."""

    def __init__(
        self,
        verifier: Verifier,
        address: ApAddress,
        now: float,
        view: InForce = NOTHING_IN_FORCE,
    ) -> None:
        """``view``: the override commands in force; they may give the address to an AP key, or take
        the records of one away."""
        self._pinned = view.pinned_keys.get(address)
        self._deleted = view.deleted_keys
        self._verifier = verifier
        self.address = address
        """What is asked for."""
        self._now = now
        self._votes: dict[NodeId, _Edition] = {}
        self._bodies: dict[bytes, APKeyRecord] = {}
        self._routes: dict[bytes, APRoute] = {}

    @property
    def answered(self) -> int:
        """Storers that answered, whatever they hold."""
        return len(self._votes)

    def has(self, storer: NodeId) -> bool:
        """Whether a storer has answered."""
        return storer in self._votes

    def add(self, storer: NodeId, held: Held) -> None:
        """Count a storer's answer; a later one of the same storer replaces its vote.

        :raises WireError: a record in it does not parse.
        :raises RecordRefused: a record in it is not genuine.
        :raises ProtocolViolation: it holds together, but it isn't about this address.
        """
        if held.public_key in self._deleted:
            held = _NOTHING_HELD  # by a node that doesn't obey
        routes = [self._verifier.route(encoded) for encoded in held.routes]
        if any(route.public_key != held.public_key for route in routes):
            raise ProtocolViolation("a storer answers with routes of somebody else")
        if held.public_key and not self._may_own(held.public_key):
            raise ProtocolViolation("a storer answers with another key than the address has")
        edition = _Edition(held.public_key, held.sequence, held.digest)
        if held.key_record:
            record = self._verifier.key_record(held.key_record)
            if (record.public_key, record.sequence, record.digest) != (
                edition.public_key,
                edition.sequence,
                edition.digest,
            ) or not self._is_about_address(record):
                raise ProtocolViolation("a storer answers with another record than it names")
            if not self._is_current(record):
                edition = _Edition(b"", 0, b"")
            else:
                self._bodies[record.digest] = record
        self._votes[storer] = edition
        for route in routes:
            known = self._routes.get(route.entry_id)
            if route.expires > self._now and (known is None or known.sequence < route.sequence):
                self._routes[route.entry_id] = route

    def retract(self, storer: NodeId) -> None:
        """A storer couldn't show what it says it holds."""
        self._votes[storer] = _Edition(b"", 0, b"")

    def keep(self, storers: Container[NodeId]) -> None:
        """Only these are storers, as is known by now; what others said doesn't count."""
        self._votes = {who: what for who, what in self._votes.items() if who in storers}

    def wanted(self, *, every_key: bool = False) -> list[NodeId]:
        """Storers to be asked for the whole record, because what they name would win unseen, or
        because a tie can't be broken without it; or (``every_key``) because nobody has shown a
        record of the key they name: naming one that can't have the address must not be enough for
        denying it to its owner."""
        ranking = self._ranking()
        if not ranking:
            return []
        holders = self._holders()
        most = holders[ranking[0].public_key]
        tied = {e.public_key for e in ranking if every_key or holders[e.public_key] == most}
        shown = {body.public_key for body in self._bodies.values()}
        unseen = {e for e in ranking if e.public_key in tied - shown}
        if ranking[0].digest not in self._bodies:
            unseen.add(ranking[0])
        return [storer for storer, edition in self._votes.items() if edition in unseen]

    def know(self, record: APKeyRecord) -> None:
        """A genuine record for this address that we have from elsewhere; it is no vote."""
        self._bodies[record.digest] = record

    def leading_key(self) -> bytes | None:
        """The AP key that most storers name, whether or not they showed a record of it."""
        ranking = self._ranking()
        return ranking[0].public_key if ranking else None

    def share_of(self, record: APKeyRecord) -> float:
        """Which part of those that answered holds exactly ``record``."""
        same = sum(edition.digest == record.digest for edition in self._votes.values())
        return same / self.answered if self.answered else 0.0

    def winner(self) -> APKeyRecord | None:
        """The record that counts."""
        seen = [edition for edition in self._ranking() if edition.digest in self._bodies]
        return self._bodies[seen[0].digest] if seen else None

    def standing(self, storers: Sequence[Collection[NodeId]]) -> Standing:
        """How plain the majority for the winner's key is; ``storers``: those of every storage key.
        They are also counted key by key: ids placed near one key, or a lookup of one key that liars
        led astray, don't decide alone."""
        leader = self.leading_key()
        if leader is None or leader == self._pinned:
            return Standing.CLEAR
        lead = self._lead(leader, self._votes)
        leads = [self._lead(leader, group) for group in storers]
        led, lost = sum(each > 1 for each in leads), sum(each < 1 for each in leads)
        if lead >= CLEAR_LEAD and led == len(leads):
            return Standing.CLEAR
        return Standing.NARROW if lead >= LEAST_LEAD and led >= lost else Standing.NONE

    def resolution(self, asked: int, *, decided: bool = True) -> Resolution:
        """The result, with every vote; ``asked``: how many storers were asked. If they have not
        ``decided`` there is no winner."""
        winner = self.winner() if decided else None
        routes = sorted(
            (
                route
                for route in self._routes.values()
                if winner is not None and route.public_key == winner.public_key
            ),
            key=lambda route: -route.expires,
        )
        counts = self._counts()
        ranking = [edition for edition in self._ranking() if edition.digest in self._bodies]
        return Resolution(
            key_record=winner.encoded if winner is not None else b"",
            routes=tuple(route.encoded for route in routes[:MAX_ROUTES]),
            asked=asked,
            answered=self.answered,
            votes=tuple(
                Vote(edition.public_key, edition.sequence, edition.digest, counts[edition])
                for edition in ranking[:MAX_VOTES]
            ),
        )

    def _may_own(self, public_key: bytes) -> bool:
        if isinstance(self.address, ipaddress.IPv4Address):
            return True  # which candidate of the key it is, only the record tells
        return ap6_address(self._verifier.network, public_key) == self.address

    def _is_about_address(self, record: APKeyRecord) -> bool:
        if isinstance(self.address, ipaddress.IPv6Address):
            return True
        network = self._verifier.network
        return (
            record.ap4_n is not None
            and ap4_candidate(network, record.public_key, record.ap4_n) == self.address
        )

    def _is_current(self, record: APKeyRecord) -> bool:
        return record.expires > self._now and record.created <= self._now + MAX_SKEW

    def _lead(self, public_key: bytes, storers: Collection[NodeId]) -> float:
        """How many times more of ``storers`` name a key than name others; infinite if none of them
        names another."""
        named = [self._votes[who].public_key for who in storers if who in self._votes]
        own = sum(key == public_key for key in named)
        others = sum(bool(key) for key in named) - own
        return own / others if others else float("inf")

    def _counts(self) -> Counter[_Edition]:
        return Counter(edition for edition in self._votes.values() if edition.digest)

    def _holders(self) -> Counter[bytes]:
        """Storers per AP key."""
        return Counter(edition.public_key for edition in self._votes.values() if edition.digest)

    def _ranking(self) -> list[_Edition]:
        """Editions, the one that counts first."""
        counts = self._counts()
        per_key = self._holders()

        def rank(edition: _Edition) -> tuple[object, ...]:
            holders = per_key[edition.public_key]
            has_quorum = counts[edition] >= min(QUORUM, holders)
            return (
                edition.public_key != self._pinned,
                -holders,
                self._tie_break(edition),
                edition.public_key,
                not has_quorum,
                -edition.sequence,
                -counts[edition],
                edition.digest,
            )

        return sorted(counts, key=rank)

    def _tie_break(self, edition: _Edition) -> bytes:
        """H(AP key, n): between equally many leases of an AP4 address the smaller one wins."""
        record = next(
            (body for body in self._bodies.values() if body.public_key == edition.public_key), None
        )
        n = bytes([record.ap4_n]) if record is not None and record.ap4_n is not None else b""
        return h("lease", edition.public_key, n)
