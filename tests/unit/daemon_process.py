"""A daemon with a node that has no network, run by test_daemon_process.py in a process of its own.

Arguments: the configuration file; optionally what the node does before it is ready, one of the
functions below. What they find out is printed as one JSON line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import trio

from phantom_tun import config, profile
from phantom_tun.daemon import service, start
from phantom_tun.errors import PhantomError, WorldError
from phantom_tun.testing.fake_node import FakeNode


def status_of(text: str) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {key: value.strip() for key, value in pairs}


async def inspect_privileges(_node: FakeNode) -> None:
    """What this process and its children still may."""
    child = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True)
    regained = []
    for attempt in (lambda: os.setuid(0), lambda: os.setresgid(0, 0, 0), lambda: os.setgroups([0])):
        try:
            attempt()
        except PermissionError:
            continue
        regained.append("regained root")
    core = subprocess.run(["sh", "-c", "ulimit -c"], capture_output=True, text=True, check=True)
    print(
        json.dumps(
            {
                "own": status_of(Path("/proc/self/status").read_text()),
                "child": status_of(child.stdout),
                "regained": regained,
                "memory_owner": Path("/proc/self/environ").stat().st_uid,
                "core": core.stdout.strip(),
                "shadow": os.access("/etc/shadow", os.R_OK),
            }
        ),
        flush=True,
    )


async def use_interface(_node: FakeNode) -> None:
    """Do with the interface what only CAP_NET_ADMIN may, through the ip tool."""
    run = ["ip", "link", "set", "dev", "phtest0", "up"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    print(json.dumps({"code": done.returncode, "error": done.stderr}), flush=True)


async def sleep_forever(_node: FakeNode) -> None:
    """Not become ready."""
    await trio.sleep_forever()


async def hang_when_stopped(node: FakeNode) -> None:
    """Take far longer to stop than is allowed."""
    service.STOP_DEADLINE_S = 1
    node.stop_s = 600.0


async def fail(_node: FakeNode) -> None:
    """Fail to become ready."""
    raise WorldError("the network is gone")


def main() -> int:
    settings = config.load(Path(sys.argv[1]))
    # Where Python lives in root's home, other users can run what is loaded, and nothing else.
    start.check_program = lambda: None

    def make_node(_config: Any, _profile: Any, listeners: Any, _interface: Any) -> FakeNode:
        node = FakeNode(listeners=listeners)
        if len(sys.argv) > 2:
            node.before_ready = partial(globals()[sys.argv[2]], node)
        return node

    try:
        start.run_daemon(settings, profile.load(settings.network.profile), node_factory=make_node)
    except PhantomError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
