"""phantom-tun itself: a lab of real daemons, whose last two nodes are client and service."""

from __future__ import annotations

import importlib.metadata
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from phantom_tun.control.client import ControlClient
from phantom_tun.control.schema import Expose
from phantom_tun.lab import lifecycle, processes
from phantom_tun.lab import nodes as lab_nodes
from phantom_tun.lab.bench.hosts import Inside
from phantom_tun.lab.bench.load import Target
from phantom_tun.lab.bench.systems import SERVICE_PORT, Place, Running, load_server
from phantom_tun.lab.errors import LabFailed
from phantom_tun.lab.plan import plan_lab

READY_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class PhantomTun:
    """A lab of ``nodes``, with as many hops on either side."""

    nodes: int
    hops: int

    @property
    def key(self) -> str:
        """``ours``, or ``ours-0`` without any hops."""
        return "ours" if self.hops else "ours-0"

    @property
    def title(self) -> str:
        """With the hops, as the documentation writes them."""
        return f"phantom-tun {self.hops}+{self.hops}"

    @property
    def programs(self) -> Mapping[str, str]:
        """Nothing that isn't there already."""
        return {}

    def version(self) -> str:
        """With the commit, in a repository."""
        version = importlib.metadata.version("phantom-tun")
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        return f"{version} ({done.stdout.strip()})" if done.returncode == 0 else version

    def start(self, place: Place) -> Running:
        """Bring the lab up and expose the service.

        :raises PhantomError: the lab could not be brought up.
        :raises ControlError: the service could not be exposed.
        """
        plan = plan_lab(
            name=place.name,
            nodes=self.nodes,
            exit_hops=self.hops,
            entry_hops=self.hops,
            rate=place.condition.rate,
            delay_ms=place.condition.delay_ms,
        )
        began: list[float] = []

        def report(line: str) -> None:
            # The first report is made when all is prepared and the daemons come next.
            began.append(time.monotonic())
            place.say(line)

        place.undo.callback(lifecycle.down, place.name)
        lifecycle.up(plan, lifecycle.Wishes(timeout=READY_SECONDS), report)
        return self._serve(place, began[0])

    def _serve(self, place: Place, began: float) -> Running:
        store = lifecycle.open_lab(place.name)
        *_, client, service = lab_nodes.status(store)
        if service.ap4 is None:
            raise LabFailed(f"{service.name} has no address")
        prefix, environment = lab_nodes.inside(store, service.name)
        processes.spawn([*prefix, *load_server()], environment, place.directory / "server.log")
        ControlClient(Path(service.control_socket)).call(Expose(port=SERVICE_PORT))
        pids = {node.name: node.process.pid for node in store.read().nodes if node.process}
        ends = {client.name: "client", service.name: "service"}
        roles: dict[str, tuple[int, ...]] = {}
        for name, pid in pids.items():
            role = ends.get(name, "relay")
            roles[role] = (*roles.get(role, ()), pid)
        prefix, environment = lab_nodes.inside(store, client.name)
        return Running(
            client=Inside(tuple(prefix), environment),
            target=Target(service.ap4, SERVICE_PORT),
            roles=roles,
            began=began,
        )
