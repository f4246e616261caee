"""Suspicion, lifetimes and timeouts: the arithmetic of building paths."""

import random

import pytest

from phantom_tun.clock import DAY, HOUR, MINUTE
from phantom_tun.netdb.rules import MAX_ROUTE_LIFETIME
from phantom_tun.path.lifetimes import (
    EXPIRY_STEP,
    FURTHEST,
    JITTER,
    LONGEST,
    RETIRE_MARGIN,
    SHORTEST,
    Y_LIFE,
    Ends,
    draw_lead,
    draw_lifetime,
    draw_y_expiry,
    rounded_up,
)
from phantom_tun.path.suspicion import (
    HALF_LIFE,
    HIGHEST,
    MAX_REMEMBERED,
    PRIOR,
    UNREACHABLE,
    WORKED,
    Suspicion,
)
from phantom_tun.path.timing import FLOOR, RoundTimer
from phantom_tun.path.timing import LONGEST as LONGEST_WAIT

NOW = 1_800_000_000.0


def node(number):
    return number.to_bytes(32, "big")


# --- suspicion -----------------------------------------------------------------------------------


def test_a_failure_follows_bayes_rule():
    suspicion = Suspicion()
    members = [node(number) for number in range(8)]
    suspicion.failed(members, NOW)
    expected = PRIOR / (1 - (1 - PRIOR) ** 8)
    assert all(suspicion.of(member, NOW) == pytest.approx(expected) for member in members)
    assert suspicion.of(node(99), NOW) == PRIOR


def test_blame_falls_on_those_who_were_not_seen_to_work():
    suspicion = Suspicion()
    proven, unknown = [node(number) for number in range(7)], node(7)
    suspicion.worked(proven, NOW)
    suspicion.failed([*proven, unknown], NOW)
    assert suspicion.of(unknown, NOW) > 3 * suspicion.of(proven[0], NOW)


def test_the_culprit_is_found_by_repetition():
    suspicion = Suspicion()
    culprit = node(0)
    for others in (range(1, 8), range(8, 15), range(15, 22)):
        suspicion.failed([culprit, *map(node, others)], NOW)
    assert suspicion.of(culprit, NOW) > 0.5
    assert all(suspicion.of(node(number), NOW) < 0.2 for number in range(1, 22))


def test_suspicion_fades():
    suspicion = Suspicion()
    suspicion.unreachable(node(1), NOW)
    assert suspicion.of(node(1), NOW) == UNREACHABLE
    half = PRIOR + (UNREACHABLE - PRIOR) / 2
    assert suspicion.of(node(1), NOW + HALF_LIFE) == pytest.approx(half)
    assert suspicion.of(node(1), NOW + 100 * HALF_LIFE) == pytest.approx(PRIOR)


def test_nobody_is_preferred_to_an_unknown_node():
    suspicion = Suspicion()
    suspicion.worked([node(1)], NOW)
    assert suspicion.of(node(1), NOW) == pytest.approx(WORKED)
    assert suspicion.weight(node(1), NOW) == suspicion.weight(node(2), NOW) == 1.0
    suspicion.unreachable(node(3), NOW)
    assert suspicion.weight(node(3), NOW) < 0.01


def test_certainty_is_never_reached_and_a_clock_set_back_does_no_harm():
    suspicion = Suspicion()
    for _ in range(100):
        suspicion.failed([node(1)], NOW)
    assert suspicion.of(node(1), NOW) == HIGHEST
    assert suspicion.of(node(1), NOW - HOUR) == HIGHEST


def test_memory_is_bounded():
    suspicion = Suspicion()
    for number in range(MAX_REMEMBERED + 10):
        suspicion.unreachable(node(number), NOW)
    assert suspicion.of(node(9), NOW) == PRIOR
    assert suspicion.of(node(10), NOW) == UNREACHABLE


