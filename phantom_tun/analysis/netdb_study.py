"""The studies of the simulated network database: how it grows, how it bears churn, and what liars
achieve (``scripts/sim_netdb`` runs them and draws the plots in ``docs/netdb-simulation``)."""

from __future__ import annotations

import dataclasses
import ipaddress
import random
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from phantom_tun.analysis.netdb_attack import Cabal, ground_maker, rival_claim
from phantom_tun.analysis.netdb_world import Cost, Defences, SimNode, World
from phantom_tun.clock import HOUR, MINUTE
from phantom_tun.ids import ApAddress, NodeId
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address, keys_to_write
from phantom_tun.testing.record_factory import NETWORK, ApMaker, NodeMaker

SMALL_AP4 = dataclasses.replace(NETWORK, ap4=ipaddress.IPv4Network("240.0.0.0/14"))
"""Two blocks of AP4 addresses, so that colliding claims can be ground in no time."""

BOOTSTRAP_NODES = 3
"""Nodes of the profile; they are honest."""
SETTLING = 5
"""Minutes between the last arrival and the first question."""
LIAR_NUMBERS = 1_000_000
"""Where the numbers of liars begin."""

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
    held_mean: float
    """AP identities that a node holds records for, when every node owns one."""
    held_max: float
    kib_per_node: float
    seconds: float
    """Wall time of everything above."""


@dataclass(frozen=True, slots=True)
class ChurnMinute:
    """One sample of a network whose nodes come and go."""

    minute: int
    lookup_found: float
    lookup_failures: float
    """Part of a lookup's calls that nobody answers."""
    resolved: float


@dataclass(frozen=True, slots=True)
class Attack:
    """What liars achieved."""

    nodes: int
    liars: int
    resolutions: int
    right: int
    wrong: int
    """Records of somebody else, or outdated ones."""
    attacked: int
    """Resolutions of the addresses that the liars attack in particular; part of the above."""
    attacked_right: int
    attacked_wrong: int
    drawn: int
    drawn_liars: int
    seconds: float

    @property
    def share(self) -> float:
        """Part of the network that lies."""
        return self.liars / self.nodes

    @property
    def drawn_share(self) -> float:
        """Part of the random nodes that lie."""
        return self.drawn_liars / self.drawn


@dataclass(frozen=True, slots=True)
class Eclipse:
    """One address with so many injected ids near each of its storage keys."""

    injected: int
    right: float
    wrong: float


def rss_kib() -> int:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def grow(sizes: Sequence[int], report: Report, *, probes: int = 200, seed: int = 1) -> list[Growth]:
    """One network that grows through ``sizes`` (rising), measured at each."""
    world = World(random.Random(seed), NETWORK)  # noqa: S311 - reproducible
    joined: list[SimNode] = []
    results = []
    base = rss_kib()
    begun = time.monotonic()
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
        owners = min(size, 4 * probes)
        makers = [ApMaker(number, NETWORK) for number in range(owners)]
        world.now += MINUTE
        for maker in makers:
            record = maker.record(world.now, sequence=int(world.now))
            world.write(world.rng.choice(joined), record, world.addresses_of(record))
        right = sum(
            _resolves(world, world.rng.choice(makers), world.rng.choice(joined))
            for _ in range(probes)
        )
        held = [len(node.store) * size / owners for node in joined]
        results.append(
            Growth(
                nodes=size,
                join_messages=join_messages,
                contacts=sum(len(node.book.table) for node in joined) / size,
                lookup_messages=cost.messages / probes,
                lookup_hops=sum(cost.hops) / probes,
                lookup_found=found,
                resolved=right / probes,
                held_mean=sum(held) / size,
                held_max=max(held),
                kib_per_node=kib,
                seconds=time.monotonic() - begun,
            )
        )
        report(f"{size} nodes: {results[-1]}")
        for node in joined:
            node.store.expire(world.now + HOUR * 25, lambda _: False)
    return results


