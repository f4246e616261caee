"""What a loaded entry node asks of callers, and how it checks it (docs/spec/tunnel.md,
"Puzzles")."""

from __future__ import annotations

from phantom_tun.clock import MINUTE, Rng
from phantom_tun.crypto.hashes import equal, mac
from phantom_tun.crypto.work import Task
from phantom_tun.ids import EntryId
from phantom_tun.wire.puzzles import SALT_LEN

EASIEST, HARDEST = 10, 16
"""Bits that are asked for: 1,024 to 65,536 tries on average, up to a second on a slow machine."""
SLACK = 1
"""Bits below what is asked for that are still taken: more may be asked for while one works."""

RISE_EVERY = 2.0
"""Seconds from one bit more to the next."""
FALL_EVERY = 5.0
"""Seconds from one bit less to the next."""
CALM = 0.9
"""Share of what is kept for those who work that has to be there for that: a crowd that doesn't work
uses up all but this."""

SALT_LIFE = MINUTE
"""Seconds after which another salt is given out; the one before is accepted for as long again."""
MAX_SPENT = 65_536
"""Solutions that are remembered."""


def task(salt: bytes, entry_id: EntryId, sealed_request: bytes) -> Task:
    """The work that gets ``sealed_request``, and nothing else, to ``entry_id``."""
    return Task("puzzle", (salt, entry_id, sealed_request))


class Salts:
    """Values that nobody can know beforehand, another one for each entry id."""

    __slots__ = ("_former", "_rng", "_secret", "_since")

    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self._secret = rng.randbytes(32)
        self._former: bytes | None = None
        self._since: float | None = None

    def current(self, entry_id: EntryId, now: float) -> bytes:
        """The salt to give out."""
        self._turn(now)
        return _salt(self._secret, entry_id)

    def accepts(self, salt: bytes, entry_id: EntryId, now: float) -> bool:
        """Whether ``salt`` was given out for this entry id, of late."""
        self._turn(now)
        return any(
            equal(salt, _salt(secret, entry_id))
            for secret in (self._secret, self._former)
            if secret is not None
        )

    def _turn(self, now: float) -> None:
        if self._since is None:
            self._since = now
        age = now - self._since
        # If the clock was set back nobody knows how old they are.
        if 0 <= age < SALT_LIFE:
            return
        self._former = self._secret if 0 <= age < 2 * SALT_LIFE else None
        self._secret = self._rng.randbytes(32)
        self._since = now


def _salt(secret: bytes, entry_id: EntryId) -> bytes:
    return mac(secret, "puzzle salt", entry_id)[:SALT_LEN]


class Spent:
    """Solutions that somebody got in with: none is good for a second time. If more come than are
    remembered, the oldest is forgotten: to have one forgotten costs far more work than it saves."""

    __slots__ = ("_size", "_until")

    def __init__(self, size: int = MAX_SPENT) -> None:
        self._size = size
        self._until: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._until

    def add(self, digest: bytes, now: float) -> None:
        """Remember a solution, by its digest, for as long as any salt lives."""
        while self._until:
            oldest = next(iter(self._until))
            if self._until[oldest] > now and len(self._until) < self._size:
                break
            del self._until[oldest]
        self._until[digest] = now + 2 * SALT_LIFE


class Difficulty:
    """How many bits are asked for: more while those who work use up what is kept for them."""

    __slots__ = ("_bits", "_risen", "_strained")

    def __init__(self, now: float) -> None:
        self._bits = EASIEST
        self._risen = now
        self._strained = now
        """When it was last not calm, or became easier."""

    def bits(self, room: float, reserved: float, now: float) -> int:
        """What is asked for now, while ``room`` of the whole budget (1) is left, of which
        ``reserved`` is for those who work."""
        # The clock may have been set back.
        self._risen, self._strained = min(self._risen, now), min(self._strained, now)
        if room >= CALM * reserved:
            steps = int((now - self._strained) / FALL_EVERY)
            if steps:
                self._bits = max(EASIEST, self._bits - steps)
                self._strained = now
            return self._bits
        self._strained = now
        if room < reserved / 2 and now - self._risen >= RISE_EVERY:
            self._bits = min(HARDEST, self._bits + 1)
            self._risen = now
        return self._bits
