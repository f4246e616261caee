"""The studies of the simulated network database: how it grows and how it bears churn
(``scripts/sim_netdb`` runs them and draws the plots in ``docs/netdb-simulation``)."""

from __future__ import annotations

import dataclasses
import ipaddress
import random
import resource
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from phantom_tun.analysis.netdb_world import Cost, SimNode, World
from phantom_tun.clock import HOUR, MINUTE
from phantom_tun.ids import ApAddress
from phantom_tun.net.addresses.publisher import REFRESH
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.netdb.book import NodeBook
from phantom_tun.netdb.verifier import Verifier
from phantom_tun.testing.record_factory import NETWORK, ApMaker

BOOTSTRAP_NODES = 3
"""Nodes of the profile; they are honest."""
REPUBLISH = (0.8 * REFRESH, REFRESH)
"""Seconds between two editions of an owner's record."""
NEWCOMER_NUMBERS = 2_000_000
"""Where the numbers of nodes begin that take the places of dead ones."""

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Growth:
    """A network of one size."""

    nodes: int
    join_messages: float
    """Calls that a newcomer makes."""
    contacts: float
    """Routing contacts of a node."""
    lookup_messages: float
    lookup_hops: float
    lookup_found: float
    """Part of the truly closest twenty nodes that lookups find."""
    resolved: float
    held: float
    """AP identities that a node holds records for, when every node owns one."""
    kib_per_node: float
    """Of the simulating process, in which all nodes share the records they know."""
    kib_alone: float
    """What one node remembers of others if it shares nothing."""
    cpu_seconds: float
    """Of one core, for everything so far; the wall time where nothing else runs."""


@dataclass(frozen=True, slots=True)
class ChurnMinute:
    """One sample of a network whose nodes come and go."""

    minute: int
    replaced: float
    """Nodes that have died so far, per node."""
    lookup_hops: float
    lookup_found: float
    lookup_failures: float
    """Part of a lookup's calls that nobody answers."""
    resolved: float
    held: float
    """As in :class:`Growth`."""
    cpu_seconds: float
    """As in :class:`Growth`."""


def rss_kib() -> int:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def grow(
    sizes: Sequence[int], report: Report, *, probes: int = 200, seed: int = 1
) -> tuple[World, list[Growth]]:
    """One network that grows through ``sizes`` (rising), measured at each; nobody owns anything in
    it in the end."""
    world = World(random.Random(seed), NETWORK)  # noqa: S311 - reproducible
    joined: list[SimNode] = []
    results = []
    base = rss_kib()
    begun = time.process_time()
    for size in sizes:
        world.cost = Cost()
        newcomers = size - len(joined)
        while len(joined) < size:
            node = world.add(len(joined))
            world.join(node, joined[:BOOTSTRAP_NODES])
            joined.append(node)
        join_messages = world.cost.messages / newcomers
        kib = (rss_kib() - base) / size
        world.cost = Cost()
        found = _lookup_quality(world, probes)
        cost, world.cost = world.cost, Cost()
        makers = [ApMaker(number, NETWORK) for number in range(min(size, 2 * probes))]
        world.now += MINUTE
        for maker in makers:
            record = maker.record(world.now, sequence=int(world.now))
            world.write(world.rng.choice(joined), record, world.addresses_of(record))
        right = sum(
            _resolves(world, world.rng.choice(makers), world.rng.choice(joined))
            for _ in range(probes)
        )
        results.append(
            Growth(
                nodes=size,
                join_messages=join_messages,
                contacts=sum(len(node.book.table) for node in joined) / size,
                lookup_messages=cost.messages / probes,
                lookup_hops=sum(cost.hops) / probes,
                lookup_found=found,
                resolved=right / probes,
                held=sum(len(node.store) for node in joined) / len(makers),
                kib_per_node=kib,
                kib_alone=_kib_alone(world, world.rng.sample(joined, 5)),
                cpu_seconds=time.process_time() - begun,
            )
        )
        report(f"{results[-1]}")
        for node in joined:
            node.store.expire(world.now + 25 * HOUR, lambda _: False)
    return world, results