def churn(
    nodes: int,
    report: Report,
    *,
    half_life: float = HOUR,
    minutes: int = 120,
    owners: int = 100,
    probes: int = 50,
    seed: int = 1,
) -> list[ChurnMinute]:
    """A network whose nodes die with ``half_life`` and are replaced; owners republish every 25
    minutes; visits every 5 s and a lookup a minute are made in batches, once a minute."""
    world = World(random.Random(seed), NETWORK)  # noqa: S311
    joined: list[SimNode] = []
    for number in range(nodes):
        node = world.add(number)
        world.join(node, joined[:BOOTSTRAP_NODES])
        joined.append(node)
    makers = [ApMaker(number, NETWORK) for number in range(owners)]
    phase = {maker.number: world.rng.randrange(25) for maker in makers}
    number = nodes
    survival = 0.5 ** (MINUTE / half_life)
    results = []
    for minute in range(minutes + 1):
        living = world.honest()
        for node in living:
            if minute and world.rng.random() > survival:
                world.remove(node)
        living = world.honest()
        while len(living) < nodes:
            node = world.add(number)
            world.join(node, world.rng.sample(living, BOOTSTRAP_NODES))
            living.append(node)
            number += 1
        for node in living:
            for _ in range(12):
                world.visit(node)
            world.recheck(node, 8)
            if world.rng.random() < 0.2:
                world.refresh(node)
            node.book.expire(world.now)
        for maker in makers:
            if minute == 0 or (minute + phase[maker.number]) % 25 == 0:
                record = maker.record(world.now, sequence=minute + 1)
                world.write(world.rng.choice(living), record, world.addresses_of(record))
        if minute % 10 == 0:
            world.cost = Cost()
            found = _lookup_quality(world, probes)
            cost, world.cost = world.cost, Cost()
            right = sum(
                _resolves(world, world.rng.choice(makers), world.rng.choice(living))
                for _ in range(probes)
            )
            results.append(
                ChurnMinute(minute, found, cost.failures / cost.messages, right / probes)
            )
            report(f"{results[-1]}")
        world.now += MINUTE
    return results


