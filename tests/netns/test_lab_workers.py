"""A network whose nodes have worker processes (docs/spec/workers.md)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from labs import Node, lab_of, wait_until
from services import Echo, serving
from test_lab_hops import ECHO, echoed

pytestmark = [pytest.mark.netns, pytest.mark.timeout(600)]


def workers(node: Node) -> set[int]:
    listed = Path(f"/proc/{node.pid}/task").glob("*/children")
    return {int(word) for found in listed for word in found.read_text().split()}


def reached(one: Node, other: Node) -> bool:
    try:
        return echoed(one, other, 6)
    except OSError:
        return False


def test_a_network_of_nodes_with_workers() -> None:
    with lab_of("--nodes", "9", "--exit-hops", "2", "--entry-hops", "2",
                "--set", "relay.workers=2") as lab:  # fmt: skip
        nodes = [lab[f"n{number}"] for number in range(1, 10)]
        one, other, *relays = nodes
        started = {node.name: workers(node) for node in nodes}
        assert all(len(found) == 2 for found in started.values())
        other.expose(ECHO)
        with serving(other, ECHO, Echo):
            assert echoed(one, other, 4)
            assert sum(node.statistic("tunnels", "tunnels_relayed") for node in nodes) > 0
            for node in relays:
                os.kill(min(started[node.name]), signal.SIGKILL)
            for node in relays:
                wait_until(lambda node=node: node.statistic("links", "workers_ended") == 1)
                wait_until(lambda node=node: node.statistic("links", "workers") == 2)
            wait_until(lambda: reached(one, other))
        everyone = {pid for node in nodes for pid in workers(node)}
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in everyone))
