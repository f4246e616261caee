"""What the network database says about an address or a node, for people (``netdb get``)."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from phantom_tun.control.model import NetdbAnswer, NetdbRecord
from phantom_tun.control.schema import ControlError
from phantom_tun.errors import Unreachable
from phantom_tun.ids import ApAddress, NodeId
from phantom_tun.net.ap_database import Found
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.wire.records import NodeRecord

if TYPE_CHECKING:
    from phantom_tun.node import Node


async def netdb_answer(node: Node, key: ApAddress | NodeId) -> NetdbAnswer:
    """Look ``key`` up: an AP address through an exit path of the first identity, a node directly.

    :raises ControlError: ``not_found``.
    :raises WorldError: nobody could be asked.
    """
    now = node.clock.now()
    if isinstance(key, ipaddress.IPv4Address | ipaddress.IPv6Address):
        identities = node.identities.all()
        if not identities:
            raise ControlError("unavailable", "this node only relays: it looks up no AP addresses")
        found = await node.directory.ask(identities[0].name, key)
        return _of_address(key, found, node.network, now)
    try:
        record = await node.netdb.find_node(key)
    except Unreachable as error:
        raise ControlError("not_found", "no node with this id is in the network") from error
    return NetdbAnswer(key.hex(), (_node(record, now),), 1)


def _of_address(
    address: ApAddress, found: Found | None, network: NetworkParams, now: float
) -> NetdbAnswer:
    if found is None:
        raise ControlError("not_found", f"nobody has published the AP address {address}")
    key = found.record
    votes = [vote.storers for vote in found.votes]
    fields: dict[str, str | int | float | bool] = {
        "key": key.public_key.hex(),
        "ap6": str(ap6_address(network, key.public_key)),
        "sequence": key.sequence,
    }
    if key.ap4_n is not None:
        fields["ap4"] = str(ap4_candidate(network, key.public_key, key.ap4_n))
    records = [
        NetdbRecord("ap_key", fields, key.expires - now, sum(votes[:1]), sum(votes[1:])),
        *(
            NetdbRecord(
                "ap_route",
                {
                    "entry_node": route.entry_node.hex(),
                    "entry_id": route.entry_id.hex(),
                    "sequence": route.sequence,
                },
                route.expires - now,
                sum(votes[:1]),
                0,
            )
            for route in found.routes
        ),
    ]
    return NetdbAnswer(str(address), tuple(records), sum(votes))


def _node(record: NodeRecord, now: float) -> NetdbRecord:
    addresses = ", ".join(str(address) for address in record.ips)
    fields: dict[str, str | int | float | bool] = {
        "addresses": addresses,
        "relays": record.relays,
        "dialable": record.dialable,
        "certificate": record.cert_hash.hex(),
    }
    return NetdbRecord("node", fields, record.expires - now, 1, 0)
