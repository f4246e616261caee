"""AP addresses and other networks: a neighbour on the link learns nothing, whatever it tries, and
nothing with an AP address leaves by another interface. ::

    namespace a: a neighbour           namespace b: a machine with phantom0
    ping, sockets, ARP, a recorder     services that are not exposed
          under 10.99.0.1, fd99::1 ═════════ under 10.99.0.2, fd99::2

Needs root, the nft tool and /dev/net/tun.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest
from labs import Lab, lab_of, wait_until
from test_interface import (
    AP_A,
    AP_B,
    FAMILY,
    FIREWALL,
    Node,
    Pair,
    close_firewall,
    ip,
)
from test_interface import (
    pytestmark as _needs,
)

from phantom_tun.control.schema import GetStatus

pytestmark = [
    *_needs,
    pytest.mark.skipif(shutil.which("nft") is None, reason="needs the nft tool"),
    pytest.mark.timeout(600),
]

PORT = 7777
UNDER_A = {4: "10.99.0.1", 6: "fd99::1"}
UNDER_B = {4: "10.99.0.2", 6: "fd99::2"}
ELSEWHERE = {4: "192.0.2.9", 6: "2001:db8::9"}
BROADCAST = "255.255.255.255"
SHORT = 1.0
"""Seconds without an answer that count as silence; on one link it takes a millisecond."""
ALL_PACKETS = 3

versions = pytest.mark.parametrize("version", [4, 6])


def nft(namespace: str, *arguments: str, check: bool = True) -> str:
    return subprocess.run(
        ["ip", "netns", "exec", namespace, "nft", *arguments],
        capture_output=True, text=True, check=check,
    ).stdout  # fmt: skip


class Link:
    """Both machines, from the neighbour's point of view."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self.a, self.b = pair.names["a"], pair.names["b"]
        for end, mine, other in (("a", UNDER_A, UNDER_B), ("b", UNDER_B, UNDER_A)):
            name = pair.names[end]
            ip("-n", name, "addr", "add", f"{mine[6]}/64", "dev", "under", "nodad")
            ip("-n", name, "-6", "route", "add", "default", "via", other[6])
        self.neighbour = Node(self.a, None)  # type: ignore[arg-type] - nothing of ours runs there
        self.machine: Node

    def start(self) -> None:
        self.machine = self._pair.start("b")

    def end(self) -> None:
        """Of the machine's daemon, whichever it is now."""
        self.machine.kill()

    def route(self, version: int, *, on_link: bool) -> None:
        """How the neighbour gets to the AP address: asking for it by ARP, or past the machine."""
        way = ["dev", "under"] if on_link else ["via", UNDER_B[version]]
        address = AP_B[version]
        ip("-n", self.a, f"-{version}", "route", "replace", address, *way)
        ip("-n", self.a, "neigh", "flush", "dev", "under")

    def answers_ping(self, version: int, source: str | None = None) -> bool:
        sender = ["-I", source] if source else []
        done = self.neighbour.run("ping", "-n", "-c1", "-W1", *sender, AP_B[version])
        return done.returncode == 0

    def answers_tcp(self, version: int) -> bool:
        with self.neighbour.socket(version) as sock:
            sock.settimeout(SHORT)
            try:
                sock.connect((AP_B[version], PORT))
            except ConnectionRefusedError:
                return True
            except OSError:
                return False
            return True

    def answers_udp(self, version: int) -> bool:
        """With a reply or, where nothing listens, a refusal."""
        for port in (PORT, PORT + 1):
            with self.neighbour.socket(version, socket.SOCK_DGRAM) as sock:
                sock.settimeout(SHORT)
                with contextlib.suppress(TimeoutError):
                    try:
                        sock.connect((AP_B[version], port))
                        sock.send(b"anybody?")
                        sock.recv(100)
                    except ConnectionRefusedError:
                        pass
                    except OSError as error:
                        if isinstance(error, TimeoutError) or error.errno == 113:
                            continue
                        raise
                    return True
        return False

    def answers_resolution(self, version: int) -> bool:
        """ARP, or the neighbour discovery of IPv6, for the AP address itself."""
        self.route(version, on_link=True)
        self.answers_ping(version)
        shown = self.neighbour.run("ip", "neigh", "show", AP_B[version], "dev", "under").stdout
        return "lladdr" in shown

    def answers(self, version: int) -> set[str]:
        """What the neighbour gets out of the machine."""
        ways: dict[str, Callable[[], bool]] = {
            "ping": lambda: self.answers_ping(version),
            "tcp": lambda: self.answers_tcp(version),
            "udp": lambda: self.answers_udp(version),
        }
        self.route(version, on_link=False)
        found = {name for name, way in ways.items() if way()}
        if self.answers_resolution(version):
            found.add("resolution")
        return found

    @contextlib.contextmanager
    def recorded(self) -> Iterator[list[bytes]]:
        """All that comes to the neighbour meanwhile."""
        frames: list[bytes] = []

        def tap() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PACKETS))
            sock.bind(("under", ALL_PACKETS))
            return sock

        with self.neighbour.inside(tap) as sock:
            sock.setblocking(False)
            yield frames
            time.sleep(0.2)
            with contextlib.suppress(BlockingIOError):
                while True:
                    frame, (_, _, kind, *_) = sock.recvfrom(1 << 16)
                    if kind != socket.PACKET_OUTGOING:
                        frames.append(frame)


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    """The machine with ``phantom0`` and servers at all its addresses, none exposed."""
    with Pair("i") as pair, contextlib.ExitStack() as stack:
        close_firewall(pair.names["b"])
        link = Link(pair)
        link.start()
        stack.callback(link.end)
        stack.enter_context(link.machine.listen(6, "::", PORT))
        yield link


