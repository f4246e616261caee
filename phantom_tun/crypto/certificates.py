"""P-256 certificates and TLS 1.3 contexts for links and for the end-to-end layer
(docs/spec/crypto.md, "TLS").

Certificates are self-signed; trust never comes from a name or an authority but from the
certificate's hash in a signed record. Contexts cost about 2 ms each, so callers share them.

What looks into certificates is in :mod:`phantom_tun.crypto.x509`, which a relay doesn't keep in
memory.
"""

from __future__ import annotations

import base64
import os
import ssl
from dataclasses import dataclass, field

from phantom_tun.crypto.hashes import equal, h
from phantom_tun.errors import CryptoError
from phantom_tun.ids import CertHash

MAX_CERTIFICATE_LEN = 1024
_PEM_LINE = 64


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


def to_pem(certificate: Certificate) -> bytes:
    """Certificate and private key as one PEM text, for a key file: one file can't come apart."""
    key = base64.b64encode(certificate.key_der)
    lines = [key[start : start + _PEM_LINE] for start in range(0, len(key), _PEM_LINE)]
    return b"\n".join(
        [
            ssl.DER_cert_to_PEM_cert(certificate.der).rstrip().encode(),
            b"-----BEGIN PRIVATE KEY-----",
            *lines,
            b"-----END PRIVATE KEY-----",
            b"",
        ]
    )


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
    from phantom_tun.crypto.x509 import check_certificate  # noqa: PLC0415 - not at relays

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
