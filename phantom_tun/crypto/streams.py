"""The tunnel block and the per-hop stream (docs/spec/tunnel.md, "Blocks" and "Streams").

:class:`ChainedStream` is in the hot path of every relay: AES-256-CTR and GMAC in place, 0.1 to 0.2
CPU-s/GB together with chunks of 64 KiB; nothing is copied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers import AEADEncryptionContext, Cipher, algorithms, modes

from phantom_tun.crypto.hashes import hkdf
from phantom_tun.ids import TunnelBlock
from phantom_tun.wire.sizes import PACKAGE_LEN

BLOCK_LEN = 16
SLACK = 16
"""Writable bytes that must follow a region given to :meth:`ChainedStream.process`."""

_BOUNDARIES = (PACKAGE_LEN, 4_096, 16_384, 65_536)
_LATER_BOUNDARY = 1_048_576
RENEW = 1_048_576
"""Bytes that a :class:`Keystream` gives under one key. AES-GCM has 64 GiB, but what has rested goes
on with CTR, which may be slower, until the next key."""

_KEY, _MAC = slice(0, 32), slice(32, 64)

TRIES = 10
"""How often each keystream is tried."""

_GCM = modes.GCM(bytes(12))
_FIRST_COUNTER = 2
"""Where AES-GCM with an all-zero nonce begins to count for its plaintext."""

Update = Callable[[memoryview, memoryview], int]
"""``cryptography``'s ``update_into``."""

WITH, AGAINST = b"with", b"against"
"""Directions of a stream: with or against the way N0 travelled."""


def block_key(path_secret: bytes) -> bytes:
    """The 32-byte key under which a hop passes blocks on."""
    return hkdf(path_secret, "block")


def next_block(key: bytes, block: bytes) -> TunnelBlock:
    """N_i from N_{i-1}, under a hop's :func:`block_key`: what it passes on."""
    cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305
    return TunnelBlock(cipher.encryptor().update(block))


def previous_block(key: bytes, block: bytes) -> TunnelBlock:
    """N_{i-1} from N_i."""
    cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305
    return TunnelBlock(cipher.decryptor().update(block))


def stream_secret(path_secret: bytes, before: bytes, after: bytes, direction: bytes) -> bytes:
    """The 64 bytes a hop's stream in one direction starts from: k (32) ‖ p (32)."""
    return hkdf(path_secret, "stream", before + after + direction, 64)


def package_key(path_secret: bytes, before: bytes, after: bytes, number: int) -> bytes:
    """32-byte AES-GCM key of package ``number`` (0 init, 1 reply, 2 result) of one tunnel."""
    return hkdf(path_secret, "package", before + after + bytes([number]), 32)


def ctr_keystream(key: bytes, passed: int = 0) -> Update:
    """AES-256-CTR from the second counter block on, and from there without the first ``passed``
    bytes."""
    blocks, rest = divmod(passed, BLOCK_LEN)
    counter = (_FIRST_COUNTER + blocks).to_bytes(BLOCK_LEN, "big")
    cipher = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()
    cipher.update(bytes(rest))
    return cipher.update_into


def gcm_keystream(key: bytes) -> Update:
    """The same as the encrypting half of AES-256-GCM, whose tag nobody asks for. For some
    processors OpenSSL has code for it that uses their vector units, and is twice as fast although
    it does more; on others it is half as fast."""
    return Cipher(algorithms.AES(key), _GCM).encryptor().update_into


_keystream: Callable[[bytes], Update] = ctr_keystream


def use_fastest_keystream(timer: Callable[[], float]) -> None:
    """Have all streams use the one of the two that takes less time on this processor, as ``timer``
    tells in seconds. They are tried in turn, since whatever else runs disturbs some of the tries;
    it takes a millisecond in a process that has just begun."""
    global _keystream  # noqa: PLW0603 - about the processor, not about anybody's stream
    view = memoryview(bytearray(65_536 + SLACK))
    tried = [(keystream, keystream(bytes(32))) for keystream in (ctr_keystream, gcm_keystream)]
    times: dict[Callable[[bytes], Update], list[float]] = {one: [] for one, _ in tried}
    for _ in range(TRIES):
        for keystream, update in tried:
            began = timer()
            update(view[:-SLACK], view)
            times[keystream].append(timer() - began)
    _keystream = min(times, key=lambda keystream: min(times[keystream]))