def shows_ap(frame: bytes, version: int) -> bool:
    packed = [ip_address(address).packed for address in (AP_A[version], AP_B[version])]
    return any(address in frame for address in packed)


# --- what comes -----------------------------------------------------------------------------------


@versions
def test_a_neighbour_gets_no_answer(link: Link, version: int) -> None:
    assert link.answers(version) == set()


@versions
def test_it_would_without_the_filter(link: Link, version: int) -> None:
    """So the other tests would notice. (IPv6 resolves only addresses of the interface itself.)"""
    link.machine.process.send_signal(signal.SIGSTOP)
    try:
        assert "phantom-tun-240.0.0.0/4" in nft(link.b, "list", "tables")
        nft(link.b, "flush", "ruleset")
        expected = {"ping", "tcp", "udp", *(["resolution"] if version == 4 else [])}
        assert link.answers(version) == expected
    finally:
        link.machine.process.send_signal(signal.SIGCONT)
    wait_until(lambda: "phantom-tun-240.0.0.0/4" in nft(link.b, "list", "tables"))
    assert link.answers(version) == set()
    close_firewall(link.b)


@versions
def test_a_forged_ap_source_reaches_nothing(link: Link, version: int) -> None:
    """As if it came over the overlay, from somebody a rule lets in."""
    plen = {4: 32, 6: 128}[version]
    ip("-n", link.a, "addr", "add", f"{AP_A[version]}/{plen}", "dev", "lo")
    try:
        link.route(version, on_link=False)
        assert not link.answers_ping(version, AP_A[version])
        done = link.neighbour.run("ping", "-n", "-c1", "-W1", "-I", AP_A[version], UNDER_B[version])
        assert done.returncode == 1
    finally:
        ip("-n", link.a, "addr", "del", f"{AP_A[version]}/{plen}", "dev", "lo")


@versions
def test_everything_else_is_as_ever(link: Link, version: int) -> None:
    done = link.neighbour.run("ping", "-n", "-c1", "-W2", UNDER_B[version])
    assert done.returncode == 0
    with link.neighbour.socket(version) as sock:
        sock.connect((UNDER_B[version], PORT))
    # The machine's own programs reach its own AP addresses.
    assert link.machine.run("ping", "-n", "-c1", "-W2", AP_B[version]).returncode == 0
    link.machine.dial(version, AP_B[version], PORT).close()


