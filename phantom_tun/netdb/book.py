"""Everybody this node knows (docs/spec/netdb.md, "Known nodes").

The routing table holds those that keep the network together; contacts with a path key are the
candidates for paths. Path members come from here and from nowhere else, so no question that we ask
shows whom we choose. Anybody can introduce himself and be remembered; so where not everybody knows
everybody, only candidates whom we drew ourselves may be chosen freely.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterator
from dataclasses import dataclass

from phantom_tun.clock import DAY, HOUR, MINUTE, Rng
from phantom_tun.ids import NodeId
from phantom_tun.netdb.contact import LAST_RETRY, Contact, position
from phantom_tun.netdb.overrides import NOTHING_IN_FORCE, InForce
from phantom_tun.netdb.prefixes import BUCKET_LIMITS, PrefixLimits, closest_allowed
from phantom_tun.netdb.table import K, RoutingTable
from phantom_tun.netdb.unmet import Unmet
from phantom_tun.wire.records import NodeRecord

MAX_KEYED = 2_048
"""Contacts with a path key, at about 2 KB each."""
CANDIDATE_FOR = 3 * HOUR
"""How long after the last sign of life a node is a candidate."""
KEY_MARGIN = MINUTE
"""A path key is used no later than this before it ends."""
RECALLED_FOR = DAY
"""How long nodes of an earlier run count against bans, if they aren't met before."""
GIVE_UP_AFTER = 10
"""Failures in a row (over an hour of them) after which a contact is forgotten."""
ENOUGH_DRAWN = 128
"""With fewer nodes drawn at random, those of the routing table may be chosen for paths as well."""
TRUSTED_RETRY = 30.0
"""Seconds after which a trusted node that failed is tried again at the latest."""
STORER_SLACK = K // 2
"""We hold a record even if this many more nodes seem closer than store it: no two nodes know quite
the same ones."""
NEIGHBOURHOOD = 2 * K
"""Nodes nearest to us that a lookup may begin at."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that can be asked to take part in a path."""

    record: NodeRecord
    path_key: bytes
    """1,216 bytes, HPKE public key."""
    fair: bool = True
    """Whether it may be chosen for any place. Others came to us by themselves, and a network that
    sends all its nodes would have more than its share."""


