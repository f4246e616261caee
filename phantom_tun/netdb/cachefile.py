"""The file that brings known nodes over a restart (docs/spec/netdb.md, "Known nodes").

It primes the next start, also when all bootstrap nodes are gone. It holds no secrets, and nothing
in it is believed: records are verified like any others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import msgspec

from phantom_tun.clock import MINUTE
from phantom_tun.crypto.hashes import HASH_LEN, h
from phantom_tun.decoding import UNREADABLE
from phantom_tun.errors import RecordRefused, WireError
from phantom_tun.ids import NetworkId
from phantom_tun.netdb.contact import Contact
from phantom_tun.netdb.verifier import Verifier
from phantom_tun.wire.netdb import NodeBytes, PathKey
from phantom_tun.wire.records import Bytes32, NodeRecord, Seconds, path_key_digest

MAX_FILE_LEN = 8 * 1024 * 1024
MAX_NODES_KEPT = 4_096

_MAGIC = "phantom-tun nodes 2"


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    record: NodeBytes
    path_key: PathKey | None
    last_ok: Seconds
    drawn: bool


class _File(msgspec.Struct, frozen=True, array_like=True):
    magic: str
    network_id: Bytes32
    entries: Annotated[tuple[_Entry, ...], msgspec.Meta(max_length=MAX_NODES_KEPT)]


@dataclass(frozen=True, slots=True)
class CachedNode:
    """A node of an earlier run; ``path_key`` only if its record still names it. The record may have
    expired: it still says where the node was."""

    record: NodeRecord
    path_key: bytes | None
    last_ok: float
    drawn: bool


def dump(network_id: NetworkId, contacts: Iterable[Contact]) -> bytes:
    """The file for some contacts, those seen last first; at most :data:`MAX_NODES_KEPT`."""
    recent = sorted(contacts, key=lambda contact: (contact.failures > 0, -contact.last_ok))
    entries = tuple(
        _Entry(
            contact.record.encoded,
            contact.path_key if contact.key_is_current else None,
            int(contact.last_ok),
            contact.drawn,
        )
        for contact in recent[:MAX_NODES_KEPT]
    )
    body = msgspec.msgpack.encode(_File(_MAGIC, network_id, entries))
    return body + h("node cache", body)


def load(data: bytes, verifier: Verifier, now: float) -> list[CachedNode]:
    """Read what :func:`dump` wrote. Records that aren't genuine are left out.

    :raises WireError: the file is damaged or belongs to another network.
    """
    body, digest = data[:-HASH_LEN], data[-HASH_LEN:]
    if len(data) > MAX_FILE_LEN or h("node cache", body) != digest:
        raise WireError("the node cache is damaged")
    try:
        content = msgspec.msgpack.decode(body, type=_File)
    except UNREADABLE as error:
        raise WireError("the node cache is damaged") from error
    if content.magic != _MAGIC or content.network_id != verifier.network.network_id:
        raise WireError("the node cache belongs to another network or version")
    nodes = []
    for entry in content.entries:
        try:
            record = verifier.node(entry.record)
        except (WireError, RecordRefused):
            continue
        if entry.last_ok <= now + MINUTE:
            key = entry.path_key
            matches = key is not None and path_key_digest(key) == record.path_key_digest
            kept = key if matches else None
            nodes.append(CachedNode(record, kept, float(entry.last_ok), entry.drawn))
    return nodes