# --- lifetimes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("about", [10 * MINUTE, HOUR, DAY])
def test_lifetimes_keep_their_bounds_and_differ(about):
    rng = random.Random(1)
    drawn = [draw_lifetime(about, rng) for _ in range(500)]
    assert all(SHORTEST <= life <= LONGEST for life in drawn)
    assert len(set(drawn)) == 500, "none is cut off at a bound, which would tell how it was set"
    assert max(drawn) - min(drawn) > 0.45 * about
    if about == HOUR:
        assert sum(drawn) / 500 == pytest.approx(HOUR, rel=0.05)
        assert all(0.5 * HOUR <= life <= 1.5 * HOUR for life in drawn)


@pytest.mark.parametrize("about", [10 * MINUTE, 1.5 * HOUR, DAY])
def test_a_route_is_valid_while_its_path_is_used_and_no_longer_than_any_member_stands(about):
    rng = random.Random(1)
    for _ in range(500):
        now = NOW + rng.uniform(0, HOUR)
        life = draw_lifetime(about, rng)
        ends = Ends(now + life)
        assert now + draw_lead(life, rng) < ends.retires < now + MAX_ROUTE_LIFETIME
        assert ends.retires == int(ends.retires), "as the route says it"
        assert all(ends.retires < ends.draw_expiry(rng) for _ in range(8))


def test_expiries_are_rounded_up_and_jittered():
    rng = random.Random(1)
    base = NOW + 1234.5
    ends = Ends(base)
    drawn = [ends.draw_expiry(rng) for _ in range(500)]
    assert all(expiry % EXPIRY_STEP == 0 and isinstance(expiry, int) for expiry in drawn)
    assert all(base <= expiry <= base + JITTER + EXPIRY_STEP for expiry in drawn)
    assert len(set(drawn)) == 3
    assert ends.retires == int(base - RETIRE_MARGIN) < min(drawn)


def test_y_nodes_are_told_a_short_life():
    rng = random.Random(1)
    drawn = [draw_y_expiry(NOW, rng) for _ in range(500)]
    assert all(NOW + Y_LIFE <= expiry <= NOW + Y_LIFE + JITTER + EXPIRY_STEP for expiry in drawn)
    assert all(expiry % EXPIRY_STEP == 0 for expiry in drawn)


def test_no_owner_draws_an_expiry_that_members_refuse():
    rng = random.Random(1)
    assert all(Ends(NOW + LONGEST).draw_expiry(rng) < NOW + FURTHEST for _ in range(500))


def test_rounding_up_keeps_whole_steps():
    assert rounded_up(1200.0) == 1200
    assert rounded_up(1200.1) == 1800


def test_a_replacement_begins_in_time_but_not_at_a_fixed_time():
    rng = random.Random(1)
    for lifetime in (SHORTEST, HOUR, DAY):
        leads = [draw_lead(lifetime, rng) for _ in range(100)]
        assert all(40 <= lead <= min(5 * MINUTE, 0.15 * lifetime) for lead in leads)
        assert len(set(leads)) == 100


# --- timeouts ------------------------------------------------------------------------------------


def test_a_timeout_follows_what_was_measured():
    timer = RoundTimer()
    unmeasured = timer.allowed(8)
    for _ in range(30):
        timer.took(8, 0.16)
    assert FLOOR < timer.allowed(8) == pytest.approx(FLOOR + 3 * 0.16, abs=0.05)
    assert timer.allowed(8) < unmeasured
    assert timer.allowed(8) < timer.allowed(23)
    for _ in range(30):
        timer.took(8, 8.0)
    assert timer.allowed(8) > 20


def test_a_timeout_allows_for_a_first_member_that_took_long():
    timer = RoundTimer()
    usual = timer.allowed(8)
    assert timer.allowed(8, 0.01) == usual
    assert timer.allowed(8, 0.5) == pytest.approx(FLOOR + 3 * 0.5 * 8)
    assert timer.allowed(8, 9.0) == LONGEST_WAIT


def test_a_timeout_is_stretched_by_failures_but_bounded():
    timer = RoundTimer()
    usual = timer.allowed(8)
    timer.expired()
    assert timer.allowed(8) == pytest.approx(1.5 * usual)
    for _ in range(10):
        timer.expired()
    assert timer.allowed(8) == pytest.approx(2 * usual)
    assert timer.allowed(1000) == LONGEST_WAIT
    timer.took(8, 1.2)
    assert timer.allowed(8) == pytest.approx(usual)
