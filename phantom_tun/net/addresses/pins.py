"""Which key owns an AP4 address, remembered from the first contact on (docs/spec/addresses.md,
"Pins"; protocol section 7, end).

An AP6 address proves its key by itself. An AP4 address doesn't: somebody who controls the storers
of its record, or the exit path that a question goes through, could answer with a key of his own.
So the first answer is confirmed over several paths and then kept, as ssh keeps host keys.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from phantom_tun.errors import ConfigError, Unreachable, UsageError
from phantom_tun.files import atomic_write, read_plain
from phantom_tun.ids import PublicKey

PINS_FILE = "pins"
MAX_PINS = 10_000
"""At this number the oldest pin makes room for a new one."""
MAX_CHANGES = 256
"""Refused keys remembered for the owner's decision."""

_MAX_BYTES = 4 * 1024 * 1024
_FIELDS = 4
_KEY_LEN = 32
_HEADER = "# AP4 address, key of its owner, paths that confirmed it, first seen (UTC)\n"


@dataclass(frozen=True, slots=True)
class Pin:
    """What we hold to be true about an AP4 address."""

    address: ipaddress.IPv4Address
    public_key: PublicKey
    confirmations: int
    """Different exit paths over which the key was seen at first contact."""
    since: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class PinChange:
    """A key that was refused because another one is pinned."""

    pin: Pin
    offered: PublicKey
    confirmations: int
    """Different exit paths that gave the offered key."""
    seen: float
    """Seconds since the epoch, last time."""


class PinChanged(Unreachable):
    """An AP4 address answers with another key than the pinned one; applications see an unreachable
    host, ``str()`` explains it to the owner."""

    def __init__(self, change: PinChange) -> None:
        self.change = change
        pin = change.pin
        super().__init__(
            f"the owner of {pin.address} has changed: since {_day(pin.since)} it was the key "
            f"{fingerprint(pin.public_key)}, now the network database gives "
            f"{fingerprint(change.offered)}. Either the lease of the address ended and somebody "
            "else took it, or somebody is posing as its owner. Nothing was sent. Ask the owner "
            f"for the fingerprint; if it is right: phantom-tun pins accept {pin.address}"
        )


