"""Hashing with domains, and key derivation (docs/spec/crypto.md, "Hash and KDF")."""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HASH_LEN = 32
_DOMAIN_PREFIX = b"phantom-tun/1/"


def h(domain: str, *parts: bytes) -> bytes:
    """H(domain, parts…): 32 bytes of BLAKE2b over the length-prefixed domain and parts.

    Length prefixes make the encoding injective: no two different part lists hash alike.
    """
    state = beginning(domain)
    for part in parts:
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.digest()


def beginning(domain: str) -> hashlib.blake2b:
    """The state of :func:`h` before its first part."""
    name = _DOMAIN_PREFIX + domain.encode()
    return hashlib.blake2b(len(name).to_bytes(2, "big") + name, digest_size=HASH_LEN)


def framed(*parts: bytes) -> bytes:
    """Parts as :func:`h` takes them in, in one piece."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def hkdf(secret: bytes, info: str, context: bytes = b"", length: int = 32) -> bytes:
    """HKDF-SHA256 of ``secret`` with a labelled info string.

    ``info`` is the label, ``context`` what the key is bound to; ``length`` in bytes ≤ 8,160.
    """
    label = _DOMAIN_PREFIX + info.encode()
    bound = len(label).to_bytes(2, "big") + label + context
    return HKDF(hashes.SHA256(), length, None, bound).derive(secret)


def mac(key: bytes, domain: str, *parts: bytes) -> bytes:
    """32-byte keyed BLAKE2b over the same encoding as :func:`h`."""
    return hashlib.blake2b(h(domain, *parts), key=key, digest_size=HASH_LEN).digest()


def equal(left: bytes, right: bytes) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(left, right)


def array_hash(data: bytes | bytearray | memoryview) -> bytes:
    """32-byte BLAKE2b of a setup array (own slot already zeroed)."""
    state = hashlib.blake2b(digest_size=HASH_LEN, person=b"setup array")
    state.update(data)
    return state.digest()
