"""Numbered messages in order under one key: AES-256-GCM with a counter as nonce
(docs/spec/crypto.md, "Early records")."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from phantom_tun.errors import CryptoError

TAG_LEN = 16
_NONCE_LEN = 12


class RecordKey:
    """One direction's key at one of its ends: for locking or for unlocking, never for both."""

    __slots__ = ("_aead", "_number")

    def __init__(self, key: bytes) -> None:
        """``key``: 32 bytes that nothing else was ever encrypted under."""
        self._aead = AESGCM(key)
        self._number = 0

    def lock(self, plaintext: bytes | memoryview, context: bytes) -> bytes:
        """Encrypt the next message; 16 bytes longer."""
        return self._aead.encrypt(self._next(), plaintext, context)

    def unlock(self, locked: bytes | memoryview, context: bytes) -> bytes:
        """Decrypt the next message.

        :raises CryptoError: altered, or not the next one.
        """
        try:
            return self._aead.decrypt(self._next(), locked, context)
        except InvalidTag as error:
            raise CryptoError("a record does not authenticate") from error

    def _next(self) -> bytes:
        nonce = self._number.to_bytes(_NONCE_LEN, "big")
        self._number += 1
        return nonce

    def __repr__(self) -> str:
        return "RecordKey(…)"
