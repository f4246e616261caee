"""Which local ports remote callers may reach: nothing, unless a rule says so (protocol section 8).

Rules are kept in one JSON file of the state directory, written atomically. A change holds for new
connections; those that exist go on.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from phantom_tun.decoding import UNREADABLE
from phantom_tun.errors import ConfigError, UsageError
from phantom_tun.files import atomic_write, read_plain
from phantom_tun.ids import ApAddress

Transport = Literal["tcp", "udp"]

MAX_RULES = 1024
MAX_CALLERS = 256
"""Addresses in one rule."""
_FILE_LIMIT = 16 * 1024 * 1024

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class ExposeRule:
    """Callers who may reach one port of one AP identity."""

    identity: str
    protocol: Transport
    port: int
    """What callers ask for, 1 to 65535."""
    to: frozenset[ApAddress]
    """AP addresses of those who may; empty: everybody."""
    target_port: int
    """Where the service listens, at the identity's own AP address."""

    @property
    def names_ap4(self) -> bool:
        """Whether an AP4 address decides about anybody."""
        return any(address.version == 4 for address in self.to)

    def admits(self, caller: frozenset[ApAddress]) -> bool:
        """Whether a caller may, who has proved to own the addresses ``caller``."""
        return not self.to or not self.to.isdisjoint(caller)


_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class _StoredRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    identity: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    protocol: Transport
    port: _Port
    to: Annotated[list[str], msgspec.Meta(max_length=MAX_CALLERS)]
    target_port: _Port


class _StoredRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rules: Annotated[list[_StoredRule], msgspec.Meta(max_length=MAX_RULES)]


class ExposeRules:
    """All rules of this node, one at most for each identity, protocol and port."""

    def __init__(self, file: Path | None, prefixes: tuple[_Network, ...] = ()) -> None:
        """
        :param file: where rules are kept; ``None``: nowhere.
        :param prefixes: the network's AP prefixes; addresses elsewhere are refused in ``to``.
        """
        self._file = file
        self._prefixes = prefixes
        self._rules: dict[tuple[str, Transport, int], ExposeRule] = {}

    def load(self) -> None:
        """Read the file; no file means no rules.

        :raises ConfigError: unreadable, or not a rule file.
        """
        if self._file is None:
            return
        try:
            data = read_plain(self._file, _FILE_LIMIT)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError(f"can't read {self._file}: {error.strerror}") from error
        try:
            stored = msgspec.json.decode(data, type=_StoredRules)
            rules = [self._checked(rule) for rule in stored.rules]
        except (*UNREADABLE, UsageError) as error:
            raise ConfigError(
                f"the expose rules in {self._file} are damaged ({error}): mend the file, or move "
                "it away and expose your services again"
            ) from error
        self._rules = {(rule.identity, rule.protocol, rule.port): rule for rule in rules}
        if len(self._rules) != len(rules):
            raise ConfigError(f"{self._file} has two rules for the same port; delete one")

    def expose(
        self,
        identity: str,
        protocol: Transport,
        port: int,
        *,
        to: tuple[str, ...] = (),
        target_port: int | None = None,
    ) -> ExposeRule:
        """Add a rule and store it. ``target_port`` defaults to ``port``.

        :raises UsageError: a value is out of range, the port is exposed already, or there are too
            many rules.
        :raises ConfigError: the rules can't be written; then nothing has changed.
        """
        target = port if target_port is None else target_port
        try:
            stored = msgspec.convert(
                {
                    "identity": identity,
                    "protocol": protocol,
                    "port": port,
                    "to": list(to),
                    "target_port": target,
                },
                _StoredRule,
            )
        except msgspec.ValidationError as error:
            raise UsageError(f"can't expose that: {_explain(error, port, target)}") from error
        rule = self._checked(stored)
        key = rule.identity, rule.protocol, rule.port
        if key in self._rules:
            raise UsageError(
                f"{protocol} port {port} of {identity!r} is exposed already: unexpose it first"
            )
        if len(self._rules) >= MAX_RULES:
            raise UsageError(f"there are {MAX_RULES} rules already; unexpose something first")
        self._store({**self._rules, key: rule})
        return rule

    def unexpose(self, identity: str, protocol: Transport, port: int) -> None:
        """Remove a rule and store that.

        :raises UsageError: there is no such rule.
        :raises ConfigError: the rules can't be written; then nothing has changed.
        """
        key = identity, protocol, port
        if key not in self._rules:
            raise UsageError(f"{protocol} port {port} of {identity!r} isn't exposed")
        self._store({other: rule for other, rule in self._rules.items() if other != key})

    def find(self, identity: str, protocol: Transport, port: int) -> ExposeRule | None:
        """The rule for a port, or ``None``: not exposed."""
        return self._rules.get((identity, protocol, port))

    def rules(self) -> list[ExposeRule]:
        """All rules, sorted."""
        return [self._rules[key] for key in sorted(self._rules)]

    def _store(self, rules: dict[tuple[str, Transport, int], ExposeRule]) -> None:
        if self._file is not None:
            stored = _StoredRules(
                [
                    _StoredRule(
                        identity=rule.identity,
                        protocol=rule.protocol,
                        port=rule.port,
                        to=sorted(str(address) for address in rule.to),
                        target_port=rule.target_port,
                    )
                    for _, rule in sorted(rules.items())
                ]
            )
            atomic_write(self._file, msgspec.json.format(msgspec.json.encode(stored)) + b"\n")
        self._rules = rules

    def _checked(self, stored: _StoredRule) -> ExposeRule:
        return ExposeRule(
            stored.identity,
            stored.protocol,
            stored.port,
            frozenset(self._address(text) for text in stored.to),
            stored.target_port,
        )

    def _address(self, text: str) -> ApAddress:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            raise UsageError(f"{text!r} is not an AP address") from None
        if self._prefixes and not any(address in prefix for prefix in self._prefixes):
            raise UsageError(f"{text} is not an AP address of this network")
        return address


def _explain(error: msgspec.ValidationError, port: int, target_port: int) -> str:
    for name, value in (("port", port), ("target port", target_port)):
        if not 1 <= value <= 65535:
            return f"{name} {value} doesn't exist; ports are 1 to 65535"
    return str(error)
