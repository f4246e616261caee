"""Sealing to a node or AP identity: HPKE with MLKEM768-X25519, HKDF-SHA256, AES-256-GCM
(docs/spec/crypto.md, "Sealing").

A sealed message is 1,136 bytes longer than its plaintext (1,120 encapsulated key, 16 tag).
Public keys on the wire are ML-KEM ‖ X25519, 1,216 bytes.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

from phantom_tun.crypto.hashes import h
from phantom_tun.errors import CryptoError

MLKEM_PUBLIC_LEN = 1184
SEALING_PUBLIC_LEN = MLKEM_PUBLIC_LEN + 32
SEALING_SEED_LEN = 64 + 32
SEAL_OVERHEAD = 1120 + 16

_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def _info(purpose: str, network_id: bytes) -> bytes:
    return h("seal", purpose.encode(), network_id)


class SealingKey:
    """The private half of a request or path-building key."""

    __slots__ = ("_mlkem", "_private", "_x25519", "public")

    def __init__(self, seed: bytes) -> None:
        """``seed``: 96 secret bytes, ML-KEM seed (64) ‖ X25519 scalar (32)."""
        if len(seed) != SEALING_SEED_LEN:
            raise CryptoError("a sealing key seed has 96 bytes")
        self._mlkem = mlkem.MLKEM768PrivateKey.from_seed_bytes(seed[:64])
        self._x25519 = x25519.X25519PrivateKey.from_private_bytes(seed[64:])
        self._private = hpke.MLKEM768X25519PrivateKey(self._mlkem, self._x25519)
        raw = self._mlkem.public_key().public_bytes_raw()
        self.public = raw + self._x25519.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> SealingKey:
        """A fresh key from the library's generator."""
        kem = mlkem.MLKEM768PrivateKey.generate().private_bytes_raw()
        return cls(kem + x25519.X25519PrivateKey.generate().private_bytes_raw())

    @property
    def seed(self) -> bytes:
        """The 96 secret bytes, for the key file only."""
        return self._mlkem.private_bytes_raw() + self._x25519.private_bytes_raw()

    def open(self, sealed: bytes, purpose: str, network_id: bytes) -> bytes:
        """Undo :func:`seal`.

        :raises CryptoError: not sealed to this key, for this purpose and network, or altered.
        """
        try:
            return _SUITE.decrypt(sealed, self._private, _info(purpose, network_id))
        except (InvalidTag, ValueError) as error:
            raise CryptoError(f"sealed {purpose} does not open") from error

    def __repr__(self) -> str:
        return "SealingKey(…)"


def seal(plaintext: bytes, public: bytes, purpose: str, network_id: bytes) -> bytes:
    """Seal ``plaintext`` to the 1,216-byte ``public`` key.

    :raises CryptoError: ``public`` is no valid key.
    """
    if len(public) != SEALING_PUBLIC_LEN:
        raise CryptoError("a sealing public key has 1,216 bytes")
    try:
        key = hpke.MLKEM768X25519PublicKey(
            mlkem.MLKEM768PublicKey.from_public_bytes(public[:MLKEM_PUBLIC_LEN]),
            x25519.X25519PublicKey.from_public_bytes(public[MLKEM_PUBLIC_LEN:]),
        )
        return _SUITE.encrypt(plaintext, key, _info(purpose, network_id))
    except ValueError as error:
        raise CryptoError("not a valid sealing public key") from error
