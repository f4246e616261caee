"""What takes long: a large file, a reader that stops for a minute, a connection that is idle for
ten. Left out of the ordinary run: ``pytest -m slow --timeout 3600 tests/netns``."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from labs import Lab, Node
from services import Echo, serving
from stalling import MOST_KEPT, most_under_way, stall

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(3600)]

WEB, RAW, ECHO = 8080, 8081, 8082
FILE_BYTES = 1 << 30
STOPPED_SECONDS = 60.0
IDLE_SECONDS = 600.0


@pytest.fixture(scope="module")
def client(network: Lab) -> Node:
    return network["n4"]


@pytest.fixture(scope="module")
def server(network: Lab) -> Iterator[Node]:
    node = network["n5"]
    for port in (WEB, RAW, ECHO):
        node.expose(port)
    with serving(node, ECHO, Echo):
        yield node


def test_a_gibibyte_by_curl(
    client: Node, server: Node, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    wanted = hashlib.sha256()
    with (tmp_path / "file").open("wb") as file:
        for _ in range(FILE_BYTES >> 20):
            piece = os.urandom(1 << 20)
            wanted.update(piece)
            file.write(piece)
    command = (sys.executable, "-P", "-m", "http.server", str(WEB), "--bind", "::")
    before = resident_sum(client, server)
    with server.serving(WEB, *command, "--directory", str(tmp_path)):
        for version in (4, 6):
            got = hashlib.sha256()
            began = time.monotonic()
            curl = client.command("curl", "-sS", "--noproxy", "*", server.url(version, WEB, "file"))
            with subprocess.Popen(curl, stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                while piece := process.stdout.read(1 << 20):
                    got.update(piece)
            took = time.monotonic() - began
            assert process.returncode == 0
            assert got.digest() == wanted.digest()
            figures(f"1 GiB by curl over IPv{version}: {FILE_BYTES / took / 1e6:.1f} MB/s")
    grown = resident_sum(client, server) - before
    figures(f"memory of both ends' daemons after 2 GiB: {grown / 1e6:+.1f} MB")
    assert grown < MOST_KEPT


def resident_sum(*nodes: Node) -> int:
    return sum(node.memory() for node in nodes)


@pytest.mark.parametrize("who", ["caller", "called"])
def test_a_reader_that_stops_for_a_minute(
    network: Lab, client: Node, server: Node, who: str, figures: Callable[[str], None]
) -> None:
    with client.joined(server, RAW) as ends:
        sender, reader = ends if who == "caller" else ends[::-1]
        seen = stall(network, sender, reader, STOPPED_SECONDS)
    assert seen.accepted_late == 0
    assert seen.accepted < most_under_way()
    seen.check_memory()
    figures(f"reader stopped for {STOPPED_SECONDS:.0f} s, {who} sends: {seen}")


def test_connections_that_are_idle_for_ten_minutes(
    client: Node, server: Node, figures: Callable[[str], None]
) -> None:
    with client.dial(4, server.ap(4), ECHO) as four, client.dial(6, server.ap(6), ECHO) as six:
        for sock in (four, six):
            assert sock.recv(100).endswith(b"\n")
        time.sleep(IDLE_SECONDS)
        for sock in (four, six):
            began = time.monotonic()
            sock.sendall(b"still there?")
            assert sock.recv(100) == b"still there?"
            figures(
                f"echo after {IDLE_SECONDS:.0f} idle seconds: "
                f"{(time.monotonic() - began) * 1e3:.0f} ms"
            )
