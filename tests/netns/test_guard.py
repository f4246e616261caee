"""``guard`` on a machine without a node: packets to AP addresses stay on it. Needs root and nft."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_interface import ip

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(shutil.which("nft") is None, reason="needs the nft tool"),
]

TARGETS = ("241.1.2.3", "2001:2f::9")
"""AP addresses of nobody."""


class Machine:
    """A namespace with a network behind its default routes, and the files of a node."""

    def __init__(self, namespace: str, directory: Path) -> None:
        self.namespace = namespace
        self._environment = os.environ | {
            "CONFIGURATION_DIRECTORY": str(directory),
            "RUNTIME_DIRECTORY": str(directory),
        }

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", self.namespace, *command],
            env=self._environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def phantom(self, *arguments: str) -> str:
        done = self.run(sys.executable, "-m", "phantom_tun", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def left(self) -> int:
        """Packets that its network interface has sent."""
        shown = json.loads(self.run("ip", "-s", "-j", "link", "show", "out").stdout)
        return int(shown[0]["stats64"]["tx"]["packets"])

    def sends(self, target: str, *, bound: bool) -> bool:
        """Whether a datagram to ``target`` leaves, of a program bound to that interface or not."""
        before = self.left()
        program = (
            "import socket,sys\n"
            "s=socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET,"
            " socket.SOCK_DGRAM)\n"
            "if sys.argv[2:]: s.setsockopt(socket.SOL_SOCKET, 25, b'out')\n"
            "s.sendto(b'hello', (sys.argv[1], 9))\n"
        )
        self.run(sys.executable, "-c", program, target, *(["bound"] if bound else []))
        return self.left() > before


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    name = f"phantom-guard-{secrets.token_hex(3)}"
    ip("netns", "add", name)
    try:
        for command in (
            "link set lo up",
            "link add out type veth peer name wire",
            "link set wire up",
            "link set out addrgenmode none",
            "link set out up arp off",
            "addr add 10.9.9.1/24 dev out",
            "-6 addr add fd99::1/64 dev out nodad",
            "route add default dev out",
            "-6 route add default dev out",
        ):
            ip("-n", name, *command.split())
        made = Machine(name, tmp_path)
        made.phantom("network", "new", "home")
        yield made
    finally:
        ip("netns", "del", name)


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_leaves_from_when_it_is_set_until_it_is_removed(
    machine: Machine, target: str
) -> None:
    for bound in (False, True):
        assert machine.sends(target, bound=bound)
    machine.phantom("guard", "set")
    machine.phantom("guard", "set")
    for bound in (False, True):
        assert not machine.sends(target, bound=bound)
    shown = json.loads(machine.phantom("guard", "show", "--json"))
    assert shown == {"needed": True, "routes": True, "filter": True}
    machine.phantom("guard", "remove")
    machine.phantom("guard", "remove")
    for bound in (False, True):
        assert machine.sends(target, bound=bound)
    assert machine.run("nft", "list", "ruleset").stdout == ""
    shown = json.loads(machine.phantom("guard", "show", "--json"))
    assert shown == {"needed": True, "routes": False, "filter": False}


def test_half_of_it_is_seen(machine: Machine) -> None:
    machine.phantom("guard", "set")
    machine.run("nft", "flush", "ruleset")
    shown = json.loads(machine.phantom("guard", "show", "--json"))
    assert shown == {"needed": True, "routes": True, "filter": False}
    machine.phantom("guard", "set")
    assert not machine.sends(TARGETS[0], bound=True)
