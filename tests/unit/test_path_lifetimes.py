"""Members of a path are told when it ends: that must not say what it is for, nor whose it is."""

from __future__ import annotations

import itertools
import random
from bisect import bisect_right
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from phantom_tun.clock import HOUR
from phantom_tun.guard import Guard
from phantom_tun.ids import CertHash, ConnectionId, NodeId
from phantom_tun.net.paths.pools import PathPools, PathWishes
from phantom_tun.path.hop import OwnedPath
from phantom_tun.path.lifetimes import Ends
from phantom_tun.testing.path_nodes import TrioClock
from phantom_tun.testing.record_factory import NOW
from phantom_tun.wire.nodes import NodeRef

WISHED = 1.5 * HOUR
SAMPLES = 320
NAME = "main"
ADDRESS = ip_address("11.0.0.1")


class Builder:
    """Builds in no network, and notes what it told the members."""

    def __init__(self) -> None:
        self.rng = random.Random(5)
        self.numbers = itertools.count()
        self.hops: dict[tuple[str, int], int] = defaultdict(int)
        """How many were built of each kind and length."""
        self.announced: dict[str, list[float]] = defaultdict(list)
        """Seconds that members were told, by kind."""
        self.used: dict[str, list[float]] = defaultdict(list)
        """Seconds until its end, by kind."""

    async def build(
        self,
        kind: Any,
        hops: int,
        identity: str,
        route_factory: Any = None,
        *,
        lifetime: float = 600.0,
        apart_from: frozenset[NodeId] | None = None,
    ) -> OwnedPath:
        await trio.sleep(0.1)
        self.hops[kind, hops] += 1
        ends = Ends(NOW + lifetime)
        what = "private" if apart_from is None else kind
        self.announced[what].append(ends.draw_expiry(self.rng) - NOW)
        self.used[what].append(ends.retires - NOW)
        number = next(self.numbers)
        ref = NodeRef(NodeId(number.to_bytes(32, "big")), CertHash(bytes(32)), ADDRESS, 443)
        return OwnedPath(
            number=number,
            kind=kind,
            identity=identity,
            members=[ref] * hops,
            secrets=[],
            first_connection=ConnectionId(bytes(16)),
            entry_id=None,
            built=NOW,
            retires=2e10,
            expires=2e10,
            build_seconds=0.1,
        )

    async def keep_link(self, path: OwnedPath) -> None:
        pass

    def statistics(self) -> dict[str, int]:
        return {}


class Connector:
    """Takes every path."""

    def __init__(self) -> None:
        self.standing: list[OwnedPath] = []

    async def adopt(self, path: OwnedPath) -> None:
        self.standing.append(path)

    def drop(self, path: OwnedPath) -> None:
        self.standing.remove(path)


@asynccontextmanager
async def pools(
    exit_hops: int, entry_hops: int, paths: int
) -> AsyncIterator[tuple[PathPools, Builder, Connector]]:
    builder, connector = Builder(), Connector()
    made = PathPools(
        builder,  # type: ignore[arg-type]
        connector,  # type: ignore[arg-type]
        SimpleNamespace(),  # type: ignore[arg-type]
        PathWishes(exit_hops, entry_hops, paths, paths, WISHED),
        on_event=lambda _event: None,
        guard=Guard(defaultdict(int)),  # type: ignore[arg-type]
        clock=TrioClock(),
        rng=random.Random(3),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(made.run)
        made.add(SimpleNamespace(name=NAME))  # type: ignore[arg-type]
        yield made, builder, connector
        nursery.cancel_scope.cancel()


def distance(one: list[float], other: list[float]) -> float:
    """Kolmogorov and Smirnov's: how far apart the two distributions are at most."""
    one, other = sorted(one), sorted(other)
    return max(
        abs(bisect_right(one, x) / len(one) - bisect_right(other, x) / len(other))
        for x in one + other
    )


async def test_what_members_are_told_says_nothing_about_what_a_path_is_for(
    autojump_clock: MockClock,
) -> None:
    async with pools(3, 3, 16) as (made, builder, connector):
        while min(map(len, (builder.used["exit"], builder.used["entry"]))) < SAMPLES:
            await trio.sleep(100)
            for path in connector.standing[:]:
                await made.replace(path)
        for _ in range(SAMPLES):
            await made.private_exit(NAME)
    for drawn in (builder.announced, builder.used):
        assert set(drawn) == {"exit", "entry", "private"}
        for one, other in itertools.combinations(drawn.values(), 2):
            chance = 1.95 * (1 / len(one) + 1 / len(other)) ** 0.5  # once in a thousand times
            assert distance(one, other) < chance


async def test_the_distance_of_distributions_is_seen() -> None:
    rng = random.Random(1)
    one = [rng.uniform(0.5, 1.5) for _ in range(SAMPLES)]
    other = [rng.uniform(0.75, 1.25) for _ in range(SAMPLES)]
    assert distance(one, other) > 1.95 * (2 / SAMPLES) ** 0.5


@pytest.mark.parametrize(
    ("exit_hops", "entry_hops", "built"),
    [
        (3, 3, {("exit", 3): 2, ("entry", 3): 2}),
        (3, 0, {("exit", 3): 2, ("entry", 0): 2}),
        (0, 0, {("exit", 0): 2, ("entry", 0): 2}),
        (0, 3, {("exit", 0): 2, ("entry", 3): 2, ("exit", 3): 2}),
        (1, 2, {("exit", 1): 2, ("entry", 2): 2, ("exit", 2): 2}),
    ],
)
async def test_what_has_to_do_with_being_called_has_exits_as_long_as_the_entries(
    exit_hops: int,
    entry_hops: int,
    built: dict[tuple[str, int], int],
    autojump_clock: MockClock,
) -> None:
    longest = max(exit_hops, entry_hops)
    async with pools(exit_hops, entry_hops, 2) as (made, builder, connector):
        await trio.sleep(100)
        assert builder.hops == built
        assert {path.hops for path in connector.standing if path.aside} == (
            {longest} if exit_hops < entry_hops else set()
        )
        private = await made.private_exit(NAME)
        assert (private.kind, private.hops, private.aside) == ("exit", longest, True)
        asides = [path for path in connector.standing if path.aside]
        for path in asides:
            await made.replace(path)
        assert not set(map(id, asides)) & set(map(id, connector.standing))
        made.remove(NAME)
        await trio.sleep(1)
        assert connector.standing == []
