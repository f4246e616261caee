"""Going on with a session over another tunnel: what the caller has to prove (docs/spec/session.md,
"Sessions that survive").

Positions count the bytes of one direction of a stream from its beginning; END is one byte more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from phantom_tun.crypto.hashes import equal, mac
from phantom_tun.errors import ProtocolViolation
from phantom_tun.wire.session import Request, Resumption


@dataclass(frozen=True, slots=True)
class Resuming:
    """What the caller resumes a session with."""

    secret: bytes = field(repr=False)
    epoch: int
    """Higher than any before."""
    received: int
    """What has arrived."""

    def say(self, session_id: bytes, nonce: bytes) -> bytes:
        """What the request with this ``nonce`` says, packed."""
        proof = _proof(self.secret, session_id, self.epoch, nonce, self.received)
        return Resumption(proof, self.received).pack()


def check_resumption(request: Request, secret: bytes) -> int:
    """What has arrived at the caller, who has to know ``secret``.

    :raises PeerError: it doesn't.
    """
    said = Resumption.unpack(request.early)
    proof = _proof(secret, request.session_id, request.epoch, request.nonce, said.received)
    if not equal(proof, said.proof):
        raise ProtocolViolation("the caller doesn't know the session's secret")
    return said.received


def _proof(secret: bytes, session_id: bytes, epoch: int, nonce: bytes, received: int) -> bytes:
    numbers = epoch.to_bytes(4, "big"), received.to_bytes(8, "big")
    return mac(secret, "resume", session_id, nonce, *numbers)
