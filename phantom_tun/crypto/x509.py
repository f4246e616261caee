"""Making certificates and looking into them (docs/spec/crypto.md, "TLS").

What this module imports is 2 MB. Nodes that only relay import it for a moment, in a process that
ends (:mod:`phantom_tun.apart`).
"""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from phantom_tun.crypto.certificates import MAX_CERTIFICATE_LEN, Certificate
from phantom_tun.errors import CryptoError

LIFETIME = datetime.timedelta(days=397)


def make_certificate(common_name: str, now: float) -> Certificate:
    """A fresh key and a self-signed server-and-client certificate valid from the midnight before
    ``now`` (so that it doesn't tell when exactly it was made)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    start = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - datetime.timedelta(days=1))
        .not_valid_after(start + LIFETIME)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(common_name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Certificate(
        certificate.public_bytes(serialization.Encoding.DER),
        key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def from_pem(pem: bytes) -> Certificate:
    """Undo :func:`to_pem`.

    :raises CryptoError: not a P-256 certificate together with its own key.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        key = serialization.load_pem_private_key(pem, None)
        matches = certificate.public_key() == key.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CryptoError("no certificate with its private key") from error
    if not matches:
        raise CryptoError("the private key belongs to another certificate")
    loaded = Certificate(
        certificate.public_bytes(serialization.Encoding.DER),
        key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
    check_certificate(loaded.der)
    return loaded


def check_certificate(der: bytes) -> None:
    """Whether ``der`` is a certificate of the only shape the protocol uses.

    :raises CryptoError: too long, malformed, or not P-256.
    """
    if len(der) > MAX_CERTIFICATE_LEN:
        raise CryptoError("certificate is too long")
    try:
        key = x509.load_der_x509_certificate(der).public_key()
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise CryptoError("certificate does not parse") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise CryptoError("certificate key is not P-256")


def expires_at(der: bytes) -> float:
    """When a certificate of ours runs out, in seconds since the epoch."""
    return x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp()
