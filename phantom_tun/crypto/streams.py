"""The tunnel block and the per-hop stream (docs/spec/tunnel.md, "Blocks" and "Streams").

:class:`ChainedStream` is in the hot path of every relay: AES-256-CTR and Poly1305 in place, about
0.4 CPU-s/GB together; nothing is copied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305

from phantom_tun.crypto.hashes import hkdf
from phantom_tun.ids import TunnelBlock
from phantom_tun.wire.sizes import PACKAGE_LEN

BLOCK_LEN = 16
SLACK = 16
"""Writable bytes that must follow a region given to :meth:`ChainedStream.process`."""

_BOUNDARIES = (PACKAGE_LEN, 4_096, 16_384, 65_536)
_LATER_BOUNDARY = 1_048_576
_KEY, _POLY = slice(0, 32), slice(32, 64)

WITH, AGAINST = b"with", b"against"
"""Directions of a stream: with or against the way N0 travelled."""


def next_block(path_secret: bytes, block: bytes) -> TunnelBlock:
    """N_i from N_{i-1}: what a hop passes on."""
    cipher = Cipher(algorithms.AES(hkdf(path_secret, "block")), modes.ECB())  # noqa: S305
    return TunnelBlock(cipher.encryptor().update(block))


def previous_block(path_secret: bytes, block: bytes) -> TunnelBlock:
    """N_{i-1} from N_i, for the owner."""
    cipher = Cipher(algorithms.AES(hkdf(path_secret, "block")), modes.ECB())  # noqa: S305
    return TunnelBlock(cipher.decryptor().update(block))


def stream_secret(path_secret: bytes, before: bytes, after: bytes, direction: bytes) -> bytes:
    """The 64 bytes a hop's stream in one direction starts from: k (32) ‖ p (32)."""
    return hkdf(path_secret, "stream", before + after + direction, 64)


def package_key(path_secret: bytes, before: bytes, after: bytes, number: int) -> bytes:
    """32-byte AES-GCM key of package ``number`` (0 init, 1 reply, 2 result) of one tunnel."""
    return hkdf(path_secret, "package", before + after + bytes([number]), 32)


class ChainedStream:
    """One hop's layer in one direction of one tunnel.

    Keys change at fixed boundaries and depend on all bytes that went before, so a bit flipped on
    the way garbles everything after the next boundary, for good. A relay authenticates what comes
    in and then applies the keystream (``outer=False``); the owner, who applies or removes a layer
    from the other side, applies the keystream and authenticates the outcome (``outer=True``), so
    both see the same bytes.

    Keys are 2 KB of state, made when the first byte comes that needs them: a tunnel that is ready
    and waits has none.
    """

    __slots__ = ("_left", "_material", "_outer", "_passed", "_poly", "_update")

    _poly: Poly1305
    _update: Callable[[memoryview, memoryview], int]

    def __init__(self, secret: bytes, *, outer: bool) -> None:
        """``secret``: 64 bytes from :func:`stream_secret`."""
        self._outer = outer
        self._material = secret
        self._passed = 0
        """Boundaries so far."""
        self._left = 0
        """Bytes to the next one; 0: the keys of ``_material`` aren't in use yet."""

    def _start(self) -> None:
        cipher = Cipher(algorithms.AES(self._material[_KEY]), modes.CTR(bytes(16)))
        self._update = cipher.encryptor().update_into
        self._poly = Poly1305(self._material[_POLY])
        later = self._passed >= len(_BOUNDARIES)
        self._left = _LATER_BOUNDARY if later else _BOUNDARIES[self._passed]

    def _finish(self) -> None:
        key, tag = self._material[_KEY], self._poly.finalize()
        self._material = hashlib.blake2b(tag, key=key, digest_size=64).digest()
        self._passed += 1
        del self._poly, self._update

    def process(self, view: memoryview, start: int, end: int) -> None:
        """Transform ``view[start:end]`` in place. At least :data:`SLACK` bytes must follow ``end``
        in the view; they are left as they are."""
        while start < end:
            if not self._left:
                self._start()
            stop = min(end, start + self._left)
            part = view[start:stop]
            if self._outer:
                self._update(part, view[start:])
                self._poly.update(part)
            else:
                self._poly.update(part)
                self._update(part, view[start:])
            self._left -= stop - start
            start = stop
            if not self._left:
                self._finish()

    def __repr__(self) -> str:
        return "ChainedStream(…)"


class Keystream:
    """Plain AES-256-CTR in place: the post-quantum wrap around the end-to-end TLS bytes."""

    __slots__ = ("_update",)

    def __init__(self, material: bytes) -> None:
        """``material``: 48 bytes, key ‖ initial counter block; used for one direction only."""
        cipher = Cipher(algorithms.AES(material[:32]), modes.CTR(material[32:48]))
        self._update = cipher.encryptor().update_into

    def process(self, view: memoryview, start: int, end: int) -> None:
        """Transform ``view[start:end]`` in place; :data:`SLACK` as in :class:`ChainedStream`."""
        if start < end:
            self._update(view[start:end], view[start:])

    def __repr__(self) -> str:
        return "Keystream(…)"
