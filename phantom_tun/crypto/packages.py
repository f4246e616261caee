"""Fixed-length packages: AES-256-GCM under keys that are used for exactly one message
(docs/spec/crypto.md, "Packages"); and the keystreams that cover setup arrays."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from phantom_tun.crypto.hashes import hkdf
from phantom_tun.errors import CryptoError

TAG_LEN = 16
_NONCE = bytes(12)


def lock(key: bytes, plaintext: bytes, context: bytes = b"") -> bytes:
    """Encrypt the only message ever encrypted under ``key`` (32 bytes); 16 bytes longer."""
    return AESGCM(key).encrypt(_NONCE, plaintext, context)


def unlock(key: bytes, locked: bytes | memoryview, context: bytes = b"") -> bytes:
    """Undo :func:`lock`.

    :raises CryptoError: wrong key or context, or altered.
    """
    try:
        return AESGCM(key).decrypt(_NONCE, bytes(locked), context)
    except (InvalidTag, ValueError) as error:
        raise CryptoError("package does not authenticate") from error


def keystream(secret: bytes, info: str, context: bytes, length: int) -> bytes:
    """``length`` bytes of AES-256-CTR keystream under HKDF(``secret``, ``info``)."""
    material = hkdf(secret, info, context, 48)
    cipher = Cipher(algorithms.AES(material[:32]), modes.CTR(material[32:]))
    return cipher.encryptor().update(bytes(length))


def xor_layer(data: bytes, secret: bytes, info: str, context: bytes) -> bytes:
    """``data`` XOR the keystream of the same name; its own inverse."""
    material = hkdf(secret, info, context, 48)
    cipher = Cipher(algorithms.AES(material[:32]), modes.CTR(material[32:]))
    return cipher.encryptor().update(data)