def test_broadcasts_pass_in_both_directions(link: Link) -> None:
    """255.255.255.255 lies in 240.0.0.0/4, and DHCP servers live on it."""
    for sender, receiver, source in (
        (link.neighbour, link.machine, UNDER_A[4]),
        (link.machine, link.neighbour, UNDER_B[4]),
    ):
        with (
            receiver.socket(4, socket.SOCK_DGRAM) as taker,
            sender.socket(4, socket.SOCK_DGRAM) as giver,
        ):
            taker.bind(("", 6767))
            giver.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            giver.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"under")
            giver.sendto(b"discover", (BROADCAST, 6767))
            assert taker.recvfrom(100)[1][0] == source


# --- what goes ------------------------------------------------------------------------------------


def bound(node: Node, version: int, *, device: str = "", source: str = "") -> socket.socket:
    sock = node.socket(version, socket.SOCK_DGRAM)
    if device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    if source:
        sock.bind((source, 0))
    return sock


@versions
@pytest.mark.parametrize(
    ("device", "source", "target"),
    [
        ("under", {}, AP_A),  # the interface by name: the kernel takes its word that it is there
        ("under", AP_B, AP_A),
        ("under", UNDER_B, AP_A),
        ("", AP_B, UNDER_A),
        ("", AP_B, ELSEWHERE),
        ("under", AP_B, ELSEWHERE),
    ],
)
def test_nothing_with_an_ap_address_leaves(
    link: Link, version: int, device: str, source: dict[int, str], target: dict[int, str]
) -> None:
    own = source.get(version, "")
    with link.recorded() as frames, bound(link.machine, version, device=device, source=own) as sock:
        with contextlib.suppress(OSError):
            sock.sendto(b"hello", (target[version], PORT))
        with bound(link.machine, version, device="under") as witness:
            witness.sendto(b"witness", (UNDER_A[version], PORT))
        time.sleep(SHORT)
    assert any(b"witness" in frame for frame in frames)
    assert not [frame.hex() for frame in frames if shows_ap(frame, version)]


def test_without_an_address_of_its_own_an_interface_borrows_none(link: Link) -> None:
    """The kernel then takes whatever address the machine has, an AP address before all others."""
    try:
        ip("-n", link.b, "addr", "del", f"{UNDER_B[6]}/64", "dev", "under")
        ip("-n", link.b, "-6", "route", "replace", "default", "dev", "under")
        chosen = link.machine.run("ip", "-6", "route", "get", ELSEWHERE[6]).stdout
        with link.recorded() as frames, bound(link.machine, 6) as sock:
            with contextlib.suppress(OSError):
                sock.sendto(b"hello", (ELSEWHERE[6], PORT))
            time.sleep(SHORT)
        assert not [frame.hex() for frame in frames if shows_ap(frame, 6)], chosen
    finally:
        ip("-n", link.b, "addr", "add", f"{UNDER_B[6]}/64", "dev", "under", "nodad")
        ip("-n", link.b, "-6", "route", "replace", "default", "via", UNDER_A[6])


# --- how long it lasts ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["flush ruleset", "delete table arp phantom-tun-240.0.0.0/4",
                                 "flush table ip6 phantom-tun-240.0.0.0/4"])  # fmt: skip
def test_whoever_removes_it_does_not_for_long(link: Link, how: str) -> None:
    nft(link.b, *how.split())
    began = time.monotonic()
    tables = "phantom-tun-240.0.0.0/4"
    wait_until(lambda: nft(link.b, "-s", "list", "ruleset").count(tables) == 3)
    wait_until(lambda: nft(link.b, "-s", "list", "ruleset").count("counter drop") == 12)
    assert time.monotonic() - began < 10
    assert [link.answers(version) for version in (4, 6)] == [set(), set()]
    if how == "flush ruleset":
        close_firewall(link.b)


