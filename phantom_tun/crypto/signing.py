"""Ed25519 identities and signatures (docs/spec/crypto.md, "Signatures").

A signature covers H(purpose, parts…), so a signature made for one purpose is void for any other.
"""

from __future__ import annotations

import nacl.exceptions
import nacl.signing

from phantom_tun.crypto.hashes import h
from phantom_tun.errors import CryptoError
from phantom_tun.ids import NodeId, PublicKey

SEED_LEN = 32
SIGNATURE_LEN = 64


class SigningKey:
    """An Ed25519 private key."""

    __slots__ = ("_key", "public")

    def __init__(self, seed: bytes) -> None:
        """``seed``: 32 secret random bytes."""
        self._key = nacl.signing.SigningKey(seed)
        self.public = PublicKey(bytes(self._key.verify_key))

    @classmethod
    def generate(cls) -> SigningKey:
        """A fresh key from the system's generator."""
        return cls(bytes(nacl.signing.SigningKey.generate()))

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes, for the key file only."""
        return bytes(self._key)

    def sign(self, purpose: str, *parts: bytes) -> bytes:
        """64-byte signature over H(``purpose``, ``parts``…)."""
        return self._key.sign(h(purpose, *parts)).signature

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.hex()[:8]}…)"


def verify(public: bytes, signature: bytes, purpose: str, *parts: bytes) -> None:
    """Check a signature made by :meth:`SigningKey.sign`.

    :raises CryptoError: it does not verify, or key or signature have a wrong length.
    """
    try:
        nacl.signing.VerifyKey(public).verify(h(purpose, *parts), signature)
    except (nacl.exceptions.CryptoError, ValueError, TypeError) as error:
        raise CryptoError(f"signature for {purpose!r} does not verify") from error


def node_id_of(identity: bytes) -> NodeId:
    """The node id that belongs to a node's identity key."""
    return NodeId(h("node", identity))
