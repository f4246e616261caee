"""The proof of work of a node identity (docs/spec/netdb.md, "Node ids").

H('node pow', network id, identity, nonce) must begin with the profile's number of zero bits. It is
made once per identity and network (12 bits: a few milliseconds) and makes ids cost something; what
keeps a patient attacker from surrounding a storage key is the prefix limits, not this.
"""

from __future__ import annotations

from phantom_tun.crypto.hashes import HASH_LEN, h
from phantom_tun.errors import RecordRefused
from phantom_tun.ids import NetworkId

_NONCE_LEN = 8


def solve(network_id: NetworkId, identity: bytes, bits: int) -> int:
    """The smallest nonce that proves the work; takes 2^bits hashes on average."""
    nonce = 0
    while not proves(network_id, identity, bits, nonce):
        nonce += 1
    return nonce


def check(network_id: NetworkId, identity: bytes, bits: int, nonce: int) -> None:
    """Verify what :func:`solve` made.

    :raises RecordRefused: it proves less work than ``bits``.
    """
    if not proves(network_id, identity, bits, nonce):
        raise RecordRefused("the proof of work is missing or too small")


def proves(network_id: NetworkId, identity: bytes, bits: int, nonce: int) -> bool:
    """Whether ``nonce`` stands for the work of ``bits`` bits."""
    digest = h("node pow", network_id, identity, nonce.to_bytes(_NONCE_LEN, "big"))
    return int.from_bytes(digest, "big") >> (8 * HASH_LEN - bits) == 0
