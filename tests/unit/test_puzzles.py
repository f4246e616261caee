"""Puzzles of loaded entry nodes: what is taken for a solution, and who gets in."""

import random
from collections import Counter

import pytest
import trio

from phantom_tun.crypto.hashes import h
from phantom_tun.crypto.work import NONCE_LEN, Task, zero_bits
from phantom_tun.errors import Unreachable, WireError
from phantom_tun.ids import EntryId, NodeId
from phantom_tun.net.tunnels.entry_gate import (
    CROWD,
    ENTRY_BURST,
    ENTRY_RATE,
    NODE_BURST,
    NODE_RATE,
    EntryGate,
)
from phantom_tun.net.tunnels.puzzles import MAX_PUZZLES, SHOWN_IN_STEPS, PuzzleDemanded, Puzzler
from phantom_tun.net.tunnels.workshop import Workshop
from phantom_tun.testing.path_nodes import at_once
from phantom_tun.tunnel.puzzles import (
    EASIEST,
    FALL_EVERY,
    HARDEST,
    RISE_EVERY,
    SALT_LIFE,
    SLACK,
    Difficulty,
    Salts,
    Spent,
    task,
)
from phantom_tun.wire.puzzles import CHALLENGE_LEN, NO_SOLUTION, Challenge, Solution
from phantom_tun.wire.sizes import ANSWER_LEN, SEALED_REQUEST_LEN
from phantom_tun.wire.tunnel import (
    BODY_LEN,
    ENTRY_ANSWER_LEN,
    ENTRY_REQUEST_LEN,
    ConnectRequest,
    Status,
    failed_body,
    pack_entry_failure,
    unpack_entry_answer,
    unpack_entry_request,
    unpack_failed,
)

NOW = 1_800_000_000.0
ENTRY, OTHER_ENTRY = EntryId(b"e" * 16), EntryId(b"f" * 16)
REQUEST = b"sealed request".ljust(SEALED_REQUEST_LEN, b".")
OTHER_REQUEST = b"another one".ljust(SEALED_REQUEST_LEN, b".")
NODES = [NodeId(bytes([number]) * 32) for number in range(200)]


def solved(challenge, entry_id=ENTRY, request=REQUEST, bits=None, start=0):
    work = task(challenge.salt, entry_id, request)
    return Solution(challenge.salt, work.solve(bits or challenge.bits, start))


# --- work ----------------------------------------------------------------------------------------


def test_work_is_the_hash_of_nonce_and_parts():
    work = Task("test", (b"one", b"two" * 1000))
    nonce = work.solve(9, 5)
    assert len(nonce) == NONCE_LEN
    assert int.from_bytes(nonce, "big") >= 5
    digest = h("test", nonce, b"one", b"two" * 1000)
    assert work.digest(nonce) == digest
    assert work.proven(nonce) == zero_bits(digest) >= 9
    earlier = range(5, int.from_bytes(nonce, "big"))
    assert all(work.proven(number.to_bytes(8, "big")) < 9 for number in earlier)


def test_a_search_ends_and_goes_on_after_the_last_nonce():
    work = Task("test", (b"x",))
    assert work.search(200, 0, 50) is None
    assert work.search(0, 2**64 - 1, 1) == b"\xff" * 8
    assert work.search(0, 2**64, 1) == bytes(8)
    assert zero_bits(bytes(32)) == 256
    assert zero_bits(b"\0\x10" + bytes(30)) == 11


def test_a_puzzle_is_over_salt_entry_id_and_request():
    nonce = solved(Challenge(b"s" * 16, 4)).nonce
    digest = h("puzzle", nonce, b"s" * 16, ENTRY, REQUEST)
    assert task(b"s" * 16, ENTRY, REQUEST).digest(nonce) == digest
    assert zero_bits(digest) >= 4


# --- bytes ---------------------------------------------------------------------------------------


