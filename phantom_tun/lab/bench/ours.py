"""phantom-tun itself: a lab of real daemons, whose last two nodes are client and service."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import subprocess
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from phantom_tun.control.client import ControlClient
from phantom_tun.control.schema import Expose
from phantom_tun.lab import lifecycle, processes
from phantom_tun.lab import nodes as lab_nodes
from phantom_tun.lab.bench import apart
from phantom_tun.lab.bench.apart import Chain, End
from phantom_tun.lab.bench.hosts import Inside
from phantom_tun.lab.bench.load_wire import Target
from phantom_tun.lab.bench.systems import SERVICE_PORT, Place, Running, load_server
from phantom_tun.lab.errors import LabFailed
from phantom_tun.lab.plan import LabPlan, plan_lab

READY_SECONDS = 240.0
OWNERS = 2


@dataclass(frozen=True, slots=True)
class PhantomTun:
    """A lab of ``nodes``, with as many hops on either side."""

    nodes: int
    hops: int
    all_own: bool = False
    """Every node has an AP address, as in an ordinary lab; else all but two are relays only."""
    keeps: bool = True
    """Connections that follow each other share a session."""

    @property
    def key(self) -> str:
        """``ours``; ``ours-0`` without any hops, ``ours-fresh`` without kept sessions."""
        if not self.hops:
            return "ours-0"
        return "ours" if self.keeps else "ours-fresh"

    @property
    def title(self) -> str:
        """With the hops, as the documentation writes them."""
        hops = f"phantom-tun {self.hops}+{self.hops}"
        return hops if self.keeps else f"{hops}, a tunnel each"

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
        rated = place.condition.rate is not None and self.hops > 0
        nodes = max(self.nodes, apart.relays_for(self.hops) + OWNERS) if rated else self.nodes
        plan = plan_lab(
            name=place.name,
            nodes=nodes,
            exit_hops=self.hops,
            entry_hops=self.hops,
            rate=place.condition.rate,
            delay_ms=place.condition.delay_ms,
            relay_only=0 if self.all_own else nodes - OWNERS,
            settings=() if self.keeps else ("interface.keep_sessions=false",),
        )
        began = bring_up(plan, place)
        client, service = [node.name for node in plan.nodes if not node.relay_only][-2:]
        expose(place, service)
        running = between(place, client, service, hops=2 * self.hops, began=began)
        if not rated:
            return running
        chain = chain_between(place, client, service)
        # Once before the client hears of the service's paths: what it knows, it may use.
        chain.part()
        return dataclasses.replace(running, prepare=chain.part)


def bring_up(plan: LabPlan, place: Place) -> float:
    """Bring a lab up, to be ended with the place; when its first daemon was started.

    :raises PhantomError: it could not be brought up.
    """
    began: list[float] = []

    def report(line: str) -> None:
        # The first report is made when all is prepared and the daemons come next.
        began.append(time.monotonic())
        place.say(f"   {line}")

    place.undo.callback(lifecycle.down, place.name)
    lifecycle.up(plan, lifecycle.Wishes(timeout=READY_SECONDS), report)
    return began[0]


def expose(place: Place, service: str) -> None:
    """Let a node of the lab serve the load.

    :raises ControlError: the daemon refuses.
    """
    store = lifecycle.open_lab(place.name)
    prefix, environment = lab_nodes.inside(store, service)
    log = place.directory / f"server-{service}.log"
    processes.spawn([*prefix, *load_server()], environment, log)
    control = ControlClient(Path(store.read().node(service).control_socket))
    control.call(Expose(port=SERVICE_PORT))
    control.call(Expose(port=SERVICE_PORT, protocol="udp"))


def chain_between(place: Place, client: str, service: str) -> Chain:
    """What keeps the relays between two nodes of the lab different from each other.

    :raises LabFailed: one of them doesn't say who it is.
    """
    found = {node.name: node for node in lab_nodes.status(lifecycle.open_lab(place.name))}

    def end(name: str) -> End:
        node_id = found[name].node_id
        if node_id is None:
            raise LabFailed(f"{name} doesn't tell its node id")
        return End(node_id, ControlClient(Path(found[name].control_socket)))

    return Chain(end(client), end(service), place.say)


def between(
    place: Place,
    client: str,
    service: str,
    *,
    hops: int,
    began: float,
    others: Collection[str] = (),
) -> Running:
    """Two nodes of the lab as the ends of the load; ``hops`` is the sum of both sides', ``others``
    are nodes that are neither ends nor relays.

    :raises LabFailed: the service has no address.
    """
    store = lifecycle.open_lab(place.name)
    status = next(node for node in lab_nodes.status(store) if node.name == service)
    if status.ap4 is None:
        raise LabFailed(f"{service} has no address")
    ends = {client: "client", service: "service"} | dict.fromkeys(others, "other")
    roles: dict[str, tuple[int, ...]] = {}
    for node in store.read().nodes:
        if node.process is not None:
            role = ends.get(node.name, "relay")
            roles[role] = (*roles.get(role, ()), node.process.pid)
    prefix, environment = lab_nodes.inside(store, client)
    return Running(
        client=Inside(tuple(prefix), environment),
        target=Target(status.ap4, SERVICE_PORT),
        roles=roles,
        began=began,
        relays_on_way=hops,
        datagrams=True,
    )
