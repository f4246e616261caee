"""What makes a node that node: its identity key and its communication certificate, on disk
(docs/spec/addresses.md, "Key files"; protocol sections 1 and 3).

Two files in the state directory, both mode 0600: ``node.key`` is the 32-byte Ed25519 seed,
``node.crt`` the communication certificate with its private key, PEM. The daemon makes them at its
first start; a laboratory makes them beforehand, so that nodes can name one another.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from phantom_tun.clock import DAY, Clock, SystemClock
from phantom_tun.crypto.certificates import (
    Certificate,
    expires_at,
    from_pem,
    make_certificate,
    to_pem,
)
from phantom_tun.crypto.signing import SEED_LEN, SigningKey, node_id_of
from phantom_tun.errors import ConfigError, CryptoError
from phantom_tun.files import (
    atomic_write,
    ensure_private_directory,
    load_or_create_secret,
    load_secret,
)
from phantom_tun.ids import CertHash, NodeId

KEY_FILE = "node.key"
CERTIFICATE_FILE = "node.crt"
RENEW_BEFORE = 30 * DAY
"""A communication certificate with less than this left is replaced at the next start."""

_COMMON_NAME = "localhost"
"""What a web server with an installer's self-signed certificate calls itself."""


@dataclass(frozen=True, slots=True)
class NodeKeys:
    """A node's long-lived secrets and what others know it by."""

    signing: SigningKey
    certificate: Certificate
    node_id: NodeId
    cert_hash: CertHash


def create_node_keys(state_dir: Path, *, clock: Clock | None = None) -> NodeKeys:
    """Load the node's keys from ``state_dir``; make what isn't there yet.

    :raises ConfigError: the directory or a key file can't be used; says what to do.
    """
    ensure_private_directory(state_dir, uid=os.geteuid(), gid=os.getegid())
    seed = load_or_create_secret(
        state_dir / KEY_FILE, lambda: SigningKey.generate().seed, size=SEED_LEN
    )
    signing = SigningKey(seed)
    certificate = _certificate(state_dir / CERTIFICATE_FILE, (clock or SystemClock()).now())
    return NodeKeys(signing, certificate, node_id_of(signing.public), certificate.hash)


def _certificate(path: Path, now: float) -> Certificate:
    pem = load_secret(path)
    if pem is not None:
        try:
            certificate = from_pem(pem)
        except CryptoError as error:
            raise ConfigError(
                f"{path} is damaged ({error}); restore it from a backup, or move it away and a "
                "new certificate is made at the next start (the node's identity stays)"
            ) from error
        if expires_at(certificate.der) - now > RENEW_BEFORE:
            return certificate
    certificate = make_certificate(_COMMON_NAME, now)
    atomic_write(path, to_pem(certificate))
    return certificate
