"""The file that brings stored AP records over a restart (docs/spec/netdb.md, "Storage rules").

Without it a node that restarts forgets what it held until the owners republish, and a network in
which everybody restarts once loses everything. All of it is public; records are verified when read,
as if they came from anybody, and whoever alters the file can only make this node forget.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from phantom_tun.crypto.hashes import HASH_LEN, h
from phantom_tun.decoding import UNREADABLE
from phantom_tun.errors import RecordRefused, WireError
from phantom_tun.ids import NetworkId
from phantom_tun.netdb.store import MAX_ENTRIES, ApStore, Duty
from phantom_tun.netdb.verifier import Verifier
from phantom_tun.wire.netdb import KeyRecordBytes, Routes
from phantom_tun.wire.records import Bytes32

MAX_FILE_LEN = 32 * 1024 * 1024

_MAGIC = "phantom-tun holdings 1"


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    record: KeyRecordBytes | None
    leased: bool
    routes: Routes


class _File(msgspec.Struct, frozen=True, array_like=True):
    magic: str
    network_id: Bytes32
    entries: Annotated[tuple[_Entry, ...], msgspec.Meta(max_length=MAX_ENTRIES)]


def dump(network_id: NetworkId, store: ApStore) -> bytes:
    """The file for everything in ``store``."""
    entries = tuple(
        _Entry(
            record.encoded if record is not None else None,
            leased,
            tuple(route.encoded for route in routes),
        )
        for record, leased, routes in store.records()
    )
    body = msgspec.msgpack.encode(_File(_MAGIC, network_id, entries))
    return body + h("holdings", body)


def load(data: bytes, verifier: Verifier, store: ApStore, now: float) -> None:
    """Put what :func:`dump` wrote back into ``store``, as far as it is still valid. Whether this
    node is still responsible for it shows when it has joined.

    :raises WireError: the file is damaged or belongs to another network.
    """
    body, digest = data[:-HASH_LEN], data[-HASH_LEN:]
    if len(data) > MAX_FILE_LEN or h("holdings", body) != digest:
        raise WireError("the file of stored records is damaged")
    try:
        content = msgspec.msgpack.decode(body, type=_File)
    except UNREADABLE as error:
        raise WireError("the file of stored records is damaged") from error
    if content.magic != _MAGIC or content.network_id != verifier.network.network_id:
        raise WireError("the file of stored records belongs to another network or version")
    for entry in content.entries:
        try:
            if entry.record is not None:
                record = verifier.key_record(entry.record)
                duty = Duty(ap6=True, ap4=entry.leased)
                store.put_key_record(record, now, duty=duty, caller=None, vouched=True)
            for encoded in entry.routes:
                route = verifier.route(encoded)
                store.put_route(route, now, duty=Duty(ap6=True, ap4=False), caller=None)
        except (WireError, RecordRefused):
            continue