def test_everything_has_one_length_with_a_puzzle_and_without():
    challenge, solution = Challenge(b"s" * 16, 12), Solution(b"s" * 16, b"n" * 8)
    requests = [
        ConnectRequest(NODES[0], ENTRY, REQUEST, shown) for shown in (NO_SOLUTION, solution)
    ]
    assert {len(request.body().content) for request in requests} == {48 + ENTRY_REQUEST_LEN}
    assert {len(request.body().pack()) for request in requests} == {BODY_LEN}
    assert {len(request.entry_request) for request in requests} == {ENTRY_REQUEST_LEN}
    failures = [pack_entry_failure(Status.BUSY), pack_entry_failure(Status.PUZZLE, challenge)]
    assert {len(failure) for failure in failures} == {ENTRY_ANSWER_LEN}
    bodies = [failed_body(Status.BUSY), failed_body(Status.PUZZLE, challenge.pack())]
    assert {len(body.content) for body in bodies} == {1 + CHALLENGE_LEN}
    for request in requests:
        assert ConnectRequest.unpack(request.body().content) == request
        assert unpack_entry_request(request.entry_request) == (REQUEST, request.solution)
    assert unpack_entry_answer(failures[1]) == (Status.PUZZLE, challenge.pack())
    assert unpack_failed(bodies[1].content) == (Status.PUZZLE, challenge)
    assert unpack_failed(bodies[0].content) == (Status.BUSY, None)
    assert unpack_entry_answer(b"\0" + b"a" * ANSWER_LEN) == (Status.OK, b"a" * ANSWER_LEN)


@pytest.mark.parametrize(
    "reply",
    [
        pack_entry_failure(Status.PUZZLE),
        bytes([Status.PUZZLE]) + Challenge(b"s" * 16, 12).pack() + b"more",
        pack_entry_failure(Status.BUSY, Challenge(b"s" * 16, 12)),
        bytes([Status.PUZZLE]),
        b"\x08" + bytes(CHALLENGE_LEN),
        b"",
    ],
)
def test_what_an_entry_node_can_not_say(reply):
    with pytest.raises(WireError):
        unpack_entry_answer(reply)
    with pytest.raises(WireError):
        unpack_failed(reply)


@pytest.mark.parametrize("length", [0, SEALED_REQUEST_LEN, ENTRY_REQUEST_LEN + 1])
def test_other_lengths_of_a_request_are_refused(length):
    with pytest.raises(WireError):
        unpack_entry_request(bytes(length))


# --- salts and difficulty ------------------------------------------------------------------------


def test_a_salt_is_one_entry_ids_and_lives_for_two_minutes():
    salts = Salts(random.Random(1))
    salt = salts.current(ENTRY, NOW)
    assert salts.current(ENTRY, NOW + SALT_LIFE - 1) == salt
    assert salts.current(OTHER_ENTRY, NOW) != salt
    assert not salts.accepts(salt, OTHER_ENTRY, NOW)
    assert not salts.accepts(bytes(16), ENTRY, NOW)
    assert salts.accepts(salt, ENTRY, NOW + SALT_LIFE)
    assert salts.current(ENTRY, NOW + SALT_LIFE) != salt
    assert salts.accepts(salt, ENTRY, NOW + 2 * SALT_LIFE - 1)
    assert not salts.accepts(salt, ENTRY, NOW + 2 * SALT_LIFE)


@pytest.mark.parametrize("later", [2 * SALT_LIFE, -1.0])
def test_a_salt_is_void_after_a_long_silence_or_when_the_clock_was_set_back(later):
    salts = Salts(random.Random(1))
    salt = salts.current(ENTRY, NOW)
    assert not salts.accepts(salt, ENTRY, NOW + later)


def test_what_is_asked_for_rises_with_the_load_and_falls_again():
    difficulty = Difficulty(NOW)
    assert difficulty.bits(0.1, 0.5, NOW) == EASIEST
    now = NOW
    for step in range(1, HARDEST - EASIEST + 3):
        now += RISE_EVERY
        assert difficulty.bits(0.1, 0.5, now) == min(HARDEST, EASIEST + step)
        assert difficulty.bits(0.1, 0.5, now) == min(HARDEST, EASIEST + step)
    now += 100
    assert difficulty.bits(0.3, 0.5, now) == HARDEST
    assert difficulty.bits(0.6, 0.5, now + 1) == HARDEST
    assert difficulty.bits(0.49, 0.5, now + FALL_EVERY) == HARDEST - 1
    assert difficulty.bits(0.49, 0.5, now + 3 * FALL_EVERY) == HARDEST - 3
    assert difficulty.bits(0.3, 0.5, now + 100) == HARDEST - 3
    assert difficulty.bits(0.6, 0.5, now + 101) == HARDEST - 3
    assert difficulty.bits(0.6, 0.5, now) == HARDEST - 3, "the clock was set back"
    assert difficulty.bits(0.6, 0.5, now + FALL_EVERY) == HARDEST - 4
    assert difficulty.bits(0.6, 0.5, now + 1000) == EASIEST


