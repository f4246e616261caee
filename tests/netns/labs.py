"""A lab as the acceptance tests use it: brought up and worked on by the command line alone.

Sockets are made by threads that live in a node's namespace, so that both ends of a connection can
be held by one test; programs are run there with ``nsenter``.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from phantom_tun.control.client import ControlClient
from phantom_tun.control.schema import Expose, GetStatistics, GetStatus, Request
from phantom_tun.lab.provision import daemon_environment

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
PATIENCE = 90.0
"""Seconds within which everything that isn't meant to hang has happened, however busy the machine
is."""

_LISTENING = "0A"
_counter = itertools.count(1)
_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")
E = TypeVar("E")
R = TypeVar("R")


def run_phantom_tun(
    *arguments: str, timeout: float = PATIENCE, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """``phantom-tun …`` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "phantom_tun", *arguments],
        text=True,
        capture_output=True,
        check=False,
        timeout=timeout,
        env=daemon_environment(),
    )
    if check and done.returncode:
        raise AssertionError(f"phantom-tun {' '.join(arguments)}: {done.stderr or done.stdout}")
    return done


def wait_until(condition: Callable[[], Any], seconds: float = PATIENCE, every: float = 0.1) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {seconds:.0f} s"
        time.sleep(every)


class Node:
    """One node of a lab."""

    def __init__(self, lab: Lab, facts: dict[str, Any]) -> None:
        self._lab = lab
        self.name: str = facts["name"]
        self.namespace: str = facts["namespace"]
        self.underlay: str = facts["underlay"]
        self.underlay6: str = facts["underlay6"]
        self.state_dir = Path(facts["state_dir"])
        self.roles: list[str] = facts["roles"]
        self.directory = Path(facts["log"]).parent
        self.control_socket = Path(facts["control_socket"])
        self._addresses = {4: facts["ap4"], 6: facts["ap6"]}
        self.pid: int = facts["pid"]
        """Of the daemon that :meth:`Lab.refresh` saw last."""

    def ap(self, version: int) -> str:
        """Its AP address."""
        address: str = self._addresses[version]
        return address

    def url(self, version: int, port: int, path: str = "") -> str:
        """Where a web server of this node is."""
        host = self.ap(4) if version == 4 else f"[{self.ap(6)}]"
        return f"http://{host}:{port}/{path}"

    # --- asking the daemon ----------------------------------------------------------------------

    def ask(self, request: Request[E, R]) -> R:
        """One request over the control socket."""
        return ControlClient(self.control_socket).call(request)

    def memory(self) -> int:
        """Resident bytes of the daemon."""
        return resident(self.pid)

    @property
    def node_id(self) -> str:
        """Its id, in hex."""
        return self.ask(GetStatus()).node_id

    def expose(self, port: int, *protocols: str) -> None:
        """Let everybody reach a port."""
        for protocol in protocols or ("tcp",):
            self.ask(Expose(port, protocol))  # type: ignore[arg-type]

    def statistic(self, group: str, name: str) -> float:
        """One counter; 0 while it doesn't exist."""
        return self.ask(GetStatistics()).groups.get(group, {}).get(name, 0)

    # --- being there ----------------------------------------------------------------------------

    @property
    def _namespace_path(self) -> Path:
        return Path("/run/netns") / self.namespace  # an absolute path stays what it is

    def inside(self, function: Callable[[], T]) -> T:
        """Call ``function`` in a thread that lives in the node's namespace; sockets made there
        stay there."""

        def enter() -> T:
            with self._namespace_path.open() as handle:
                if _libc.setns(handle.fileno(), 0):
                    raise OSError(ctypes.get_errno(), "setns")
            return function()

        with ThreadPoolExecutor(1) as executor:
            return executor.submit(enter).result()

    def command(self, *command: str) -> list[str]:
        """What runs ``command`` there."""
        return ["nsenter", f"--net={self._namespace_path}", "--", *command]

    def run(
        self, *command: str, timeout: float = PATIENCE, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        return subprocess.run(
            self.command(*command),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            **options,
        )

    def check(self, *command: str, timeout: float = PATIENCE, **options: Any) -> str:
        """Run a program that must succeed; returns what it printed."""
        done = self.run(*command, timeout=timeout, **options)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def phantom_tun(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``phantom-tun …`` about this node."""
        return run_phantom_tun("lab", "exec", "--name", self._lab.name, self.name, "--",
                           "phantom-tun", *arguments)  # fmt: skip

    @contextlib.contextmanager
    def serving(self, port: int, *command: str, **options: Any) -> Iterator[None]:
        """A program that serves ``port`` until the end of the block."""
        with subprocess.Popen(
            self.command(*command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **options,
        ) as process:
            try:
                wait_until(lambda: process.poll() is not None or self._is_listening(port))
                assert process.returncode is None, f"{command[0]} ended with {process.returncode}"
                yield
            finally:
                process.terminate()

    def _is_listening(self, port: int) -> bool:
        def tables() -> str:
            return "".join(
                Path(f"/proc/thread-self/net/{table}").read_text() for table in ("tcp", "tcp6")
            )

        rows = (line.split() for line in self.inside(tables).splitlines())
        return any(row[3] == _LISTENING and row[1].endswith(f":{port:04X}") for row in rows)

    # --- sockets --------------------------------------------------------------------------------

    def socket(self, version: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A socket in the node's namespace."""
        sock = self.inside(lambda: socket.socket(FAMILY[version], kind))
        sock.settimeout(PATIENCE)
        return sock

    def dial(
        self, version: int, address: str, port: int, timeout: float = PATIENCE
    ) -> socket.socket:
        """A TCP connection."""
        sock = self.socket(version)
        try:
            sock.settimeout(timeout)
            sock.connect((address, port))
            sock.settimeout(PATIENCE)
        except OSError:
            sock.close()
            raise
        return sock

    def listen(self, version: int, port: int) -> socket.socket:
        """A listening TCP socket at the AP address."""
        sock = self.socket(version)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((self.ap(version), port))
        sock.listen(512)
        return sock

    @contextlib.contextmanager
    def joined(
        self, server: Node, port: int, version: int = 4
    ) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Both ends of one connection to ``server``: the caller's, the called one's."""
        with server.listen(version, port) as listener:
            caller = self.dial(version, server.ap(version), port)
            called, _ = listener.accept()
        called.settimeout(caller.gettimeout())
        with caller, called:
            yield caller, called


class Lab:
    """A network that is up."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: dict[str, Node] = {}
        self.refresh()

    def status(self) -> list[dict[str, Any]]:
        """What ``lab status --json`` says."""
        found: list[dict[str, Any]] = json.loads(self.command("status", "--json"))
        return found

    def command(self, *arguments: str, timeout: float = PATIENCE) -> str:
        """``phantom-tun lab … --name …``, which must succeed."""
        verb, *rest = arguments
        return run_phantom_tun("lab", verb, "--name", self.name, *rest, timeout=timeout, check=True
                           ).stdout  # fmt: skip

    def refresh(self) -> None:
        """Look at all nodes anew, for example after a start."""
        self.nodes = {facts["name"]: Node(self, facts) for facts in self.status()}

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    @contextlib.contextmanager
    def split(self, *half: str) -> Iterator[None]:
        """Until the end of the block, nothing gets from the nodes ``half`` to the others or back;
        each half still works. In labs without delay."""
        first = self["n1"]
        switch = Path("/run/netns") / first.namespace.removesuffix("n1")
        cables = [f"p{name.removeprefix('n')}" for name in half]

        def ip(*lines: str) -> None:
            subprocess.run(
                ["nsenter", f"--net={switch}sw", "--", "ip", "-batch", "-"],
                input="\n".join(lines),
                text=True,
                check=True,
            )

        ip(
            "link add name apart type bridge mcast_snooping 0",
            "link set apart up",
            *(f"link set {cable} master apart" for cable in cables),
        )
        try:
            yield
        finally:
            ip(*(f"link set {cable} master br0" for cable in cables), "link del apart")

    def memory(self) -> dict[str, int]:
        """Resident bytes of each daemon."""
        return {name: node.memory() for name, node in self.nodes.items()}

    def by_id(self) -> dict[str, Node]:
        """The nodes, by the ids that ``paths list`` shows."""
        return {node.node_id: node for node in self.nodes.values()}


def resident(pid: int) -> int:
    """Resident bytes of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} is gone")


@contextlib.contextmanager
def lab_of(*options: str, seconds: float = 300.0) -> Iterator[Lab]:
    """``phantom-tun lab up OPTIONS``; gone at the end of the block."""
    name = f"acc{os.getpid()}-{next(_counter)}"
    try:
        run_phantom_tun("lab", "up", "--name", name, "--timeout", f"{seconds:.0f}", *options,
                    timeout=seconds + 60, check=True)  # fmt: skip
        yield Lab(name)
    finally:
        run_phantom_tun("lab", "down", "--name", name, check=True)
