"""Decoding and verifying records, each only once.

The same few hundred node records travel in every routing answer, and every storer of an address
gets its key record up to six times. Bytes that passed their lasting rules are remembered, so a
repetition costs a dictionary look-up (0.2 µs) instead of a signature check (60 µs).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from phantom_tun.netdb.network import NetworkParams
from phantom_tun.netdb.rules import KEY_RECORD_TABLE, NODE_TABLE, ROUTE_TABLE, Table
from phantom_tun.wire.records import APKeyRecord, APRoute, NodeRecord, Record, decode

NODES_REMEMBERED = 8_192
"""At about 700 bytes each."""
AP_RECORDS_REMEMBERED = 1_024
"""Of either kind, at up to 3 KB each."""

_R = TypeVar("_R", bound=Record)


class _Memory(Generic[_R]):
    """Verified records of one kind by their bytes; the oldest are forgotten first."""

    __slots__ = ("_capacity", "_kind", "_network", "_seen", "_table")

    def __init__(
        self, kind: type[_R], table: Table[_R], network: NetworkParams, capacity: int
    ) -> None:
        self._kind = kind
        self._table = table
        self._network = network
        self._capacity = capacity
        self._seen: dict[bytes, _R] = {}

    def get(self, encoded: bytes) -> _R:
        record = self._seen.get(encoded)
        if record is None:
            record = decode(self._kind, encoded)
            self._table.check_lasting(record, self._network)
            if len(self._seen) >= self._capacity:
                del self._seen[next(iter(self._seen))]
            self._seen[encoded] = record
        return record


class Verifier:
    """Turns bytes into records that satisfy every lasting rule."""

    __slots__ = ("_keys", "_nodes", "_routes", "network")

    def __init__(self, network: NetworkParams) -> None:
        self.network = network
        self._nodes = _Memory(NodeRecord, NODE_TABLE, network, NODES_REMEMBERED)
        self._keys = _Memory(APKeyRecord, KEY_RECORD_TABLE, network, AP_RECORDS_REMEMBERED)
        self._routes = _Memory(APRoute, ROUTE_TABLE, network, AP_RECORDS_REMEMBERED)

    def node(self, encoded: bytes) -> NodeRecord:
        """A node record.

        :raises WireError: it does not parse.
        :raises RuleBroken: it breaks a lasting rule.
        """
        return self._nodes.get(encoded)

    def key_record(self, encoded: bytes) -> APKeyRecord:
        """An AP key record; raises as :meth:`node`."""
        return self._keys.get(encoded)

    def route(self, encoded: bytes) -> APRoute:
        """An AP route; raises as :meth:`node`."""
        return self._routes.get(encoded)

    def nodes(self, encoded: Iterable[bytes]) -> list[NodeRecord]:
        """Several node records. An honest node passes on none that it didn't verify, so one bad
        record spoils them all; raises as :meth:`node`."""
        return [self.node(item) for item in encoded]
