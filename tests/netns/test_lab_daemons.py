"""A lab of real daemons: what its commands do is felt by the network in it."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator

import pytest
from conftest import run_lab

from phantom_tun.lab import lifecycle
from phantom_tun.lab import nodes as lab_nodes
from phantom_tun.lab.nodes import NodeStatus
from phantom_tun.lab.record import LabStore

pytestmark = pytest.mark.netns

PATIENCE = 60.0


@pytest.fixture
def lab(lab_name: str) -> Iterator[LabStore]:
    """Five nodes with one hop each way, the last of them relay-only."""
    done = run_lab(
        *("up", "--name", lab_name, "--nodes", "5", "--exit-hops", "1", "--entry-hops", "1"),
        *("--relay-only", "1", "--set", "log.level=debug"),
    )
    assert done.returncode == 0, done.stderr
    return lifecycle.open_lab(lab_name)


def nodes_of(lab: LabStore) -> dict[str, NodeStatus]:
    return {node.name: node for node in lab_nodes.status(lab)}


def at(lab: LabStore, node: str, *command: str) -> subprocess.CompletedProcess[str]:
    return run_lab("exec", "--name", lab.name, node, "--", *command)


def wait_reachable(lab: LabStore, node: str, address: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while at(lab, node, "ping", "-c", "1", "-W", "3", address).returncode:
        assert time.monotonic() < deadline


def test_nodes_reach_each_other_and_survive_what_is_done_to_them(lab: LabStore) -> None:
    before = nodes_of(lab)
    first, second = before["n3"], before["n4"]
    assert all(node.state == "ready" and node.pid for node in before.values())
    assert before["n5"].ap4 is None
    assert second.ap4 is not None
    assert second.ap6 is not None

    for address in (second.ap4, second.ap6):
        wait_reachable(lab, first.name, address)

    answer = at(lab, first.name, "phantom-tun", "paths", "list", "--json")
    assert answer.returncode == 0, answer.stderr
    assert {path["hops"] for path in json.loads(answer.stdout)} == {1}

    addresses = at(lab, first.name, "ip", "-br", "addr", "show", "phantom0").stdout
    assert first.ap4 is not None
    assert first.ap4 in addresses
    assert not re.search(r"phantom0", at(lab, "n5", "ip", "link").stdout)

    lab_nodes.kill_node(lab, second.name)
    assert nodes_of(lab)[second.name].state == "down"
    lab_nodes.start_node(lab, second.name, PATIENCE, lambda _line: None)
    again = nodes_of(lab)[second.name]
    assert (again.ap4, again.ap6) == (second.ap4, second.ap6)
    assert again.pid != second.pid
    wait_reachable(lab, first.name, second.ap6)

    lab_nodes.stop_node(lab, second.name)
    assert nodes_of(lab)[second.name].state == "down"
    assert lifecycle.down(lab.name)
