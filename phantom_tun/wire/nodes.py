"""How one node names another in a message: 82 bytes, docs/spec/wire.md "NodeRef"."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from phantom_tun.errors import WireError
from phantom_tun.ids import CertHash, NodeId

NODE_REF_LEN = 32 + 32 + 16 + 2

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class NodeRef:
    """Where a node is and what proves it is that node.

    ``port`` 0 means that it can't be dialed: it is reached over a link it keeps open itself.
    """

    node_id: NodeId
    cert_hash: CertHash
    address: IpAddress
    port: int

    def pack(self) -> bytes:
        """node id (32) ‖ certificate hash (32) ‖ address as IPv6, IPv4 mapped (16) ‖ port u16."""
        address = self.address
        if isinstance(address, ipaddress.IPv4Address):
            address = ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed)
        return self.node_id + self.cert_hash + address.packed + self.port.to_bytes(2, "big")

    @classmethod
    def unpack(cls, data: bytes) -> NodeRef:
        """Undo :meth:`pack`.

        :raises WireError: not exactly 82 bytes.
        """
        if len(data) != NODE_REF_LEN:
            raise WireError("a NodeRef has 82 bytes")
        address = ipaddress.IPv6Address(data[64:80])
        return cls(
            NodeId(data[:32]),
            CertHash(data[32:64]),
            address.ipv4_mapped or address,
            int.from_bytes(data[80:], "big"),
        )
