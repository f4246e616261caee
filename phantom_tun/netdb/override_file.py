"""The file that brings override commands over a restart (docs/spec/netdb.md, "Override commands").

A node that had forgotten them would take banned nodes in until somebody tells it again. They are
public, and checked when read as if they came from anybody.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from phantom_tun.crypto.hashes import HASH_LEN, h
from phantom_tun.decoding import UNREADABLE
from phantom_tun.errors import WireError
from phantom_tun.ids import NetworkId
from phantom_tun.netdb.overrides import MAX_COMMANDS, Overrides
from phantom_tun.wire.netdb import CommandBytes
from phantom_tun.wire.records import MAX_OVERRIDE_LEN, Bytes32

MAX_FILE_LEN = MAX_COMMANDS * (MAX_OVERRIDE_LEN + 8) + 1_024

_MAGIC = "phantom-tun overrides 1"


class _File(msgspec.Struct, frozen=True, array_like=True):
    magic: str
    network_id: Bytes32
    commands: Annotated[tuple[CommandBytes, ...], msgspec.Meta(max_length=MAX_COMMANDS)]


def dump(network_id: NetworkId, overrides: Overrides) -> bytes:
    """The file for all commands known."""
    commands = tuple(command.encoded for command in overrides.commands())
    body = msgspec.msgpack.encode(_File(_MAGIC, network_id, commands))
    return body + h("overrides file", body)


def load(data: bytes, network_id: NetworkId) -> tuple[bytes, ...]:
    """Read what :func:`dump` wrote.

    :raises WireError: the file is damaged or belongs to another network.
    """
    body, digest = data[:-HASH_LEN], data[-HASH_LEN:]
    if len(data) > MAX_FILE_LEN or h("overrides file", body) != digest:
        raise WireError("the file of override commands is damaged")
    try:
        content = msgspec.msgpack.decode(body, type=_File)
    except UNREADABLE as error:
        raise WireError("the file of override commands is damaged") from error
    if content.magic != _MAGIC or content.network_id != network_id:
        raise WireError("the file of override commands belongs to another network or version")
    return content.commands
