"""Work that is dear to do and cheap to check (docs/spec/crypto.md, "Work").

A proof of d bits is a nonce with which H(domain, nonce, parts…) begins with d zero bits. The nonce
stands before the parts, which are some 4 KB: so every try has to hash all of them. Compiled code
then gains little over ours, whose overhead is small beside that, and a thread that searches lets
others run with every try.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from phantom_tun.crypto.hashes import HASH_LEN, beginning, framed

NONCE_LEN = 8
WORK_LEN = 4096
"""Bytes that one try hashes, about: what is shorter is filled up."""

_NONCES = 2 ** (8 * NONCE_LEN)


@dataclass(frozen=True, slots=True)
class Task:
    """What has to be worked on."""

    domain: str
    parts: tuple[bytes, ...] = field(repr=False)

    def digest(self, nonce: bytes) -> bytes:
        """Names this task together with ``nonce``, and shows the work."""
        state = beginning(self.domain)
        state.update(framed(nonce, *self.parts))
        return state.digest()

    def proven(self, nonce: bytes) -> int:
        """Zero bits that ``nonce`` gives: costs one try."""
        return zero_bits(self.digest(nonce))

    def search(self, bits: int, start: int, tries: int) -> bytes | None:
        """The first of ``tries`` nonces from ``start`` on that proves at least ``bits``, if one
        does. 2^bits tries are needed on average."""
        begun = beginning(self.domain)
        rest = framed(*self.parts)
        limit = 1 << (8 * HASH_LEN - bits)
        for number in range(start, start + tries):
            nonce: bytes = (number % _NONCES).to_bytes(NONCE_LEN, "big")
            state = begun.copy()
            state.update(framed(nonce))
            state.update(rest)
            if int.from_bytes(state.digest(), "big") < limit:
                return nonce
        return None

    def solve(self, bits: int, start: int) -> bytes:
        """As :meth:`search`, for as long as it takes."""
        nonce = None
        while nonce is None:
            nonce = self.search(bits, start, _STEP)
            start += _STEP
        return nonce


_STEP = 4096


def zero_bits(digest: bytes) -> int:
    """How many zero bits a digest begins with."""
    return 8 * len(digest) - int.from_bytes(digest, "big").bit_length()
