"""Settings, address plan, queue, buffers, and the tools around the device."""

from __future__ import annotations

import socket
import threading
import time
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from conftest import Tools
from trio.testing import MockClock

import phantom_tun.tun.tools as tools_module
from phantom_tun.errors import ConfigError, UsageError, WorldError
from phantom_tun.queues import QueueShares
from phantom_tun.tun.bridge import Bridge, prepare
from phantom_tun.tun.flows import CHUNK, BufferPool, Counters, MessageQueue
from phantom_tun.tun.host import LinuxHost
from phantom_tun.tun.plan import AddressPlan, roles_of
from phantom_tun.tun.settings import DEFAULT_AP4, DEFAULT_AP6, InterfaceConfig
from phantom_tun.tun.tools import run_tool

# --- settings and plan ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "a/b"},
        {"name": "two words"},
        {"name": ".."},
        {"name": "sixteencharacter"},
        {"mtu": 1279},
        {"mtu": 65_536},
        {"ap4": IPv4Network("10.0.0.0/16")},
        {"ap6": IPv6Network("2001:2f::/64")},
        {"addresses": (ip_address("192.0.2.1"),)},
        {"addresses": (ip_address("240.0.0.9"),)},
        {"addresses": (ip_address("2001:2f::9"),)},
        {"addresses": (ip_address("255.255.0.1"),)},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        InterfaceConfig(**wrong)


def test_the_defaults_are_the_profiles() -> None:
    config = InterfaceConfig(addresses=(ip_address("240.1.0.0"), ip_address("2001:2f:0:1::")))
    assert (config.name, config.mtu) == ("phantom0", 65_535)


def test_roles() -> None:
    assert [str(a) for a in vars_of(roles_of(DEFAULT_AP4))] == [
        "240.0.0.1",
        "240.0.0.2",
        "240.0.0.3",
    ]
    assert [str(a) for a in vars_of(roles_of(DEFAULT_AP6))] == [
        "2001:2f::1",
        "2001:2f::2",
        "2001:2f::3",
    ]


def vars_of(roles: Any) -> list[Any]:
    return [roles.listener, roles.peer, roles.service]


def test_who_can_be_a_caller() -> None:
    plan = AddressPlan(DEFAULT_AP4, DEFAULT_AP6)
    plan.own = frozenset({ip_address("241.0.0.1")})
    for possible in ("242.0.0.1", "240.0.3.3", "2001:2f:1::1", "2001:2f::77"):
        assert plan.can_be_caller(ip_address(possible))
    for impossible in (
        "241.0.0.1", "240.0.0.1", "240.0.0.2", "240.0.0.3", "2001:2f::1", "192.0.2.1", "::1",
        "255.255.255.255", "255.255.0.1",
    ):  # fmt: skip
        assert not plan.can_be_caller(ip_address(impossible))


# --- queue, buffers, counters ---------------------------------------------------------------------


def shares(each: int) -> QueueShares:
    return QueueShares(each, most=each, least=each)


async def test_a_queue_wakes_its_reader_from_another_thread() -> None:
    queue = MessageQueue(10, shares(1000), trio.lowlevel.current_trio_token())
    messages = [b"%d" % i for i in range(500)]

    def write() -> None:
        for message in messages:
            while not queue.offer(message):
                time.sleep(0)

    writer = threading.Thread(target=write)
    writer.start()
    taken: list[bytes] = []
    while len(taken) < len(messages):
        await queue.wait()
        taken += queue.take_all()
    assert taken == messages
    writer.join()


async def test_a_queue_is_bounded_in_number_and_bytes() -> None:
    queue = MessageQueue(3, shares(10), trio.lowlevel.current_trio_token())
    assert queue.offer(b"123456")
    assert not queue.offer(b"12345")
    assert queue.offer(b"1234")
    assert not queue.offer(b"1")
    assert queue.offer(b"")
    assert not queue.offer(b"")
    assert queue.take_all() == [b"123456", b"1234", b""]
    assert queue.take_all() == []
    assert queue.offer(b"123456")
    queue.shut()
    assert queue.offer(bytes(100)), "nobody is told that it is full"
    assert queue.take_all() == []


def test_many_queues_share_what_they_may_hold() -> None:
    parts = QueueShares(1000, most=400, least=100)
    held = []
    for members in (0, 1, 2, 3, 5, 10, 11, 1000):
        parts.members = members
        held.append(parts.each)
    assert held == [400, 400, 400, 333, 200, 100, 100, 100]
    assert QueueShares(1000, most=5, least=100).each == 5


def test_buffers_are_reused_and_spares_are_bounded() -> None:
    pool = BufferPool(spare=1)
    first, second = pool.take(), pool.take()
    assert len(first) == CHUNK
    pool.give(first)
    pool.give(second)
    assert pool.take() is first
    assert pool.take() is not second


def test_counters() -> None:
    counters = Counters()
    counters.add("a")
    counters.add("a", 2)
    assert counters.snapshot() == {"a": 3}


def test_kernel_buffers_are_bounded() -> None:
    with socket.socket() as sock:
        prepare(sock, 100_000)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            assert sock.getsockopt(socket.SOL_SOCKET, option) == 100_000
        assert not sock.getblocking()


async def test_a_socket_whose_end_is_being_acknowledged_is_looked_at_again_soon(
    autojump_clock: MockClock,
) -> None:
    """The next connection of a kept session waits for that, and every service that ends first makes
    it necessary."""

    class Closing:
        def fileno(self) -> int:
            return -1

        def getsockopt(self, _level: int, _option: int, _length: int) -> bytes:
            return b"\x07" if trio.current_time() - began > 0.0005 else b"\x0b"

    began = trio.current_time()
    sock, unused = cast(Any, Closing()), cast(Any, None)
    assert await Bridge(sock, unused, unused, unused, 100.0)._delivered()
    assert trio.current_time() - began < 0.005


