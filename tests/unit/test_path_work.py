"""Work that loaded members ask path builders for: what is asked, what is shown, who is served."""

import itertools
import random
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
from path_ring import NOW, OWNER, RingOfMembers, ref_of

from phantom_tun.clock import HOUR
from phantom_tun.crypto.sealing import SealingKey
from phantom_tun.errors import WireError
from phantom_tun.ids import NodeId
from phantom_tun.net.netdb.own_record import NodeFacts, OwnRecord
from phantom_tun.netdb.signing import verify_signature
from phantom_tun.node_keys import create_node_keys
from phantom_tun.path.candidates import serves
from phantom_tun.path.keys import PathKeys
from phantom_tun.path.member import ArrayRefused, MemberLimits, Reason
from phantom_tun.path.work import (
    FALL_EVERY,
    HARDEST,
    HONOURED_FOR,
    LOADED,
    RISE_EVERY,
    SETTLED,
    STEPS,
    Budget,
    Demand,
    task,
)
from phantom_tun.testing.path_nodes import KnownNode
from phantom_tun.testing.record_factory import NETWORK as TEST_NETWORK
from phantom_tun.testing.record_factory import NodeMaker
from phantom_tun.wire.records import MAX_WORK, Capability, NodeRecord, decode

# --- what is asked -------------------------------------------------------------------------------


def hold(demand, load, seconds, now):
    """Keep a load; returns the moment after, and what was asked for when it changed."""
    changes = []
    for _ in range(int(seconds / 5)):
        now += 5
        if demand.adjust(load, now):
            changes.append((now, demand.bits))
    return now, changes


def test_nothing_is_asked_for_without_load():
    demand = Demand()
    _, changes = hold(demand, LOADED - 0.01, HOUR, NOW)
    assert (changes, demand.bits, demand.least(NOW)) == ([], 0, 0)


def test_a_short_peak_is_no_load():
    demand = Demand()
    demand.adjust(1.0, NOW)
    demand.adjust(0.1, NOW + 5)
    assert not demand.adjust(1.0, NOW + SETTLED + 5)


def test_more_is_asked_for_while_those_who_work_are_too_many():
    demand = Demand()
    _, changes = hold(demand, 1.0, 10 * RISE_EVERY, NOW)
    assert [bits for _, bits in changes] == list(STEPS[1:])
    assert changes[0][0] <= NOW + SETTLED + 5
    moments = [moment for moment, _ in changes]
    assert all(later - one >= RISE_EVERY for one, later in pairwise(moments))
    assert demand.bits == HARDEST


def test_those_who_do_not_work_make_it_no_harder():
    demand = Demand()
    _, changes = hold(demand, LOADED, HOUR, NOW)
    assert [bits for _, bits in changes] == [STEPS[1]]


def test_less_is_asked_for_slowly_once_the_load_is_gone():
    demand = Demand()
    now, _ = hold(demand, 1.0, 10 * RISE_EVERY, NOW)
    now, _ = hold(demand, 0.4, HOUR, now)
    assert demand.bits == HARDEST
    _, changes = hold(demand, 0.1, 10 * FALL_EVERY, now)
    assert [bits for _, bits in changes] == [*STEPS[-2:0:-1], 0]
    moments = [now, *(moment for moment, _ in changes)]
    gaps = pairwise(moments)
    assert all(later - one >= FALL_EVERY for one, later in gaps)


def test_what_was_asked_for_earlier_is_taken_for_some_minutes():
    demand = Demand()
    now, changes = hold(demand, 1.0, 2 * RISE_EVERY, NOW)
    raised = changes[1][0]
    assert demand.bits == STEPS[2]
    assert demand.least(now) == STEPS[1]
    assert demand.least(raised + HONOURED_FOR - 1) == STEPS[1]
    assert demand.least(raised + HONOURED_FOR) == STEPS[2]


def test_a_budget_is_used_up_and_fills_again():
    budget = Budget(2.0, 4.0)
    assert [budget.take(NOW) for _ in range(5)] == [True] * 4 + [False]
    assert budget.used(NOW) == 1.0
    assert budget.used(NOW + 1) == 0.5
    assert budget.used(NOW - 100) == 0.5
    assert budget.used(NOW + 100) == 0.0


# --- what is shown -------------------------------------------------------------------------------


def test_every_member_is_shown_the_work_it_asked_for():
    ring = RingOfMembers(3, work=7)
    passage = ring.start(1)
    for _ in ring.build.members:
        work = task(passage.receiver, ring.sealed(passage))
        assert work.proven(ring.nonce(passage)) >= 7
        passage = ring.deliver(passage)
    ring.build.check(1, passage.array)
    assert ring.build.work == 8 * 2**7


def test_nonces_are_drawn_where_nothing_is_asked_for():
    ring = RingOfMembers(1)
    passage = ring.start(1)
    nonces = set()
    for _ in ring.build.members:
        nonces.add(ring.nonce(passage))
        passage = ring.deliver(passage)
    assert len(nonces) == 3


def test_the_work_for_one_member_or_package_is_none_for_another():
    sealed, other = bytes(1528), b"\x01" + bytes(1527)
    node, stranger = NodeId(b"n" * 32), NodeId(b"s" * 32)
    nonce = task(node, sealed).solve(10, 0)
    assert task(stranger, sealed).proven(nonce) < 10
    assert task(node, other).proven(nonce) < 10


# --- who is served -------------------------------------------------------------------------------


