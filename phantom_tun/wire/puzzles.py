"""Challenges and solutions of loaded entry nodes as bytes (docs/spec/tunnel.md, "Puzzles").

::

    challenge   salt (16) ‖ bits u8          all zero: there is none
    solution    salt (16) ‖ nonce (8)        all zero: there is none
"""

from __future__ import annotations

from dataclasses import dataclass

from phantom_tun.crypto.work import NONCE_LEN
from phantom_tun.errors import WireError

SALT_LEN = 16
CHALLENGE_LEN = SALT_LEN + 1
SOLUTION_LEN = SALT_LEN + NONCE_LEN

NO_CHALLENGE = bytes(CHALLENGE_LEN)


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a loaded entry node wants to be shown."""

    salt: bytes
    bits: int

    def pack(self) -> bytes:
        """``CHALLENGE_LEN`` bytes."""
        return self.salt + bytes([self.bits])

    @classmethod
    def unpack(cls, data: bytes) -> Challenge:
        """Undo :meth:`pack`.

        :raises WireError: wrong length, or no bits.
        """
        if len(data) != CHALLENGE_LEN or not data[SALT_LEN]:
            raise WireError("not a challenge")
        return cls(data[:SALT_LEN], data[SALT_LEN])


@dataclass(frozen=True, slots=True)
class Solution:
    """What a caller shows; :data:`NO_SOLUTION` if nothing."""

    salt: bytes
    nonce: bytes

    def pack(self) -> bytes:
        """``SOLUTION_LEN`` bytes."""
        return self.salt + self.nonce

    @classmethod
    def unpack(cls, data: bytes) -> Solution:
        """Undo :meth:`pack`.

        :raises WireError: wrong length.
        """
        if len(data) != SOLUTION_LEN:
            raise WireError("a solution has a fixed length")
        return cls(data[:SALT_LEN], data[SALT_LEN:])


NO_SOLUTION = Solution(bytes(SALT_LEN), bytes(NONCE_LEN))
