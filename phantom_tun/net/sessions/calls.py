"""A connection that is wanted: as whom it is made, and how that is said to the callee
(docs/spec/session.md, "Request" and "Kept sessions")."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass

from phantom_tun.clock import Clock, Rng
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.crypto.x509 import make_certificate
from phantom_tun.endpoints import Endpoint
from phantom_tun.net.sessions.contexts import ContextCache
from phantom_tun.net.sessions.kept import Parties
from phantom_tun.net.sessions.ports import Identity, ResolvedAp
from phantom_tun.tunnel.early import lock_early
from phantom_tun.tunnel.request import request_time
from phantom_tun.tunnel.resumption import Resuming
from phantom_tun.wire.session import (
    NO_TICKET,
    RANDOM_LEN,
    SECRET_LEN,
    Opening,
    Protocol,
    Request,
    Ticket,
)

_COMMON_NAME = "localhost"


@dataclass(frozen=True, slots=True)
class CallerRole:
    """As whom a connection is made."""

    signing: SigningKey
    certificate: bytes
    context: ssl.SSLContext
    ap4: ipaddress.IPv4Address | None
    source_port: int
    is_ephemeral: bool


@dataclass(frozen=True, slots=True)
class Call:
    """One connection attempt as a whole."""

    identity: str
    role: CallerRole
    resolved: ResolvedAp
    protocol: Protocol
    target: Endpoint
    session_id: bytes
    ticket: Ticket | None
    """Of the callee that ``resolved`` names."""
    first: bytes
    """The application's first bytes, if it has spoken already."""
    keep: bool
    """More connections to this callee are expected."""
    survives: bool
    """It shall go on over another tunnel if its own dies."""
    resuming: Resuming | None = None
    """That is what this is."""

    @property
    def is_of_known(self) -> bool:
        """Whether it is one of a caller's that may have to do with others of the same caller: by a
        ticket, or within one session."""
        return self.protocol is Protocol.TCP and not self.role.is_ephemeral

    @property
    def parties(self) -> Parties:
        """Whose kept sessions it can use."""
        return self.role.signing.public, self.role.ap4, self.resolved.public_key


class Calls:
    """Makes roles, and what is said."""

    def __init__(self, contexts: ContextCache, clock: Clock, rng: Rng) -> None:
        self._contexts = contexts
        self._clock = clock
        self._rng = rng

    def role(self, identity: Identity, source_port: int, *, is_ephemeral: bool) -> CallerRole:
        """That of ``identity``, with a random port if ``source_port`` is 0; or one that nobody has
        met and nobody will meet again."""
        if not is_ephemeral:
            return CallerRole(
                identity.signing,
                identity.certificate.der,
                self._contexts.caller(identity.certificate),
                identity.ap4,
                source_port or self._random_port(),
                is_ephemeral,
            )
        # Made for this one connection: two of them have nothing in common. Not even the port may
        # tell that they come from one machine.
        certificate = make_certificate(_COMMON_NAME, self._clock.now())
        return CallerRole(
            SigningKey.generate(),
            certificate.der,
            ContextCache().caller(certificate),
            None,
            self._random_port(),
            is_ephemeral,
        )

    def _random_port(self) -> int:
        return self._rng.randrange(1024, 65536)

    def request(self, call: Call, hello: bytes) -> Request:
        """One attempt's request, with this ClientHello."""
        role, draw = call.role, self._rng.randbytes
        nonce, secret, ticket = draw(RANDOM_LEN), draw(SECRET_LEN), call.ticket
        early = b""
        if call.resuming is not None:
            early = call.resuming.say(call.session_id, nonce)
        elif ticket is not None:
            early = lock_early(ticket, secret, nonce, call.first)
        return Request(
            protocol=call.protocol,
            destination=call.target.address,
            port=call.target.port,
            caller=role.signing.public,
            certificate=role.certificate,
            client_hello=hello,
            time=request_time(self._clock.now()),
            nonce=nonce,
            secret=secret,
            session_id=call.session_id,
            source_ap4=role.ap4,
            source_port=0 if call.protocol is Protocol.ECHO else role.source_port,
            ephemeral=role.is_ephemeral,
            keep=call.keep,
            resumes=call.survives,
            epoch=0 if call.resuming is None else call.resuming.epoch,
            ticket=NO_TICKET if ticket is None else ticket.number,
            early=early,
        )

    def opening(self, call: Call) -> Opening:
        """What asks for it within a session that was kept."""
        return Opening(
            call.session_id,
            request_time(self._clock.now()),
            call.target.address,
            call.target.port,
            call.role.source_port,
            call.first,
        )
