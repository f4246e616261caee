"""Sockets between two nodes of a network with three hops on each side: what a program sees is what
TCP, UDP and ICMP would show it, and what must not pass doesn't."""

from __future__ import annotations

import ipaddress
import random
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dns.message
import dns.query
import pytest
from labs import Lab, Node, wait_until
from services import (
    DNS_ANSWER,
    DNS_NAME,
    GOODBYE,
    DatagramEcho,
    Dns,
    Echo,
    KeyValue,
    serving,
)
from stalling import most_under_way, stall
from watching import Watch, send_raw

from phantom_tun.control.schema import ListPaths

pytestmark = [pytest.mark.netns, pytest.mark.timeout(600)]

ECHO, KEYS, NAMES, RAW, CLOSED, PRIVATE, OPEN = 7001, 7002, 53, 7004, 7005, 7006, 7007
FLEETING = {4: 7008, 6: 7009}
NOT_EXPOSED = 7999
UNKNOWN = {4: "241.1.2.3", 6: "2001:2f:1:2:3:4:5:6"}
AP4, AP6 = ipaddress.ip_network("240.0.0.0/4"), ipaddress.ip_network("2001:2f::/32")
NOBODY = "65534"
MAY_READ = 1 << 2
"""CAP_DAC_READ_SEARCH: what a relay needs where it can't otherwise read its own program."""
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
SILENCE = 5.0
"""Seconds without an answer after which nothing is taken to be the answer."""

versions = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def client(network: Lab) -> Node:
    return network["n7"]


@pytest.fixture(scope="module")
def server(network: Lab) -> Iterator[Node]:
    node = network["n8"]
    node.expose(ECHO, "tcp", "udp")
    node.expose(CLOSED, "tcp", "udp")
    node.expose(NAMES, "udp")
    node.expose(OPEN, "udp")
    for port in (KEYS, RAW, *FLEETING.values()):
        node.expose(port)
    with (
        serving(node, ECHO, Echo),
        serving(node, ECHO, DatagramEcho),
        serving(node, KEYS, KeyValue),
        serving(node, NAMES, Dns),
    ):
        yield node


