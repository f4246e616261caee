"""Which ways in to an AP address are tried first."""

from __future__ import annotations

import contextlib
import random

from phantom_tun.ids import EntryId, NodeId
from phantom_tun.net.sessions.routes import (
    MAX_SUSPECTS,
    MAX_TRIALS,
    SUSPECT_FOR,
    TRIAL_PAUSE,
    Route,
    Suspects,
)


class Time:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> float:
        return self.seconds


def route(number: int) -> Route:
    return NodeId(number.to_bytes(32, "big")), EntryId(number.to_bytes(16, "big"))


ROUTES = [route(number) for number in range(8)]


def test_routes_that_nothing_is_known_of_come_in_any_order() -> None:
    suspects = Suspects(Time())
    orders = {
        tuple(suspects.in_order("alice", ROUTES[:3], random.Random(seed))) for seed in range(100)
    }
    assert len(orders) == 6


def test_suspects_come_last_and_in_any_order() -> None:
    suspects = Suspects(Time())
    for bad in ROUTES[:2]:
        suspects.add("alice", bad)
    orders = [suspects.in_order("alice", ROUTES[:4], random.Random(seed)) for seed in range(100)]
    assert {frozenset(order[:2]) for order in orders} == {frozenset(ROUTES[2:4])}
    assert {order[2] for order in orders} == set(ROUTES[:2])


def test_what_one_identity_met_another_does_not_know() -> None:
    suspects = Suspects(Time())
    suspects.add("alice", ROUTES[0])
    assert suspects.suspects("alice", ROUTES[0])
    assert not suspects.suspects("eve", ROUTES[0])


def test_suspicion_ends_with_time_and_with_success() -> None:
    time = Time()
    suspects = Suspects(time)
    suspects.add("alice", ROUTES[0])
    suspects.add("alice", ROUTES[1])
    suspects.clear("alice", ROUTES[1])
    suspects.clear("alice", ROUTES[2])
    assert [suspects.suspects("alice", one) for one in ROUTES[:3]] == [True, False, False]
    time.seconds += SUSPECT_FOR
    assert not suspects.suspects("alice", ROUTES[0])


def test_suspects_are_bounded_and_the_oldest_is_forgotten() -> None:
    suspects = Suspects(Time())
    for number in range(MAX_SUSPECTS):
        suspects.add("alice", route(number))
    suspects.add("alice", route(0))  # again: now the youngest
    suspects.add("alice", route(MAX_SUSPECTS))
    assert len(suspects) == MAX_SUSPECTS
    assert suspects.suspects("alice", route(0))
    assert not suspects.suspects("alice", route(1))


def test_a_suspect_is_not_tried_again_at_once() -> None:
    time = Time()
    suspects = Suspects(time)
    suspects.add("alice", ROUTES[0])
    assert not suspects.may_be_tried("alice", ROUTES[0])
    time.seconds += TRIAL_PAUSE
    assert suspects.may_be_tried("alice", ROUTES[0])


def test_a_suspect_is_tried_by_few_at_a_time() -> None:
    time = Time()
    suspects = Suspects(time)
    with contextlib.ExitStack() as trials:
        for _ in range(MAX_TRIALS):
            assert suspects.may_be_tried("alice", ROUTES[0])
            trials.enter_context(suspects.trying("alice", ROUTES[0]))
        assert suspects.may_be_tried("alice", ROUTES[0])  # nothing is known against it
        suspects.add("alice", ROUTES[0])
        time.seconds += TRIAL_PAUSE
        assert not suspects.may_be_tried("alice", ROUTES[0])
        assert suspects.may_be_tried("alice", ROUTES[1])
        assert suspects.may_be_tried("eve", ROUTES[0])
    assert suspects.may_be_tried("alice", ROUTES[0])
