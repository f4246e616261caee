"""The routing table: who is how far from us (docs/spec/netdb.md, "Routing table").

One bucket per distance class, k contacts each, a few per prefix. Only nodes that proved that they
are there come in. Of those that fit a full bucket the ones with the lowest *rank* stay, a hash of
their prefix under a salt that only this node knows: a fair sample of all it ever heard of. Shouting
first, often or under ever new ids gains nothing; only more networks do.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from phantom_tun.crypto.hashes import h
from phantom_tun.ids import NodeId
from phantom_tun.netdb.contact import Contact, position
from phantom_tun.netdb.prefixes import BUCKET_LIMITS, PrefixLimits, fits
from phantom_tun.wire.records import NodeRecord

K = 20
"""Bucket size, and how many of the closest nodes store a record."""
DISPLACEABLE_AFTER = 2
"""Failures in a row after which any newcomer may take a contact's place."""
_RANK = attrgetter("rank")


class RoutingTable:
    """Contacts by distance from ``own_id``."""

    __slots__ = ("_buckets", "_limits", "_own", "_salt", "_size")

    def __init__(self, own_id: NodeId, salt: bytes, limits: PrefixLimits = BUCKET_LIMITS) -> None:
        """``salt``: random bytes that nobody else knows."""
        self._own = position(own_id)
        self._salt = salt
        self._limits = limits
        self._buckets: dict[int, list[Contact]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Contact]:
        for bucket in self._buckets.values():
            yield from bucket

    def __contains__(self, contact: Contact) -> bool:
        return contact in self._buckets.get(self.bucket_of(contact.position), ())

    def bucket_of(self, place: int) -> int:
        """The distance class of a position: 255 for the far half of the network, -1 for our own."""
        return (self._own ^ place).bit_length() - 1

    def thin_classes(self) -> list[int]:
        """Distance classes beyond our k nearest contacts that could take more, farthest first: what
        a look-up of our own id doesn't fill."""
        nearest = 0
        for index in range(256):
            nearest += len(self._buckets.get(index, ()))
            if nearest >= K:
                return [far for far in range(255, index, -1) if len(self._buckets.get(far, ())) < K]
        return []

    def used_classes(self) -> list[int]:
        """Distance classes that hold anybody, nearest first."""
        return sorted(index for index, bucket in self._buckets.items() if bucket)

    @property
    def crowded(self) -> bool:
        """Whether some distance class is full, so that there may be nodes that we had to leave
        out."""
        return any(len(bucket) >= K for bucket in self._buckets.values())

    def insert(self, contact: Contact) -> Contact | None:
        """Take ``contact`` in, if there is room for it; it must be dialable and have answered.

        Returns whoever is not in the table after that: None if nobody had to stay out, a contact
        that lost its place, or ``contact`` itself.
        """
        index = self.bucket_of(contact.position)
        bucket = self._buckets.setdefault(index, [])
        if contact in bucket:
            return None
        if index < 0 or not self.would_take(contact.record):
            return contact
        loser = self._loser(bucket, contact.record)
        if loser is not None:
            self.remove(loser)
        contact.rank = self._rank(contact.record)
        bucket.append(contact)
        self._size += 1
        return loser

    def would_take(self, record: NodeRecord) -> bool:
        """Whether there would be room for a node that isn't here yet, if it proved that it is
        there."""
        bucket = self._buckets.get(self.bucket_of(position(record.node_id)), [])
        loser = self._loser(bucket, record)
        if len(bucket) >= K and loser is None:
            return False
        others = [member.record for member in bucket if member is not loser]
        return fits(record, others, self._limits)

    def _loser(self, bucket: list[Contact], newcomer: NodeRecord) -> Contact | None:
        """Who would have to go from a full bucket for a newcomer; None if nobody has to or will."""
        if len(bucket) < K:
            return None
        for member in bucket:
            if member.failures >= DISPLACEABLE_AFTER:
                return member
        last = max(bucket, key=_RANK)
        return last if self._rank(newcomer) < last.rank else None

    def _rank(self, record: NodeRecord) -> bytes:
        # The worst of a node's prefixes: more addresses must not mean more chances.
        return max(h("rank", self._salt, part) for part in record.networks.narrow)

    def remove(self, contact: Contact) -> None:
        """Forget ``contact``, if it is here."""
        bucket = self._buckets.get(self.bucket_of(contact.position), [])
        if contact in bucket:
            bucket.remove(contact)
            self._size -= 1
            contact.rank = b""

    def closest(self, target: int, count: int, now: float) -> list[Contact]:
        """The ``count`` usable contacts closest to a position, closest first."""
        found: list[Contact] = []
        for group in self._groups(target):
            usable = [contact for contact in group if contact.usable(now)]
            usable.sort(key=lambda contact: contact.position ^ target)
            found += usable
            if len(found) >= count:
                return found[:count]
        return found

    def closer_than_us(self, target: int, now: float) -> list[Contact]:
        """The usable contacts that are closer to a position than we are, closest first."""
        # Where the distance has a one, a whole distance class is closer, and otherwise farther.
        distance = self._own ^ target
        closer = [
            contact
            for index, bucket in self._buckets.items()
            if distance >> index & 1
            for contact in bucket
            if contact.usable(now)
        ]
        closer.sort(key=lambda contact: contact.position ^ target)
        return closer

    def _groups(self, target: int) -> Iterator[list[Contact]]:
        """All contacts in groups, each closer to ``target`` than the next: those in its own
        distance class, those nearer to us than it is, then the farther classes one by one."""
        home = self.bucket_of(target)
        yield self._buckets.get(home, [])
        yield [
            contact for index, bucket in self._buckets.items() if index < home for contact in bucket
        ]
        for index in range(home + 1, 256):
            if index in self._buckets:
                yield self._buckets[index]
