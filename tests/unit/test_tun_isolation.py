"""The filter that keeps AP addresses off other networks, with a tool that only keeps notes.

``tests/netns/test_isolation.py`` has what it does to packets.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio
from conftest import Tools

import phantom_tun.tun.isolation as isolation_module
from phantom_tun.errors import UsageError
from phantom_tun.tun.host import LinuxHost
from phantom_tun.tun.isolation import Isolation
from phantom_tun.tun.settings import DEFAULT_AP4, DEFAULT_AP6

KEEPS = """
rules=${0%/*}/rules
case "$*" in
    *list*) exec /bin/cat "$rules" ;;
    *) exec /bin/cat > "$rules" ;;
esac"""
"""An nft whose rules are a file."""


@pytest.fixture
def isolation() -> Isolation:
    return Isolation("phantom9", {4: DEFAULT_AP4, 6: DEFAULT_AP6})


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation_module, "CALM", 0.01)
    monkeypatch.setattr(isolation_module, "AT_LEAST_EVERY", 0.01)


def linux_host(**options: bool) -> LinuxHost:
    return LinuxHost("phantom9", 65_535, DEFAULT_AP4, DEFAULT_AP6, **options)


async def test_the_filter_is_one_transaction_that_replaces_what_was_there(
    tools: Tools, tmp_path: Path
) -> None:
    log = tools(ip="true", nft=KEEPS)
    host = linux_host()
    await host.guard()
    assert host.warnings() == []
    rules = (tmp_path / "bin" / "rules").read_text().splitlines()
    table = "phantom-tun-240.0.0.0/4"
    assert rules[:2] == [f"table ip {table}", f"delete table ip {table}"]
    assert rules[-12:] == [
        f"table arp {table} {{",
        "chain arriving {",
        "type filter hook input priority -500; policy accept;",
        "arp saddr ip 240.0.0.0/4 counter drop",
        "arp daddr ip 240.0.0.0/4 counter drop",
        "}",
        "chain leaving {",
        "type filter hook output priority -500; policy accept;",
        "arp saddr ip 240.0.0.0/4 counter drop",
        "arp daddr ip 240.0.0.0/4 counter drop",
        "}",
        "}",
    ]
    changes = [line for line in log.read_text().splitlines() if line.startswith("nft -f")]
    assert changes == ["nft -f -"]


async def test_no_ip_address_of_the_network_passes_but_broadcasts(
    tools: Tools, tmp_path: Path, isolation: Isolation
) -> None:
    tools(nft=KEEPS)
    await isolation.install([4, 6])
    rules = (tmp_path / "bin" / "rules").read_text()
    for end, hook in (("iif", "prerouting"), ("oif", "postrouting")):
        assert (
            f"type filter hook {hook} priority -500; policy accept;\n"
            f'{end}name {{ "lo", "phantom9" }} accept\n'
            "ip saddr 240.0.0.0/4 counter drop\n"
            "ip daddr 255.255.255.255 accept\n"
            "ip daddr 240.0.0.0/4 counter drop\n"
        ) in rules
        assert (
            f"type filter hook {hook} priority -500; policy accept;\n"
            f'{end}name {{ "lo", "phantom9" }} accept\n'
            "ip6 saddr 2001:2f::/32 counter drop\n"
            "ip6 daddr 2001:2f::/32 counter drop\n"
        ) in rules


@pytest.mark.parametrize(
    ("scripts", "reason"),
    [
        ({}, "the nft tool is missing: install the package nftables"),
        ({"nft": "echo 'Error: Operation not supported' >&2; echo more >&2; exit 1"},
         "nft -f -: Error: Operation not supported"),
    ],
)  # fmt: skip
async def test_without_the_filter_there_is_no_interface_unless_that_is_wanted(
    tools: Tools, scripts: dict[str, str], reason: str
) -> None:
    tools(ip="true", **scripts)
    with pytest.raises(UsageError) as caught:
        await linux_host().guard()
    assert f"other networks: {reason}. With interface.require_filter = false" in str(caught.value)
    assert "\n" not in str(caught.value)

    host = linux_host(require_filter=False)
    await host.guard()
    (warning,) = host.warnings()
    assert "which AP addresses it has" in warning
    assert warning.endswith(reason)


async def test_the_guard_can_be_made_again(tools: Tools) -> None:
    log = tools(ip="true", nft=KEEPS)
    host = linux_host()
    await host.guard()
    once = log.read_text()
    await host.guard()
    assert log.read_text() == once * 2


async def test_a_filter_that_was_touched_is_put_back(
    tools: Tools, tmp_path: Path, isolation: Isolation
) -> None:
    tools(nft=KEEPS)
    rules = tmp_path / "bin" / "rules"
    await isolation.install([4, 6])
    right = rules.read_text()
    assert not await isolation.restore()
    rules.write_text("flushed")
    assert await isolation.restore()
    rules.unlink()
    assert await isolation.restore()
    assert rules.read_text() == right
    assert isolation.problem is None


async def test_a_filter_that_can_not_be_put_back_is_a_warning_until_it_is(
    tools: Tools, tmp_path: Path, impatient: None
) -> None:
    log = tools(ip="true", nft=KEEPS)
    host = linux_host()
    await host.guard()
    async with trio.open_nursery() as nursery:
        (tmp_path / "bin" / "nft").unlink()
        nursery.start_soon(host.keep_guard)
        while not host.warnings():
            await trio.sleep(0.01)
        assert "install the package nftables" in host.warnings()[0]
        tools(nft=KEEPS)
        while host.warnings():
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert log.read_text().count("nft -f -") == 2


async def test_whoever_watches_hears_of_it_only_then(
    tools: Tools,
    tmp_path: Path,
    isolation: Isolation,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the kernel doesn't tell of changes."""

    def refuse() -> socket.socket:
        raise OSError("protocol not supported")

    monkeypatch.setattr(isolation_module, "_notices_of_changes", refuse)
    log = tools(nft=KEEPS)
    await isolation.install([4])
    heard = trio.Event()

    async def hear() -> None:
        heard.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(isolation.watch, hear)
        while log.read_text().count(" list ") < 10:
            await trio.sleep(0.001)
        assert not heard.is_set()
        (tmp_path / "bin" / "rules").unlink()
        await heard.wait()
        nursery.cancel_scope.cancel()
