"""A network that falls apart for longer than nodes remember each other as reachable, and heals."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest
from labs import Node, lab_of, wait_until

from phantom_tun.control.schema import ControlError, GetNetdb, NewAddress, Ping

pytestmark = [pytest.mark.netns, pytest.mark.slow]

HALF = 6
WHOLE_WITHIN = 60.0
"""Seconds after which everybody reaches every address (docs/spec/netdb.md, "Splits")."""


def answers(node: Node, address: str) -> bool:
    """Whether an AP address answers a node, through its paths."""
    try:
        return node.ask(Ping(address, count=1, timeout_s=5.0)).received == 1
    except ControlError:
        return False


def wait_reached(pairs: Iterable[tuple[Node, str]], seconds: float) -> list[float]:
    """When each address answered each node first, in seconds from now."""
    began = time.monotonic()
    left, took = list(pairs), []
    with ThreadPoolExecutor(8) as pool:
        while left:
            found = list(pool.map(lambda pair: answers(*pair), left))
            took += [time.monotonic() - began] * sum(found)
            left = [pair for pair, reached in zip(left, found, strict=True) if not reached]
            assert time.monotonic() - began < seconds, (
                f"{len(left)} ways are missing, for example {left[0][0].name} to {left[0][1]}"
            )
    return took


def evicted(nodes: list[Node]) -> Callable[[], bool]:
    """Whether nobody counts on nodes of the other half any more."""
    return lambda: all(node.statistic("netdb", "path_candidates") < HALF for node in nodes)


def across(left: list[Node], right: list[Node], extra: dict[str, str]) -> list[tuple[Node, str]]:
    """Everybody and every address of the other half."""
    pairs = []
    for here, there in ((left, right), (right, left)):
        found = [node.ap(4) for node in there]
        found += [extra[node.name] for node in there if node.name in extra]
        pairs += list(itertools.product(here, found))
    return pairs


def test_both_halves_reach_each_other_again(figures: Callable[[str], None]) -> None:
    with lab_of("--nodes", str(2 * HALF), "--exit-hops", "1", "--entry-hops", "1") as lab:
        nodes = list(lab.nodes.values())
        left, right = nodes[:HALF], nodes[HALF:]
        wait_reached([(left[0], right[0].ap(4)), (right[1], left[1].ap(4))], 60)
        began = time.monotonic()
        with lab.split(*(node.name for node in right)):
            wait_until(evicted(nodes), 240, every=2)
            wait_reached([(left[0], left[1].ap(4)), (right[0], right[1].ap(4))], 120)
            assert not answers(left[0], right[0].ap(4))
            born = {node.name: new_address(node) for node in (left[2], right[2])}
            apart = time.monotonic() - began
        began = time.monotonic()
        took = wait_reached(across(left, right, born), WHOLE_WITHIN)
        whole = time.monotonic() - began
        figures(
            f"{len(nodes)} nodes, split for {apart:.0f} s: after healing half of the "
            f"{len(took)} ways across stood again after {sorted(took)[len(took) // 2]:.0f} s, "
            f"all after {whole:.0f} s"
        )
        assert whole < WHOLE_WITHIN
        for node in (left[4], right[4]):
            for address in born.values():
                votes = node.ask(GetNetdb(address, votes=True))
                assert votes.records
                assert not votes.warning


def new_address(node: Node) -> str:
    """An AP4 address that only one half of the network has heard of."""
    made = node.ask(NewAddress("apart"))
    assert made.ap4 is not None
    return made.ap4
