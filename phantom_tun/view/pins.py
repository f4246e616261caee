"""Pinned AP4 addresses: listing, accepting a changed key, forgetting (docs/spec/addresses.md,
"Pins")."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from phantom_tun.control.model import PinChangeInfo, PinInfo
from phantom_tun.control.schema import ControlError
from phantom_tun.errors import ConfigError, UsageError
from phantom_tun.net.addresses.pins import Pin, PinChange, PinChanged, Pins, fingerprint

if TYPE_CHECKING:
    from phantom_tun.node import Node


def infos(pins: Pins) -> tuple[PinInfo, ...]:
    """Every pin, those with a changed key first, then oldest first."""
    changes = {change.pin.address: change for change in pins.changes()}
    listed = [_info(pin, changes.get(pin.address)) for pin in pins.all()]
    return tuple(sorted(listed, key=lambda pin: pin.change is None))


def accept(node: Node, address: ipaddress.IPv4Address) -> PinInfo:
    """Pin the key that was refused last; from now on connections go to its owner.

    :raises ControlError: ``not_found``, no other key was seen; ``failed``, it can't be written.
    """
    try:
        pin = node.pins.accept(address)
    except ConfigError as error:
        raise ControlError("failed", str(error)) from error
    except UsageError as error:
        raise ControlError("not_found", str(error)) from error
    _forget_answers(node, address)
    return _info(pin, None)


def remove(node: Node, address: ipaddress.IPv4Address) -> None:
    """Forget a pin: the next contact counts as the first.

    :raises ControlError: ``not_found``, there is none; ``failed``, it can't be written.
    """
    try:
        node.pins.remove(address)
    except ConfigError as error:
        raise ControlError("failed", str(error)) from error
    except UsageError as error:
        raise ControlError("not_found", str(error)) from error
    _forget_answers(node, address)


def _forget_answers(node: Node, address: ipaddress.IPv4Address) -> None:
    for identity in node.identities.all():
        node.directory.forget(identity.name, address)


def _info(pin: Pin, change: PinChange | None) -> PinInfo:
    return PinInfo(
        address=str(pin.address),
        fingerprint=fingerprint(pin.public_key),
        confirmations=pin.confirmations,
        since=pin.since,
        change=None
        if change is None
        else PinChangeInfo(
            fingerprint=fingerprint(change.offered),
            confirmations=change.confirmations,
            seen=change.seen,
            explanation=str(PinChanged(change)),
        ),
    )
