"""P-256 certificates and TLS 1.3 contexts for links and for the end-to-end layer
(docs/spec/crypto.md, "TLS").

Certificates are self-signed; trust never comes from a name or an authority but from the
certificate's hash in a signed record. Contexts cost about 2 ms each, so callers share them.
"""

from __future__ import annotations

import datetime
import os
import ssl
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from phantom_tun.crypto.hashes import equal, h
from phantom_tun.errors import CryptoError
from phantom_tun.ids import CertHash

MAX_CERTIFICATE_LEN = 1024
LIFETIME = datetime.timedelta(days=397)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate with its private key, both DER."""

    der: bytes
    key_der: bytes = field(repr=False)

    @property
    def hash(self) -> CertHash:
        """The pin that records carry."""
        return certificate_hash(self.der)


def certificate_hash(der: bytes) -> CertHash:
    """H('certificate', DER)."""
    return CertHash(h("certificate", der))


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


def to_pem(certificate: Certificate) -> bytes:
    """Certificate and private key as one PEM text, for a key file: one file can't come apart."""
    key = serialization.load_der_private_key(certificate.key_der, None)
    return ssl.DER_cert_to_PEM_cert(certificate.der).encode() + key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
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


def _load_chain(context: ssl.SSLContext, certificate: Certificate) -> None:
    # load_cert_chain takes file names only; an anonymous memory file never reaches a disk.
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, to_pem(certificate))
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # pinned by hash instead: see check_peer
    return context


def link_server_context(certificate: Certificate) -> ssl.SSLContext:
    """For the listener: looks like any HTTPS server, asks for no client certificate."""
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    _load_chain(context, certificate)
    return context


def link_client_context() -> ssl.SSLContext:
    """For dialers; the certificate is compared with the NodeRecord by :func:`check_peer`."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["http/1.1"])
    return context


def caller_context(certificate: Certificate) -> ssl.SSLContext:
    """End to end, the side that connects; presents its AP certificate."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    _load_chain(context, certificate)
    return context


def callee_context(certificate: Certificate, caller_der: bytes) -> ssl.SSLContext:
    """End to end, the side that accepts: requires exactly the certificate of this caller.

    :raises CryptoError: ``caller_der`` is no certificate.
    """
    check_certificate(caller_der)
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    _load_chain(context, certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=caller_der)
    except ssl.SSLError as error:
        # OpenSSL is stricter in places than what checked it before.
        raise CryptoError("certificate does not parse") from error
    return context


def check_peer(connection: ssl.SSLSocket | ssl.SSLObject, expected: bytes) -> None:
    """Compare the peer's certificate with the pinned hash, after the handshake.

    :raises CryptoError: another certificate, or none.
    """
    der = connection.getpeercert(binary_form=True)
    if der is None or not equal(certificate_hash(der), expected):
        raise CryptoError("the peer's certificate is not the one in its record")
