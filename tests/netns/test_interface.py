"""Real programs through real interfaces: phantom0 in one network namespace to phantom0 in another.

::

    namespace a                                        namespace b
    curl, ping, sockets                                services, with a dropping firewall
        │ phantom0  241.1.0.1, 2001:2f:1::1                │ phantom0  242.2.0.2, 2001:2f:2::2
        │                                                  │
    interface process ── veth 10.99.0.1 ══════ 10.99.0.2 ── interface process
                         (TcpOverlay: streams and messages over plain TCP)

Needs root. Each namespace has the process's id in its name and is removed at the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs the ip tool"),
]

AP_A = {4: "241.1.0.1", 6: "2001:2f:1::1"}
AP_B = {4: "242.2.0.2", 6: "2001:2f:2::2"}
UNKNOWN = {4: "243.3.0.3", 6: "2001:2f:3::3"}
FILTERED_PORT = 7777
CLOSED_PORT = 7778
REJECTED_PORT = 7779
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
PATIENCE = 20

T = TypeVar("T")

versions = pytest.mark.parametrize("version", [4, 6])
libc = ctypes.CDLL(None, use_errno=True)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass
class Node:
    """A namespace with an interface process in it."""

    namespace: str
    process: subprocess.Popen[str]

    def ask(self, command: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.hear()

    def hear(self) -> Any:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], PATIENCE)[0], "no answer"
        return json.loads(self.process.stdout.readline())

    def inside(self, function: Callable[[], T]) -> T:
        """Call ``function`` in a thread that lives in the namespace; sockets stay there."""

        def enter() -> T:
            with Path(f"/run/netns/{self.namespace}").open() as handle:
                if libc.setns(handle.fileno(), 0):
                    raise OSError(ctypes.get_errno(), "setns")
            return function()

        with ThreadPoolExecutor(1) as executor:
            return executor.submit(enter).result()

    def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", self.namespace, *command],
            capture_output=True, text=True, timeout=PATIENCE, check=False, **options,
        )  # fmt: skip

    def socket(self, version: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        sock = self.inside(lambda: socket.socket(FAMILY[version], kind))
        sock.settimeout(PATIENCE)
        return sock

    def listen(self, version: int, address: str, port: int = 0) -> socket.socket:
        sock = self.socket(version)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(512)
        return sock

    def dial(self, version: int, address: str, port: int) -> socket.socket:
        sock = self.socket(version)
        try:
            sock.connect((address, port))
        except OSError:
            sock.close()
            raise
        return sock

    def statistic(self, name: str) -> int:
        return int(self.ask("statistics").get(name, 0))

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(PATIENCE) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Pair:
    """Namespaces a and b; ``start`` makes their interface processes."""

    def __init__(self, tag: str) -> None:
        self.names = {end: f"pt-if-{os.getpid()}-{tag}{end}" for end in "ab"}

    def __enter__(self) -> Pair:
        a, b = self.names["a"], self.names["b"]
        try:
            for name in (a, b):
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
            ip("-n", a, "link", "add", "under", "type", "veth", "peer", "name", "under", "netns", b)
            for name, host in ((a, 1), (b, 2)):
                ip("-n", name, "addr", "add", f"10.99.0.{host}/24", "dev", "under")
                ip("-n", name, "link", "set", "under", "up")
                ip("-n", name, "route", "add", "default", "via", f"10.99.0.{3 - host}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def start(self, end: str, **settings: Any) -> Node:
        everybody = {
            **{address: ["10.99.0.1", 9000] for address in AP_A.values()},
            **{address: ["10.99.0.2", 9000] for address in AP_B.values()},
        }
        mine = {
            "name": "phantom0",
            "addresses": list((AP_A if end == "a" else AP_B).values()),
            "listen": ["10.99.0.1" if end == "a" else "10.99.0.2", 9000],
            "directory": everybody,
            "filtered": [FILTERED_PORT],
        } | settings
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.names[end], sys.executable, "-m",
             "phantom_tun.testing.interface_process", json.dumps(mine)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        node = Node(self.names[end], process)
        assert node.hear() == "ready"
        return node


FIREWALL = """
table inet host {
    chain input {
        type filter hook input priority 0; policy drop;
        iifname "lo" accept
        iifname "under" accept
    }
}
"""


def close_firewall(namespace: str) -> None:
    enter = ["ip", "netns", "exec", namespace]
    subprocess.run([*enter, "nft", "-f", "-"], input=FIREWALL, text=True, check=True)


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    with Pair("m") as pair, contextlib.ExitStack() as stack:
        if shutil.which("nft"):
            close_firewall(pair.names["b"])
        ends = []
        for end in "ab":
            node = pair.start(end)
            stack.callback(node.kill)
            ends.append(node)
        yield ends[0], ends[1]


def in_background(function: Callable[[], Any]) -> Callable[[], Any]:
    """Start ``function``; the result waits for what it returns."""
    executor = ThreadPoolExecutor(1)
    future = executor.submit(function)
    executor.shutdown(wait=False)
    return lambda: future.result(PATIENCE)


def receive_all(sock: socket.socket) -> bytes:
    data = bytearray()
    while piece := sock.recv(1 << 20):
        data += piece
    return bytes(data)


def connected(a: Node, b: Node, version: int) -> tuple[socket.socket, socket.socket]:
    with b.listen(version, AP_B[version]) as listener:
        client = a.dial(version, AP_B[version], listener.getsockname()[1])
        server, _ = listener.accept()
    server.settimeout(PATIENCE)
    return client, server


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.02)


# --- TCP ----------------------------------------------------------------------------------------


@versions
def test_curl_meets_a_server_that_sees_the_callers_ap(
    nodes: tuple[Node, Node], version: int
) -> None:
    a, b = nodes
    with b.listen(version, AP_B[version]) as listener:

        def serve() -> None:
            sock, peer = listener.accept()
            with sock:
                sock.recv(65_536)
                body = f"you are {peer[0]}"
                sock.sendall(f"HTTP/1.0 200 OK\r\n\r\n{body}".encode())

        done = in_background(serve)
        host = AP_B[version] if version == 4 else f"[{AP_B[version]}]"
        curl = a.run("curl", "-sS", "--noproxy", "*", f"http://{host}:{listener.getsockname()[1]}/")
        done()
    assert (curl.stdout, curl.returncode) == (f"you are {AP_A[version]}", 0)


@versions
def test_both_ends_agree_on_all_four_numbers(nodes: tuple[Node, Node], version: int) -> None:
    client, server = connected(*nodes, version)
    with client, server:
        assert server.getpeername()[:2] == client.getsockname()[:2]
        assert client.getpeername()[:2] == server.getsockname()[:2]
        assert client.getsockname()[0] == AP_A[version]


@versions
def test_refused_at_once(nodes: tuple[Node, Node], version: int) -> None:
    started = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        nodes[0].dial(version, AP_B[version], CLOSED_PORT)
    assert time.monotonic() - started < 10  # the kernel would go on trying for minutes


@versions
def test_who_closes_while_it_connects_leaves_nothing_behind(
    nodes: tuple[Node, Node], version: int
) -> None:
    a, b = nodes

    def is_idle() -> bool:
        return all(node.ask("flows") == [] for node in nodes)

    wait_until(is_idle)  # of the tests before this one
    gone = a.statistic("application_gone")
    with b.listen(version, AP_B[version]) as server:
        for _ in range(20):
            with a.socket(version) as sock:
                sock.setblocking(False)
                with pytest.raises(BlockingIOError):
                    sock.connect((AP_B[version], server.getsockname()[1]))
        began = time.monotonic()
        wait_until(lambda: a.statistic("application_gone") == gone + 20)
        wait_until(is_idle)
        assert time.monotonic() - began < 2.5  # nobody waited for the handshake


@pytest.mark.skipif(shutil.which("nft") is None, reason="needs the nft tool")
@versions
def test_a_port_that_the_servers_firewall_rejects_is_refused(
    nodes: tuple[Node, Node], version: int
) -> None:
    a, b = nodes
    rule = f"inet host input tcp dport {REJECTED_PORT} reject with icmpx port-unreachable"
    assert not b.run("nft", "insert", "rule", *rule.split()).returncode
    started = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        a.dial(version, AP_B[version], REJECTED_PORT)
    assert time.monotonic() - started < 10  # the kernel would go on trying for minutes


@versions
def test_unknown_address_is_unreachable_at_once(nodes: tuple[Node, Node], version: int) -> None:
    started = time.monotonic()
    with pytest.raises(OSError, match="No route to host"):
        nodes[0].dial(version, UNKNOWN[version], 80)
    assert time.monotonic() - started < 10  # the kernel would go on trying for minutes


@versions
def test_filtered_is_silence(nodes: tuple[Node, Node], version: int) -> None:
    a = nodes[0]
    before = a.statistic("answered_silence")
    with a.socket(version) as sock:
        sock.settimeout(2.5)
        with pytest.raises(TimeoutError):
            sock.connect((AP_B[version], FILTERED_PORT))
    # Linux has repeated the SYN by now; the overlay was asked once all the same.
    assert a.statistic("answered_silence") == before + 1


@versions
def test_half_close_each_way(nodes: tuple[Node, Node], version: int) -> None:
    for swap in (False, True):
        first, second = connected(*nodes, version)
        if swap:
            first, second = second, first
        with first, second:
            first.sendall(b"question")
            first.shutdown(socket.SHUT_WR)
            assert receive_all(second) == b"question"
            second.sendall(b"answer " * 10_000)
            second.shutdown(socket.SHUT_WR)
            assert receive_all(first) == b"answer " * 10_000


def test_nc_ends_when_its_input_does(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    with b.listen(4, AP_B[4]) as listener:

        def serve() -> bytes:
            sock, _ = listener.accept()
            with sock:
                question = receive_all(sock)
                sock.sendall(question.upper())
            return question

        done = in_background(serve)
        nc = a.run("nc", "-N", AP_B[4], str(listener.getsockname()[1]), input="hello")
        assert done() == b"hello"
    assert (nc.stdout, nc.returncode) == ("HELLO", 0)


@versions
def test_reset_each_way(nodes: tuple[Node, Node], version: int) -> None:
    for swap in (False, True):
        first, second = connected(*nodes, version)
        if swap:
            first, second = second, first
        with second:
            first.sendall(b"x")
            assert second.recv(1) == b"x"
            first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            first.close()
            with pytest.raises(ConnectionResetError):
                second.recv(1)


def test_a_reset_behind_a_full_pipe_is_noticed(nodes: tuple[Node, Node]) -> None:
    """Nobody reads the socket then: the far side has to take what is in the pipe first."""
    a, b = nodes
    client, server = connected(a, b, 4)
    with server:
        client.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            while True:
                client.send(bytes(65_536))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        client.close()
        wait_until(lambda: not [f for f in a.ask("flows") if f[1] == "out" and f[0] == "tcp"])


def test_200_connections_at_once(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    count = 200
    with b.listen(4, AP_B[4]) as listener:

        def serve() -> None:
            for _ in range(count):
                sock, _ = listener.accept()
                with sock:
                    sock.sendall(sock.recv(100))

        done = in_background(serve)
        clients = [a.socket(4) for _ in range(count)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex((AP_B[4], listener.getsockname()[1]))
        for number, client in enumerate(clients):
            client.settimeout(PATIENCE)
            wait_until(lambda c=client: bool(select.select([], [c], [], PATIENCE)[1]))
            client.sendall(f"{number}".encode())
        for number, client in enumerate(clients):
            with client:
                assert receive_all(client) == f"{number}".encode()
        done()


@pytest.mark.parametrize("swap", [False, True])
def test_a_reader_that_stops_stops_the_sender_and_loses_nothing(
    nodes: tuple[Node, Node], swap: bool
) -> None:
    sender, reader = connected(*nodes, 4)
    if swap:
        sender, reader = reader, sender
    memory = [resident(node) for node in nodes]
    pattern = bytes(range(256)) * 256
    with sender, reader:
        sender.settimeout(1)
        sent = 0
        with pytest.raises(TimeoutError):
            while True:
                sent += sender.send(pattern[sent % 256 :])
        assert sent < 64 << 20  # the two programs' own sockets, and three pairs in between
        assert all(resident(n) - m < 8 << 20 for n, m in zip(nodes, memory, strict=True))
        sender.shutdown(socket.SHUT_WR)
        received = receive_all(reader)
    assert len(received) == sent
    assert received == (bytes(range(256)) * (sent // 256 + 1))[:sent]


def resident(node: Node) -> int:
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def test_last_bytes_wait_for_a_slow_reader(nodes: tuple[Node, Node]) -> None:
    """The address table knows a connection until the application has its last byte."""
    a, b = nodes
    size = 800_000  # more than the client's receive buffer, less than our send buffer
    client, server = connected(a, b, 4)
    with client:
        with server:
            client.shutdown(socket.SHUT_WR)
            assert server.recv(1) == b""
            server.sendall(bytes(size))
        wait_until(lambda: "draining" in [f[5] for f in a.ask("flows")])
        assert len(receive_all(client)) == size
    wait_until(lambda: "draining" not in [f[5] for f in a.ask("flows")])


# --- UDP ----------------------------------------------------------------------------------------


@versions
def test_udp_both_ways_without_losing_the_first(nodes: tuple[Node, Node], version: int) -> None:
    a, b = nodes
    with (
        b.socket(version, socket.SOCK_DGRAM) as service,
        a.socket(version, socket.SOCK_DGRAM) as client,
    ):
        service.bind((AP_B[version], 0))
        client.connect(service.getsockname()[:2])
        messages = [f"{i}".encode() for i in range(100)] + [b"", bytes(60_000)]
        for message in messages:
            client.send(message)
        for message in messages:
            received, peer = service.recvfrom(65_536)
            assert received == message
            assert peer[:2] == client.getsockname()[:2]
            service.sendto(received, peer)
        for message in messages:
            assert client.recv(65_536) == message


@versions
def test_udp_errors_are_icmp(nodes: tuple[Node, Node], version: int) -> None:
    a = nodes[0]
    recverr = (socket.IPPROTO_IP, 11) if version == 4 else (socket.IPPROTO_IPV6, 25)
    for address, code in ((AP_B, errno.ECONNREFUSED), (UNKNOWN, errno.EHOSTUNREACH)):
        with a.socket(version, socket.SOCK_DGRAM) as client:
            client.setsockopt(*recverr, 1)
            client.connect((address[version], CLOSED_PORT))
            client.send(b"anybody?")
            with pytest.raises(OSError) as caught:
                client.recv(100)
            assert caught.value.errno == code


def test_many_datagrams(nodes: tuple[Node, Node]) -> None:
    """3,000 datagrams of 1,200 bytes in bursts of 60: none is lost, all come back in order."""
    a, b = nodes
    count, per_burst = 3000, 60
    with b.socket(4, socket.SOCK_DGRAM) as service, a.socket(4, socket.SOCK_DGRAM) as client:
        service.bind((AP_B[4], 0))
        client.connect(service.getsockname())

        def serve() -> None:
            for _ in range(count):
                data, peer = service.recvfrom(2000)
                service.sendto(data, peer)

        done = in_background(serve)
        for first in range(0, count, per_burst):
            burst = [number.to_bytes(4, "big") for number in range(first, first + per_burst)]
            for number in burst:
                client.send(number + bytes(1196))
            assert [client.recv(2000)[:4] for _ in burst] == burst
        done()


# --- ICMP ---------------------------------------------------------------------------------------


@versions
@pytest.mark.parametrize("size", [56, 8000])
def test_ping(nodes: tuple[Node, Node], version: int, size: int) -> None:
    ping = nodes[0].run("ping", "-c", "3", "-i", "0.1", "-s", str(size), AP_B[version])
    assert "3 received" in ping.stdout
    assert ping.returncode == 0


@versions
def test_ping_of_nobody(nodes: tuple[Node, Node], version: int) -> None:
    ping = nodes[0].run("ping", "-c", "1", "-W", "3", UNKNOWN[version])
    assert "nreachable" in ping.stdout
    assert ping.returncode == 1


# --- what goes no further -----------------------------------------------------------------------


def test_a_foreign_source_is_dropped(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    before = a.statistic("dropped_source_not_ours")
    with b.listen(4, AP_B[4]) as listener, a.socket(4) as sock:
        sock.bind(("10.99.0.1", 0))
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            sock.connect(listener.getsockname())
    assert a.statistic("dropped_source_not_ours") > before


@versions
def test_a_destination_outside_the_prefixes_is_dropped(
    nodes: tuple[Node, Node], version: int
) -> None:
    a = nodes[0]
    network, host = {
        4: ("198.51.100.0/24", "198.51.100.7"),
        6: ("2001:db8::/32", "2001:db8::7"),
    }[version]
    assert not a.run("ip", f"-{version}", "route", "add", network, "dev", "phantom0").returncode
    before = a.statistic("dropped_destination_outside")
    a.run("ping", "-c", "1", "-W", "0.3", "-I", AP_A[version], host)
    assert a.statistic("dropped_destination_outside") > before
    a.run("ip", f"-{version}", "route", "del", network, "dev", "phantom0")


def test_the_reserved_block_leads_nowhere(nodes: tuple[Node, Node]) -> None:
    a = nodes[0]
    before = a.statistic("dropped_destination_reserved")
    with a.socket(4, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"gateway?", ("240.0.0.2", 1234))
        wait_until(lambda: a.statistic("dropped_destination_reserved") > before)


def test_nobody_can_walk_in_at_the_listener(nodes: tuple[Node, Node]) -> None:
    a = nodes[0]
    listening = a.run("ss", "-Hltn", "src", "240.0.0.1").stdout.split()
    port = int(listening[3].rsplit(":", 1)[1])
    before = a.statistic("stray_connection")
    with a.socket(4) as sock:
        try:
            sock.connect(("240.0.0.1", port))
            assert sock.recv(1) == b""
        except (ConnectionRefusedError, ConnectionResetError):
            pass
        else:
            pytest.fail("was let in")
    assert a.statistic("stray_connection") <= before + 1


def test_own_address_is_local(nodes: tuple[Node, Node]) -> None:
    a = nodes[0]
    before = a.ask("statistics")
    with a.listen(4, AP_A[4]) as listener:
        a.dial(4, AP_A[4], listener.getsockname()[1]).close()
        listener.accept()[0].close()
    assert a.ask("statistics") == before


def test_the_interface_makes_no_noise(nodes: tuple[Node, Node]) -> None:
    a = nodes[0]
    assert "fe80" not in a.run("ip", "-6", "addr", "show", "dev", "phantom0").stdout
    assert a.statistic("dropped_multicast") == 0


# --- addresses, start and end -------------------------------------------------------------------


def test_addresses_come_and_go(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    extra = "245.5.0.5"
    assert a.ask(f"add {extra}") == "done"
    with b.listen(4, AP_B[4]) as listener, a.socket(4) as sock:
        sock.bind((extra, 0))
        sock.connect(listener.getsockname())
        server, peer = listener.accept()
        with server:
            assert peer[0] == extra
            assert a.ask(f"remove {extra}") == "done"
            for end in (server, sock):
                with pytest.raises(ConnectionResetError):
                    end.recv(1)
    assert extra not in a.run("ip", "addr", "show", "dev", "phantom0").stdout
    assert AP_A[4] in a.run("ip", "route", "get", AP_B[4]).stdout


def test_only_one_interface_of_a_name(nodes: tuple[Node, Node]) -> None:
    from phantom_tun.errors import UsageError
    from phantom_tun.tun.device import open_tun

    with pytest.raises(UsageError, match="is another phantom-tun running"):
        nodes[0].inside(lambda: open_tun("phantom0"))
    with pytest.raises(UsageError, match="interface under already"):
        nodes[0].inside(lambda: open_tun("under"))


def test_where_ipv6_is_switched_off_the_interface_has_it_all_the_same() -> None:
    with Pair("s") as pair, contextlib.ExitStack() as stack:
        for which in ("all", "default"):
            switch = f"net.ipv6.conf.{which}.disable_ipv6=1"
            for name in pair.names.values():
                command = ["ip", "netns", "exec", name, "sysctl", "-qw", switch]
                subprocess.run(command, check=True)
        a, b = pair.start("a"), pair.start("b")
        stack.callback(a.kill)
        stack.callback(b.kill)
        for sock in connected(a, b, 6):
            sock.close()
        assert "inet6" not in a.run("ip", "addr", "show", "dev", "under").stdout


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_nothing_leaks_and_little_is_left_behind(ending: str) -> None:
    with Pair("e") as pair, contextlib.ExitStack() as stack:
        if shutil.which("nft"):
            close_firewall(pair.names["b"])
        a, b = pair.start("a"), pair.start("b")
        stack.callback(a.kill)
        stack.callback(b.kill)
        client, server = connected(a, b, 4)
        with client, server:
            if ending == "stop":
                b.stop()
                with pytest.raises(ConnectionResetError):
                    server.recv(1)
            else:
                b.kill()
        for version in (4, 6):
            route = b.run("ip", f"-{version}", "route", "get", AP_A[version])
            assert route.returncode
            with pytest.raises(OSError, match="No route to host"):
                b.dial(version, AP_A[version], 80)
        if ending == "kill":
            b = pair.start("b")
            stack.callback(b.kill)
            # replaces guard and firewall rule rather than stumbling over them
            for sock in connected(a, b, 4):
                sock.close()
            rules = b.run("nft", "list", "ruleset").stdout
            assert rules.count("phantom-tun phantom0") in (0, 2)
            b.stop()
        if shutil.which("nft"):
            rules = b.run("nft", "list", "ruleset").stdout
            assert "phantom-tun phantom0" not in rules
            assert rules.count("phantom-tun-240.0.0.0/4") == 3  # stay, as the routes do
        assert "phantom0" not in b.run("ip", "link").stdout
        a.stop()
