"""What a node remembers of another one, and distances between ids."""

from __future__ import annotations

from dataclasses import dataclass

from phantom_tun.ids import NodeId
from phantom_tun.wire.records import NodeRecord

FIRST_RETRY = 1.0
"""Seconds after a failure until a node is tried again; three times as long after each further
failure."""
LAST_RETRY = 600.0
_RETRY_FACTOR = 3.0
NAMED_RETRY = 10.0
"""Seconds after its last failure in which a node is tried again that somebody else names: only who
reached it names it."""


def position(identifier: bytes) -> int:
    """Where a node id, storage key or target lies; the distance of two is the XOR."""
    return int.from_bytes(identifier, "big")


@dataclass(slots=True, eq=False)
class Contact:
    """A node that proved at least once that it is there, or that others vouched for."""

    record: NodeRecord
    position: int
    last_ok: float
    """When it last proved that it is there, or was last vouched for; 0 if never."""
    path_key: bytes | None = None
    """Its path-building key (1,216 bytes), if we ever got it."""
    path_key_digest: bytes = b""
    path_key_until: float = 0.0
    failures: int = 0
    """In a row."""
    retry_at: float = 0.0
    """When to try again, if ``failures``."""
    failed_at: float = 0.0
    """When it last failed."""
    drawn: bool = False
    """Whether we drew it at random: it had no part in our knowing it."""
    rank: bytes = b""
    """Given by the routing table when it takes the contact in: the lowest keep their places. Empty
    for one that is not in the table."""

    @property
    def node_id(self) -> NodeId:
        """Its id."""
        return self.record.node_id

    def renew(self, record: NodeRecord) -> bool:
        """Take a newer record of the same node; it may be back, so it may be tried at once.
        Returns whether it has moved, so that nothing is proven about its addresses."""
        if record.created <= self.record.created:
            return False
        moved = record.addresses != self.record.addresses
        self.record = record
        self.retry_at = 0.0
        return moved

    @property
    def key_is_current(self) -> bool:
        """Whether we have the path key that its newest record names."""
        return self.path_key_digest == self.record.path_key_digest

    def give_key(self, record: NodeRecord, path_key: bytes) -> None:
        """Remember the path key that came beside ``record`` (and matches it)."""
        if self.path_key is None or record.created >= self.record.created:
            self.path_key = path_key
            self.path_key_digest = record.path_key_digest
            self.path_key_until = record.path_key_until

    def succeeded(self, now: float) -> None:
        """It proved that it is there."""
        self.last_ok = now
        self.failures = 0

    def failed(self, now: float, longest: float = LAST_RETRY) -> None:
        """It didn't answer. It is tried again after ``longest`` seconds at the latest."""
        self.failures += 1
        self.failed_at = now
        pause = FIRST_RETRY * _RETRY_FACTOR ** min(self.failures - 1, 10)
        self.retry_at = now + min(pause, longest)

    def named(self) -> None:
        """Somebody else named it, so it may be back."""
        self.retry_at = min(self.retry_at, self.failed_at + NAMED_RETRY)

    def usable(self, now: float) -> bool:
        """Whether it can be named to others and asked: nothing is known against it."""
        return not self.failures and now < self.record.expires