def test_a_firewall_that_is_reloaded_gets_its_rule_again(link: Link) -> None:
    reload = f"flush ruleset\n{FIREWALL}"
    subprocess.run(
        ["ip", "netns", "exec", link.b, "nft", "-f", "-"], input=reload, text=True, check=True
    )
    wait_until(lambda: nft(link.b, "list", "ruleset").count('comment "phantom-tun phantom0"') == 2)


def test_it_stays_after_a_death_and_a_start_replaces_it(link: Link) -> None:
    link.machine.kill()
    rules = nft(link.b, "-s", "list", "ruleset")
    assert rules.count("counter drop") == 12
    for version in (4, 6):
        assert link.answers(version) == set()
        with link.recorded() as frames, bound(link.machine, version, device="under") as sock:
            with contextlib.suppress(OSError):
                sock.sendto(b"hello", (AP_A[version], PORT))
            time.sleep(SHORT)
        assert not [frame.hex() for frame in frames if shows_ap(frame, version)]
    link.start()
    assert nft(link.b, "-s", "list", "ruleset").count("counter drop") == 12
    for version in (4, 6):
        assert link.answers(version) == set()


def test_the_hosts_own_rules_are_left_alone(link: Link) -> None:
    rule = "type filter hook prerouting priority -500; ip saddr 240.0.0.0/4 accept;"
    nft(link.b, f"table inet theirs {{ chain some {{ {rule} }}; }}")
    before = nft(link.b, "-a", "list", "table", "inet", "theirs")
    link.machine.stop()
    link.end()
    link.start()
    assert nft(link.b, "-a", "list", "table", "inet", "theirs") == before
    assert link.answers(4) == set()  # what they accept is ours to drop
    nft(link.b, "delete", "table", "inet", "theirs")


# --- a node that can't join -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone() -> Iterator[Lab]:
    """A node all of whose acquaintances are down. (Not one of the first three, which the profile
    names: such a node has joined when it has found itself.)"""
    with lab_of("--nodes", "4", "--exit-hops", "0", "--entry-hops", "0") as lab:
        for name in ("n4", "n3", "n2", "n1"):
            lab.command("stop", name)
        node = lab["n4"].namespace
        # As if the machine had been started anew.
        for table in ("ip", "ip6", "arp"):
            nft(node, "delete", "table", table, "phantom-tun-240.0.0.0/4")
        ip("-n", node, "route", "del", "unreachable", "240.0.0.0/4", "metric", "4294967295")
        ip("-n", node, "-6", "route", "del", "unreachable", "2001:2f::/32", "metric", "4294967295")
        # Labs have no default route, so that nothing could follow it.
        ip("-n", node, "route", "add", "default", "via", lab["n1"].underlay, "dev", "eth0")
        ip("-n", node, "-6", "route", "add", "default", "via", lab["n1"].underlay6, "dev", "eth0")
        lab.command("start", "n4", "--timeout", "0")
        yield lab


def guards(lab: Lab) -> dict[str, Any]:
    node = lab["n4"]
    return {
        "routes": [
            node.run("ip", f"-{version}", "route", "get", AP_A[version]).returncode
            for version in (4, 6)
        ],
        "drops": nft(node.namespace, "-s", "list", "ruleset").count("counter drop"),
    }


GUARDED = {"routes": [2, 2], "drops": 12}


def test_a_node_that_has_not_joined_is_guarded_already(alone: Lab) -> None:
    node = alone["n4"]
    wait_until(node.control_socket.exists)
    wait_until(lambda: node.ask(GetStatus()).state == "joining")
    assert guards(alone) == GUARDED
    for version in FAMILY:
        with pytest.raises(OSError, match=r"No route to host|unreachable"):
            node.dial(version, AP_A[version], PORT)


def test_and_still_is_when_it_was_stopped_before_it_joined(alone: Lab) -> None:
    assert alone["n4"].ask(GetStatus()).state == "joining"
    alone.command("stop", "n4")
    assert guards(alone) == GUARDED
