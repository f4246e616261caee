"""What makes a node that node: its identity key and its communication certificate, on disk
(docs/spec/addresses.md, "Key files"; protocol sections 1 and 3).

Two secrets in the state directory, both mode 0600: ``node.key`` is the 32-byte Ed25519 seed,
``node.crt`` the communication certificate with its private key, PEM. The daemon makes them at its
first start; a laboratory makes them beforehand, so that nodes can name one another. ``node.pow``
is the proof of work for one network; it can be found again at any time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from phantom_tun.apart import apart
from phantom_tun.clock import DAY, Clock, SystemClock
from phantom_tun.crypto.certificates import Certificate, to_pem
from phantom_tun.crypto.signing import SEED_LEN, SigningKey, node_id_of
from phantom_tun.errors import ConfigError, CryptoError, RecordRefused
from phantom_tun.files import (
    atomic_write,
    ensure_private_directory,
    load_or_create_secret,
    load_secret,
    read_plain,
)
from phantom_tun.ids import CertHash, NetworkId, NodeId
from phantom_tun.netdb import proof
from phantom_tun.netdb.network import NetworkParams

KEY_FILE = "node.key"
CERTIFICATE_FILE = "node.crt"
PROOF_FILE = "node.pow"
RENEW_BEFORE = 30 * DAY
"""A communication certificate with less than this left is replaced at the next start."""

_COMMON_NAME = "localhost"
"""What a web server with an installer's self-signed certificate calls itself."""

_NONCE_LEN = 8
_X509 = "phantom_tun.crypto.x509"


@dataclass(frozen=True, slots=True)
class NodeKeys:
    """A node's long-lived secrets and what others know it by."""

    signing: SigningKey
    certificate: Certificate
    node_id: NodeId
    cert_hash: CertHash
    pow_nonce: int | None
    """Proof of work for the network that was asked for."""


def create_node_keys(
    state_dir: Path, network: NetworkParams | None = None, *, clock: Clock | None = None
) -> NodeKeys:
    """Load the node's keys from ``state_dir``; make what isn't there yet, with the proof of work
    for ``network`` if one is given (2^pow_bits hashes; 12 bits are some milliseconds).

    :raises ConfigError: the directory or a key file can't be used; says what to do.
    """
    ensure_private_directory(state_dir, uid=os.geteuid(), gid=os.getegid())
    seed = load_or_create_secret(
        state_dir / KEY_FILE, lambda: SigningKey.generate().seed, size=SEED_LEN
    )
    signing = SigningKey(seed)
    certificate = _certificate(state_dir / CERTIFICATE_FILE, (clock or SystemClock()).now())
    nonce = None if network is None else _pow_nonce(state_dir / PROOF_FILE, network, signing.public)
    return NodeKeys(signing, certificate, node_id_of(signing.public), certificate.hash, nonce)


def _certificate(path: Path, now: float) -> Certificate:
    pem = load_secret(path)
    try:
        content = apart(_X509, lambda: _checked_or_new(pem, now))
    except CryptoError as error:
        raise ConfigError(
            f"{path} is damaged ({error}); restore it from a backup, or move it away and a "
            "new certificate is made at the next start (the node's identity stays)"
        ) from error
    der, key_der, is_new = msgspec.msgpack.decode(content, type=tuple[bytes, bytes, bool])
    certificate = Certificate(der, key_der)
    if is_new:
        atomic_write(path, to_pem(certificate))
    return certificate


def _checked_or_new(pem: bytes | None, now: float) -> bytes:
    """A certificate, its key, and whether they are new.

    :raises CryptoError: ``pem`` is damaged.
    """
    from phantom_tun.crypto.x509 import (  # noqa: PLC0415 - see `apart`
        expires_at,
        from_pem,
        make_certificate,
    )

    certificate = None if pem is None else from_pem(pem)
    is_new = certificate is None or expires_at(certificate.der) - now <= RENEW_BEFORE
    if certificate is None or is_new:
        certificate = make_certificate(_COMMON_NAME, now)
    return msgspec.msgpack.encode((certificate.der, certificate.key_der, is_new))


def _pow_nonce(path: Path, network: NetworkParams, identity: bytes) -> int:
    stored = _stored_nonce(path, network.network_id)
    if stored is not None:
        try:
            proof.check(network.network_id, identity, network.pow_bits, stored)
        except RecordRefused:
            pass  # of another key, or damaged: it is found anew
        else:
            return stored
    nonce = proof.solve(network.network_id, identity, network.pow_bits)
    atomic_write(path, network.network_id + nonce.to_bytes(_NONCE_LEN, "big"))
    return nonce


def _stored_nonce(path: Path, network_id: NetworkId) -> int | None:
    try:
        content = read_plain(path, len(network_id) + _NONCE_LEN)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}; remove it") from error
    if len(content) != len(network_id) + _NONCE_LEN or not content.startswith(network_id):
        return None
    return int.from_bytes(content[len(network_id) :], "big")