def receive_until(sock: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        piece = sock.recv(1 << 16)
        assert piece, f"ended after {data!r}"
        data += piece
    return data


def receive_all(sock: socket.socket) -> bytes:
    data = bytearray()
    while piece := sock.recv(1 << 20):
        data += piece
    return bytes(data)


# --- TCP ------------------------------------------------------------------------------------------


@versions
def test_the_server_sees_the_callers_ap_address_and_port(
    client: Node, server: Node, version: int
) -> None:
    with client.dial(version, server.ap(version), ECHO) as sock:
        address, port = sock.getsockname()[:2]
        assert receive_until(sock, b"\n") == f"{address} {port}\n".encode()
        assert address == client.ap(version)


@versions
def test_half_close(client: Node, server: Node, version: int) -> None:
    with client.dial(version, server.ap(version), ECHO) as sock:
        receive_until(sock, b"\n")
        sock.sendall(b"the rest is silence")
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b"the rest is silence" + GOODBYE


def test_half_close_by_the_server(client: Node, server: Node) -> None:
    with client.joined(server, RAW) as (caller, called):
        called.sendall(b"over to you")
        called.shutdown(socket.SHUT_WR)
        assert receive_all(caller) == b"over to you"
        caller.sendall(b"still here")
        caller.shutdown(socket.SHUT_WR)
        assert receive_all(called) == b"still here"


@pytest.mark.parametrize("who", ["caller", "called"])
def test_a_reset_reaches_the_other_end(client: Node, server: Node, who: str) -> None:
    with client.joined(server, RAW) as (caller, called):
        resets, hears = (caller, called) if who == "caller" else (called, caller)
        caller.sendall(b"x")
        assert called.recv(1) == b"x"
        resets.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        resets.close()
        with pytest.raises(ConnectionResetError):
            hears.recv(1)


@pytest.mark.parametrize("who", ["caller", "called"])
def test_bytes_arrive_whole_and_in_order(client: Node, server: Node, who: str) -> None:
    data = random.Random(who).randbytes(4 << 20)
    with client.joined(server, RAW, 6) as (caller, called):
        sends, reads = (caller, called) if who == "caller" else (called, caller)

        def send() -> None:
            # Pieces of all sizes, so that no border anywhere in the chain is spared.
            rng, at = random.Random(who), 0
            while at < len(data):
                piece = data[at : at + rng.choice([1, 2, 1000, 16_384, 65_536, 300_000])]
                sends.sendall(piece)
                at += len(piece)
            sends.shutdown(socket.SHUT_WR)

        with ThreadPoolExecutor(1) as executor:
            sent = executor.submit(send)
            got = receive_all(reads)
            sent.result()
    assert got == data


@versions
def test_requests_and_responses(
    client: Node, server: Node, version: int, figures: Callable[[str], None]
) -> None:
    times = []
    with client.dial(version, server.ap(version), KEYS) as sock:
        lines = sock.makefile("rb")
        for number in range(100):
            began = time.monotonic()
            sock.sendall(f"SET key{number} value{number}\n".encode())
            assert lines.readline() == b"OK\n"
            times.append(time.monotonic() - began)
        # Many at once, as clients with pipelining do.
        sock.sendall(b"".join(b"GET key%d\n" % number for number in range(100)))
        assert [lines.readline() for _ in range(100)] == [b"value%d\n" % n for n in range(100)]
    figures(f"request and response, IPv{version}: {statistics.median(times) * 1e3:.1f} ms median")


def test_200_connections_at_once(
    client: Node, server: Node, figures: Callable[[str], None]
) -> None:
    all_open = threading.Barrier(200, timeout=300)
    took = []

    def converse(number: int) -> None:
        began = time.monotonic()
        with client.dial(4, server.ap(4), ECHO, timeout=200) as sock:
            sock.settimeout(300)
            receive_until(sock, b"\n")
            took.append(time.monotonic() - began)
            all_open.wait()
            data = random.Random(number).randbytes(20_000)
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            assert receive_all(sock) == data + GOODBYE

    with ThreadPoolExecutor(200) as executor:
        for done in [executor.submit(converse, number) for number in range(200)]:
            done.result()
    figures(
        f"200 connections at once: each open after {statistics.median(took):.1f} s in the median, "
        f"all after {max(took):.1f} s"
    )


def test_connecting_and_closing_in_a_row(
    client: Node, server: Node, figures: Callable[[str], None]
) -> None:
    took, kept = [], client.statistic("sessions", "open_kept")
    for number in range(50):
        began = time.monotonic()
        with client.dial(4, server.ap(4), ECHO) as sock:
            receive_until(sock, b"\n")
            took.append(time.monotonic() - began)
            data = random.Random(number).randbytes(30_000)
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            assert receive_all(sock) == data + GOODBYE
    # Each waits for its turn: the one before may not have ended yet.
    kept = client.statistic("sessions", "open_kept") - kept
    assert kept > 30
    figures(
        f"50 connects in a row: first bytes after {statistics.median(took) * 1e3:.0f} ms in the "
        f"median, {kept:.0f} in kept sessions"
    )


@versions
def test_a_service_that_was_there_is_answered_for_at_once(
    client: Node, server: Node, version: int
) -> None:
    """As long as it is there: then a program sees a reset, and the next one a refusal."""
    address, port = server.ap(version), FLEETING[version]

    def ask() -> bytes:
        with client.dial(version, address, port) as sock:
            sock.sendall(b"SET key value\nGET key\n")
            sock.shutdown(socket.SHUT_WR)
            return receive_all(sock)

    def early() -> int:
        return client.statistic("interface", "early_connected")

    def first_bytes_taken() -> float:
        names = "early_taken", "further_answered_connected"
        return sum(server.statistic("sessions", name) for name in names)

    with serving(server, port, KeyValue):
        assert ask() == b"OK\nvalue\n"
        before, taken = early(), first_bytes_taken()
        for _ in range(5):
            assert ask() == b"OK\nvalue\n"
        assert early() == before + 5
        assert first_bytes_taken() == taken + 5
    with pytest.raises(ConnectionResetError):
        ask()
    with pytest.raises(ConnectionRefusedError):
        ask()
    with serving(server, port, KeyValue):
        assert ask() == b"OK\nvalue\n"


@versions
def test_refused(client: Node, server: Node, version: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        client.dial(version, server.ap(version), CLOSED)


@versions
def test_a_port_that_is_not_exposed_is_silent(client: Node, server: Node, version: int) -> None:
    with (
        serving(server, NOT_EXPOSED, Echo),
        pytest.raises(TimeoutError),
        client.dial(version, server.ap(version), NOT_EXPOSED, timeout=SILENCE),
    ):
        pass


@versions
def test_an_unknown_address_is_unreachable(client: Node, version: int) -> None:
    with pytest.raises(OSError, match="No route to host"):
        client.dial(version, UNKNOWN[version], ECHO)


def test_a_port_that_is_exposed_to_one_address_only(
    network: Lab, client: Node, server: Node
) -> None:
    stranger = network["n6"]
    done = server.phantom_tun("expose", str(PRIVATE), "--to", client.ap(6))
    assert done.returncode == 0, done.stderr
    with serving(server, PRIVATE, Echo):
        # The address that is named counts for both versions: it is the caller's key that is let in.
        for version in (4, 6):
            with client.dial(version, server.ap(version), PRIVATE) as sock:
                receive_until(sock, b"\n")
        with (
            pytest.raises(TimeoutError),
            stranger.dial(6, server.ap(6), PRIVATE, timeout=SILENCE),
        ):
            pass


# --- a reader that stops --------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["caller", "called"])
def test_a_reader_that_stops_stops_the_sender(
    network: Lab, client: Node, server: Node, who: str, figures: Callable[[str], None]
) -> None:
    with client.joined(server, RAW, 6) as ends:
        sender, reader = ends if who == "caller" else ends[::-1]
        seen = stall(network, sender, reader, 12.0)
    assert seen.accepted_late < 1 << 20
    assert seen.accepted < most_under_way()
    seen.check_memory()
    figures(f"reader stopped for 12 s, {who} sends: {seen}")


# --- UDP ------------------------------------------------------------------------------------------


def datagram_socket(client: Node, version: int) -> socket.socket:
    return client.socket(version, socket.SOCK_DGRAM)


@versions
def test_udp_echo(client: Node, server: Node, version: int) -> None:
    own = client.ap(version).encode()
    with datagram_socket(client, version) as sock:
        for size in (0, 1, 1200, 8000, 60_000):
            data = random.Random(size).randbytes(size)
            sock.sendto(data, (server.ap(version), ECHO))
            got, sender = sock.recvfrom(1 << 16)
            assert got == own + b" " + data
            assert sender[:2] == (server.ap(version), ECHO)


def test_datagrams_stay_apart(client: Node, server: Node) -> None:
    with datagram_socket(client, 4) as sock:
        sock.connect((server.ap(4), ECHO))
        for number in range(50):
            sock.send(b"%d" % number * (number + 1))
        own = client.ap(4).encode()
        wanted = {own + b" " + b"%d" % number * (number + 1) for number in range(50)}
        assert {sock.recv(1 << 16) for _ in range(50)} == wanted


@versions
def test_dns_over_udp(client: Node, server: Node, version: int) -> None:
    query = dns.message.make_query(DNS_NAME, "A")
    answer = client.inside(lambda: dns.query.udp(query, server.ap(version), timeout=60))
    assert [str(record) for record in answer.answer[0]] == [DNS_ANSWER]


@versions
def test_a_closed_udp_port_is_refused(client: Node, server: Node, version: int) -> None:
    with datagram_socket(client, version) as sock:
        sock.connect((server.ap(version), CLOSED))
        sock.send(b"anybody there?")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(1)


def test_a_udp_port_that_is_not_exposed_is_silent(client: Node, server: Node) -> None:
    with serving(server, NOT_EXPOSED, DatagramEcho), datagram_socket(client, 4) as sock:
        sock.settimeout(SILENCE)
        sock.connect((server.ap(4), NOT_EXPOSED))
        sock.send(b"anybody there?")
        with pytest.raises(TimeoutError):
            sock.recv(1)


# --- what must not pass ---------------------------------------------------------------------------


def assert_only_genuine_arrives(
    client: Node, server: Node, version: int, forge: Callable[[], None]
) -> None:
    """What ``forge`` sends to :data:`OPEN` is dropped for its source; an honest datagram isn't."""
    before = client.statistic("interface", "dropped_source_not_ours")
    with server.socket(version, socket.SOCK_DGRAM) as service:
        service.bind((server.ap(version), OPEN))
        forge()
        wait_until(lambda: client.statistic("interface", "dropped_source_not_ours") > before)
        with datagram_socket(client, version) as sock:
            sock.sendto(b"genuine", (server.ap(version), OPEN))
            assert service.recv(100) == b"genuine"


@versions
def test_a_spoofed_source_address_goes_nowhere(
    network: Lab, client: Node, server: Node, version: int
) -> None:
    other = network["n5"].ap(version)
    assert_only_genuine_arrives(
        client, server, version,
        lambda: send_raw(client, other, server.ap(version), OPEN, b"forged"),
    )  # fmt: skip


@versions
def test_a_program_bound_to_another_interface_sends_nothing(
    client: Node, server: Node, version: int
) -> None:
    def send() -> None:
        with datagram_socket(client, version) as sock:
            sock.bind((client.underlay if version == 4 else client.underlay6, 0))
            sock.sendto(b"leaking", (server.ap(version), OPEN))

    assert_only_genuine_arrives(client, server, version, send)


@pytest.mark.parametrize(
    ("version", "prefix", "address"),
    [(4, "192.0.2.0/24", "192.0.2.1"), (6, "2001:db8::/32", "2001:db8::1")],
)
def test_what_is_for_no_ap_address_goes_nowhere(
    client: Node, version: int, prefix: str, address: str
) -> None:
    before = client.statistic("interface", "dropped_destination_outside")
    with Watch(client, "eth0") as outside:
        client.check("ip", "route", "add", prefix, "dev", "phantom0")
        try:
            with datagram_socket(client, version) as sock:
                sock.sendto(b"lost", (address, 53))
            wait_until(
                lambda: client.statistic("interface", "dropped_destination_outside") > before
            )
        finally:
            client.check("ip", "route", "del", prefix)
        assert ipaddress.ip_address(address) not in outside.seen()


def test_ap_addresses_are_never_seen_outside(client: Node, server: Node) -> None:
    with Watch(client, "eth0") as outside, client.dial(6, server.ap(6), ECHO) as sock:
        receive_until(sock, b"\n")
        seen = outside.seen()
    assert seen
    assert not [address for address in seen if address in AP4 or address in AP6]


# --- who carries it -------------------------------------------------------------------------------


def test_relays_without_privileges_are_in_paths(network: Lab) -> None:
    relays = {node.node_id: node for node in network.nodes.values() if "relay-only" in node.roles}
    owners = [node for node in network.nodes.values() if "relay-only" not in node.roles]
    assert (len(relays), len(owners)) == (2, 10)
    members = {member for node in owners for path in node.ask(ListPaths()) for member in path.nodes}
    assert relays.keys() <= members
    for node in relays.values():
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{node.pid}/status").read_text().splitlines()
        )
        assert set(status["Uid"].split()) == {NOBODY}
        assert int(status["CapEff"], 16) & ~MAY_READ == 0
        assert "phantom0" not in node.check("ip", "link")
        assert node.statistic("hops", "hops") > 0
