"""What colluding liars achieve in the simulated network database, with and without its defences
(``scripts/sim_netdb`` runs these studies and draws the plots in ``docs/netdb-simulation``)."""

from __future__ import annotations

import dataclasses
import ipaddress
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from phantom_tun.analysis.netdb_attack import Cabal, ground_maker, rival_claim
from phantom_tun.analysis.netdb_study import (
    BOOTSTRAP_NODES,
    Report,
    ap4_of,
    either_of,
    settle,
)
from phantom_tun.analysis.netdb_world import Cost, Defences, SimNode, World
from phantom_tun.clock import MINUTE
from phantom_tun.ids import NodeId
from phantom_tun.netdb.addresses import keys_to_write
from phantom_tun.testing.record_factory import NETWORK, ApMaker, NodeMaker

SMALL_AP4 = dataclasses.replace(NETWORK, ap4=ipaddress.IPv4Network("240.0.0.0/14"))
"""Two blocks of AP4 addresses, so that colliding claims can be ground in no time."""

SETTLING = 5
"""Minutes between the last arrival and the first question."""
LIAR_NUMBERS = 1_000_000
"""Where the numbers of liars begin."""


@dataclass(frozen=True, slots=True)
class Attack:
    """What liars achieved."""

    nodes: int
    liars: int
    seed: int
    resolutions: int
    right: int
    wrong: int
    """Records of somebody else, or outdated ones. What is neither right nor wrong was not found, or
    undecided."""
    attacked: int
    """Resolutions of the addresses that the liars attack in particular; part of the above."""
    attacked_right: int
    attacked_wrong: int
    calls: float
    """Of a resolution of an ordinary address."""
    attacked_calls: float
    sparse: float
    """Part of the resolutions' lookups that were continued because what they found lay too thin."""
    drawn: int
    drawn_liars: int
    known: float
    """Liars' share of all nodes whose path key is known, on average."""
    eligible: float
    """Their share of those that may be chosen for paths."""
    cpu_seconds: float

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


def attack(
    nodes: int,
    defences: Defences,
    report: Report,
    *,
    share: float = 0.2,
    owners: int = 80,
    injected: int = 5,
    resolutions: int = 500,
    drawers: int = 40,
    draws: int = 100,
    seed: int = 1,
) -> Attack:
    """A network with a ``share`` of colluding liars. They claim the AP4 addresses of one owner per
    200 nodes for themselves, and place ``injected`` ids near each storage key of those. Each of
    ``drawers`` nodes draws so many random nodes."""
    begun = time.process_time()
    world = World(random.Random(seed), SMALL_AP4, defences)  # noqa: S311
    cabal = Cabal(world)
    makers = [ApMaker(number, SMALL_AP4) for number in range(owners)]
    attacked = makers[: max(1, nodes // 200)]
    liars = _liars(world, nodes, share, [ap4_of(maker) for maker in attacked], injected)
    _populate(world, cabal, nodes - len(liars), liars)
    report(f"{nodes} nodes, {len(liars)} of them liars, have joined")
    honest = world.honest()
    for sequence in (1, 2):
        for maker in makers:
            record = maker.record(world.now, sequence=sequence)
            world.write(world.rng.choice(honest), record, world.addresses_of(record))
        world.now += MINUTE
    for maker in attacked:
        address = ap4_of(maker)
        claim = rival_claim(SMALL_AP4, address, world.now)
        cabal.rivals[address] = claim
        world.write(world.rng.choice(cabal.members), claim, [address])
    counts = {True: [0, 0, 0], False: [0, 0, 0]}
    calls = {True: 0, False: 0}
    world.cost = Cost()
    for index in range(resolutions):
        special = index % 4 == 0
        maker = world.rng.choice(attacked if special else makers)
        asked_for = ap4_of(maker) if special else either_of(world, maker)
        sent = world.cost.messages
        found = world.resolve(world.rng.choice(honest), asked_for)
        calls[special] += world.cost.messages - sent
        right = found is not None and (found.public_key, found.sequence) == (maker.key.public, 2)
        verdict = 0 if right else 1 if found is not None else 2
        counts[special][verdict] += 1
    report(f"right, wrong, nothing: {counts[False]}, of attacked addresses {counts[True]}")
    cost = world.cost
    false = {member.node_id for member in cabal.members}
    some = world.rng.sample(honest, min(drawers, len(honest)))
    drawn = _draws(world, some, draws)
    known, eligible = _candidates(world, some)
    report(f"liars among the known and the eligible: {known:.1%}, {eligible:.1%}")
    return Attack(
        nodes=nodes,
        liars=len(liars),
        seed=seed,
        resolutions=resolutions,
        right=counts[True][0] + counts[False][0],
        wrong=counts[True][1] + counts[False][1],
        attacked=sum(counts[True]),
        attacked_right=counts[True][0],
        attacked_wrong=counts[True][1],
        calls=calls[False] / sum(counts[False]),
        attacked_calls=calls[True] / sum(counts[True]),
        sparse=cost.sparse / cost.lookups,
        drawn=len(drawn),
        drawn_liars=sum(node_id in false for node_id in drawn),
        known=known,
        eligible=eligible,
        cpu_seconds=time.process_time() - begun,
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
        claim = rival_claim(SMALL_AP4, ap4_of(maker), world.now)
        cabal.rivals[ap4_of(maker)] = claim
    results = []
    number = LIAR_NUMBERS
    placed = 0
    for injected in injections:
        for maker in makers:
            for key in keys_to_write(SMALL_AP4.network_id, ap4_of(maker), world.now):
                for _ in range(injected - placed):
                    ground = ground_maker(world, key, 0.5 / nodes, world.address(), number)
                    number = ground.number + 1
                    cabal.spread(cabal.add(ground))
        placed = injected
        world.now += MINUTE
        right = wrong = 0
        for maker in makers:
            for _ in range(8):
                found = world.resolve(world.rng.choice(honest), ap4_of(maker))
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
                world.meet(member, node)
            if len(bootstrap) < BOOTSTRAP_NODES:
                bootstrap.append(node)
        else:
            cabal.spread(cabal.add(who))
    settle(world, SETTLING)


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


def _draws(world: World, nodes: list[SimNode], draws: int) -> list[NodeId]:
    drawn: list[NodeId] = []
    for node in nodes:
        asked: set[NodeId] = set()
        for _ in range(draws):
            record = world.sample(node, asked)
            if record is not None:
                drawn.append(record.node_id)
    return drawn


def _candidates(world: World, nodes: list[SimNode]) -> tuple[float, float]:
    """The liars' share of the nodes whose path key is known, and of those that may be chosen for
    paths, which without our defences are the same."""
    known: list[bool] = []
    eligible: list[bool] = []
    for node in nodes:
        for candidate in node.book.candidates(world.now):
            lies = world.nodes[candidate.record.node_id].liar
            known.append(lies)
            if candidate.fair or not world.defences.askers_draw:
                eligible.append(lies)
    return sum(known) / len(known), sum(eligible) / len(eligible)