def test_spent_solutions_are_remembered_as_long_as_salts_live_and_no_more_than_so_many():
    spent = Spent(3)
    for number in range(4):
        spent.add(b"%d" % number, NOW + number)
    assert len(spent) == 3
    assert b"0" not in spent
    assert b"3" in spent
    spent.add(b"late", NOW + 2 * SALT_LIFE + 2.5)
    assert b"2" not in spent
    assert b"3" in spent


# --- the gate ------------------------------------------------------------------------------------


class Crowd:
    """Requests of many nodes to one gate."""

    def __init__(self):
        self.counts = Counter()
        self.gate = EntryGate(random.Random(1), self.counts)
        self.now = NOW
        self.place = 0

    def ask(self, solution=NO_SOLUTION, request=REQUEST, entry_id=ENTRY, node=None, waiting=0):
        self.place += 1
        return self.gate.judge(
            node or NODES[self.place % len(NODES)],
            entry_id,
            request,
            solution,
            waiting=waiting,
            now=self.now,
        )

    def overload(self):
        """Ask until a puzzle is wanted."""
        for _ in range(int(ENTRY_BURST)):
            verdict = self.ask()
            if verdict.status is not Status.OK:
                return verdict.challenge
        raise AssertionError


def test_without_load_nobody_has_to_work():
    crowd = Crowd()
    assert [crowd.ask().status for _ in range(int(ENTRY_BURST / 2))] == [Status.OK] * 200
    for _ in range(1000):
        crowd.now += 1 / ENTRY_RATE
        assert crowd.ask().status is Status.OK
    assert not crowd.counts


def test_under_load_who_works_gets_in_once():
    crowd = Crowd()
    challenge = crowd.overload()
    assert challenge.bits == EASIEST
    solution = solved(challenge)
    verdict = crowd.ask(solution)
    assert verdict.status is Status.OK
    assert verdict.worked
    again = crowd.ask(solution)
    assert (again.status, again.challenge) == (Status.PUZZLE, challenge)
    assert crowd.counts == {"entry_requests_solved": 1, "drop_solution_repeated": 1}
    assert crowd.ask(solved(challenge, start=10**6)).status is Status.OK


def test_asking_for_unknown_entry_ids_uses_up_a_nodes_own_budget():
    crowd = Crowd()
    told = [crowd.gate.take_unknown(NODES[0], NOW) for _ in range(int(NODE_BURST) + 10)]
    assert told == [True] * int(NODE_BURST) + [False] * 10
    assert crowd.ask(node=NODES[0]).status is Status.BUSY
    assert crowd.ask(node=NODES[1]).status is Status.OK
    crowd.now += 1
    assert sum(crowd.gate.take_unknown(NODES[0], crowd.now) for _ in range(200)) == NODE_RATE


def test_a_solution_may_be_brought_by_any_node():
    crowd = Crowd()
    challenge = crowd.overload()
    for number in range(3):
        solution = solved(challenge, start=number * 10**6)
        assert crowd.ask(solution, node=NODES[number]).status is Status.OK


