"""AP identities of other people, for tests: they sign what they like and need no disk."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from functools import cache

from phantom_tun.clock import HOUR
from phantom_tun.crypto.certificates import Certificate
from phantom_tun.crypto.sealing import SealingKey
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.crypto.x509 import make_certificate
from phantom_tun.ids import EntryId, NetworkId, NodeId
from phantom_tun.netdb.addresses import AP4_CANDIDATES, ap4_candidate, ap6_address
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.netdb.signing import sign_ap_key_record, sign_ap_route
from phantom_tun.testing.fake_netdb import FakeNetdb
from phantom_tun.wire.netdb import ReserveAp, UpdateApRoutes
from phantom_tun.wire.records import APKeyRecord, APRoute

SMALL_NETWORK = NetworkParams(
    NetworkId(b"small network".ljust(32)),
    0,
    ipaddress.IPv4Network("240.0.0.0/14"),
    ipaddress.IPv6Network("2001:2f::/32"),
)
"""So few AP4 addresses that keys with a candidate in common are found at once."""

ENTRY_NODE = NodeId(b"entry node".ljust(32))


@cache
def _certificate() -> Certificate:
    return make_certificate("localhost", 0.0)


@cache
def _request_key() -> SealingKey:
    return SealingKey.generate()


@dataclass
class FakeOwner:
    """Somebody with an AP key."""

    network: NetworkParams = SMALL_NETWORK
    key: SigningKey = field(default_factory=SigningKey.generate)
    n: int = 0
    entry_node: NodeId = ENTRY_NODE

    @property
    def ap4(self) -> ipaddress.IPv4Address:
        """The AP4 address it claims."""
        return ap4_candidate(self.network, self.key.public, self.n)

    @property
    def ap6(self) -> ipaddress.IPv6Address:
        """Its AP6 address."""
        return ap6_address(self.network, self.key.public)

    def record(self, now: float, *, sequence: int | None = None, life: float = HOUR) -> APKeyRecord:
        """A key record created ``now``; the sequence is the time unless another is given."""
        return sign_ap_key_record(
            self.key,
            self.network.network_id,
            ap4_n=self.n,
            certificate=_certificate().der,
            request_key=_request_key().public,
            created=now,
            expires=now + life,
            sequence=int(now) if sequence is None else sequence,
        )

    def route(self, now: float, number: int = 0, *, life: float = HOUR) -> APRoute:
        """A route through entry path ``number``."""
        return sign_ap_route(
            self.key,
            self.network.network_id,
            entry_node=self.entry_node,
            entry_id=EntryId(number.to_bytes(16, "big")),
            sequence=int(now),
            expires=now + life,
        )

    def publish(
        self, netdb: FakeNetdb, now: float, *, life: float = HOUR, routes: int = 1
    ) -> APKeyRecord:
        """Have key record and routes stored."""
        record = self.record(now, life=life)
        netdb.perform(ReserveAp(record.encoded))
        if routes:
            signed = tuple(self.route(now, n, life=life).encoded for n in range(routes))
            netdb.perform(UpdateApRoutes(signed))
        return record

    def rival(self) -> FakeOwner:
        """Somebody else with a candidate in common; both are set to claim it."""
        mine = {self._candidate(n): n for n in range(AP4_CANDIDATES)}
        while True:
            other = FakeOwner(self.network)
            for n in range(AP4_CANDIDATES):
                if (shared := other._candidate(n)) in mine:
                    self.n, other.n = mine[shared], n
                    return other

    def _candidate(self, n: int) -> ipaddress.IPv4Address:
        return ap4_candidate(self.network, self.key.public, n)
