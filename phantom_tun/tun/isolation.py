"""What keeps AP addresses off every network but the overlay, through tables of our own in ``nft``.

Linux answers for every address it has at every interface. Without this filter whoever is on the
same link could ask the machine whether it has an AP address (ARP, ping), and talk to all that
listens there, exposed or not. And programs could send AP addresses out by another interface, by
binding to it or because the kernel finds no better source.

The filter looks at nothing else, comes before all other rules, and accepts nothing that they would
drop. It stays when the daemon ends or dies, as the leak guard does; the next start replaces it.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from ipaddress import IPv4Network, IPv6Network

import structlog
import trio

from phantom_tun.errors import UsageError, WorldError
from phantom_tun.tun.tools import find_tool, run_tool

_log = structlog.get_logger()

CALM = 0.5
"""Seconds between two looks at rules that change all the time."""
AT_LEAST_EVERY = 60.0
"""Seconds after which a look is taken even if the kernel told of no change."""
_FIRST = -500
"""Priority of the chains: before connection tracking, address translation and everybody's rules."""
_BROADCAST = "255.255.255.255"
"""Inside 240.0.0.0/4, nobody's AP address, and needed by DHCP."""
_NETLINK_NETFILTER = 12
_SOL_NETLINK = 270
_ADD_MEMBERSHIP = 1
_CHANGES_OF_RULES = 7
_NOTICE = 1 << 16
_WORDS = {4: "ip", 6: "ip6"}


class Isolation:
    """The filter of one network.

    :param interface: where packets with AP addresses may come and go, beside ``lo``.
    :param prefixes: the AP prefixes by IP version.
    """

    def __init__(self, interface: str, prefixes: Mapping[int, IPv4Network | IPv6Network]) -> None:
        self._interface = interface
        self._prefixes = prefixes
        # Not the interface's name: an interface that is called otherwise replaces the filter.
        self._name = f"phantom-tun-{prefixes[4]}"
        self._versions: tuple[int, ...] = ()
        self._intact = b""
        self.problem: str | None = None
        """Why the filter isn't there, if it should be."""

    async def install(self, versions: Sequence[int]) -> None:
        """Have the filter, whatever there was before.

        :raises UsageError: no ``nft`` tool.
        :raises WorldError: it failed, or the kernel lacks what it takes.
        """
        self._versions = tuple(versions)
        try:
            await self._install()
        except (UsageError, WorldError) as error:
            self.problem = _sentence(error)
            raise
        self.problem = None

    async def remove(self, versions: Sequence[int]) -> None:
        """Be without the filter. Idempotent.

        :raises WorldError: it failed.
        """
        self._versions = tuple(versions)
        await run_tool("nft", "-f", "-", stdin="\n".join(self._without()) + "\n")

    async def exists(self, versions: Sequence[int]) -> bool:
        """Whether there are tables of the filter's name for these versions."""
        self._versions = tuple(versions)
        try:
            await self._list()
        except WorldError:
            return False
        return True

    async def watch(self, on_restored: Callable[[], Awaitable[None]]) -> None:
        """Put the filter back whenever somebody takes it away or changes it; for ever. (Firewalls
        that are reloaded begin by removing all rules, everybody's.)

        :param on_restored: told afterwards.
        """
        with ExitStack() as stack:
            notices = None
            with suppress(OSError):
                notices = stack.enter_context(_notices_of_changes())
            while True:
                # Twice: at once, and for what changed until the notices of that are forgotten.
                for _ in range(2):
                    if await self.restore():
                        await on_restored()
                    await trio.sleep(CALM)
                    if notices is not None:
                        _forget(notices)
                with trio.move_on_after(AT_LEAST_EVERY):
                    await _change(notices)

    async def restore(self) -> bool:
        """Put the filter back if it isn't as it was; whether that was done."""
        if self.problem is None and await self._is_intact():
            return False
        try:
            await self._install()
        except (UsageError, WorldError) as error:
            problem, self.problem = self.problem, _sentence(error)
            if self.problem != problem:
                _log.error("isolation_lost", reason=self.problem)
            return False
        self.problem = None
        _log.warning("isolation_restored", reason="its rules had been removed or changed")
        return True

    async def _is_intact(self) -> bool:
        try:
            return await self._list() == self._intact
        except WorldError:
            return False

    async def _install(self) -> None:
        if find_tool("nft") is None:
            raise UsageError("the nft tool is missing: install the package nftables")
        # One transaction: there is no moment without.
        await run_tool("nft", "-f", "-", stdin=self._rules())
        self._intact = await self._list()

    async def _list(self) -> bytes:
        # Stateless: what the counters say is no change. One by one: nft 1.0.6 sees only the last
        # table if several are asked for.
        listed = [
            await run_tool("nft", "-s", "list", "table", family, self._name)
            for family in self._families
        ]
        return b"".join(listed)

    @property
    def _families(self) -> list[str]:
        return [*(_WORDS[version] for version in self._versions), "arp"]

    def _without(self) -> list[str]:
        lines = []
        for family in self._families:
            table = f"table {family} {self._name}"
            lines += [table, f"delete {table}"]  # it can only be deleted if there is one
        return lines

    def _rules(self) -> str:
        lines = self._without()
        for version in self._versions:
            lines += self._ip_table(version)
        lines += self._arp_table()
        return "\n".join(lines) + "\n"

    def _ip_table(self, version: int) -> list[str]:
        word, prefix = _WORDS[version], self._prefixes[version]
        lines = [f"table {word} {self._name} {{"]
        for name, hook, end in (("arriving", "prerouting", "i"), ("leaving", "postrouting", "o")):
            lines += [
                f"chain {name} {{",
                f"type filter hook {hook} priority {_FIRST}; policy accept;",
                f'{end}ifname {{ "lo", "{self._interface}" }} accept',
                f"{word} saddr {prefix} counter drop",
                *([f"ip daddr {_BROADCAST} accept"] if version == 4 else []),
                f"{word} daddr {prefix} counter drop",
                "}",
            ]
        return [*lines, "}"]

    def _arp_table(self) -> list[str]:
        prefix = self._prefixes[4]
        lines = [f"table arp {self._name} {{"]
        for name, hook in (("arriving", "input"), ("leaving", "output")):
            lines += [
                f"chain {name} {{",
                f"type filter hook {hook} priority {_FIRST}; policy accept;",
                f"arp saddr ip {prefix} counter drop",
                f"arp daddr ip {prefix} counter drop",
                "}",
            ]
        return [*lines, "}"]


def _sentence(error: Exception) -> str:
    """What a tool says first; then it draws where in the rules that is."""
    return str(error).partition("\n")[0]


def _notices_of_changes() -> socket.socket:
    """Becomes readable when rules change.

    :raises OSError: this kernel doesn't tell.
    """
    notices = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    notices.setblocking(False)
    notices.bind((0, 0))
    notices.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _CHANGES_OF_RULES)
    return notices


async def _change(notices: socket.socket | None) -> None:
    if notices is None:
        await trio.sleep_forever()
    else:
        await trio.lowlevel.wait_readable(notices)


def _forget(notices: socket.socket) -> None:
    """Read what was told: that something has changed is all that counts."""
    while True:
        try:
            notices.recv(_NOTICE)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # more than there was room for
                raise