class NodeBook:
    """All contacts of one node."""

    def __init__(
        self,
        own_id: NodeId,
        rng: Rng,
        *,
        limits: PrefixLimits = BUCKET_LIMITS,
        max_keyed: int = MAX_KEYED,
        trusted: frozenset[NodeId] = frozenset(),
        kept: Container[NodeId] = (),
    ) -> None:
        """``trusted``: nodes that are tried often; they and those of ``kept`` are remembered as
        long as their records are valid, and make room for nobody."""
        self._own_id = own_id
        self._own_position = position(own_id)
        self._rng = rng
        self._max_keyed = max_keyed
        self._trusted = trusted
        self._kept = kept
        self._contacts: dict[NodeId, Contact] = {}
        self._keyed = 0
        self._view = NOTHING_IN_FORCE
        self._banned: dict[NodeId, Contact] = {}
        """Nodes that we knew before override commands banned them."""
        self._unmet = Unmet()
        """Nodes that we would perhaps know if no override command had banned them."""
        self.table = RoutingTable(own_id, rng.randbytes(16), limits)

    def __len__(self) -> int:
        return len(self._contacts)

    def __iter__(self) -> Iterator[Contact]:
        return iter(self._contacts.values())

    def get(self, node_id: NodeId) -> Contact | None:
        """What we remember of a node."""
        return self._contacts.get(node_id)

    def heard(self, record: NodeRecord) -> bool:
        """Somebody named a node. Returns whether it is one that we don't know, and may."""
        contact = self._contacts.get(record.node_id)
        if contact is not None:
            contact.named()
            self._renew(contact, record)
        if contact is not None or record.node_id == self._own_id:
            return False
        if self._view.bans(record):
            self._keep_away(record)
            return False
        return True

    def met(self, record: NodeRecord, now: float, path_key: bytes | None = None) -> None:
        """A node proved that it is there, perhaps with the ``path_key`` that its record names."""
        contact = self._learn(record, now, path_key)
        if contact is None:
            return
        contact.succeeded(now)
        left_out = self.table.insert(contact) if record.dialable else contact
        if left_out is not None and left_out.path_key is None:
            self._forget(left_out)

    def vouched(
        self, record: NodeRecord, now: float, path_key: bytes | None = None, *, drawn: bool = False
    ) -> None:
        """Several nodes that should know say that a node is there. That makes it a candidate, not
        a contact of the routing table. ``drawn``: we drew it at random."""
        contact = self._learn(record, now, path_key, drawn=drawn)
        if contact is None:
            return
        contact.drawn |= drawn
        if contact.path_key is None and contact not in self.table:
            self._forget(contact)
        elif not contact.failures:
            contact.last_ok = max(contact.last_ok, now)

    def restore(
        self, record: NodeRecord, path_key: bytes | None, last_ok: float, *, drawn: bool
    ) -> None:
        """Remember a node from an earlier run, as it was then."""
        contact = self._learn(record, last_ok, path_key, drawn=drawn)
        if contact is None:
            return
        contact.drawn = drawn
        if contact.path_key is None:
            self._forget(contact)

    def recall(self, record: NodeRecord, now: float) -> None:
        """A node of an earlier run that is no contact yet: a ban of it isn't free, all the same."""
        self._unmet.add(record, now + RECALLED_FOR, proven=True)

    def succeeded(self, node_id: NodeId, now: float) -> None:
        """A node answered."""
        contact = self._contacts.get(node_id)
        if contact is not None:
            contact.succeeded(now)

    def failed(self, node_id: NodeId, now: float) -> None:
        """A node didn't answer, or not sensibly. It is named to nobody and chosen for nothing until
        it proves that it is there."""
        contact = self._contacts.get(node_id)
        if contact is not None:
            contact.failed(now, TRUSTED_RETRY if node_id in self._trusted else LAST_RETRY)

    def obey(self, view: InForce) -> list[NodeRecord]:
        """Follow the override commands that are in force from now on: banned nodes are nowhere.
        Returns nodes that are no longer banned."""
        before, self._view = self._view, view
        for contact in [contact for contact in self if view.bans(contact.record)]:
            self._banned[contact.node_id] = contact
            self._unmet.discard(contact.node_id)
            self.table.remove(contact)
            self._forget(contact)
        freed = [
            contact.record for contact in self._banned.values() if not view.bans(contact.record)
        ]
        for record in freed:
            # Until it is met again it counts as one that is heard of: or else the ban that was over
            # budget would be within it the next moment.
            del self._banned[record.node_id]
            self._unmet.add(record, proven=True)
        return [
            record
            for record in self._unmet.records()
            if before.bans(record) and not view.bans(record)
        ]

    def known_records(self) -> list[NodeRecord]:
        """All nodes known, banned ones included: what the budget for bans is a part of."""
        return [contact.record for contact in (*self, *self._banned.values())]

    def unmet_records(self) -> list[NodeRecord]:
        """Nodes heard of and not known because of a ban: what counts against the budget too."""
        return self._unmet.records()

    def remembered(self) -> list[Contact]:
        """All nodes that a later run should know of, banned ones included."""
        unmet = (record for record in self._unmet.records() if self._view.bans(record))
        return [
            *self,
            *self._banned.values(),
            *(Contact(record, position(record.node_id), 0.0) for record in unmet),
        ]

    def expire(self, now: float) -> None:
        """Forget records that ran out, nodes that are gone, and those we have no use for."""
        for contact in list(self):
            if self._is_useless(contact, now):
                self.table.remove(contact)
                self._forget(contact)
        self._unmet.expire(now, self._view.bans)

    def closest(self, target: bytes, count: int, now: float) -> list[NodeRecord]:
        """The usable nodes of the routing table that are closest to ``target``, closest first."""
        return [contact.record for contact in self.table.closest(position(target), count, now)]

    def neighbourhood(self, count: int, now: float) -> list[NodeRecord]:
        """``count`` usable nodes drawn from those nearest to us, where a lookup can begin afresh.
        Near us there is a place for everybody, so whoever sends all his nodes to us has no more
        than his share there; of the farther ones he has more, as long as we have not heard of
        everybody else."""
        near = self.table.closest(self._own_position, NEIGHBOURHOOD, now)
        return [contact.record for contact in self._rng.sample(near, min(count, len(near)))]

    def trusted_contacts(self) -> list[Contact]:
        """The trusted nodes that we have met."""
        found = (self._contacts.get(node_id) for node_id in self._trusted)
        return [contact for contact in found if contact is not None]

    def is_storer(self, key: bytes, now: float, count: int = K) -> bool:
        """Whether this node should hold what the ``count`` nodes closest to ``key`` store."""
        enough = count + STORER_SLACK
        if len(self.table) < enough:
            return True
        closer = self.table.closer_than_us(position(key), now)
        if len(closer) < enough:
            return True
        return len(closest_allowed((contact.record for contact in closer), enough)) < enough

    def keyed_closest(self, near: bytes, now: float) -> Candidate | None:
        """The candidate with the id closest to ``near`` whose path key matches its record; None if
        this node itself is closer."""
        place = position(near)
        best, distance = None, self._own_position ^ place
        for contact in self:
            closer = contact.position ^ place < distance
            if closer and contact.key_is_current and _is_candidate(contact, now):
                best = Candidate(contact.record, contact.path_key or b"")
                distance = contact.position ^ place
        return best

    def candidates(self, now: float) -> list[Candidate]:
        """All nodes that can be chosen for paths, in no particular order."""
        found = [contact for contact in self if _is_candidate(contact, now)]
        everybody = not self.table.crowded
        few = sum(contact.drawn for contact in found) < ENOUGH_DRAWN
        return [
            Candidate(
                contact.record,
                contact.path_key or b"",
                fair=everybody or contact.drawn or (few and contact in self.table),
            )
            for contact in found
        ]

    def drawn(self, now: float) -> int:
        """How many candidates we drew at random."""
        return sum(contact.drawn and _is_candidate(contact, now) for contact in self)

    def lacking_key(self, now: float, before: float) -> list[Contact]:
        """Usable relays whose path key we lack, or whose key ends ``before`` a moment."""
        return [
            contact
            for contact in self
            if contact.record.relays
            and contact.usable(now)
            and (not contact.key_is_current or contact.path_key_until < before)
        ]

    def is_neighbour(self, node_id: NodeId, now: float) -> bool:
        """Whether a node belongs to the k that are closest to us, as far as we know."""
        nearest = self.table.closest(self._own_position, K, now)
        distance = position(node_id) ^ self._own_position
        return len(nearest) < K or distance <= nearest[-1].position ^ self._own_position

    @property
    def keyed(self) -> int:
        """Contacts with a path key."""
        return self._keyed

    def due(self, now: float, count: int) -> list[Contact]:
        """Nodes that failed and may be tried again, longest overdue first."""
        waiting = (c for c in self if c.failures and c.retry_at <= now < c.record.expires)
        return heapq.nsmallest(count, waiting, key=lambda contact: contact.retry_at)

    def stalest(self, now: float) -> Contact | None:
        """The usable contact of the routing table that was silent longest."""
        usable = (contact for contact in self.table if contact.usable(now))
        return min(usable, key=lambda contact: contact.last_ok, default=None)

    def statistics(self, now: float) -> dict[str, int]:
        """Counts for people."""
        return {
            "known_nodes": len(self),
            "usable_nodes": sum(contact.usable(now) for contact in self),
            "routing_contacts": len(self.table),
            "path_candidates": len(self.candidates(now)),
        }

    def _learn(
        self, record: NodeRecord, now: float, path_key: bytes | None, *, drawn: bool = False
    ) -> Contact | None:
        node_id = record.node_id
        if node_id == self._own_id:
            return None
        if self._view.bans(record):
            self._keep_away(record)
            return None
        contact = self._contacts.get(node_id)
        if contact is None:
            self._unmet.discard(node_id)
            contact = Contact(record, position(node_id), now)
            self._contacts[node_id] = contact
        self._renew(contact, record)
        if path_key is not None and (contact.path_key is not None or self._room_for_key(drawn)):
            self._keyed += contact.path_key is None
            contact.give_key(record, path_key)
        return contact

    def _keep_away(self, record: NodeRecord) -> None:
        if record.node_id not in self._banned:
            self._unmet.add(record)

    def _renew(self, contact: Contact, record: NodeRecord) -> None:
        if contact.renew(record):
            # It has to prove that it is there, and finds its place by its new networks.
            self.table.remove(contact)

    def _is_useless(self, contact: Contact, now: float) -> bool:
        if contact.record.expires <= now:
            return True
        if contact.node_id in self._trusted or contact.node_id in self._kept:
            return False
        gone = contact.failures >= GIVE_UP_AFTER
        return gone or (contact.path_key is None and contact not in self.table)

    def _room_for_key(self, drawn: bool) -> bool:
        if self._keyed < self._max_keyed:
            return True
        # Whoever introduces itself takes no place from those we drew. (Any introduction can come
        # here, so the loop over everybody does as little as possible.)
        spare: dict[tuple[bool, bool], list[Contact]] = {}
        for contact in self._contacts.values():
            if contact.path_key is None or contact.rank or (contact.drawn and not drawn):
                continue
            spare.setdefault((not contact.drawn, contact.failures > 0), []).append(contact)
        for worth in sorted(spare, reverse=True):
            found = spare[worth]
            while found:
                # A random one: which nodes are remembered must not depend on who speaks last.
                index = self._rng.randrange(len(found))
                contact, found[index] = found[index], found[-1]
                if contact.node_id not in self._kept and contact.node_id not in self._trusted:
                    self._forget(contact)
                    return True
                found.pop()
        return False

    def _forget(self, contact: Contact) -> None:
        if self._contacts.pop(contact.node_id, None) is not None:
            self._keyed -= contact.path_key is not None


def _is_candidate(contact: Contact, now: float) -> bool:
    return (
        contact.path_key is not None
        and contact.usable(now)
        and contact.record.relays
        and contact.record.dialable
        and contact.path_key_until > now + KEY_MARGIN
        and contact.last_ok > now - CANDIDATE_FOR
    )