# --- ip and nft -----------------------------------------------------------------------------------


def linux_host() -> LinuxHost:
    return LinuxHost("phantom9", 65_535, DEFAULT_AP4, DEFAULT_AP6)


async def test_no_ip_tool_is_said_plainly(tools: Tools) -> None:
    tools(nft="true")
    with pytest.raises(UsageError, match="iproute2"):
        await linux_host().guard()


async def test_a_failing_tool_is_quoted(tools: Tools) -> None:
    tools(ip="echo 'RTNETLINK answers: Operation not permitted' >&2; exit 2")
    with pytest.raises(WorldError, match="Operation not permitted"):
        await linux_host().guard()


async def test_a_hanging_tool_is_given_up(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools_module, "_TIMEOUT", 0.05)
    tools(ip="exec /bin/sleep 1000")
    with pytest.raises(WorldError, match="no answer"):
        await run_tool("ip", "link")


async def test_the_leak_guard_is_the_worst_route_there_is(tools: Tools) -> None:
    log = tools(ip="true", nft="true")
    await linux_host().guard()
    lines = log.read_text().splitlines()
    assert lines[0] == "ip -4 route replace unreachable 240.0.0.0/4 metric 4294967295"
    if Path("/proc/sys/net/ipv6").exists():
        assert lines[1] == "ip -6 route replace unreachable 2001:2f::/32 metric 4294967295"


async def test_the_route_follows_the_first_address(tools: Tools) -> None:
    log = tools(ip="true")
    host = linux_host()
    first, second = ip_address("241.0.0.1"), ip_address("241.0.0.2")
    await host.set_addresses([first])
    await host.set_addresses([first, second])
    await host.set_addresses([second])
    await host.set_addresses([])
    lines = [line.split(" congctl")[0] for line in log.read_text().splitlines()]
    route = "ip -4 route replace 240.0.0.0/4 dev phantom9 src"
    assert lines == [
        "ip -4 addr replace 241.0.0.1/32 dev phantom9",
        f"{route} 241.0.0.1",
        "ip -4 addr replace 241.0.0.2/32 dev phantom9",
        f"{route} 241.0.0.1",
        f"{route} 241.0.0.2",
        "ip -4 addr del 241.0.0.1/32 dev phantom9",
        "ip -4 route del 240.0.0.0/4 dev phantom9",
        "ip -4 addr del 241.0.0.2/32 dev phantom9",
    ]


CHAINS = (
    """cat << end
{"nftables": [{"metainfo": {}},
 {"chain": {"family": "inet", "table": "t", "name": "in", "hook": "input", "type": "filter"}},
 {"chain": {"family": "ip6", "table": "t6", "name": "in6", "hook": "input", "type": "filter"}},
 {"chain": {"family": "inet", "table": "t", "name": "out", "hook": "output", "type": "filter"}},
 {"chain": {"family": "ip", "table": "n", "name": "in", "hook": "input", "type": "nat"}},
 {"chain": {"family": "bridge", "table": "b", "name": "in", "hook": "input", "type": "filter"}},
 {"chain": {"family": "inet", "table": "t", "name": "plain"}},
 {"rule": {"family": "inet", "table": "t", "chain": "in", "handle": 7, "comment": "ssh"}},
 {"rule": {"family": "inet", "table": "t", "chain": "in", "handle": 8}},
 {"rule": {"family": "inet", "table": "t", "chain": "in", "handle": 9,
           "comment": "phantom-tun phantom9"}}]}
end"""
).replace("cat", "/bin/cat")


async def test_the_firewall_is_opened_in_each_chain_that_may_drop(tools: Tools) -> None:
    log = tools(nft=CHAINS)
    await linux_host().open_firewall()
    changes = [line for line in log.read_text().splitlines() if " list " not in line]
    accept = 'accept comment "phantom-tun phantom9"'
    assert changes == [
        "nft delete rule inet t in handle 9",
        f'nft insert rule inet t in iifname "phantom9" ip saddr 240.0.0.0/4 {accept}',
        f'nft insert rule inet t in iifname "phantom9" ip6 saddr 2001:2f::/32 {accept}',
        f'nft insert rule ip6 t6 in6 iifname "phantom9" ip6 saddr 2001:2f::/32 {accept}',
    ]


async def test_the_firewall_is_closed_by_its_comment(tools: Tools) -> None:
    log = tools(nft=CHAINS)
    await linux_host().close_firewall()
    changes = [line for line in log.read_text().splitlines() if " list " not in line]
    assert changes == ["nft delete rule inet t in handle 9"]


@pytest.mark.parametrize("body", ["exit 1", "echo nonsense", "echo '{}'", "echo '[]'"])
async def test_an_unusable_firewall_tool_stops_nothing(tools: Tools, body: str) -> None:
    log = tools(nft=body)
    await linux_host().open_firewall()
    await linux_host().close_firewall()
    assert all(" list " in line for line in log.read_text().splitlines())


async def test_no_firewall_tool_stops_nothing(tools: Tools) -> None:
    log = tools(ip="true")
    await linux_host().open_firewall()
    await linux_host().close_firewall()
    assert log.read_text() == ""


def test_nothing_here_changed_the_machine() -> None:
    assert not Path("/sys/class/net/phantom9").exists()
