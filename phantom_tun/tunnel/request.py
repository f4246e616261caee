"""The sealed request: what lets a caller in (docs/spec/session.md, "Request").

Sealed to the callee's current request key, signed by the caller; neither the exit nor the entry
node learns port, protocol or caller from it.
"""

from __future__ import annotations

from collections.abc import Iterable

from phantom_tun.crypto.sealing import SealingKey, seal
from phantom_tun.crypto.signing import SigningKey, verify
from phantom_tun.errors import CryptoError, ProtocolViolation, WireError
from phantom_tun.ids import NetworkId, PublicKey
from phantom_tun.wire.session import REQUEST_BODY_LEN, TIME_STEP, Request
from phantom_tun.wire.sizes import SEALED_REQUEST_LEN

CLOCK_TOLERANCE = 90
"""Seconds that a caller's clock and ours may differ, the time on the way included."""

_PURPOSE = "request"


def request_time(now: float) -> int:
    """``now`` as a request carries it."""
    return int(now) // TIME_STEP * TIME_STEP


def seal_request(
    request: Request,
    signing: SigningKey,
    target: PublicKey,
    request_key: bytes,
    network_id: NetworkId,
) -> bytes:
    """Sign ``request`` for the AP identity ``target`` and seal it to its ``request_key``; always
    ``SEALED_REQUEST_LEN`` bytes.

    :raises WireError: certificate or ClientHello are too long.
    :raises CryptoError: ``request_key`` is no valid key.
    """
    body = request.pack()
    signature = signing.sign(_PURPOSE, network_id, target, body)
    return seal(body + signature, request_key, _PURPOSE, network_id)


def open_request(
    sealed: bytes, keys: Iterable[SealingKey], target: PublicKey, network_id: NetworkId
) -> Request:
    """Open a request with whichever of the callee's request ``keys`` fits, and check the caller's
    signature for ``target``, the callee's own identity.

    :raises WireError: wrong length, or the content doesn't parse.
    :raises CryptoError: no key fits, altered, or not signed by its caller for this identity.
    """
    if len(sealed) != SEALED_REQUEST_LEN:
        raise WireError("a sealed request has a fixed length")
    content = _open(sealed, keys, network_id)
    body, signature = content[:REQUEST_BODY_LEN], content[REQUEST_BODY_LEN:]
    request = Request.unpack(body)
    verify(request.caller, signature, _PURPOSE, network_id, target, body)
    return request


def check_time(request: Request, now: float, started: float) -> float:
    """Whether a request is new enough; returns when it stops being that, which is how long its
    nonce has to be remembered.

    :param started: when the callee began to remember nonces.
    :raises ProtocolViolation: too old, from the future, or from before ``started``.
    """
    latest = request.time + TIME_STEP  # it was rounded down by less than that
    if request.time > now + CLOCK_TOLERANCE:
        raise ProtocolViolation("the request is from the future: one of the clocks is wrong")
    if latest + CLOCK_TOLERANCE <= now:
        raise ProtocolViolation("the request is too old, or one of the clocks is wrong")
    if latest <= started:
        raise ProtocolViolation("the request is older than the memory for repeated ones")
    return float(latest + CLOCK_TOLERANCE)


def _open(sealed: bytes, keys: Iterable[SealingKey], network_id: NetworkId) -> bytes:
    for key in keys:
        try:
            return key.open(sealed, _PURPOSE, network_id)
        except CryptoError:
            continue
    raise CryptoError("the request is not sealed to a key of this identity")
