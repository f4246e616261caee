"""Override commands as text: what people write, read and hand on
(docs/spec/netdb.md, "Override commands").

A command is one line of base64, so that it can be pasted anywhere. The same goes for the key record
that is to be pinned.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from typing import Literal

from phantom_tun.errors import UsageError, WireError
from phantom_tun.netdb.banned import SHORTEST_PREFIX, IpNetwork, pack_prefix, parse_prefix
from phantom_tun.wire.records import APKeyRecord, OverrideAction, OverrideRecord, decode

Verb = Literal["ban", "unban", "delete", "pin"]

_ID = re.compile("[0-9a-fA-F]{64}")
_ACTIONS: dict[OverrideAction, str] = {
    OverrideAction.BAN_PREFIX: "ban addresses",
    OverrideAction.UNBAN_PREFIX: "unban addresses",
    OverrideAction.BAN_NODE: "ban node",
    OverrideAction.UNBAN_NODE: "unban node",
    OverrideAction.DELETE_RECORD: "delete records of key",
    OverrideAction.PIN_RECORD: "pin record of key",
}


def to_line(encoded: bytes) -> str:
    """One line of text for a command or record."""
    return base64.b64encode(encoded).decode()


def from_line(line: str) -> bytes:
    """Undo :func:`to_line`.

    :raises UsageError: it isn't base64.
    """
    try:
        return base64.b64decode(line.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError("that isn't base64, as 'phantom-tun override sign' prints it") from error


def parse_command(line: str) -> OverrideRecord:
    """The command in a line.

    :raises UsageError: there is none; it may still be one that nobody signed.
    """
    try:
        return decode(OverrideRecord, from_line(line))
    except WireError as error:
        raise UsageError(f"that isn't an override command: {error}") from error


def parse_key_record(line: str) -> APKeyRecord:
    """The key record in a line.

    :raises UsageError: there is none; it may still be one that nobody signed.
    """
    try:
        return decode(APKeyRecord, from_line(line))
    except WireError as error:
        raise UsageError(
            f"that isn't a key record, as 'phantom-tun netdb get ADDRESS --save FILE' writes it: "
            f"{error}"
        ) from error


def parse_subject(verb: Verb, text: str) -> tuple[OverrideAction, bytes]:
    """What is to be banned, unbanned or deleted: a node id, an address or prefix, an AP key.

    :raises UsageError: it is none of them; says what is possible.
    """
    if verb == "delete":
        if _ID.fullmatch(text) is None:
            raise UsageError(
                f"{text!r} isn't an AP key (64 hex digits); 'phantom-tun netdb get ADDRESS' shows "
                "the key of an address"
            )
        return OverrideAction.DELETE_RECORD, bytes.fromhex(text)
    ban = verb == "ban"
    if _ID.fullmatch(text) is not None:
        action = OverrideAction.BAN_NODE if ban else OverrideAction.UNBAN_NODE
        return action, bytes.fromhex(text)
    action = OverrideAction.BAN_PREFIX if ban else OverrideAction.UNBAN_PREFIX
    return action, pack_prefix(_prefix(text))


def describe(command: OverrideRecord) -> tuple[str, str]:
    """What a command does and to what, in words.

    :raises WireError: its prefix is none.
    """
    action = OverrideAction(command.action)
    if action in {OverrideAction.BAN_PREFIX, OverrideAction.UNBAN_PREFIX}:
        return _ACTIONS[action], str(parse_prefix(command.subject))
    return _ACTIONS[action], command.subject.hex()


def _prefix(text: str) -> IpNetwork:
    try:
        prefix = ipaddress.ip_network(text)
    except ValueError as error:
        why = f": {error}" if "/" in text else ""  # host bits, for instance
        raise UsageError(
            f"{text!r} is neither a node id (64 hex digits) nor an address or prefix{why}"
        ) from error
    shortest = SHORTEST_PREFIX[prefix.version]
    if prefix.prefixlen < shortest:
        raise UsageError(f"{text} is too large a part of the Internet: /{shortest} at most")
    return prefix