def attack(
    nodes: int,
    defences: Defences,
    report: Report,
    *,
    share: float = 0.2,
    owners: int = 150,
    injected: int = 5,
    resolutions: int = 400,
    draws: int = 1_000,
    seed: int = 1,
) -> Attack:
    """A network with a ``share`` of colluding liars. They claim the AP4 addresses of one owner per
    200 nodes for themselves, and place ``injected`` ids near each storage key of those."""
    begun = time.monotonic()
    world = World(random.Random(seed), SMALL_AP4, defences)  # noqa: S311
    cabal = Cabal(world)
    makers = [ApMaker(number, SMALL_AP4) for number in range(owners)]
    attacked = makers[: max(1, nodes // 200)]
    liars = _liars(world, nodes, share, [_ap4(maker) for maker in attacked], injected)
    _populate(world, cabal, nodes - len(liars), liars)
    report(f"{nodes} nodes, {len(liars)} of them liars, have joined")
    honest = world.honest()
    for sequence in (1, 2):
        for maker in makers:
            record = maker.record(world.now, sequence=sequence)
            world.write(world.rng.choice(honest), record, world.addresses_of(record))
        world.now += MINUTE
    for maker in attacked:
        address = _ap4(maker)
        claim = rival_claim(SMALL_AP4, address, world.now)
        cabal.rivals[address] = claim
        world.write(world.rng.choice(cabal.members), claim, [address])
    counts = {True: [0, 0, 0], False: [0, 0, 0]}
    for index in range(resolutions):
        special = index % 4 == 0
        maker = world.rng.choice(attacked if special else makers)
        asked_for = _ap4(maker) if special else _either(world, maker)
        found = world.resolve(world.rng.choice(honest), asked_for)
        right = found is not None and (found.public_key, found.sequence) == (maker.key.public, 2)
        verdict = 0 if right else 1 if found is not None else 2
        counts[special][verdict] += 1
    report(f"right, wrong, nothing: {counts[False]}, of attacked addresses {counts[True]}")
    false = {member.node_id for member in cabal.members}
    drawn = _draws(world, honest, draws)
    return Attack(
        nodes=nodes,
        liars=len(liars),
        resolutions=resolutions,
        right=counts[True][0] + counts[False][0],
        wrong=counts[True][1] + counts[False][1],
        attacked=sum(counts[True]),
        attacked_right=counts[True][0],
        attacked_wrong=counts[True][1],
        drawn=len(drawn),
        drawn_liars=sum(node_id in false for node_id in drawn),
        seconds=time.monotonic() - begun,
    )


def eclipse(
    nodes: int,
    defences: Defences,
    injections: Sequence[int],
    report: Report,
    *,
    victims: int = 5,
    seed: int = 1,
) -> list[Eclipse]:
    """What it takes to make some addresses unreachable, or to take them: ever more ids near each of
    their storage keys, every one in a /16 of its own."""
    world = World(random.Random(seed), SMALL_AP4, defences)  # noqa: S311
    cabal = Cabal(world)
    _populate(world, cabal, nodes, [])
    makers = [ApMaker(number, SMALL_AP4) for number in range(victims)]
    honest = world.honest()
    for maker in makers:
        record = maker.record(world.now)
        world.write(world.rng.choice(honest), record, world.addresses_of(record))
        claim = rival_claim(SMALL_AP4, _ap4(maker), world.now)
        cabal.rivals[_ap4(maker)] = claim
    results = []
    number = LIAR_NUMBERS
    placed = 0
    for injected in injections:
        for maker in makers:
            for key in keys_to_write(SMALL_AP4.network_id, _ap4(maker), world.now):
                for _ in range(injected - placed):
                    ground = ground_maker(world, key, 0.5 / nodes, world.address(), number)
                    number = ground.number + 1
                    cabal.spread(cabal.add(ground))
        placed = injected
        world.now += MINUTE
        right = wrong = 0
        for maker in makers:
            for _ in range(8):
                found = world.resolve(world.rng.choice(honest), _ap4(maker))
                right += found is not None and found.public_key == maker.key.public
                wrong += found is not None and found.public_key != maker.key.public
        total = 8 * victims
        results.append(Eclipse(injected, right / total, wrong / total))
        report(f"{results[-1]}")
    return results


def _populate(world: World, cabal: Cabal, honest: int, liars: list[NodeMaker]) -> None:
    """Everybody joins in random order; liars introduce themselves to all, again and again."""
    order: list[NodeMaker | int] = [*range(honest), *liars]
    world.rng.shuffle(order)
    bootstrap: list[SimNode] = []
    for who in order:
        if isinstance(who, int):
            node = world.add(who)
            world.join(node, bootstrap)
            for member in cabal.members:
                world.introduce(member, node)
            if len(bootstrap) < BOOTSTRAP_NODES:
                bootstrap.append(node)
        else:
            cabal.spread(cabal.add(who))
    settle(world, SETTLING)


def settle(world: World, minutes: int) -> None:
    """Let everybody do what nodes do in some minutes: twelve visits and a lookup in each."""
    for _ in range(minutes):
        for node in world.honest():
            for _ in range(12):
                world.visit(node)
            world.refresh(node)
        world.now += MINUTE


def _liars(
    world: World, nodes: int, share: float, targets: list[ipaddress.IPv4Address], injected: int
) -> list[NodeMaker]:
    makers: list[NodeMaker] = []
    number = LIAR_NUMBERS
    for address in targets:
        for key in keys_to_write(world.network.network_id, address, world.now):
            for _ in range(injected):
                maker = ground_maker(world, key, 0.5 / nodes, world.address(), number)
                number = maker.number + 1
                makers.append(maker)
    while len(makers) < share * nodes:
        makers.append(NodeMaker(number, world.network, world.address()))
        number += 1
    return makers


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
    found = world.resolve(node, _either(world, maker))
    return found is not None and found.public_key == maker.key.public


def _draws(world: World, honest: list[SimNode], draws: int) -> list[NodeId]:
    drawn: list[NodeId] = []
    asked: dict[NodeId, set[NodeId]] = {}
    for _ in range(draws):
        node = world.rng.choice(honest)
        record = world.sample(node, asked.setdefault(node.node_id, set()))
        if record is not None:
            drawn.append(record.node_id)
    return drawn


def _either(world: World, maker: ApMaker) -> ApAddress:
    if world.rng.random() < 0.5:
        return _ap4(maker)
    return ap6_address(maker.network, maker.key.public)


def _ap4(maker: ApMaker) -> ipaddress.IPv4Address:
    return ap4_candidate(maker.network, maker.key.public, 0)
