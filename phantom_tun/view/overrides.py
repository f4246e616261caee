"""Override commands as the node's owner gives and sees them (docs/spec/netdb.md, "Override
commands")."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from phantom_tun.control.model import OverrideInfo, OverridesInfo
from phantom_tun.control.schema import ControlError
from phantom_tun.errors import PeerError
from phantom_tun.ids import NodeId
from phantom_tun.netdb import override_text
from phantom_tun.netdb.banned import PrefixSet, parse_prefix
from phantom_tun.netdb.overrides import NumberTaken, Standing, TooManyCommands, ban_budget
from phantom_tun.view import identities
from phantom_tun.wire.nodes import IpAddress
from phantom_tun.wire.records import OverrideAction, OverrideRecord

if TYPE_CHECKING:
    from phantom_tun.node import Node


def send(node: Node, line: str) -> OverrideInfo:
    """Take a command that a person gives, and pass it on.

    :raises ControlError: ``failed``, it is not valid; ``conflict``, its number names another one;
        ``busy``, there is no room.
    :raises UsageError: it isn't a command.
    """
    identities.check_running(node)
    command = override_text.parse_command(line)
    try:
        new = node.netdb.command(command.encoded)
    except NumberTaken as error:
        raise ControlError("conflict", str(error)) from error
    except TooManyCommands as error:
        raise ControlError("busy", str(error)) from error
    except PeerError as error:
        raise ControlError("failed", f"nobody would take this command: {error}") from error
    standings = dict(node.netdb.commands())
    return _info(command, standings[command], new=new)


def listed(node: Node) -> OverridesInfo:
    """All commands known."""
    return OverridesInfo(
        enabled=node.config.network.overrides,
        keys=tuple(key.hex() for key in node.profile.override_keys),
        ban_limit=ban_budget(len(node.netdb.all_records())),
        commands=tuple(_info(each, standing) for each, standing in node.netdb.commands()),
    )


def ban_of(node: Node, node_id: NodeId) -> OverrideRecord | None:
    """The command by which this node keeps away from another one, if there is one."""
    known = (each for each in node.netdb.all_records() if each.node_id == node_id)
    ips = [ip for record in known for ip in record.ips]
    for command, standing in node.netdb.commands():
        if standing is Standing.IN_FORCE and is_ban(command, node_id, ips):
            return command
    return None


def is_ban(command: OverrideRecord, node_id: NodeId, ips: Iterable[IpAddress]) -> bool:
    """Whether a command bans a node that has these addresses."""
    if command.action == OverrideAction.BAN_PREFIX:
        place = PrefixSet([parse_prefix(command.subject)])
        return any(ip in place for ip in ips)
    return command.action == OverrideAction.BAN_NODE and command.subject == node_id


def _info(command: OverrideRecord, standing: Standing, *, new: bool = False) -> OverrideInfo:
    action, subject = override_text.describe(command)
    return OverrideInfo(
        number=command.number,
        signer=command.signer.hex(),
        action=action,
        subject=subject,
        created=command.created,
        expires=command.expires,
        standing=standing.value,
        new=new,
    )
