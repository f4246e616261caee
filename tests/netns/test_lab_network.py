"""The network between the nodes of a lab: who reaches whom, how fast, how late."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from conftest import StubLab

from phantom_tun.lab import lifecycle
from phantom_tun.lab import nodes as lab_nodes
from phantom_tun.lab.record import LabStore

pytestmark = pytest.mark.netns

MEASURED_AT_MOST = 4
"""Times, on a busy machine."""


def at(store: LabStore, node: str, *command: str) -> subprocess.CompletedProcess[str]:
    prefix, environment = lab_nodes.inside(store, node)
    return subprocess.run(
        [*prefix, *command], text=True, capture_output=True, check=False, env=environment
    )


def round_trip_ms(store: LabStore, address: str) -> float:
    """The shortest of a few, from n1."""
    done = at(store, "n1", "ping", "-c", "20", "-i", "0.02", "-W", "2", "-q", address)
    match = re.search(r"min/avg/max/mdev = ([\d.]+)/", done.stdout)
    assert match, done.stdout + done.stderr
    return float(match[1])


@pytest.mark.parametrize("delay_ms", [0.0, 15.0])
def test_all_nodes_reach_each_other_and_nothing_else(stub_lab: StubLab, delay_ms: float) -> None:
    store = stub_lab(nodes=3, delay_ms=delay_ms)
    for node in lab_nodes.status(store)[1:]:
        for address in (node.underlay, node.underlay6):
            took = round_trip_ms(store, address)
            assert 2 * delay_ms <= took < 2 * delay_ms + 10
    assert at(store, "n1", "ip", "route", "show", "default").stdout == ""
    assert at(store, "n1", "ip", "-6", "route", "show", "default").stdout == ""
    outside = at(store, "n1", "ping", "-c", "1", "-W", "1", "192.0.2.1")
    assert "unreachable" in (outside.stdout + outside.stderr).lower()


def test_two_labs_do_not_see_each_other(stub_lab: StubLab, lab_name: str) -> None:
    store = stub_lab(nodes=2)
    assert round_trip_ms(store, "10.2.0.1") < 10
    assert at(store, "n1", "ping", "-c", "1", "-W", "1", "10.3.0.1").returncode != 0


@pytest.mark.parametrize("delay_ms", [0.0, 5.0])
def test_links_keep_their_rate(stub_lab: StubLab, delay_ms: float) -> None:
    store = stub_lab(nodes=2, delay_ms=delay_ms, rate="40mbit")
    # Above the rate only by what the bucket lets through at once; below it by headers and starts;
    # and if one end had to wait for a processor, it was measured wrong.
    assert any(28 < mbit_of_transfer(store) < 42 for _ in range(MEASURED_AT_MOST))


def mbit_of_transfer(store: LabStore) -> float:
    """How fast 8 MB come from n1 to n2, in Mbit/s."""
    prefix, environment = lab_nodes.inside(store, "n2")
    receiver = (
        "import socket, time\n"
        "s = socket.create_server(('10.2.0.1', 5000)); print('up', flush=True)\n"
        "c, _ = s.accept(); n = 0; began = time.monotonic()\n"
        "while d := c.recv(1 << 20): n += len(d)\n"
        "print(n * 8 / 1e6 / (time.monotonic() - began))\n"
    )
    sender = (
        "import socket\n"
        "s = socket.create_connection(('10.2.0.1', 5000)); s.sendall(bytes(8_000_000))\n"
    )
    with subprocess.Popen(
        [*prefix, "python3", "-c", receiver], stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
        assert at(store, "n1", "python3", "-c", sender).returncode == 0
        return float(server.stdout.readline())


def test_congestion_control_is_not_the_machines_choice_of_bbr(stub_lab: StubLab) -> None:
    store = stub_lab()
    chosen = at(store, "n1", "cat", "/proc/sys/net/ipv4/tcp_congestion_control").stdout.strip()
    assert chosen in {"cubic", "reno"}


def test_a_dead_switch_is_a_clear_error(
    stub_lab: StubLab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr("phantom_tun.lab.topology.sys.executable", str(broken))
    with pytest.raises(lifecycle.LabFailed, match="switch did not start: no such luck"):
        stub_lab(delay_ms=1.0)
