"""Which known nodes are of no use for paths, and why."""

from __future__ import annotations

import ipaddress
from types import SimpleNamespace
from typing import Any

import pytest

from phantom_tun.view.fitness import unusable


def record(number: int, address: str, **changes: Any) -> Any:
    usual = {"relays": True, "dialable": True, "families": ()}
    return SimpleNamespace(
        node_id=bytes([number]) * 32, ips=(ipaddress.ip_address(address),), **usual | changes
    )


OWN = record(1, "192.0.2.1", families=(b"f",))


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        (record(2, "198.51.100.1", relays=False), "not relaying"),
        (record(2, "198.51.100.1", dialable=False), "not dialable"),
        (record(2, "192.0.3.1"), "in the same /16 or IPv6 /32 as this node"),
        (record(2, "198.51.100.1", families=(b"f",)), "of the same family as this node"),
        (record(3, "198.51.100.1"), "of the same family as this node"),
        (record(2, "198.51.100.1"), "not answering yet"),
        (record(4, "198.51.100.1"), None),
    ],
)
def test_every_known_node_that_is_of_no_use_has_a_reason(known: Any, reason: str | None) -> None:
    node: Any = SimpleNamespace(
        netdb=SimpleNamespace(
            own_record=OWN,
            known_records=lambda: [known],
            candidates=lambda: [SimpleNamespace(record=record(4, "198.51.100.1"))],
        ),
        config=SimpleNamespace(node=SimpleNamespace(family_ids=frozenset({bytes([3]) * 32}))),
    )
    assert unusable(node) == ({} if reason is None else {reason: 1})
