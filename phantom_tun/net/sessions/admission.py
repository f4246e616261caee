"""Who is let in, and to what (docs/spec/session.md, "Being connected to").

In this order: a request opens, is signed by its caller for this identity, is new, and never came
before; there is room; a rule lets this caller in. For a further connection of a kept session all of
it is decided again, but for what the session has proved. Only who is admitted may ask for a local
service; attempts of one call share it, and its first bytes are taken once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace

from phantom_tun.clock import Clock
from phantom_tun.endpoints import Endpoint
from phantom_tun.errors import CapacityExceeded, Filtered, ProtocolViolation
from phantom_tun.net.sessions.callers import Callers
from phantom_tun.net.sessions.expose import ExposeRule, ExposeRules, Transport
from phantom_tun.net.sessions.local_services import LocalServices, Service
from phantom_tun.net.sessions.offers import ONE_CALL, Offer, Offers
from phantom_tun.net.sessions.ports import Identities, Identity
from phantom_tun.net.sessions.table import SessionTable
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.tunnel.replay import ReplayCache
from phantom_tun.tunnel.request import check_time, open_request
from phantom_tun.wire.session import Opening, Protocol, Request

REMEMBERED_REQUESTS = 32_768
"""Nonces kept for each identity, each for about three minutes; and session ids of calls whose first
bytes were taken."""
MAX_PENDING = 256
"""Requests that are being decided at the same time."""


@dataclass(frozen=True, slots=True)
class Visit:
    """An authentic, new request."""

    identity: Identity
    request: Request
    remember_until: float
    """When requests of its age are refused anyway."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that a rule lets in, and the two ends of the connection to the service."""

    visit: Visit
    remote: Endpoint
    """The caller, as the service sees it."""
    target: Endpoint


class Admission:
    """Decides, and remembers what may not come twice."""

    def __init__(
        self,
        *,
        network: NetworkParams,
        identities: Identities,
        rules: ExposeRules,
        callers: Callers,
        table: SessionTable,
        services: LocalServices,
        clock: Clock,
    ) -> None:
        self._network = network
        self._identities = identities
        self._rules = rules
        self._callers = callers
        self._table = table
        self._services = services
        self._clock = clock
        self._started = clock.now()
        self._seen: dict[str, ReplayCache] = {}
        self._seen_calls: dict[str, ReplayCache] = {}
        """Session ids of calls whose first bytes were taken."""
        self._offers: Offers[Service] = Offers()
        self._pending = 0

    def let_in(self, name: str, sealed_request: bytes) -> Visit:
        """Everything that can be decided at once, without asking anybody."""
        identity = self._identities.get(name)
        own_key = identity.signing.public
        request = open_request(
            sealed_request, identity.request_keys, own_key, self._network.network_id
        )
        visit = self._visit(identity, request)
        _cache(self._seen, visit).add(request.nonce, visit.remember_until, self._clock.now())
        return visit

    def _visit(self, identity: Identity, request: Request) -> Visit:
        """
        :raises PeerError: the request isn't acceptable.
        :raises CapacityExceeded: there's no room for another connection.
        """
        if request.destination not in (identity.ap4, identity.ap6):
            raise ProtocolViolation("the request is for another address")
        remember_until = check_time(request, self._clock.now(), self._started)
        if not request.epoch:
            self._table.check_room(request.caller)
        return Visit(identity, request, remember_until)

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """One of those that are being decided.

        :raises CapacityExceeded: there are too many.
        """
        if self._pending >= MAX_PENDING:
            raise CapacityExceeded("too many requests at a time")
        self._pending += 1
        try:
            yield
        finally:
            self._pending -= 1

    def again(self, visit: Visit, opening: Opening) -> Visit:
        """What a request for the same would be.

        :raises PeerError: it wouldn't be acceptable.
        :raises CapacityExceeded: there's no room for it.
        :raises UsageError: the identity isn't ours any more.
        """
        identity = self._identities.get(visit.identity.name)
        if identity.signing.public != visit.identity.signing.public:
            raise ProtocolViolation("the identity was replaced")
        request = replace(
            visit.request,
            session_id=opening.session_id,
            time=opening.time,
            destination=opening.destination,
            port=opening.port,
            source_port=opening.source_port,
        )
        return self._visit(identity, request)

    async def admit(self, visit: Visit, stack: AsyncExitStack) -> Admitted | None:
        """Whether and as whom the caller may connect.

        :raises CapacityExceeded: there's no address to show the caller under.
        """
        request = visit.request
        is_echo = request.protocol is Protocol.ECHO
        rule = None if is_echo else self._find_rule(visit)
        if rule is None and not is_echo:
            return None
        # An echo exchange touches no service: for the listing alone nobody is asked anything.
        version = 6 if is_echo else request.destination.version
        caller = await self._callers.identify(
            visit.identity.name,
            request,
            with_ap4=version == 4 or (rule is not None and rule.names_ap4),
        )
        if rule is not None and not rule.admits(caller.addresses):
            return None
        address = stack.enter_context(self._callers.peer_address(caller, version))
        remote = Endpoint(address, request.source_port)
        target = Endpoint(request.destination, rule.target_port if rule is not None else 0)
        return Admitted(visit, remote, target)

    async def ask_service(
        self, admitted: Admitted, stack: AsyncExitStack, *, gives_way: bool = False
    ) -> Offer[Service]:
        """The service, for this request and others of the same call.

        :raises ConnectFailed: it doesn't accept, or another attempt has it.
        """
        request, remote, target = admitted.visit.request, admitted.remote, admitted.target
        # Pings of one caller have no ports to tell them apart by, and need none.
        is_echo = request.protocol is Protocol.ECHO
        ends = request.nonce if is_echo else (request.protocol, remote, target)
        joined = self._offers.joined(
            ends,
            request.time,
            lambda: self._services.reach(request.protocol, remote, target),
            gives_way=gives_way,
        )
        return await stack.enter_async_context(joined)

    def _find_rule(self, visit: Visit) -> ExposeRule | None:
        transport: Transport = "tcp" if visit.request.protocol is Protocol.TCP else "udp"
        return self._rules.find(visit.identity.name, transport, visit.request.port)

    # --- first bytes ----------------------------------------------------------------------------

    def is_known_call(self, visit: Visit) -> bool:
        """Whether first bytes of this call were taken, whatever has become of that attempt."""
        return visit.request.session_id in _cache(self._seen_calls, visit)

    def remember_call(self, visit: Visit) -> bool:
        """First bytes are taken once, whatever becomes of it: the service may have acted on them.
        False if too many calls are remembered: then they aren't taken at all.

        :raises ProtocolViolation: they were taken before.
        """
        # Attempts of this call may be younger than this one.
        until = visit.remember_until + ONE_CALL
        try:
            calls = _cache(self._seen_calls, visit)
            calls.add(visit.request.session_id, until, self._clock.now())
        except CapacityExceeded:
            return False
        return True

    def check_memory(self, visit: Visit) -> None:
        """
        :raises CapacityExceeded: too many calls are remembered.
        """
        _cache(self._seen_calls, visit).check_room(self._clock.now())

    def expect_first(self, visit: Visit) -> None:
        """First bytes that weren't taken come over TLS now. An opening that takes them along, too,
        may still be under way.

        :raises Filtered: it was faster.
        """
        if not visit.request.has_first:
            return
        if self.is_known_call(visit):
            raise Filtered("the first bytes were taken")
        self.remember_call(visit)


def _cache(caches: dict[str, ReplayCache], visit: Visit) -> ReplayCache:
    return caches.setdefault(visit.identity.name, ReplayCache(REMEMBERED_REQUESTS))
