"""How a dialer gets past the web server: upgrade, proofs (docs/spec/links.md, "The door")::

    dialer                                            server
      | --- GET /<door path>, token ------------------> |   token = time ‖ nonce ‖ MAC
      | <-- 101, welcome ------------------------------ |   welcome = nonce ‖ identity ‖ signature
      | --- AUTH frame -------------------------------> |   kind ‖ identity ‖ signature

The path and the token's key can be computed by whoever has the server's NodeRecord, nobody else.
The welcome proves the server's node id (its certificate hash may have come from an unsigned
NodeRef), the AUTH frame proves the dialer's. Both signatures cover network, server, certificate
and a nonce of the other side, so neither can be replayed or passed on.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from enum import IntEnum

from phantom_tun.crypto.hashes import HASH_LEN, equal, h, mac
from phantom_tun.crypto.signing import SIGNATURE_LEN, SigningKey, node_id_of, verify
from phantom_tun.errors import CryptoError, ProtocolViolation, WireError
from phantom_tun.ids import CertHash, NodeId
from phantom_tun.wire.frames import AUTH_LEN

NONCE_LEN = 16
TOKEN_LEN = 8 + NONCE_LEN + HASH_LEN
SERVER_NONCE_LEN = 32
WELCOME_LEN = SERVER_NONCE_LEN + 32 + SIGNATURE_LEN

FRESHNESS = 300.0
"""A token's time may differ from the server's clock by this many seconds."""

PROTOCOL_NAME = "phantom"
TOKEN_HEADER = "Phantom-Token"  # noqa: S105 - a header's name
WELCOME_HEADER = "Phantom-Welcome"


class LinkKind(IntEnum):
    """What a link is for; first byte of the AUTH frame."""

    SIGNALLING = 1
    BULK = 2
    """the dialer starts uses"""
    BULK_FOR_OTHER = 3
    """the side that was dialed starts uses (it asked for the link)"""


@dataclass(frozen=True, slots=True)
class Door:
    """What both sides know about one server before they talk."""

    network_id: bytes
    server_id: NodeId
    cert_hash: CertHash
    path: str = field(init=False, repr=False)
    """Where the upgrade is asked for."""
    _key: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = self.network_id, self.server_id, self.cert_hash
        object.__setattr__(self, "path", "/" + h("door", *parts).hex())
        object.__setattr__(self, "_key", h("door key", *parts))

    def token(self, now: float, nonce: bytes) -> bytes:
        """``TOKEN_LEN`` bytes that ask for one upgrade; ``nonce``: ``NONCE_LEN`` fresh bytes."""
        signed = int(now).to_bytes(8, "big") + nonce
        return signed + mac(self._key, "door token", signed)

    def check_token(self, token: bytes) -> tuple[int, bytes]:
        """Time and nonce of a token.

        :raises CryptoError: wrong length or not made for this door.
        """
        signed, code = token[: 8 + NONCE_LEN], token[8 + NONCE_LEN :]
        if not equal(code, mac(self._key, "door token", signed)):
            raise CryptoError("not a token for this door")
        return int.from_bytes(signed[:8], "big"), signed[8:]

    def _welcome_parts(self, token_nonce: bytes, server_nonce: bytes) -> tuple[bytes, ...]:
        return self.network_id, token_nonce, server_nonce, self.server_id, self.cert_hash

    def welcome(self, identity: SigningKey, token_nonce: bytes, server_nonce: bytes) -> bytes:
        """The server's answer: ``WELCOME_LEN`` bytes. ``server_nonce``: ``SERVER_NONCE_LEN`` fresh
        bytes."""
        parts = self._welcome_parts(token_nonce, server_nonce)
        return server_nonce + identity.public + identity.sign("link server", *parts)

    def check_welcome(self, welcome: bytes, token_nonce: bytes) -> bytes:
        """The server's nonce, if the server is who the dialer wants.

        :raises CryptoError: another node, an answer to another token, or an altered one.
        """
        if len(welcome) != WELCOME_LEN:
            raise CryptoError("the server's proof has a wrong length")
        nonce = welcome[:SERVER_NONCE_LEN]
        identity = welcome[SERVER_NONCE_LEN:-SIGNATURE_LEN]
        if not equal(node_id_of(identity), self.server_id):
            raise CryptoError("the server is another node")
        parts = self._welcome_parts(token_nonce, nonce)
        verify(identity, welcome[-SIGNATURE_LEN:], "link server", *parts)
        return nonce

    def _auth_parts(self, server_nonce: bytes, kind: LinkKind) -> tuple[bytes, ...]:
        return self.network_id, server_nonce, self.server_id, self.cert_hash, bytes([kind])

    def auth(self, identity: SigningKey, server_nonce: bytes, kind: LinkKind) -> bytes:
        """Payload of the dialer's AUTH frame."""
        parts = self._auth_parts(server_nonce, kind)
        return bytes([kind]) + identity.public + identity.sign("link dialer", *parts)

    def check_auth(self, payload: bytes, server_nonce: bytes) -> tuple[LinkKind, NodeId]:
        """What the link is for, and who dialed it.

        :raises WireError: wrong length or unknown kind of link.
        :raises CryptoError: the signature isn't for this network, server, certificate and nonce.
        """
        if len(payload) != AUTH_LEN:
            raise WireError("an AUTH frame has a fixed length")
        try:
            kind = LinkKind(payload[0])
        except ValueError as error:
            raise WireError("unknown kind of link") from error
        identity, signature = payload[1:33], payload[33:]
        verify(identity, signature, "link dialer", *self._auth_parts(server_nonce, kind))
        return kind, node_id_of(identity)


class DoorKeeper:
    """Decides whether a request at the door may upgrade; remembers tokens so that none works
    twice."""

    __slots__ = ("_capacity", "_seen", "door")

    def __init__(self, door: Door, capacity: int = 65_536) -> None:
        """``capacity``: tokens remembered; beyond, the oldest are forgotten first."""
        self.door = door
        self._capacity = capacity
        self._seen: dict[bytes, float] = {}

    def check(self, path: str, token: bytes, now: float) -> bytes:
        """The nonce of a token that is genuine and fresh.

        :raises ProtocolViolation: another path, or a stale token.
        :raises CryptoError: not a token for this door.
        """
        if not equal(path.encode(), self.door.path.encode()):
            raise ProtocolViolation("not the door")
        made, nonce = self.door.check_token(token)
        if abs(made - now) > FRESHNESS:
            raise ProtocolViolation("the token is stale")
        return nonce

    def use_up(self, nonce: bytes, now: float) -> None:
        """Let a checked token's nonce in, this once.

        :raises ProtocolViolation: it was used before.
        """
        self._forget(now)
        if nonce in self._seen:
            raise ProtocolViolation("the token was used before")
        self._seen[nonce] = now + 2 * FRESHNESS

    def _forget(self, now: float) -> None:
        while self._seen:
            nonce, until = next(iter(self._seen.items()))
            if until > now and len(self._seen) < self._capacity:
                return
            del self._seen[nonce]


def to_header(data: bytes) -> str:
    """Bytes as an HTTP header value."""
    return base64.b64encode(data).decode()


def from_header(value: bytes) -> bytes:
    """Undo :func:`to_header`.

    :raises WireError: not base64.
    """
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise WireError("a header value is not base64") from error
