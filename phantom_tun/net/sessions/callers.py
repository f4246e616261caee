"""Whom a local service sees as its peer (docs/spec/session.md, "Caller addresses").

A caller's AP6 follows from the key that signed the request. The AP4 it claims counts once the
network database confirmed it. Everyone else appears as a NAT peer: an address of the reserved block
that stands for one caller's key, for as long as it is in use and nobody else needs it.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import trio

from phantom_tun.clock import Clock
from phantom_tun.errors import CapacityExceeded, WorldError
from phantom_tun.ids import ApAddress, PublicKey
from phantom_tun.net.sessions.ports import Directory
from phantom_tun.netdb.addresses import ap6_address
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.wire.session import Request

CONFIRM_WITHIN = 2.0
"""Seconds a connection waits for the network database."""
UNCONFIRMED_FOR = 15.0
"""Seconds after a failure during which no connection waits again; the directory remembers the
successes."""
MAX_ASKING = 32
"""Questions to the network database at one time; more callers than that stay unconfirmed. Each goes
out through an exit path of ours, and whoever makes up keys could have any number asked."""
MAX_REMEMBERED = 4096
MAX_NAT_PEERS = 16_384


@dataclass(frozen=True, slots=True)
class Caller:
    """What is proved about who calls."""

    key: PublicKey
    ap6: ipaddress.IPv6Address | None
    """``None``: an ephemeral caller."""
    ap4: ipaddress.IPv4Address | None
    """``None``: not claimed, not confirmed, or not asked for."""

    @property
    def addresses(self) -> frozenset[ApAddress]:
        """All that the caller has proved to own."""
        return frozenset(address for address in (self.ap4, self.ap6) if address is not None)


class NatPeers:
    """Stand-in addresses, the same for all connections of one key at a time."""

    def __init__(self, prefix4: ipaddress.IPv4Network, prefix6: ipaddress.IPv6Network) -> None:
        """The two blocks that addresses are taken from."""
        self._prefix4 = prefix4
        self._prefix6 = prefix6
        self._size = min(prefix4.num_addresses - 2, prefix6.num_addresses - 2, MAX_NAT_PEERS)
        self._by_key: OrderedDict[PublicKey, int] = OrderedDict()
        self._in_use: Counter[PublicKey] = Counter()

    @contextmanager
    def lease(self, key: PublicKey, version: int) -> Iterator[ApAddress]:
        """An address for a connection of ``key``, while this is open.

        :raises CapacityExceeded: all are in use.
        """
        number = self._number(key)
        self._by_key[key] = number
        self._by_key.move_to_end(key)
        self._in_use[key] += 1
        try:
            yield self._prefix4[number + 1] if version == 4 else self._prefix6[number + 1]
        finally:
            self._in_use[key] -= 1
            if not self._in_use[key]:
                del self._in_use[key]

    def _number(self, key: PublicKey) -> int:
        number = self._by_key.get(key)
        if number is not None:
            return number
        if len(self._by_key) < self._size:
            return len(self._by_key)
        for idle in self._by_key:
            if idle not in self._in_use:
                return self._by_key.pop(idle)
        raise CapacityExceeded("all stand-in addresses for callers are in use")


class Callers:
    """Says who calls, and how local services see them."""

    def __init__(
        self, network: NetworkParams, directory: Directory, nat_peers: NatPeers, clock: Clock
    ) -> None:
        self._network = network
        self._directory = directory
        self._nat_peers = nat_peers
        self._clock = clock
        self._asking = 0
        self._unconfirmed: OrderedDict[tuple[str, ipaddress.IPv4Address, PublicKey], float] = (
            OrderedDict()
        )

    async def identify(self, identity: str, request: Request, *, with_ap4: bool) -> Caller:
        """What is proved about who calls ``identity``; ``with_ap4`` has a claimed AP4 confirmed,
        which can take ``CONFIRM_WITHIN`` seconds."""
        if request.ephemeral:
            return Caller(request.caller, None, None)
        ap4 = request.source_ap4
        if ap4 is not None and not (
            with_ap4 and await self._is_confirmed(identity, ap4, request.caller)
        ):
            ap4 = None
        return Caller(request.caller, ap6_address(self._network, request.caller), ap4)

    @contextmanager
    def peer_address(self, caller: Caller, version: int) -> Iterator[ApAddress]:
        """The address of IP ``version`` that a local service sees, while this is open.

        :raises CapacityExceeded: none is left.
        """
        address = caller.ap4 if version == 4 else caller.ap6
        if address is not None:
            yield address
            return
        with self._nat_peers.lease(caller.key, version) as stand_in:
            yield stand_in

    async def _is_confirmed(
        self, identity: str, ap4: ipaddress.IPv4Address, key: PublicKey
    ) -> bool:
        """Asked as the called ``identity``: through another one's paths would link the two."""
        question = identity, ap4, key
        if self._unconfirmed.get(question, 0.0) > self._clock.now():
            return False
        if self._asking >= MAX_ASKING:
            return False
        self._asking += 1
        try:
            # If nobody can be asked, that is as good as a no.
            with trio.move_on_after(CONFIRM_WITHIN), suppress(WorldError):
                if await self._directory.confirm(identity, ap4, key):
                    return True
        finally:
            self._asking -= 1
        self._unconfirmed[question] = self._clock.now() + UNCONFIRMED_FOR
        self._unconfirmed.move_to_end(question)
        if len(self._unconfirmed) > MAX_REMEMBERED:
            self._unconfirmed.popitem(last=False)
        return False