def _keystream_from(key: bytes, passed: int) -> Update:
    """The faster one of the two, which is always at its beginning, or else CTR."""
    return ctr_keystream(key, passed) if passed else _keystream(key)


class ChainedStream:
    """One hop's layer in one direction of one tunnel.

    Keys change at fixed boundaries and depend on all bytes that went before, so a bit flipped on
    the way garbles everything after the next boundary, for good. A relay authenticates what comes
    in and then applies the keystream (``outer=False``); the owner, who applies or removes a layer
    from the other side, applies the keystream and authenticates the outcome (``outer=True``), so
    both see the same bytes.

    Keys are 2 KB of state, made when the first byte comes that needs them: a tunnel that is ready
    and waits has none. :meth:`rest` lets go of half of them.
    """

    __slots__ = ("_left", "_mac", "_material", "_outer", "_passed", "_update")

    _mac: AEADEncryptionContext
    _update: Update | None

    def __init__(self, secret: bytes, *, outer: bool) -> None:
        """``secret``: 64 bytes from :func:`stream_secret`."""
        self._outer = outer
        self._material = secret
        self._passed = 0
        """Boundaries so far."""
        self._left = 0
        """Bytes to the next one; 0: the keys of ``_material`` aren't in use yet."""
        self._update = None
        """``None``: not in use yet, or let go of."""

    @property
    def _length(self) -> int:
        """Bytes from the last boundary to the next one."""
        later = self._passed >= len(_BOUNDARIES)
        return _LATER_BOUNDARY if later else _BOUNDARIES[self._passed]

    def _start(self) -> None:
        self._mac = Cipher(algorithms.AES(self._material[_MAC]), _GCM).encryptor()
        self._left = self._length

    def rest(self) -> None:
        """Nothing comes for a while: let go of the keystream, which can be made again at its place.
        The authentication of what has passed since the last boundary can't."""
        self._update = None

    def _resume(self) -> Update:
        passed = self._length - self._left
        self._update = update = _keystream_from(self._material[_KEY], passed)
        return update

    def _finish(self) -> None:
        self._mac.finalize()
        key, tag = self._material[_KEY], self._mac.tag
        self._material = hashlib.blake2b(tag, key=key, digest_size=64).digest()
        self._passed += 1
        self._update = None
        del self._mac

    def process(self, view: memoryview, start: int, end: int) -> None:
        """Transform ``view[start:end]`` in place. At least :data:`SLACK` bytes must follow ``end``
        in the view; they are left as they are."""
        while start < end:
            if not self._left:
                self._start()
            update = self._update or self._resume()
            stop = min(end, start + self._left)
            part = view[start:stop]
            if self._outer:
                update(part, view[start:])
                self._mac.authenticate_additional_data(part)
            else:
                self._mac.authenticate_additional_data(part)
                update(part, view[start:])
            self._left -= stop - start
            start = stop
            if not self._left:
                self._finish()

    def __repr__(self) -> str:
        return "ChainedStream(…)"


class Keystream:
    """AES-256-CTR in place: the post-quantum wrap around the end-to-end TLS bytes.

    The bytes are those of :func:`ctr_keystream`, with a new key every :data:`RENEW` bytes. The
    state, 1 KB, is made when it is needed; :meth:`rest` lets go of it.
    """

    __slots__ = ("_key", "_left", "_update")

    def __init__(self, key: bytes) -> None:
        """``key``: 32 bytes, used for one direction only."""
        self._key = key
        self._left = RENEW
        self._update: Update | None = None

    def rest(self) -> None:
        """Nothing comes for a while: let go of what can be made again."""
        self._update = None

    def _resume(self) -> Update:
        self._update = update = _keystream_from(self._key, RENEW - self._left)
        return update

    def process(self, view: memoryview, start: int, end: int) -> None:
        """Transform ``view[start:end]`` in place; :data:`SLACK` as in :class:`ChainedStream`."""
        while start < end:
            update = self._update or self._resume()
            stop = min(end, start + self._left)
            update(view[start:stop], view[start:])
            self._left -= stop - start
            start = stop
            if not self._left:
                self._key = hkdf(self._key, "wrap again")
                self._left = RENEW
                self._update = None

    def __repr__(self) -> str:
        return "Keystream(…)"
