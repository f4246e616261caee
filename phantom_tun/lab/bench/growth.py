"""How our figures change with the number of hops, of tunnels, of nodes, and of processes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from phantom_tun.control.client import ControlClient
from phantom_tun.control.schema import RebuildPaths
from phantom_tun.errors import PhantomError
from phantom_tun.lab import lifecycle
from phantom_tun.lab import nodes as lab_nodes
from phantom_tun.lab.bench import apart, cost, measuring, ours
from phantom_tun.lab.bench.load_wire import Job
from phantom_tun.lab.bench.measuring import LoadClient
from phantom_tun.lab.bench.model import GrowthResult, Settings
from phantom_tun.lab.bench.systems import Place, Running, Say
from phantom_tun.lab.bench.workers import workers
from phantom_tun.lab.plan import plan_lab

HOPS = (0, 1, 2, 3, 4, 6, 8)
HOPS_REPETITIONS = 2
TUNNELS = (1, 50, 100, 250, 500)
FLOWS, FLOWS_CALLERS, FLOWS_RELAYS = 3000, 3, 26
"""Connections of one service, which limits what one caller may have; only their memory is looked
at. Among few relays the same two would stand side by side in several paths, and there is a limit to
the links between two nodes."""
COME_TO_REST_S = 30.0
"""After that connections are idle: before, their tunnels may still have tasks, what those leave
behind goes back to the system a second later, and deadlines that their set-up had stay in memory
until they would have come."""
NODES = (12, 17, 32, 64)
USUAL_HOPS = 3
RELAYS_OF_HOPS_LAB = 14
PATH_BUILDS = 2
OPEN_SECONDS = 30.0
OPENINGS_PER_SECOND = 25
"""Fewer is too slow to be waited for."""

_KIB_PER_MIB = 1024


@dataclass(frozen=True, slots=True)
class Growth:
    """One thing that grows."""

    key: str
    title: str
    x_title: str
    run: Callable[[Place, Settings, GrowthResult], None]


def hops(place: Place, how: Settings, result: GrowthResult) -> None:
    """One lab, in which a pair of nodes has paths of each length, on the side where it matters."""
    pairs = {count: (f"n{2 * i + 1}", f"n{2 * i + 2}") for i, count in enumerate(HOPS)}
    settings = [
        setting
        for count, (client, service) in pairs.items()
        for setting in (f"{client}:paths.exit_hops={count}", f"{service}:paths.entry_hops={count}")
    ]
    plan = plan_lab(
        name=place.name,
        nodes=2 * len(HOPS) + RELAYS_OF_HOPS_LAB,
        exit_hops=0,
        entry_hops=0,
        relay_only=RELAYS_OF_HOPS_LAB,
        settings=tuple(settings),
    )
    began = ours.bring_up(plan, place)
    subjects = {}
    for count, (client, service) in pairs.items():
        ours.expose(place, service)
        subjects[count] = ours.between(place, client, service, hops=2 * count, began=began)
        with noting(result, f"{count} hops", place.say):
            measuring.reach(subjects[count])
    for _ in range(HOPS_REPETITIONS):
        for count, running in subjects.items():
            measure(result, count, running, how, place.say)


def tunnels(place: Place, how: Settings, result: GrowthResult) -> None:
    """More and more idle connections between one client and one service; then very many of several
    clients to one service, in a network of their own."""
    with noting(result, "idle connections", place.say), inner_place(place, "idle") as inner:
        # What a relay needs for a tunnel shows if each one passes six that are no ends.
        (running,) = callers(inner, 1, apart.relays_for(USUAL_HOPS))
        # Buffers that any transfer leaves behind are no part of a tunnel.
        measure(result, 0, running, how, place.say)
        before = memory_mib(running)
        result.at(0).add(before)
        held = 0
        for count in TUNNELS:
            opened = hold(inner, [running], count - held)
            time.sleep(COME_TO_REST_S)
            full = memory_mib(running)
            # From one number to the next: relays also grow once, when they are first used.
            each = per_tunnel_kib(before, full, count - held, running)
            found = {**full, **each, "opened": opened}
            result.at(count).add(found)
            before, held = full, count
            place.say(f"   {count} connections: {shown(found)}")
            measure(result, count, running, how, place.say)
    with noting(result, f"{FLOWS} connections", place.say), inner_place(place, "flows") as inner:
        flows(inner, result)


def flows(place: Place, result: GrowthResult) -> None:
    """Very many connections to one service, whose node isn't a relay of the same ones: it would
    carry each of them twice."""
    subjects = callers(place, FLOWS_CALLERS, FLOWS_RELAYS)
    service, *clients = lab_nodes.status(lifecycle.open_lab(place.name))
    for client in clients[:FLOWS_CALLERS]:
        control = ControlClient(Path(client.control_socket))
        apart.keep_out(control, "exit", service.node_id or "", place.say)
    opened = hold(place, subjects, FLOWS // FLOWS_CALLERS)
    time.sleep(COME_TO_REST_S)
    # The client's side has but a part of them.
    found = {"memory_service": memory_mib(subjects[0])["memory_service"], "opened": opened}
    result.at(FLOWS).add(found)
    place.say(f"   {FLOWS} connections: {shown(found)}")


def callers(place: Place, count: int, relays: int) -> list[Running]:
    """So many clients of one service, in a network with so many relays."""
    plan = plan_lab(
        name=place.name,
        nodes=1 + count + relays,
        exit_hops=USUAL_HOPS,
        entry_hops=USUAL_HOPS,
        relay_only=relays,
        settings=("limits.links=18000", "limits.relayed_tunnels=18000"),
    )
    service, *clients = (node.name for node in plan.nodes if not node.relay_only)
    began = ours.bring_up(plan, place)
    ours.expose(place, service)
    subjects = [
        ours.between(
            place,
            client,
            service,
            hops=2 * USUAL_HOPS,
            began=began,
            others=[other for other in clients if other != client],
        )
        for client in clients
    ]
    if count == 1:
        # Before the client hears of the service's paths: what it knows, it may use.
        ours.chain_between(place, clients[0], service).part()
    for subject in subjects:
        measuring.reach(subject)
    return subjects


def hold(place: Place, subjects: Sequence[Running], count: int) -> float:
    """Open ``count`` connections from each of these; returns how many per second.

    :raises LoadFailed: they couldn't be had.
    """
    began = time.monotonic()
    clients = [
        place.undo.enter_context(LoadClient(each, Job("hold", each.target, 0, count)))
        for each in subjects
    ]
    total = count * len(clients)
    for client in clients:
        client.wait_ready(OPEN_SECONDS + total / OPENINGS_PER_SECOND)
    return total / (time.monotonic() - began)


def nodes(place: Place, how: Settings, result: GrowthResult) -> None:
    """Labs in which every node has an address, each with paths of its own."""
    for count in NODES:
        with noting(result, f"{count} nodes", place.say), inner_place(place, str(count)) as inner:
            running = ours.PhantomTun(count, USUAL_HOPS, all_own=True).start(inner)
            found = {"start": measuring.reach(running), **memory_mib(running)}
            result.at(count).add(found)
            place.say(f"   {count} nodes: {shown(found)}")
            measure(result, count, running, how, place.say)
            for _ in range(PATH_BUILDS):
                result.at(count).add(path_build(inner, count))


@contextmanager
def inner_place(place: Place, name: str) -> Iterator[Place]:
    """A network that is gone before the next one comes."""
    directory = place.directory / name
    directory.mkdir()
    with ExitStack() as undo:
        yield Place(f"{place.name}-{name}", directory, place.condition, undo, place.say)


GROWTHS: Mapping[str, Growth] = {
    each.key: each
    for each in (
        Growth("hops", "Hops on either side", "hops on either side", hops),
        Growth("tunnels", "Idle connections besides, 3 + 3 hops", "connections", tunnels),
        Growth("nodes", "Nodes of the network, 3 + 3 hops", "nodes", nodes),
        Growth("workers", "A relay that carries 16 tunnels", "processes", workers),
    )
}


def measure(result: GrowthResult, x: int, running: Running, how: Settings, say: Say) -> None:
    """What is measured at every size."""
    for measurement in (measuring.bulk("down", 1), measuring.connections, measuring.echo_idle):
        with noting(result, f"at {x}", say):
            found = measurement(running, how)
            result.at(x).add(found)
            say(f"   at {x}: {shown(found)}")


@contextmanager
def noting(result: GrowthResult, what: str, say: Say) -> Iterator[None]:
    """A block whose failure is noted; what comes after goes on."""
    try:
        yield
    except PhantomError as error:
        result.errors.append(f"{what}: {error}")
        say(f"   {what}: {error}")


def memory_mib(running: Running) -> dict[str, float]:
    """Of the client's side, the service's, and a relay on average."""
    return {
        f"memory_{role}": statistics.fmean(cost.resident_mib([pid]) for pid in pids)
        for role, pids in running.roles.items()
        if role != "other"
    }


def per_tunnel_kib(
    empty: Mapping[str, float], full: Mapping[str, float], count: int, running: Running
) -> dict[str, float]:
    """What each of ``count`` tunnels costs one relay it passes, and the client's side."""
    relays = len(running.roles.get("relay", ()))
    grown = {key: (value - empty[key]) * _KIB_PER_MIB for key, value in full.items()}
    found = {"tunnel_edge": grown["memory_client"] / count}
    if relays and running.relays_on_way:
        passes = count * running.relays_on_way / relays
        found["tunnel_relay"] = grown["memory_relay"] / passes
    return found


def path_build(place: Place, count: int) -> dict[str, float]:
    """How long a node of an idle lab takes to build its paths anew.

    :raises ControlError: it can't.
    """
    store = lifecycle.open_lab(place.name)
    control = ControlClient(Path(store.read().node(f"n{count}").control_socket))
    took = [path.build_s for path in control.call(RebuildPaths()) if path.build_s is not None]
    return {"path_build": statistics.median(took)} if took else {}


def shown(found: Mapping[str, float]) -> str:
    """For the person who watches."""
    return ", ".join(f"{key} {value:.4g}" for key, value in found.items())