class Pins:
    """The pins of this node, kept in one small text file of mode 0600."""

    def __init__(self, state_dir: Path, now: Callable[[], float]) -> None:
        """
        :raises ConfigError: the file can't be read or a line is damaged.
        """
        self._path = state_dir / PINS_FILE
        self._now = now
        self._pins = _load(self._path)
        self._changes: dict[ipaddress.IPv4Address, PinChange] = {}
        self._evicted = 0
        self.problem: str | None = None
        """Why the file couldn't be written the last time, if it couldn't."""

    def get(self, address: ipaddress.IPv4Address) -> Pin | None:
        """The pin of ``address``, if it has one."""
        return self._pins.get(address)

    def all(self) -> list[Pin]:
        """Every pin, oldest first."""
        return sorted(self._pins.values(), key=lambda pin: pin.since)

    def changes(self) -> list[PinChange]:
        """Refused keys that wait for the owner's decision, latest last."""
        return sorted(self._changes.values(), key=lambda change: change.seen)

    def confirm(
        self, address: ipaddress.IPv4Address, public_key: PublicKey, confirmations: int
    ) -> Pin:
        """Pin ``address`` at first contact, or compare it with its pin; more confirmations than
        before are kept.

        :raises PinChanged: another key is pinned. It stays, and the change is remembered.
        :raises ConfigError: the file can't be written.
        """
        pin = self._pins.get(address)
        if pin is None:
            return self._store(Pin(address, public_key, confirmations, self._now()))
        if pin.public_key != public_key:
            change = PinChange(pin, public_key, confirmations, self._now())
            self._changes.pop(address, None)
            if len(self._changes) >= MAX_CHANGES:
                del self._changes[next(iter(self._changes))]
            self._changes[address] = change
            raise PinChanged(change)
        self._changes.pop(address, None)
        if confirmations > pin.confirmations:
            return self._store(replace(pin, confirmations=confirmations))
        return pin

    def accept(self, address: ipaddress.IPv4Address) -> Pin:
        """The owner decided that the key refused last is the right one.

        :raises UsageError: no other key was refused for ``address``.
        :raises ConfigError: the file can't be written.
        """
        change = self._changes.get(address)
        if change is None:
            raise UsageError(
                f"no other key was seen for {address}; connect to it first, then decide"
            )
        pin = self._store(Pin(address, change.offered, change.confirmations, self._now()))
        del self._changes[address]
        return pin

    def remove(self, address: ipaddress.IPv4Address) -> None:
        """Forget the pin: the next contact is a first one again.

        :raises UsageError: there is none.
        :raises ConfigError: the file can't be written.
        """
        if address not in self._pins:
            raise UsageError(f"{address} isn't pinned; 'phantom-tun pins list' shows what is")
        self._write({a: pin for a, pin in self._pins.items() if a != address})
        self._changes.pop(address, None)

    def statistics(self) -> dict[str, int]:
        """Counters by name."""
        return {
            "pins": len(self._pins),
            "pins_changed": len(self._changes),
            "pins_evicted": self._evicted,
        }

    def _store(self, pin: Pin) -> Pin:
        pins = dict(self._pins)
        if pin.address not in pins and len(pins) >= MAX_PINS:
            # Whoever calls us has his address pinned too: a crowd of callers must not push out what
            # has proved right for long.
            del pins[max(pins, key=lambda address: pins[address].since)]
            self._evicted += 1
        pins[pin.address] = pin
        self._write(pins)
        return pin

    def _write(self, pins: dict[ipaddress.IPv4Address, Pin]) -> None:
        lines = [_HEADER]
        lines += [
            f"{pin.address} {pin.public_key.hex()} {pin.confirmations} {_moment(pin.since)}\n"
            for pin in pins.values()
        ]
        try:
            atomic_write(self._path, "".join(lines).encode())
        except ConfigError as error:
            self.problem = str(error)
            raise
        self.problem = None
        self._pins = pins


def fingerprint(public_key: bytes) -> str:
    """A key as people compare it: all of it, in groups of 8 hex digits."""
    text = public_key.hex()
    return ":".join(text[start : start + 8] for start in range(0, len(text), 8))


def _load(path: Path) -> dict[ipaddress.IPv4Address, Pin]:
    try:
        text = read_plain(path, _MAX_BYTES).decode("ascii")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(
            f"can't read the pins {path}: {error.strerror}; make that readable, or restore a backup"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the pins {path} are damaged: not a text; restore a backup") from error
    pins: dict[ipaddress.IPv4Address, Pin] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("#") or not line.strip():
            continue
        try:
            pin = _parse(line)
        except ValueError as error:
            raise ConfigError(
                f"{path}, line {number}: {error}; repair or remove the line (without it the "
                "next contact with that address counts as the first)"
            ) from error
        pins[pin.address] = pin
    return pins


def _parse(line: str) -> Pin:
    fields = line.split()
    if len(fields) != _FIELDS:
        raise ValueError(f"a pin has {_FIELDS} fields")
    address = ipaddress.IPv4Address(fields[0])
    key = bytes.fromhex(fields[1])
    if len(key) != _KEY_LEN:
        raise ValueError("a key has 64 hex digits")
    confirmations = int(fields[2])
    if confirmations < 1:
        raise ValueError("a pin was confirmed at least once")
    moment = datetime.datetime.fromisoformat(fields[3])
    if moment.tzinfo is None:
        raise ValueError("the time has no zone")
    return Pin(address, PublicKey(key), confirmations, moment.timestamp())


def _moment(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="seconds")


def _day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()
