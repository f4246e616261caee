"""What proves to neighbours who this node is (docs/spec/links.md, "The door").

The node's identity key stays in the process of the node. Worker processes, which shake hands and
dial for it, have the same interface and ask it (docs/spec/workers.md).
"""

from __future__ import annotations

from typing import Protocol

from phantom_tun.clock import Clock, Rng
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.wire.door import SERVER_NONCE_LEN, Door, DoorKeeper, LinkKind


class Credentials(Protocol):
    """Makes the two proofs of a link."""

    async def welcome(self, token_nonce: bytes) -> bytes:
        """The server's proof for a dialer whose token has been checked.

        :raises ProtocolViolation: the token was used before.
        :raises LinkBroken: there is nobody any more who could make it.
        """
        ...

    async def auth(self, door: Door, nonce: bytes, kind: LinkKind) -> bytes:
        """The dialer's proof for the server behind ``door``, for its ``nonce``.

        :raises LinkBroken: as above.
        """
        ...


class OwnCredentials:
    """Of the process that has the key."""

    def __init__(self, identity: SigningKey, door: Door, clock: Clock, rng: Rng) -> None:
        """``door``: our own."""
        self._identity = identity
        self._door = door
        self._clock = clock
        self._rng = rng
        self._keeper = DoorKeeper(door)

    async def welcome(self, token_nonce: bytes) -> bytes:
        """See :class:`Credentials`."""
        self._keeper.use_up(token_nonce, self._clock.now())
        nonce = self._rng.randbytes(SERVER_NONCE_LEN)
        return self._door.welcome(self._identity, token_nonce, nonce)

    async def auth(self, door: Door, nonce: bytes, kind: LinkKind) -> bytes:
        """See :class:`Credentials`."""
        return door.auth(self._identity, nonce, kind)