def loaded_ring(ask=True):
    """The first member of a ring has half of its places for builds taken, and asks for work."""
    ring = RingOfMembers(1, limits=MemberLimits(pending=8))
    member = ring.members[ring.build.first.node.node_id]
    for seed in range(2, 6):
        filling = RingOfMembers(1, seed=seed, owner=ref_of(OWNER - seed), among=ring)
        filling.deliver(filling.start(1))
    assert member.load(NOW) == LOADED
    if ask:
        assert not member.adjust(NOW)
        assert member.adjust(NOW + SETTLED)
        assert member.asked == STEPS[1]
    return ring, member


def build_by(ring, work, seed=20):
    return RingOfMembers(1, seed=seed, owner=ref_of(OWNER), among=ring, work=work)


def lazy_start(ring):
    """A build whose first array shows no work at all: not even by chance, sealing being random."""
    lazy = build_by(ring, 0)
    passage = lazy.start(1)
    work = task(passage.receiver, lazy.sealed(passage))
    nonces = (number.to_bytes(8, "big") for number in itertools.count())
    nonce = next(nonce for nonce in nonces if not work.proven(nonce))
    return lazy, lazy.with_nonce(passage, nonce)


def test_a_loaded_member_serves_who_worked_and_drops_who_did_not(monkeypatch):
    ring, member = loaded_ring()
    lazy, passage = lazy_start(ring)
    before = (member.pending, member.remembered)
    with monkeypatch.context() as patch:
        patch.setattr(SealingKey, "open", None)  # nothing is opened for them
        with pytest.raises(ArrayRefused) as raised:
            lazy.deliver(passage)
    assert raised.value.reason is Reason.WORK
    assert (member.pending, member.remembered) == before
    diligent = build_by(ring, STEPS[1], seed=21)
    first = diligent.start(1)
    diligent.deliver(first)
    assert member.pending == before[0] + 1
    assert member.worked == 1


def test_a_build_that_was_begun_is_finished_under_load():
    ring, _ = loaded_ring()
    diligent = build_by(ring, STEPS[1])
    diligent.run()
    assert diligent.hops


def test_everybody_is_served_while_there_is_room():
    ring, member = loaded_ring()
    member.sweep(NOW + HOUR)
    build_by(ring, 0).deliver(build_by(ring, 0).start(1))
    assert member.worked == 0


def test_nobody_has_to_work_before_it_was_asked_for():
    ring, member = loaded_ring(ask=False)
    lazy = build_by(ring, 0)
    lazy.deliver(lazy.start(1))
    assert member.pending == 5


def test_whoever_brings_much_has_to_bring_work_too():
    ring, member = loaded_ring()
    member.sweep(NOW + HOUR)
    _, passage = lazy_start(ring)
    with pytest.raises(ArrayRefused) as raised:
        member.receive(passage.sender, passage.connection, passage.array, NOW, used=LOADED)
    assert raised.value.reason is Reason.WORK


def test_work_for_another_package_is_refused():
    ring, _ = loaded_ring()
    diligent = build_by(ring, STEPS[1])
    passage = diligent.start(1)
    work = task(passage.receiver, diligent.sealed(passage))
    others = (build_by(ring, STEPS[1], seed) for seed in itertools.count(21))
    nonces = (other.nonce(other.start(1)) for other in others)
    borrowed = next(nonce for nonce in nonces if work.proven(nonce) < STEPS[1])
    with pytest.raises(ArrayRefused) as raised:
        diligent.deliver(diligent.with_nonce(passage, borrowed))
    assert raised.value.reason is Reason.WORK


def test_shown_work_is_good_for_one_build():
    ring, _ = loaded_ring()
    diligent = build_by(ring, STEPS[1])
    passage = diligent.start(1)
    diligent.run()
    with pytest.raises(ArrayRefused) as raised:
        diligent.deliver(replace(passage, number=1))
    assert raised.value.reason is Reason.REPLAYED


def test_first_arrays_are_limited_in_all():
    ring = RingOfMembers(1, limits=MemberLimits(builds_rate=1.0, builds_burst=2.0))
    member = ring.members[ring.build.first.node.node_id]
    for seed in range(2, 4):
        other = RingOfMembers(1, seed=seed, owner=ref_of(OWNER - seed), among=ring)
        other.deliver(other.start(1))
    with pytest.raises(ArrayRefused) as raised:
        ring.deliver(ring.start(1))
    assert raised.value.reason is Reason.FULL
    assert member.load(NOW) == 1.0
    ring.deliver(ring.start(1), NOW + 1)


# --- records and candidates ----------------------------------------------------------------------


def test_a_record_says_what_is_asked_for():
    record = NodeMaker(1).record(work=HARDEST)
    assert decode(NodeRecord, record.encoded).work == HARDEST
    assert NodeMaker(1).record().work == 0
    for bad in (-1, MAX_WORK + 1):
        with pytest.raises(WireError):
            decode(NodeRecord, NodeMaker(1).record(work=bad).encoded)


def test_a_node_puts_what_it_asks_for_into_its_own_record(tmp_path):
    clock = SimpleNamespace(now=lambda: NOW)
    keys = create_node_keys(tmp_path, TEST_NETWORK)
    facts = NodeFacts((ref_of(1).address,), 443, Capability.RELAY | Capability.DIALABLE)
    own = OwnRecord(
        keys, TEST_NETWORK.network_id, PathKeys(NOW), facts, clock=clock, rng=random.Random(1)
    )
    published = []
    assert own.current.work == 0
    own.work = STEPS[1]
    own.renew(lambda record, _key: published.append(record))
    assert [record.work for record in published] == [STEPS[1]]
    verify_signature(own.current, TEST_NETWORK.network_id)


def test_members_that_ask_for_too_much_are_not_chosen():
    def known(work):
        return KnownNode(NodeMaker(1).record(NOW, work=work), random.Random(1).randbytes(1216))

    assert serves(known(HARDEST), 4, NOW)
    assert not serves(known(HARDEST + 1), 4, NOW)