@pytest.mark.parametrize(
    ("spoil", "counter"),
    [
        (lambda challenge: Solution(challenge.salt, bytes(8)), "drop_solution_work"),
        (lambda challenge: solved(challenge, request=OTHER_REQUEST), "drop_solution_work"),
        (lambda challenge: solved(challenge, entry_id=OTHER_ENTRY), "drop_solution_work"),
        (lambda challenge: solved(Challenge(b"s" * 16, EASIEST)), "drop_solution_salt"),
    ],
    ids=["wrong nonce", "another request", "another entry id", "wrong salt"],
)
def test_other_solutions_are_none(spoil, counter):
    crowd = Crowd()
    challenge = crowd.overload()
    verdict = crowd.ask(spoil(challenge))
    assert (verdict.status, verdict.challenge) == (Status.PUZZLE, challenge)
    assert crowd.counts == {counter: 1}


def test_a_solution_with_an_old_salt_is_none():
    crowd = Crowd()
    solution = solved(crowd.overload())
    crowd.now += 2 * SALT_LIFE
    assert crowd.overload().salt != solution.salt
    assert crowd.ask(solution).status is Status.PUZZLE
    assert crowd.counts == {"drop_solution_salt": 1}


def test_a_solution_for_another_entry_id_is_none_there():
    crowd = Crowd()
    solution = solved(crowd.overload())
    for _ in range(int(ENTRY_BURST / 2) + 1):
        assert crowd.ask(entry_id=OTHER_ENTRY).status is Status.OK
    assert crowd.ask(solution, entry_id=OTHER_ENTRY).status is Status.PUZZLE
    assert crowd.counts == {"drop_solution_salt": 1}


def test_too_little_work_is_none_but_a_bit_less_is_enough():
    crowd = Crowd()
    challenge = crowd.overload()
    work = task(challenge.salt, ENTRY, REQUEST)
    found = {}
    start = 0
    while len(found) < 2:
        nonce = work.solve(EASIEST - SLACK - 1, start)
        found.setdefault(min(work.proven(nonce), EASIEST - SLACK), nonce)
        start = int.from_bytes(nonce, "big") + 1
    little, enough = (found[EASIEST - SLACK - 1], found[EASIEST - SLACK])
    assert crowd.ask(Solution(challenge.salt, little)).status is Status.PUZZLE
    assert crowd.ask(Solution(challenge.salt, enough)).status is Status.OK


def test_a_bad_solution_does_no_harm_while_there_is_room():
    crowd = Crowd()
    verdict = crowd.ask(Solution(b"s" * 16, b"n" * 8))
    assert verdict.status is Status.OK
    assert not verdict.worked


def test_a_flood_without_solutions_leaves_room_for_all_who_work():
    crowd = Crowd()
    got_in = Counter()
    for number in range(20_000):
        crowd.now += 1 / 4000
        got_in["crowd"] += crowd.ask().status is Status.OK
        if number % 100 == 0:
            verdict = crowd.ask()
            assert verdict.status is Status.PUZZLE or number < 1000
            if verdict.challenge is not None:
                assert verdict.challenge.bits == EASIEST
                request = b"%d" % number + REQUEST[8:]
                worked = solved(verdict.challenge, request=request)
                assert crowd.ask(worked, request=request).status is Status.OK
                got_in["workers"] += 1
    assert got_in["workers"] >= 190
    assert got_in["crowd"] < ENTRY_BURST + 5 * ENTRY_RATE


def test_a_crowd_that_works_makes_it_harder_and_is_limited_in_the_end(monkeypatch):
    """Not for real: it would take some minutes."""
    monkeypatch.setattr("phantom_tun.net.tunnels.entry_gate.zero_bits", lambda _: HARDEST)
    crowd = Crowd()
    status, asked = Counter(), []
    for number in range(8_000):
        crowd.now += 1 / 400
        shown = Solution(crowd.gate._salts.current(ENTRY, crowd.now), number.to_bytes(8, "big"))
        status[crowd.ask(shown).status] += 1
        if not number % 100:
            asked.append(crowd.gate._by_entry.bits(ENTRY, 0.4, crowd.now))
    assert asked == sorted(asked)
    assert (asked[0], asked[-1]) == (EASIEST, HARDEST)
    assert status[Status.BUSY] > 3_000
    assert status[Status.OK] <= ENTRY_BURST + 20 * ENTRY_RATE + 1
    assert crowd.ask().status is Status.BUSY, "nobody is asked for work that gains nothing"


