"""Counting votes: who wins, what is refused, and that dissent stays visible."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_tun.crypto.hashes import h
from phantom_tun.errors import ProtocolViolation, RecordRefused, WireError
from phantom_tun.ids import NodeId
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.netdb.overrides import InForce
from phantom_tun.netdb.verifier import Verifier
from phantom_tun.netdb.votes import QUORUM, Standing, Tally
from phantom_tun.testing.record_factory import NETWORK, NOW, ApMaker
from phantom_tun.wire.netdb import MAX_ROUTES, MAX_VOTES, Held
from phantom_tun.wire.records import APKeyRecord, APRoute, decode

AP = ApMaker(1)
RIVAL = ApMaker(2)
AP6 = ap6_address(NETWORK, AP.key.public)
AP4 = ap4_candidate(NETWORK, AP.key.public, 0)
VERIFIER = Verifier(NETWORK)
ENTRY = NodeId(b"e" * 32)
NOTHING = Held(b"", 0, b"", b"", ())


def storer(number: int) -> NodeId:
    return NodeId(number.to_bytes(32, "big"))


def full(record: APKeyRecord, *routes: APRoute) -> Held:
    encoded = tuple(route.encoded for route in routes)
    return Held(record.public_key, record.sequence, record.digest, record.encoded, encoded)


def digest(record: APKeyRecord) -> Held:
    return Held(record.public_key, record.sequence, record.digest, b"", ())


def tally(*votes: Held, address: Any = AP6, now: float = NOW) -> Tally:
    made = Tally(VERIFIER, address, now)
    for number, held in enumerate(votes):
        made.add(storer(number), held)
    return made


@pytest.fixture
def collision(monkeypatch: pytest.MonkeyPatch) -> None:
    """``AP`` and ``RIVAL`` have the same candidate 0."""
    monkeypatch.setattr("phantom_tun.netdb.votes.ap4_candidate", lambda *_: AP4)


class TestWinner:
    def test_nobody_holds_anything(self) -> None:
        empty = tally(NOTHING, NOTHING)
        assert empty.winner() is None
        assert empty.wanted() == []
        assert empty.leading_key() is None
        result = empty.resolution(5)
        assert (result.asked, result.answered, result.votes, result.key_record) == (5, 2, (), b"")

    def test_one_full_answer_is_enough_for_its_digests(self) -> None:
        record = AP.record()
        made = tally(full(record), digest(record), digest(record), NOTHING)
        assert made.winner() == record
        result = made.resolution(4)
        assert result.key_record == record.encoded
        assert [vote.storers for vote in result.votes] == [3]
        assert result.answered == 4

    def test_the_newest_edition_with_a_quorum_wins(self) -> None:
        old, new = AP.record(), AP.record(sequence=2)
        made = tally(*[full(old)] * 10, *[full(new)] * QUORUM)
        assert made.winner() == new
        assert [vote.storers for vote in made.resolution(0).votes] == [QUORUM, 10]

    def test_an_edition_without_quorum_is_dissent(self) -> None:
        old, new = AP.record(), AP.record(sequence=2)
        made = tally(*[full(old)] * QUORUM, *[full(new)] * (QUORUM - 1))
        assert made.winner() == old
        assert {vote.sequence for vote in made.resolution(0).votes} == {1, 2}

    def test_if_fewer_than_a_quorum_hold_anything_all_of_them_are_one(self) -> None:
        record = AP.record()
        assert tally(full(record), NOTHING, NOTHING).winner() == record
        newer = AP.record(sequence=2)
        assert tally(full(record), full(newer)).winner() == newer

    def test_a_storer_has_one_vote_however_often_it_speaks(self) -> None:
        old, new = AP.record(), AP.record(sequence=2)
        made = tally(full(old), full(old), full(old))
        for _ in range(QUORUM):
            made.add(storer(9), full(new))
        assert made.winner() == old
        assert made.answered == 4

    def test_share(self) -> None:
        record = AP.record()
        assert tally(digest(record), NOTHING, NOTHING, NOTHING).share_of(record) == 0.25
        assert tally().share_of(record) == 0.0
        assert tally(digest(AP.record(sequence=2))).share_of(record) == 0.0

    @given(st.permutations(range(9)))
    def test_the_order_of_answers_doesn_t_matter(self, order: list[int]) -> None:
        old, new, newer = (AP.record(sequence=n) for n in (1, 2, 3))
        answers = [full(old)] * 4 + [full(new)] * 3 + [full(newer)] + [NOTHING]
        assert tally(*[answers[index] for index in order]).winner() == new


@pytest.mark.usefixtures("collision")
class TestLeases:
    def test_most_storers_decide(self) -> None:
        made = tally(*[full(AP.record())] * 3, *[full(RIVAL.record())] * 4, address=AP4)
        assert made.winner() == RIVAL.record()
        result = made.resolution(7)
        assert [vote.public_key for vote in result.votes] == [RIVAL.key.public, AP.key.public]

    def test_a_pinned_key_wins_whatever_the_votes(self) -> None:
        made = Tally(VERIFIER, AP4, NOW, InForce(pinned_keys={AP4: AP.key.public}))
        for number in range(9):
            made.add(storer(number), full((AP if number == 4 else RIVAL).record()))
        assert made.winner() == AP.record()
        assert [vote.storers for vote in made.resolution(9).votes] == [1, 8]

    def test_all_editions_of_a_key_count_for_it(self) -> None:
        first, second = AP.record(), AP.record(sequence=2)
        made = tally(
            *[full(first)] * 3, *[full(second)] * 3, *[full(RIVAL.record())] * 4, address=AP4
        )
        assert made.winner() == second

    def test_a_tie_goes_to_the_smaller_hash(self) -> None:
        smaller = min((AP, RIVAL), key=lambda maker: h("lease", maker.key.public, b"\0"))
        for votes in ([AP, RIVAL], [RIVAL, AP]):
            made = tally(*[full(maker.record()) for maker in votes], address=AP4)
            assert made.winner() == smaller.record()

    def test_a_tie_can_t_be_broken_unseen(self) -> None:
        made = tally(full(AP.record()), digest(RIVAL.record()), address=AP4)
        assert made.wanted() == [storer(1)]
        made.know(RIVAL.record())
        assert made.wanted() == []


def test_an_ap4_record_must_claim_the_address() -> None:
    for record in (RIVAL.record(), AP.record(ap4_n=1), AP.record(ap4_n=None)):
        with pytest.raises(ProtocolViolation):
            tally(full(record), address=AP4)
    assert tally(full(AP.record()), address=AP4).winner() == AP.record()


class TestUnseenRecords:
    def test_what_would_win_unseen_is_wanted(self) -> None:
        old, new = AP.record(), AP.record(sequence=2)
        made = tally(full(old), *[digest(new)] * QUORUM)
        assert made.wanted() == [storer(n) for n in range(1, QUORUM + 1)]
        assert made.winner() == old
        made.add(storer(1), full(new))
        assert made.wanted() == []
        assert made.winner() == new

    def test_what_can_t_be_shown_doesn_t_count(self) -> None:
        invented = Held(AP.key.public, 99, b"f" * 32, b"", ())
        made = tally(full(AP.record()), *[invented] * 5)
        for number in made.wanted():
            made.retract(number)
        assert made.wanted() == []
        assert made.winner() == AP.record()
        assert len(made.resolution(6).votes) == 1


class TestLies:
    def test_another_key_than_the_address_has(self) -> None:
        for held in (full(RIVAL.record()), digest(RIVAL.record())):
            with pytest.raises(ProtocolViolation):
                tally(held)

    def test_a_record_that_isn_t_what_it_is_called(self) -> None:
        good = full(AP.record())
        for lie in (
            msgspec.structs.replace(good, sequence=2),
            msgspec.structs.replace(good, digest=bytes(32)),
            msgspec.structs.replace(good, key_record=AP.record(sequence=2).encoded),
        ):
            with pytest.raises(ProtocolViolation):
                tally(lie)

    def test_a_forged_record(self) -> None:
        forged = msgspec.structs.replace(AP.record(), certificate=b"mine")
        with pytest.raises(RecordRefused):
            tally(full(forged))
        with pytest.raises(WireError):
            tally(Held(AP.key.public, 1, bytes(32), b"noise", ()))

    def test_a_forged_or_foreign_route(self) -> None:
        forged = msgspec.structs.replace(AP.route(entry_node=ENTRY), entry_node=bytes(32))
        with pytest.raises(RecordRefused):
            tally(full(AP.record(), forged))
        with pytest.raises(ProtocolViolation):
            tally(full(AP.record(), RIVAL.route(entry_node=ENTRY)))

    def test_a_lie_leaves_no_trace(self) -> None:
        made = tally(full(AP.record()))
        with pytest.raises(ProtocolViolation):
            made.add(storer(5), full(RIVAL.record()))
        assert made.answered == 1

    def test_an_expired_record_is_no_vote(self) -> None:
        old = AP.record(NOW - 7_200, lifetime=3_600)
        made = tally(full(old))
        assert made.winner() is None
        assert made.answered == 1

    def test_a_record_from_the_future_is_no_vote(self) -> None:
        assert tally(full(AP.record(NOW + 3_600))).winner() is None


class TestRoutes:
    def test_routes_are_gathered_from_all_answers(self) -> None:
        one, two = AP.route(entry_node=ENTRY, entry=1), AP.route(entry_node=ENTRY, entry=2)
        made = tally(full(AP.record(), one), full(AP.record(), two), full(AP.record()))
        assert set(made.resolution(3).routes) == {one.encoded, two.encoded}

    def test_the_highest_sequence_of_an_entry_id_counts(self) -> None:
        old, new = AP.route(entry_node=ENTRY), AP.route(entry_node=ENTRY, sequence=2)
        for votes in ([old, new], [new, old]):
            made = tally(*[full(AP.record(), route) for route in votes])
            assert made.resolution(2).routes == (new.encoded,)

    def test_expired_routes_are_left_out(self) -> None:
        old = AP.route(NOW - 7_200, entry_node=ENTRY, lifetime=3_600)
        assert tally(full(AP.record(), old)).resolution(1).routes == ()

    def test_the_longest_lasting_come_first_and_no_more_than_sixteen(self) -> None:
        routes = [
            AP.route(entry_node=ENTRY, entry=n, lifetime=600 + 10 * n)
            for n in range(MAX_ROUTES + 4)
        ]
        made = tally(
            full(AP.record(), *routes[:MAX_ROUTES]), full(AP.record(), *routes[MAX_ROUTES:])
        )
        given_out = [decode(APRoute, encoded) for encoded in made.resolution(2).routes]
        assert given_out == routes[:3:-1]

    def test_routes_without_a_record_are_no_vote(self) -> None:
        only = Held(AP.key.public, 0, b"", b"", (AP.route(entry_node=ENTRY).encoded,))
        made = tally(only)
        assert made.winner() is None
        assert made.resolution(1).routes == ()
        made.add(storer(7), full(AP.record()))
        assert len(made.resolution(2).routes) == 1


def test_a_resolution_reports_a_bounded_number_of_votes() -> None:
    made = tally(*[full(AP.record(sequence=n)) for n in range(MAX_VOTES + 3)])
    assert len(made.resolution(20).votes) == MAX_VOTES


@pytest.mark.usefixtures("collision")
class TestStanding:
    """Whether the storers of an AP4 address have decided."""

    @staticmethod
    def standing(*groups: tuple[int, int]) -> Standing:
        """So many storers of each storage key name the owner, so many the rival."""
        made = tally(address=AP4)
        by_key = []
        number = 0
        for own, others in groups:
            answers = [full(AP.record())] * own + [full(RIVAL.record())] * others + [NOTHING]
            by_key.append({storer(number + index) for index in range(len(answers))})
            for held in answers:
                made.add(storer(number), held)
                number += 1
        return made.standing(by_key)

    def test_nobody_holds_anything(self) -> None:
        assert self.standing((0, 0), (0, 0), (0, 0)) is Standing.CLEAR

    def test_two_thirds_and_every_key_are_clear(self) -> None:
        assert self.standing((20, 0), (20, 0), (20, 0)) is Standing.CLEAR
        assert self.standing((14, 6), (14, 6), (12, 8)) is Standing.CLEAR
        assert self.standing((13, 7), (13, 7), (13, 7)) is Standing.NARROW

    def test_a_key_that_was_lost_makes_it_narrow(self) -> None:
        assert self.standing((20, 0), (18, 2), (9, 11)) is Standing.NARROW
        assert self.standing((20, 0), (18, 2), (10, 10)) is Standing.NARROW

    def test_a_key_where_nobody_holds_anything_is_not_lost(self) -> None:
        assert self.standing((20, 0), (18, 2), (0, 0)) is Standing.CLEAR

    def test_half_is_no_decision(self) -> None:
        assert self.standing((10, 10), (10, 10), (10, 10)) is Standing.NONE
        assert self.standing((11, 9), (11, 9), (10, 10)) is Standing.NONE
        assert self.standing((12, 10), (12, 10), (12, 10)) is Standing.NARROW

    def test_one_key_alone_decides_nothing(self) -> None:
        """A lookup that liars led astray gives them all storers of one key."""
        assert self.standing((12, 8), (12, 8), (0, 20)) is Standing.NONE
        assert self.standing((9, 11), (9, 11), (20, 0)) is Standing.NONE

    def test_a_draw_at_one_key_is_no_loss(self) -> None:
        assert self.standing((24, 6), (15, 15), (14, 16)) is Standing.NARROW
        assert self.standing((24, 6), (14, 16), (14, 16)) is Standing.NONE

    def test_rivals_count_together(self) -> None:
        made = tally(
            *[full(AP.record())] * 5,
            *[full(ApMaker(number).record()) for number in range(10, 15)],
            address=AP4,
        )
        assert made.leading_key() == AP.key.public
        assert made.standing([{storer(number) for number in range(10)}]) is Standing.NONE

    def test_what_is_pinned_is_decided(self) -> None:
        made = Tally(VERIFIER, AP4, NOW, InForce(pinned_keys={AP4: AP.key.public}))
        for number in range(9):
            made.add(storer(number), full((AP if number == 4 else RIVAL).record()))
        assert made.standing([{storer(number) for number in range(9)}]) is Standing.CLEAR

    def test_undecided_shows_votes_and_no_record(self) -> None:
        made = tally(full(AP.record()), full(RIVAL.record()), address=AP4)
        result = made.resolution(2, decided=False)
        assert (result.key_record, result.routes) == (b"", ())
        assert {vote.public_key for vote in result.votes} == {AP.key.public, RIVAL.key.public}

    def test_who_is_no_storer_has_no_vote(self) -> None:
        made = tally(*[full(RIVAL.record())] * 4, *[full(AP.record())] * 2, address=AP4)
        made.keep({storer(0), storer(4), storer(5)})
        assert made.winner() == AP.record()
        assert made.answered == 3
        assert not made.has(storer(1))
        assert made.has(storer(5))

    def test_keys_without_a_record_are_wanted(self) -> None:
        """Naming a key that can't have the address must not deny it to its owner."""
        invented = Held(b"f" * 32, 1, b"g" * 32, b"", ())
        made = tally(*[full(AP.record())] * 3, *[invented] * 2, digest(RIVAL.record()), address=AP4)
        assert made.wanted() == []
        assert made.wanted(every_key=True) == [storer(3), storer(4), storer(5)]
        for number in (3, 4, 5):
            made.retract(storer(number))
        made.add(storer(5), full(RIVAL.record()))
        assert made.wanted(every_key=True) == []
        assert made.standing([{storer(number) for number in range(6)}]) is Standing.CLEAR
