"""This node's own record: made from its keys and addresses, renewed with its path-building key
(docs/spec/netdb.md, "NodeRecord"; protocol sections 1 and 4)."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import trio

from phantom_tun.clock import HOUR, Clock, Rng
from phantom_tun.ids import NetworkId
from phantom_tun.netdb.signing import sign_node_record
from phantom_tun.node_keys import NodeKeys
from phantom_tun.path.keys import PathKeys
from phantom_tun.wire.nodes import IpAddress
from phantom_tun.wire.records import Capability, NodeAddress, NodeRecord

RECORD_LIFE = 20 * HOUR
"""How long a NodeRecord is valid."""

RENEW_EVERY = 4 * HOUR
"""About how often it is made anew, with later times."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node says about itself, besides its keys."""

    addresses: Sequence[IpAddress]
    port: int
    capabilities: Capability
    families: Sequence[bytes] = ()
    """Tags of the families it is in, 16 bytes each."""


def in_record(addresses: Sequence[IpAddress]) -> Sequence[IpAddress]:
    """What stands in a record of a node at ``addresses``: something has to."""
    return addresses or (ipaddress.IPv4Address(0),)


class OwnRecord:
    """Makes the node's record and keeps it fresh."""

    def __init__(
        self,
        keys: NodeKeys,
        network_id: NetworkId,
        path_keys: PathKeys,
        facts: NodeFacts,
        *,
        clock: Clock,
        rng: Rng,
    ) -> None:
        self._keys = keys
        self._network_id = network_id
        self._path_keys = path_keys
        self._facts = facts
        self._clock = clock
        self._rng = rng
        self.work = 0
        """Bits that builders are asked for, from the next record on."""
        self.current = self._make()

    @property
    def addresses(self) -> Sequence[IpAddress]:
        """Where others dial us."""
        return self._facts.addresses

    @property
    def path_key(self) -> bytes:
        """The path-building key that the current record names."""
        return self._path_keys.published.public

    def move(
        self, addresses: Sequence[IpAddress], publish: Callable[[NodeRecord, bytes], None]
    ) -> None:
        """Others dial us at these addresses now."""
        if tuple(addresses) != tuple(self._facts.addresses):
            self._facts = replace(self._facts, addresses=addresses)
            self.renew(publish)

    async def keep_fresh(self, publish: Callable[[NodeRecord, bytes], None]) -> None:
        """Renew in good time until cancelled; ``publish`` gets each new record with its path
        key."""
        while True:
            await trio.sleep(RENEW_EVERY * self._rng.uniform(0.75, 1.25))
            self.renew(publish)

    def renew(self, publish: Callable[[NodeRecord, bytes], None]) -> None:
        """Make a new record now: the path-building key is another one, or time has passed."""
        self.current = self._make()
        publish(self.current, self.path_key)

    def _make(self) -> NodeRecord:
        now = self._clock.now()
        published = self._path_keys.published
        facts = self._facts
        return sign_node_record(
            self._keys.signing,
            self._network_id,
            cert_hash=self._keys.cert_hash,
            addresses=[NodeAddress.of(address, facts.port) for address in facts.addresses],
            path_key=published.public,
            path_key_until=published.until,
            capabilities=facts.capabilities,
            created=now,
            expires=now + RECORD_LIFE,
            pow_nonce=self._keys.pow_nonce or 0,
            families=facts.families,
            work=self.work,
        )
