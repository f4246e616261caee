"""Paths of every length, also different ones on the two sides and at different nodes."""

from __future__ import annotations

import hashlib
import random
import socket
import statistics
import time
from collections.abc import Callable

import pytest
from labs import Lab, Node, lab_of
from services import GOODBYE, Echo, serving

from phantom_tun.control.schema import ListPaths

pytestmark = [pytest.mark.netns, pytest.mark.timeout(900)]

ECHO = 7001
DATA = random.Random(1).randbytes(1 << 20)


def echoed(client: Node, server: Node, version: int) -> bool:
    """Whether bytes go there and back unaltered."""
    with client.dial(version, server.ap(version), ECHO) as sock:
        caller = b"%s %d\n" % (client.ap(version).encode(), sock.getsockname()[1])
        got = bytearray()
        sent = 0
        # Not more at a time than fits anywhere on the way.
        while sent < len(DATA):
            piece = DATA[sent : sent + (1 << 16)]
            sock.sendall(piece)
            sent += len(piece)
            while len(got) < len(caller) + sent:
                got += sock.recv(1 << 16)
        sock.shutdown(socket.SHUT_WR)
        while piece := sock.recv(1 << 16):
            got += piece
    return hashlib.sha256(got).digest() == hashlib.sha256(caller + DATA + GOODBYE).digest()


def hops_of(node: Node) -> set[tuple[str, int]]:
    """Kind and length of all paths, the length as a member list shows it."""
    paths = node.ask(ListPaths())
    assert all(path.hops == len(path.nodes) == len(set(path.nodes)) for path in paths)
    assert not any(node.node_id in path.nodes for path in paths)
    return {(path.kind, path.hops) for path in paths}


def check(lab: Lab, hops: dict[str, tuple[int, int]], figures: Callable[[str], None]) -> None:
    """The nodes named in ``hops`` have paths of these lengths and reach each other."""
    nodes = [lab[name] for name in hops]
    for node in nodes:
        node.expose(ECHO)
        exit_hops, entry_hops = hops[node.name]
        assert hops_of(node) == {("exit", exit_hops), ("entry", entry_hops)}
    for client in nodes:
        for server in nodes:
            if client is server:
                continue
            with serving(server, ECHO, Echo):
                for version in (4, 6):
                    assert echoed(client, server, version)
                took = []
                for _ in range(5):
                    began = time.monotonic()
                    client.dial(6, server.ap(6), ECHO).close()
                    took.append(time.monotonic() - began)
            figures(
                f"{hops[client.name][0]} exit hops + {hops[server.name][1]} entry hops: "
                f"connect {statistics.median(took) * 1e3:.0f} ms median"
            )


def test_no_hops(figures: Callable[[str], None]) -> None:
    with lab_of("--nodes", "2", "--exit-hops", "0", "--entry-hops", "0") as lab:
        check(lab, {"n1": (0, 0), "n2": (0, 0)}, figures)


def test_one_hop(figures: Callable[[str], None]) -> None:
    with lab_of("--nodes", "4", "--exit-hops", "1", "--entry-hops", "1") as lab:
        check(lab, {"n3": (1, 1), "n4": (1, 1)}, figures)


def test_a_different_number_on_each_side_and_at_each_node(figures: Callable[[str], None]) -> None:
    with lab_of(
        *("--nodes", "10", "--exit-hops", "2", "--entry-hops", "1"),
        *("--set", "n8:paths.exit_hops=0", "--set", "n8:paths.entry_hops=3"),
        *("--set", "n9:paths.exit_hops=3", "--set", "n9:paths.entry_hops=0"),
    ) as lab:
        check(lab, {"n8": (0, 3), "n9": (3, 0), "n10": (2, 1)}, figures)


@pytest.mark.slow
def test_eight_hops(figures: Callable[[str], None]) -> None:
    with lab_of("--nodes", "25", "--exit-hops", "8", "--entry-hops", "8", seconds=600) as lab:
        check(lab, {"n24": (8, 8), "n25": (8, 8)}, figures)
