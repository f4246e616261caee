"""Yggdrasil: a line of nodes over TLS; end-to-end encrypted IPv6 through a TUN, hides nobody."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from phantom_tun.lab.bench.hosts import Hosts
from phantom_tun.lab.bench.load_wire import Target
from phantom_tun.lab.bench.systems import (
    SERVICE_PORT,
    Place,
    Running,
    load_server,
    package_version,
)
from phantom_tun.lab.errors import LabFailed

PEER_PORT = 9001


@dataclass(frozen=True, slots=True)
class YggdrasilLine:
    """Each node peers with the next one only: with 8, as many links as 3 + 3 hops have."""

    nodes: int = 8

    @property
    def key(self) -> str:
        """Its name in options."""
        return "yggdrasil"

    @property
    def title(self) -> str:
        """With the number of nodes."""
        return f"Yggdrasil line of {self.nodes}"

    @property
    def programs(self) -> Mapping[str, str]:
        """Only itself."""
        return {"yggdrasil": "yggdrasil"}

    def version(self) -> str:
        """Of the package."""
        return package_version("yggdrasil")

    def start(self, place: Place) -> Running:
        """Start nodes from the service's on.

        :raises LabFailed: one of them doesn't start.
        """
        hosts = place.undo.enter_context(
            Hosts(place.name, self.nodes, place.condition, place.directory)
        )
        files = [self._configure(hosts, host, place.directory) for host in self._line]
        address = _run("-useconffile", str(files[-1]), "-address")
        hosts.spawn(self.nodes, load_server(), place.directory / "server.log")
        began = time.monotonic()
        pids = []
        # A node whose first dial is refused waits a minute before it tries again.
        for host in reversed(self._line):
            log = place.directory / f"{host}.log"
            node = hosts.spawn(host, ["yggdrasil", "-useconffile", str(files[host - 1])], log)
            hosts.wait_listening(host, PEER_PORT, node, log)
            pids.append(node.pid)
        service, *relays, client = pids
        return Running(
            client=hosts.inside(1),
            target=Target(address, SERVICE_PORT),
            roles={"client": (client,), "relay": tuple(relays), "service": (service,)},
            began=began,
            relays_on_way=self.nodes - 2,
            datagrams=True,
        )

    @property
    def _line(self) -> range:
        return range(1, self.nodes + 1)

    def _configure(self, hosts: Hosts, host: int, directory: Path) -> Path:
        settings = json.loads(_run("-genconf", "-json"))
        settings |= {
            "Listen": [f"tls://{hosts.address(host)}:{PEER_PORT}"],
            "Peers": [f"tls://{hosts.address(host + 1)}:{PEER_PORT}"] if host < self.nodes else [],
            "MulticastInterfaces": [],
            "AdminListen": "none",
            "IfName": "ygg0",
            "NodeInfoPrivacy": True,
        }
        file = directory / f"{host}.conf"
        file.write_text(json.dumps(settings))
        return file


def _run(*arguments: str) -> str:
    done = subprocess.run(["yggdrasil", *arguments], text=True, capture_output=True, check=False)
    if done.returncode:
        raise LabFailed(f"yggdrasil {arguments[-1]} failed: {done.stderr.strip()}")
    return done.stdout.strip()