def churn(
    world: World,
    report: Report,
    *,
    half_life: float = HOUR,
    minutes: int = 120,
    every: int = 10,
    owners: int = 150,
    probes: int = 100,
    visits: int = 12,
    refreshes: float = 1.0,
) -> list[ChurnMinute]:
    """The nodes of ``world`` die with ``half_life`` and are replaced by others; owners republish as
    real ones do. Per minute a node makes so many ``visits`` and look-ups to refresh its table (12
    and 1 in reality). Sampled ``every`` so many minutes."""
    begun = time.process_time()
    makers = [ApMaker(number, NETWORK) for number in range(owners)]
    due = {maker.number: 0.0 for maker in makers}
    size = len(world.honest())
    survival = 0.5 ** (MINUTE / half_life)
    results = []
    deaths = 0
    for minute in range(minutes + 1):
        for node in world.honest():
            if minute and world.rng.random() > survival:
                world.remove(node)
        living = world.honest()
        while len(living) < size:
            node = world.add(NEWCOMER_NUMBERS + deaths)
            world.join(node, world.rng.sample(living, BOOTSTRAP_NODES))
            living.append(node)
            deaths += 1
        for node in living:
            for _ in range(visits):
                world.visit(node)
            world.recheck(node, 8)
            if world.rng.random() < refreshes:
                world.refresh(node)
            node.book.expire(world.now)
        for maker in makers:
            if due[maker.number] <= world.now:
                record = maker.record(world.now, sequence=minute + 1)
                world.write(world.rng.choice(living), record, world.addresses_of(record))
                # As if some had begun long ago: they must not all republish in the same minute.
                wait = REPUBLISH if minute else (0.0, REPUBLISH[1])
                due[maker.number] = world.now + world.rng.uniform(*wait)
        if minute % every == 0:
            seen = _sample(world, makers, probes)
            seconds = time.process_time() - begun
            results.append(
                dataclasses.replace(
                    seen, minute=minute, replaced=deaths / size, cpu_seconds=seconds
                )
            )
            report(f"{results[-1]}")
        world.now += MINUTE
    return results


def _sample(world: World, makers: list[ApMaker], probes: int) -> ChurnMinute:
    """What can be seen at this minute; all but the times."""
    now = world.now
    living = world.honest()
    world.cost = Cost()
    found = _lookup_quality(world, probes)
    cost, world.cost = world.cost, Cost()
    right = sum(
        _resolves(world, world.rng.choice(makers), world.rng.choice(living)) for _ in range(probes)
    )
    for node in living:
        node.store.expire(now, partial(node.server.duty, now=now))
    return ChurnMinute(
        minute=0,
        replaced=0.0,
        lookup_hops=sum(cost.hops) / len(cost.hops),
        lookup_found=found,
        lookup_failures=cost.failures / cost.messages,
        resolved=right / probes,
        held=sum(len(node.store) for node in living) / len(makers),
        cpu_seconds=0.0,
    )


def settle(world: World, minutes: int) -> None:
    """Let everybody do what nodes do in some minutes: twelve visits and a lookup in each."""
    for _ in range(minutes):
        for node in world.honest():
            for _ in range(12):
                world.visit(node)
            world.refresh(node)
        world.now += MINUTE


def ap4_of(maker: ApMaker) -> ipaddress.IPv4Address:
    """The AP4 address that a maker's records claim."""
    return ap4_candidate(maker.network, maker.key.public, 0)


def either_of(world: World, maker: ApMaker) -> ApAddress:
    """One of a maker's addresses."""
    if world.rng.random() < 0.5:
        return ap4_of(maker)
    return ap6_address(maker.network, maker.key.public)


def _lookup_quality(world: World, probes: int) -> float:
    found = 0.0
    living = world.honest()
    for _ in range(probes):
        node, target = world.rng.choice(living), world.rng.randbytes(32)
        closest = {record.node_id for record in world.lookup(node, target).closest()}
        true = world.truly_closest(target) - {node.node_id}
        found += len(true & closest) / len(true)
    return found / probes


def _resolves(world: World, maker: ApMaker, node: SimNode) -> bool:
    found = world.resolve(node, either_of(world, maker))
    return found is not None and found.public_key == maker.key.public


def _kib_alone(world: World, nodes: Sequence[SimNode]) -> float:
    copies: list[tuple[Verifier, NodeBook]] = []
    tracemalloc.start()
    for node in nodes:
        verifier = Verifier(world.network)
        book = NodeBook(node.node_id, world.rng)
        for contact in node.book:
            record = verifier.node(bytes(bytearray(contact.record.encoded)))
            key = None if contact.path_key is None else bytes(bytearray(contact.path_key))
            book.met(record, world.now, key)
        copies.append((verifier, book))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used / len(copies) / 1_024
