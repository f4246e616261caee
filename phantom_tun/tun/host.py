"""Addresses, routes and firewall around the device, through the ``ip`` and ``nft`` tools.

The *leak guard* is installed before anything else and stays when the daemon ends. It is a pair of
``unreachable`` routes for the AP prefixes with the worst metric there is: while no daemon runs, a
packet to an AP address gets "no route to host" instead of following the default route out of the
machine. And it is a filter (:mod:`phantom_tun.tun.isolation`), without which other networks would
reach AP addresses past the overlay.

The firewall rule lets in what the daemon writes to its own interface, on hosts whose policy is to
drop. Only the daemon can write there, and only flows that ``expose`` rules or local programs opened
exist, so the rule opens nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Protocol

import structlog
import trio

from phantom_tun.errors import UsageError, WorldError
from phantom_tun.ids import ApAddress
from phantom_tun.tun.isolation import Isolation
from phantom_tun.tun.plan import roles_of
from phantom_tun.tun.tools import find_tool, run_tool

_log = structlog.get_logger()

GUARD_METRIC = "4294967295"
QUEUE_LENGTH = 1000
"""Packets the kernel keeps for the pump before it drops."""
_SYSCTL = Path("/proc/sys/net")
_CONGESTION = "cubic"
"""Measured faster than bbr, which some hosts have as default, on a path without loss or delay."""


class Host(Protocol):
    """The machine around the device."""

    async def guard(self) -> None:
        """Make AP addresses unreachable unless an interface says otherwise, and keep them off all
        others."""
        ...

    async def keep_guard(self) -> None:
        """Put back of it what others take away; for ever."""
        ...

    def warnings(self) -> list[str]:
        """Sentences: what is missing of it."""
        ...

    async def bring_up(self) -> None:
        """Device up, listener addresses assigned."""
        ...

    async def set_addresses(self, addresses: Sequence[ApAddress]) -> None:
        """Make ``addresses`` ours, and no others; route the prefixes of which we have any."""
        ...

    async def open_firewall(self) -> None:
        """Let in what comes from the device."""
        ...

    async def close_firewall(self) -> None:
        """Undo :meth:`open_firewall`."""
        ...


class LinuxHost:
    """This machine (or network namespace).

    :param name: the interface.
    :param mtu: its MTU in bytes.
    :param ap4: the IPv4 AP prefix.
    :param ap6: the IPv6 AP prefix.
    :param require_filter: whether to be without the filter is an error.
    """

    def __init__(
        self,
        name: str,
        mtu: int,
        ap4: IPv4Network,
        ap6: IPv6Network,
        *,
        require_filter: bool = True,
    ) -> None:
        self._name = name
        self._mtu = mtu
        self._prefixes: dict[int, IPv4Network | IPv6Network] = {4: ap4, 6: ap6}
        self._assigned: list[ApAddress] = []
        self._versions: list[int] = [4, 6]
        self._isolation = Isolation(name, self._prefixes)
        self._require_filter = require_filter
        self._is_open = False

    async def guard(self) -> None:
        """See :class:`Host`.

        :raises UsageError: no ``ip`` tool, or the filter is required and can't be had.
        :raises WorldError: the ``ip`` tool failed.
        """
        self._look_around()
        for version in self._versions:
            await self._ip(
                version, "route", "replace", "unreachable", str(self._prefixes[version]),
                "metric", GUARD_METRIC,
            )  # fmt: skip
        try:
            await self._isolation.install(self._versions)
        except (UsageError, WorldError) as error:
            if self._require_filter:
                raise UsageError(
                    "AP addresses can't be kept off other networks: "
                    f"{self._isolation.problem}. With "
                    "interface.require_filter = false the node starts all the same, and whoever "
                    "is on a network with this machine can find out which addresses it has"
                ) from error
            _log.warning("not_isolated", reason=str(error))

    async def unguard(self) -> None:
        """Take the leak guard away. Idempotent.

        :raises UsageError: no ``ip`` tool.
        :raises WorldError: a tool failed.
        """
        self._look_around()
        for version in self._versions:
            if await self._has_guard_route(version):
                await self._ip(
                    version, "route", "del", "unreachable", str(self._prefixes[version]),
                    "metric", GUARD_METRIC,
                )  # fmt: skip
        if find_tool("nft") is not None:
            await self._isolation.remove(self._versions)

    async def guarded(self) -> tuple[bool, bool]:
        """Whether there are the leak guard's routes, and its filter.

        :raises UsageError: no ``ip`` tool.
        :raises WorldError: a tool failed.
        """
        self._look_around()
        routes = [await self._has_guard_route(version) for version in self._versions]
        return all(routes), await self._isolation.exists(self._versions)

    async def keep_guard(self) -> None:
        """See :class:`Host`."""
        await self._isolation.watch(self._firewall_reloaded)

    def warnings(self) -> list[str]:
        """See :class:`Host`."""
        if self._isolation.problem is None:
            return []
        return [
            "whoever is on a network with this machine can find out which AP addresses it has, and "
            f"reach what isn't exposed: {self._isolation.problem}"
        ]

    async def bring_up(self) -> None:
        """See :class:`Host`.

        :raises WorldError: the ``ip`` tool failed.
        """
        if 6 in self._versions:
            await self._enable_ipv6()
        await self._ip(
            4, "link", "set", "dev", self._name, "mtu", str(self._mtu),
            "txqueuelen", str(QUEUE_LENGTH), "addrgenmode", "none",
        )  # fmt: skip
        # A command of its own, or a link-local address (and its chatter) would be there first.
        await self._ip(4, "link", "set", "dev", self._name, "up")
        for version in self._versions:
            listener = roles_of(self._prefixes[version]).listener
            # Deprecated or of host scope: never chosen as the source of anyone's packets.
            hidden = ("scope", "host") if version == 4 else ("nodad", "preferred_lft", "0")
            await self._ip(
                version, "addr", "replace", f"{listener}/{listener.max_prefixlen}",
                "dev", self._name, *hidden,
            )  # fmt: skip

    async def set_addresses(self, addresses: Sequence[ApAddress]) -> None:
        """See :class:`Host`.

        :raises WorldError: the ``ip`` tool failed.
        """
        wanted = [address for address in addresses if address.version in self._versions]
        for address in wanted:
            if address not in self._assigned:
                extra = () if address.version == 4 else ("nodad",)
                await self._address("replace", address, *extra)
                self._assigned.append(address)
        for version in self._versions:
            await self._route(version, [a for a in wanted if a.version == version])
        for address in [a for a in self._assigned if a not in wanted]:
            await self._address("del", address)
            self._assigned.remove(address)

    async def open_firewall(self) -> None:
        """See :class:`Host`. Without ``nft``, or if it fails, the interface works all the same
        wherever the host doesn't drop by default."""
        self._is_open = True
        if find_tool("nft") is None:
            _log.info("firewall_untouched", reason="no nft tool")
            return
        try:
            await self._remove_rules()
            for chain in await self._input_chains():
                await self._insert_rules(chain)
        except WorldError as error:
            _log.warning("firewall_untouched", reason=str(error))

    async def close_firewall(self) -> None:
        """See :class:`Host`."""
        self._is_open = False
        if find_tool("nft") is not None:
            try:
                await self._remove_rules()
            except WorldError as error:
                _log.warning("firewall_rule_left", reason=str(error))

    # --- ip -------------------------------------------------------------------------------------

    def _look_around(self) -> None:
        if find_tool("ip") is None:
            raise UsageError("the ip tool is missing: install the package iproute2")
        if 6 in self._versions and not (_SYSCTL / "ipv6").exists():
            self._versions.remove(6)
            _log.warning("ipv6_missing", consequence="IPv6 AP addresses can't be used")

    async def _has_guard_route(self, version: int) -> bool:
        shown = await run_tool(
            "ip", f"-{version}", "route", "show", "type", "unreachable",
            "exact", str(self._prefixes[version]),
        )  # fmt: skip
        return f"metric {GUARD_METRIC}".encode() in shown

    async def _address(self, verb: str, address: ApAddress, *extra: str) -> None:
        await self._ip(
            address.version, "addr", verb, f"{address}/{address.max_prefixlen}",
            "dev", self._name, *extra,
        )  # fmt: skip

    async def _route(self, version: int, sources: Sequence[ApAddress]) -> None:
        target = (str(self._prefixes[version]), "dev", self._name)
        if sources:
            await self._ip(
                version, "route", "replace", *target, "src", str(sources[0]), *_congestion()
            )
        elif any(address.version == version for address in self._assigned):
            await self._ip(version, "route", "del", *target)

    async def _enable_ipv6(self) -> None:
        switch = trio.Path(_SYSCTL / "ipv6/conf" / self._name / "disable_ipv6")
        try:
            if (await switch.read_text()).strip() != "0":
                await switch.write_text("0")
        except OSError as error:
            self._versions.remove(6)
            _log.warning("ipv6_disabled", reason=str(error))

    async def _ip(self, version: int, *arguments: str) -> None:
        await run_tool("ip", f"-{version}", *arguments)

    # --- nft ------------------------------------------------------------------------------------

    async def _firewall_reloaded(self) -> None:
        if self._is_open:
            await self.open_firewall()

    @property
    def _comment(self) -> str:
        return f"phantom-tun {self._name}"

    async def _input_chains(self) -> list[tuple[str, str, str]]:
        """Family, table and name of every chain that may drop what comes in. (An ``accept`` in a
        chain of our own would not overrule them.)"""
        return [
            (chain["family"], chain["table"], chain["name"])
            for chain in await _nft_list("chains", "chain")
            if chain.get("hook") == "input"
            and chain.get("type") == "filter"
            and chain["family"] in ("inet", "ip", "ip6")
        ]

    async def _insert_rules(self, chain: tuple[str, str, str]) -> None:
        for version, word in ((4, "ip"), (6, "ip6")):
            if chain[0] in ("inet", word):
                await run_tool(
                    "nft", "insert", "rule", *chain, "iifname", f'"{self._name}"',
                    word, "saddr", str(self._prefixes[version]), "accept",
                    "comment", f'"{self._comment}"',
                )  # fmt: skip

    async def _remove_rules(self) -> None:
        for rule in await _nft_list("ruleset", "rule"):
            if rule.get("comment") == self._comment:
                await run_tool(
                    "nft", "delete", "rule", rule["family"], rule["table"], rule["chain"],
                    "handle", str(rule["handle"]),
                )  # fmt: skip


async def _nft_list(what: str, kind: str) -> list[dict[str, Any]]:
    output = await run_tool("nft", "-j", "-a", "list", what)
    try:
        return [item[kind] for item in json.loads(output)["nftables"] if kind in item]
    except (ValueError, KeyError, TypeError) as error:
        raise WorldError("nft lists its rules in a form this version doesn't know") from error


def _congestion() -> tuple[str, ...]:
    try:
        available = (_SYSCTL / "ipv4/tcp_available_congestion_control").read_text().split()
    except OSError:
        return ()
    return ("congctl", _CONGESTION) if _CONGESTION in available else ()
