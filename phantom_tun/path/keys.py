"""The node's own path-building keys (docs/spec/path.md, "Keys").

They are kept in memory only and die with the process: a restarted node has forgotten which
packages it has seen, so it must not be able to open old ones, and nothing that was recorded can be
opened by whoever takes its disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from phantom_tun.clock import DAY, HOUR
from phantom_tun.crypto.sealing import SealingKey
from phantom_tun.errors import CryptoError
from phantom_tun.ids import NetworkId

PURPOSE = "setup package"
"""What path-building keys seal."""

ROTATE_EVERY = DAY
OVERLAP = 2 * HOUR
"""How long a key still opens packages after its successor was published."""


@dataclass(frozen=True, slots=True)
class PublishedPathKey:
    """What a NodeRecord says about a path-building key."""

    public: bytes
    """1,216 bytes."""
    until: float
    """When the private half is destroyed."""


@dataclass(frozen=True, slots=True)
class _Held:
    key: SealingKey = field(repr=False)
    until: float


class PathKeys:
    """The current key and its predecessors that still open packages."""

    __slots__ = ("_held", "_rotate_at")

    def __init__(self, now: float) -> None:
        self._held: list[_Held] = []
        self._rotate_at = now
        self._rotate(now)

    @property
    def published(self) -> PublishedPathKey:
        """The key that others should seal to."""
        current = self._held[0]
        return PublishedPathKey(current.key.public, current.until)

    def refresh(self, now: float) -> bool:
        """Destroy what is over and rotate when it is time; true if another key is now published."""
        self._held[1:] = [held for held in self._held[1:] if held.until > now]
        if now < self._rotate_at:
            return False
        self._rotate(now)
        return True

    def open(self, sealed: bytes, network_id: NetworkId, now: float) -> bytes:
        """The plaintext of a package sealed to one of the keys.

        :raises CryptoError: to none of them, or altered.
        """
        for held in self._held:
            if held.until > now:
                try:
                    return held.key.open(sealed, PURPOSE, network_id)
                except CryptoError:
                    continue
        raise CryptoError("the setup package opens with none of our keys")

    def _rotate(self, now: float) -> None:
        self._rotate_at = now + ROTATE_EVERY
        fresh = _Held(SealingKey.generate(), self._rotate_at + OVERLAP)
        self._held = [fresh, *(held for held in self._held if held.until > now)]