def test_one_node_has_a_budget_of_its_own_for_all_entry_ids():
    crowd = Crowd()
    for number in range(201):
        entry_id = EntryId(number.to_bytes(16, "big"))
        assert crowd.ask(node=NODES[1], entry_id=entry_id).status is Status.OK
    verdict = crowd.ask(node=NODES[1])
    assert verdict.status is Status.PUZZLE
    assert crowd.ask(node=NODES[2]).status is Status.OK
    assert crowd.ask(solved(verdict.challenge), node=NODES[1]).status is Status.OK
    crowd.now += 10 / NODE_RATE
    assert crowd.ask(node=NODES[1]).status is Status.OK


def test_many_who_wait_for_tunnels_are_load_too():
    crowd = Crowd()
    assert crowd.ask(waiting=CROWD).status is Status.OK
    verdict = crowd.ask(waiting=CROWD + 1)
    assert verdict.status is Status.PUZZLE
    assert crowd.ask(solved(verdict.challenge), waiting=10 * CROWD).status is Status.OK


# --- the owner -----------------------------------------------------------------------------------


def puzzler():
    counts = Counter()
    return Puzzler(Workshop(random.Random(1), at_once), counts), counts


async def test_an_owner_solves_what_it_is_asked_and_says_the_same_again(autojump_clock):
    owner, counts = puzzler()
    challenge = Challenge(b"s" * 16, EASIEST)
    shown = []

    async def attempt(solution):
        shown.append((trio.current_time(), solution))
        if solution == NO_SOLUTION:
            raise PuzzleDemanded(challenge)
        return "answer"

    assert await owner.ask(ENTRY, REQUEST, attempt) == "answer"
    (asked, _), (at, solution) = shown
    assert solution.salt == challenge.salt
    assert task(solution.salt, ENTRY, REQUEST).proven(solution.nonce) >= EASIEST
    assert at - asked == pytest.approx(SHOWN_IN_STEPS)
    assert counts == {"puzzles_solved": 1}


async def test_an_owner_without_a_puzzle_does_nothing_but_ask(autojump_clock):
    owner, counts = puzzler()
    shown = []

    async def attempt(solution):
        shown.append(solution)
        return 1

    await owner.ask(ENTRY, REQUEST, attempt)
    assert shown == [NO_SOLUTION]
    assert not counts
    assert trio.current_time() == 0


@pytest.mark.parametrize("bits", [HARDEST + 1, 255])
async def test_an_absurd_demand_is_not_met(autojump_clock, bits):
    owner, counts = puzzler()

    async def attempt(_):
        raise PuzzleDemanded(Challenge(b"s" * 16, bits))

    with pytest.raises(Unreachable):
        await owner.ask(ENTRY, REQUEST, attempt)
    assert counts == {"drop_puzzle_too_hard": 1}


async def test_who_asks_again_and_again_is_left_alone(autojump_clock):
    owner, counts = puzzler()
    asked = 0

    async def attempt(_):
        nonlocal asked
        asked += 1
        raise PuzzleDemanded(Challenge(asked.to_bytes(16, "big"), 1))

    with pytest.raises(Unreachable):
        await owner.ask(ENTRY, REQUEST, attempt)
    assert asked == MAX_PUZZLES + 1
    assert counts == {"puzzles_solved": MAX_PUZZLES, "drop_puzzle_again": 1}


async def test_work_is_done_piece_by_piece_in_turn_and_can_be_given_up():
    done = []

    async def run(work):
        await trio.lowlevel.checkpoint()
        done.append(trio.lowlevel.current_task().name)
        return work()

    workshop = Workshop(random.Random(1), run)
    with trio.move_on_after(0.2) as given_up:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workshop.solve, task(bytes(16), ENTRY, REQUEST), 200, name="one")
            nursery.start_soon(workshop.solve, task(bytes(16), ENTRY, REQUEST), 201, name="two")
    assert given_up.cancelled_caught
    assert abs(done.count("one") - done.count("two")) <= 1


async def test_work_is_done_in_a_thread():
    workshop = Workshop(random.Random(1))
    work = task(bytes(16), ENTRY, REQUEST)
    assert work.proven(await workshop.solve(work, 8)) >= 8
