"""Known nodes: who becomes a candidate, who stops being one, and the file that outlives a run."""

from __future__ import annotations

import ipaddress
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_tun.clock import DAY, HOUR, MINUTE
from phantom_tun.crypto.hashes import h
from phantom_tun.errors import WireError
from phantom_tun.ids import NetworkId, NodeId
from phantom_tun.netdb import cachefile
from phantom_tun.netdb.book import (
    CANDIDATE_FOR,
    ENOUGH_DRAWN,
    GIVE_UP_AFTER,
    NEIGHBOURHOOD,
    TRUSTED_RETRY,
    NodeBook,
)
from phantom_tun.netdb.contact import position
from phantom_tun.netdb.overrides import NOTHING_IN_FORCE, InForce
from phantom_tun.netdb.storers import LEASE_STORERS
from phantom_tun.netdb.table import K
from phantom_tun.netdb.verifier import Verifier
from phantom_tun.testing.record_factory import NETWORK, NOW, NodeMaker
from phantom_tun.wire.records import Capability, NodeRecord

OWN = NodeMaker(0).record()


@pytest.fixture
def book() -> NodeBook:
    return NodeBook(OWN.node_id, random.Random(1))


def meet(book: NodeBook, number: int, now: float = NOW, **more: object) -> NodeRecord:
    maker = NodeMaker(number)
    record = maker.record(now)
    book.met(record, now, maker.path_key)
    return record


def draw(book: NodeBook, number: int) -> None:
    maker = NodeMaker(number)
    book.vouched(maker.record(), NOW, maker.path_key, drawn=True)


def ids(book: NodeBook, now: float = NOW) -> set[NodeId]:
    return {candidate.record.node_id for candidate in book.candidates(now)}


class TestCandidates:
    def test_a_met_node_with_its_key_is_one(self, book: NodeBook) -> None:
        record = meet(book, 1)
        (candidate,) = book.candidates(NOW)
        assert candidate.record == record
        assert candidate.path_key == NodeMaker(1).path_key

    def test_without_a_key_it_isn_t(self, book: NodeBook) -> None:
        book.met(NodeMaker(1).record(), NOW)
        assert ids(book) == set()
        assert book.lacking_key(NOW, 0.0) == [book.get(NodeMaker(1).record().node_id)]

    @pytest.mark.parametrize("lacking", [Capability.RELAY, Capability.DIALABLE])
    def test_it_must_relay_and_be_dialable(self, book: NodeBook, lacking: Capability) -> None:
        book.met(NodeMaker(1).record(capabilities=lacking), NOW, NodeMaker(1).path_key)
        assert ids(book) == set()

    def test_we_are_never_one(self, book: NodeBook) -> None:
        book.met(OWN, NOW, NodeMaker(0).path_key)
        book.vouched(OWN, NOW, NodeMaker(0).path_key)
        assert len(book) == 0
        assert not book.heard(OWN)

    def test_a_failure_ends_it_and_a_sign_of_life_brings_it_back(self, book: NodeBook) -> None:
        record = meet(book, 1)
        book.failed(record.node_id, NOW)
        assert ids(book) == set()
        assert book.closest(bytes(32), K, NOW) == []
        book.succeeded(record.node_id, NOW + 5)
        assert ids(book, NOW + 5) == {record.node_id}

    def test_a_restarted_node_comes_back_by_introducing_itself(self, book: NodeBook) -> None:
        record = meet(book, 1)
        for _ in range(3):
            book.failed(record.node_id, NOW)
        again = meet(book, 1, NOW + 60)
        assert [c.record for c in book.candidates(NOW + 60)] == [again]

    def test_it_ends_with_its_path_key(self, book: NodeBook) -> None:
        record = NodeMaker(1).record(lifetime=HOUR)
        book.met(record, NOW, NodeMaker(1).path_key)
        assert ids(book, NOW + HOUR - MINUTE - 1) == {record.node_id}
        assert ids(book, NOW + HOUR - MINUTE) == set()

    def test_it_ends_when_nothing_was_heard_of_it_for_long(self, book: NodeBook) -> None:
        record = meet(book, 1)
        assert ids(book, NOW + CANDIDATE_FOR - 1) == {record.node_id}
        assert ids(book, NOW + CANDIDATE_FOR) == set()
        book.vouched(record, NOW + CANDIDATE_FOR)
        assert ids(book, NOW + CANDIDATE_FOR) == {record.node_id}

    def test_vouching_doesn_t_undo_a_failure(self, book: NodeBook) -> None:
        record = meet(book, 1)
        book.failed(record.node_id, NOW)
        book.vouched(record, NOW + 1)
        assert ids(book, NOW + 1) == set()

    def test_a_drawn_node_is_a_candidate_but_no_contact(self, book: NodeBook) -> None:
        record = NodeMaker(1).record()
        book.vouched(record, NOW, NodeMaker(1).path_key)
        assert ids(book) == {record.node_id}
        assert len(book.table) == 0

    def test_vouched_without_a_key_is_not_remembered(self, book: NodeBook) -> None:
        book.vouched(NodeMaker(1).record(), NOW)
        assert len(book) == 0

    def test_the_old_key_serves_until_it_ends_or_the_new_one_comes(self, book: NodeBook) -> None:
        maker = NodeMaker(1)
        meet(book, 1)
        rotated = maker.record(NOW + 60, path_key=b"n" * 1_216)
        book.heard(rotated)
        (candidate,) = book.candidates(NOW + 60)
        assert (candidate.record, candidate.path_key) == (rotated, maker.path_key)
        assert len(book.lacking_key(NOW + 60, 0.0)) == 1
        book.vouched(rotated, NOW + 61, b"n" * 1_216)
        assert book.candidates(NOW + 61)[0].path_key == b"n" * 1_216
        assert book.lacking_key(NOW + 61, 0.0) == []


class TestFairness:
    """In a network where not everybody knows everybody."""

    def far(self, count: int) -> list[int]:
        """Numbers of nodes in our farthest distance class."""
        numbers = [
            number
            for number in range(1, 4 * count)
            if NodeBook(OWN.node_id, random.Random(1)).table.bucket_of(
                position(NodeMaker(number).record().node_id)
            )
            == 255
        ]
        return numbers[:count]

    def test_everybody_is_fair_where_everybody_is_known(self, book: NodeBook) -> None:
        for number in range(1, 20):
            meet(book, number)
        assert not book.table.crowded
        assert all(candidate.fair for candidate in book.candidates(NOW))

    def test_introducing_oneself_makes_nobody_fair(self, book: NodeBook) -> None:
        for number in self.far(3 * K):
            meet(book, number)
        candidates = book.candidates(NOW)
        assert len(candidates) == 3 * K
        fair = {candidate.record for candidate in candidates if candidate.fair}
        assert fair == {contact.record for contact in book.table}
        assert len(fair) == K

    def test_with_enough_drawn_only_those_are_fair(self, book: NodeBook) -> None:
        numbers = self.far(K + 5 + ENOUGH_DRAWN)
        for number in numbers[: K + 5]:
            meet(book, number)
        drawn = numbers[K + 5 :]
        for number in drawn[1:]:
            draw(book, number)
        assert book.drawn(NOW) == ENOUGH_DRAWN - 1
        assert sum(candidate.fair for candidate in book.candidates(NOW)) == ENOUGH_DRAWN - 1 + K
        draw(book, drawn[0])
        fair = {candidate.record for candidate in book.candidates(NOW) if candidate.fair}
        assert fair == {NodeMaker(number).record() for number in drawn}

    def test_a_drawn_node_stays_so_when_it_introduces_itself(self, book: NodeBook) -> None:
        draw(book, 1)
        meet(book, 1, NOW + 1)
        assert book.drawn(NOW + 1) == 1

    def test_to_ask_for_a_lacking_key_is_no_draw(self, book: NodeBook) -> None:
        book.met(NodeMaker(1).record(), NOW)
        book.vouched(NodeMaker(1).record(), NOW, NodeMaker(1).path_key)
        assert len(book.candidates(NOW)) == 1
        assert book.drawn(NOW) == 0

    def test_a_crowd_that_introduces_itself_drives_nobody_out(self) -> None:
        guard = NodeMaker(1).record().node_id
        book = NodeBook(OWN.node_id, random.Random(1), max_keyed=30, kept={guard})
        # Of the kind that the table has no room for.
        crowd = self.far(120)
        for number in crowd[:K]:
            meet(book, number)
        book.vouched(NodeMaker(1).record(), NOW, NodeMaker(1).path_key)
        for number in (2, 3, 4):
            draw(book, number)
        safe = {NodeMaker(number).record().node_id for number in (1, 2, 3, 4)}
        for number in crowd[K:]:
            meet(book, number)
        known = ids(book)
        assert safe <= known
        assert len(known) == 30
        assert {contact.node_id for contact in book.table} <= known
        for number in range(300, 340):
            draw(book, number)
        assert guard in ids(book)
        assert book.drawn(NOW) == 30 - 1 - len(book.table) + sum(
            contact.drawn for contact in book.table
        )


class TestBounds:
    def test_keys_are_bounded_and_a_random_one_goes(self) -> None:
        gone: set[NodeId] = set()
        for seed in range(12):
            book = NodeBook(OWN.node_id, random.Random(seed), max_keyed=5)
            for number in range(1, 7):
                book.vouched(NodeMaker(number).record(), NOW, NodeMaker(number).path_key)
            assert book.keyed == len(book) == 5
            everybody = {NodeMaker(number).record().node_id for number in range(1, 7)}
            gone |= everybody - ids(book)
        assert len(gone) >= 3

    def test_failed_ones_go_first(self) -> None:
        book = NodeBook(OWN.node_id, random.Random(1), max_keyed=5)
        for number in range(1, 6):
            book.vouched(NodeMaker(number).record(), NOW, NodeMaker(number).path_key)
        dead = NodeMaker(3).record().node_id
        book.failed(dead, NOW)
        book.vouched(NodeMaker(6).record(), NOW, NodeMaker(6).path_key)
        assert book.get(dead) is None

    def test_contacts_of_the_table_keep_theirs(self) -> None:
        book = NodeBook(OWN.node_id, random.Random(1), max_keyed=3)
        for number in range(1, 4):
            meet(book, number)
        book.vouched(NodeMaker(9).record(), NOW, NodeMaker(9).path_key)
        assert book.get(NodeMaker(9).record().node_id) is None
        assert ids(book) == {NodeMaker(number).record().node_id for number in range(1, 4)}

    def test_expired_and_hopeless_nodes_are_forgotten(self, book: NodeBook) -> None:
        hopeless = meet(book, 1)
        meet(book, 2)
        for _ in range(GIVE_UP_AFTER):
            book.failed(hopeless.node_id, NOW)
        book.expire(NOW)
        assert book.get(hopeless.node_id) is None
        assert len(book.table) == 1
        book.expire(NOW + DAY)
        assert len(book) == len(book.table) == book.keyed == 0

    def test_what_the_table_leaves_out_is_not_remembered_without_a_key(
        self, book: NodeBook
    ) -> None:
        far = [
            record
            for record in (NodeMaker(n).record() for n in range(1, 200))
            if book.table.bucket_of(position(record.node_id)) == 255
        ][: K + 5]
        for record in far:
            book.met(record, NOW)
        assert len(book) == K
        dead = next(record for record in far if book.get(record.node_id) is not None)
        late = next(record for record in far if book.get(record.node_id) is None)
        for _ in range(2):
            book.failed(dead.node_id, NOW)
        book.met(late, NOW)
        assert book.get(dead.node_id) is None
        assert book.get(late.node_id) is not None

    def test_a_node_that_moved_has_to_prove_itself_again(self, book: NodeBook) -> None:
        record = meet(book, 1)
        assert len(book.table) == 1
        moved = NodeMaker(1, address=ipaddress.IPv4Address("99.1.1.1")).record(NOW + 1)
        book.heard(moved)
        assert len(book.table) == 0
        book.met(moved, NOW + 2, NodeMaker(1).path_key)
        assert [contact.record for contact in book.table] == [moved]
        book.met(NodeMaker(2).record(), NOW)
        book.heard(NodeMaker(2, address=ipaddress.IPv4Address("99.2.1.1")).record(NOW + 1))
        assert len(book) == 2
        book.expire(NOW + 2)
        assert [contact.record for contact in book] == [moved]
        assert record != moved

    def test_nodes_that_can_t_be_dialed_stay_out_of_the_table(self, book: NodeBook) -> None:
        book.met(NodeMaker(1).record(capabilities=Capability.RELAY), NOW)
        assert len(book) == len(book.table) == 0


class TestQuestions:
    def test_news_are_nodes_we_don_t_know(self, book: NodeBook) -> None:
        record = NodeMaker(1).record()
        assert book.heard(record)
        assert book.get(record.node_id) is None
        meet(book, 1)
        assert not book.heard(record)

    def test_the_keyed_node_closest_to_an_id(self, book: NodeBook) -> None:
        records = [meet(book, number) for number in range(1, 30)]
        target = bytes(32)
        place = position(target)
        everybody = [OWN, *records]
        nearest = min(everybody, key=lambda record: position(record.node_id) ^ place)
        found = book.keyed_closest(target, NOW)
        assert (found.record if found else OWN) == nearest
        assert book.keyed_closest(OWN.node_id, NOW) is None
        for record in records:
            hit = book.keyed_closest(record.node_id, NOW)
            assert hit is not None
            assert hit.record == record

    def test_a_node_with_an_outdated_key_is_not_given_out(self, book: NodeBook) -> None:
        record = meet(book, 1)
        book.heard(NodeMaker(1).record(NOW + 1, path_key=b"n" * 1_216))
        found = book.keyed_closest(record.node_id, NOW + 1)
        assert found is None or found.record.node_id != record.node_id

    def test_neighbours(self, book: NodeBook) -> None:
        records = [meet(book, number) for number in range(1, 40)]
        own = position(OWN.node_id)
        ranked = sorted(records, key=lambda record: position(record.node_id) ^ own)
        known = [r for r in ranked if (c := book.get(r.node_id)) and c in book.table]
        assert all(book.is_neighbour(record.node_id, NOW) for record in known[:K])
        assert not book.is_neighbour(ranked[-1].node_id, NOW)

    def test_everybody_is_a_storer_in_a_small_network_only(self, book: NodeBook) -> None:
        meet(book, 1)
        far = bytes([OWN.node_id[0] ^ 0xFF]) + bytes(31)
        assert book.is_storer(far, NOW)
        for number in range(2, 300):
            meet(book, number)
        assert not book.is_storer(far, NOW)
        assert book.is_storer(OWN.node_id, NOW)

    def test_what_more_nodes_store_is_held_at_a_greater_distance(self, book: NodeBook) -> None:
        for number in range(1, 300):
            meet(book, number)
        held = [
            [book.is_storer(h("key", bytes([n])), NOW, count) for n in range(200)]
            for count in (K, LEASE_STORERS)
        ]
        assert sum(held[0]) < sum(held[1]) < 200
        assert all(more >= fewer for fewer, more in zip(*held, strict=True))

    def test_a_lookup_can_begin_near_us(self, book: NodeBook) -> None:
        assert book.neighbourhood(K, NOW) == []
        for number in range(1, 300):
            meet(book, number)
        near = book.closest(OWN.node_id, NEIGHBOURHOOD, NOW)
        drawn = [book.neighbourhood(12, NOW) for _ in range(20)]
        assert all(len(set(records)) == 12 and set(records) <= set(near) for records in drawn)
        assert {record for records in drawn for record in records} == set(near)
        gone = near[0].node_id
        book.failed(gone, NOW)
        assert all(r.node_id != gone for _ in range(9) for r in book.neighbourhood(30, NOW))

    def test_whom_to_try_again(self, book: NodeBook) -> None:
        first, second = meet(book, 1), meet(book, 2)
        book.failed(second.node_id, NOW)
        book.failed(first.node_id, NOW + 0.5)
        assert book.due(NOW + 0.9, 5) == []
        assert [c.record for c in book.due(NOW + 2, 5)] == [second, first]
        assert [c.record for c in book.due(NOW + 2, 1)] == [second]

    def test_a_trusted_node_is_tried_again_soon_and_never_forgotten(self) -> None:
        friend, other = NodeMaker(1).record(), NodeMaker(2).record()
        book = NodeBook(OWN.node_id, random.Random(1), trusted=frozenset({friend.node_id}))
        meet(book, 1)
        meet(book, 2)
        for _ in range(GIVE_UP_AFTER):
            book.failed(friend.node_id, NOW)
            book.failed(other.node_id, NOW)
        due = [contact.record for contact in book.due(NOW + TRUSTED_RETRY, 5)]
        assert due == [friend]
        book.expire(NOW + 1)
        assert [contact.record for contact in book] == [friend]

    def test_a_guard_is_remembered_as_long_as_its_record_is_valid(self) -> None:
        guard = NodeMaker(1).record()
        book = NodeBook(OWN.node_id, random.Random(1), kept={guard.node_id})
        meet(book, 1)
        for _ in range(GIVE_UP_AFTER):
            book.failed(guard.node_id, NOW)
        book.expire(NOW + 1)
        assert [contact.record for contact in book] == [guard]
        book.expire(NOW + DAY)
        assert len(book) == 0

    def test_whom_to_visit(self, book: NodeBook) -> None:
        assert book.stalest(NOW) is None
        first, second = meet(book, 1), meet(book, 2, NOW + 1)
        stalest = book.stalest(NOW + 2)
        assert stalest is not None
        assert stalest.record == first
        book.failed(first.node_id, NOW + 2)
        stalest = book.stalest(NOW + 2)
        assert stalest is not None
        assert stalest.record == second


class TestBans:
    def test_a_banned_node_is_nowhere_until_the_ban_ends(self, book: NodeBook) -> None:
        banned, other = meet(book, 1), meet(book, 2)
        book.obey(InForce(banned_nodes=frozenset({banned.node_id})))
        assert ids(book) == {other.node_id}
        assert len(book.table) == 1
        assert not book.heard(banned)
        book.met(banned, NOW, NodeMaker(1).path_key)
        book.vouched(banned, NOW, NodeMaker(1).path_key)
        assert book.get(banned.node_id) is None
        assert set(book.known_records()) == {banned, other}
        book.obey(NOTHING_IN_FORCE)
        assert book.known_records() == [other]
        assert book.heard(banned)
        meet(book, 1)
        assert ids(book) == {banned.node_id, other.node_id}

    def test_a_banned_prefix_bans_all_of_it(self, book: NodeBook) -> None:
        banned, other = meet(book, 1), meet(book, 2)
        book.obey(InForce(banned_prefixes=(ipaddress.IPv4Network("11.1.0.0/16"),)))
        assert ids(book) == {other.node_id}
        assert not book.heard(banned)


class TestCacheFile:
    def test_it_makes_the_round_trip(self, book: NodeBook) -> None:
        for number in range(1, 6):
            meet(book, number, NOW + number)
        data = cachefile.dump(NETWORK.network_id, book)
        nodes = cachefile.load(data, Verifier(NETWORK), NOW + 10)
        assert [node.record for node in nodes] == [
            NodeMaker(n).record(NOW + n) for n in (5, 4, 3, 2, 1)
        ]
        again = NodeBook(OWN.node_id, random.Random(1))
        for node in nodes:
            again.restore(node.record, node.path_key, node.last_ok, drawn=node.drawn)
        assert ids(again, NOW + 10) == ids(book, NOW + 10)
        assert len(again.table) == 0

    def test_who_was_drawn_stays_so(self, book: NodeBook) -> None:
        meet(book, 1)
        draw(book, 2)
        draw(book, 1)
        draw(book, 3)
        meet(book, 4)
        nodes = cachefile.load(
            cachefile.dump(NETWORK.network_id, book), Verifier(NETWORK), NOW + 10
        )
        drawn = {node.record for node in nodes if node.drawn}
        assert drawn == {NodeMaker(number).record() for number in (1, 2, 3)}
        again = NodeBook(OWN.node_id, random.Random(1))
        for node in nodes:
            again.restore(node.record, node.path_key, node.last_ok, drawn=node.drawn)
        assert again.drawn(NOW + 10) == 3

    def test_outdated_keys_are_left_behind(self, book: NodeBook) -> None:
        meet(book, 1)
        book.heard(NodeMaker(1).record(NOW + 1, path_key=b"n" * 1_216))
        data = cachefile.dump(NETWORK.network_id, book)
        (kept,) = cachefile.load(data, Verifier(NETWORK), NOW + HOUR)
        assert kept.path_key is None
        assert kept.record.node_id == NodeMaker(1).record().node_id
        restored = NodeBook(OWN.node_id, random.Random(1))
        restored.restore(kept.record, kept.path_key, kept.last_ok, drawn=False)
        assert len(restored) == 0

    def test_an_expired_record_still_says_where_a_node_was(self, book: NodeBook) -> None:
        record = meet(book, 1)
        data = cachefile.dump(NETWORK.network_id, book)
        (kept,) = cachefile.load(data, Verifier(NETWORK), NOW + 9 * DAY)
        assert kept.record == record

    def test_another_network_s_file_is_refused(self, book: NodeBook) -> None:
        data = cachefile.dump(NetworkId(bytes(32)), book)
        with pytest.raises(WireError, match="another network"):
            cachefile.load(data, Verifier(NETWORK), NOW)

    def test_a_file_with_a_forged_record_loses_only_that(self, book: NodeBook) -> None:
        meet(book, 1)
        meet(book, 2)
        data = cachefile.dump(NETWORK.network_id, book)[:-32]
        record = NodeMaker(1).record().encoded
        forged = data.replace(record, record[:-1] + bytes([record[-1] ^ 1]))
        nodes = cachefile.load(forged + h("node cache", forged), Verifier(NETWORK), NOW)
        assert [node.record for node in nodes] == [NodeMaker(2).record()]

    def test_a_file_from_the_future_is_not_believed(self, book: NodeBook) -> None:
        meet(book, 1, NOW + HOUR)
        data = cachefile.dump(NETWORK.network_id, book)
        assert cachefile.load(data, Verifier(NETWORK), NOW) == []

    @given(st.integers(0, 10_000), st.integers(1, 255))
    def test_any_damage_is_noticed(self, place: int, flip: int) -> None:
        book = NodeBook(OWN.node_id, random.Random(1))
        meet(book, 1)
        data = bytearray(cachefile.dump(NETWORK.network_id, book))
        data[place % len(data)] ^= flip
        with pytest.raises(WireError):
            cachefile.load(bytes(data), Verifier(NETWORK), NOW)

    @given(st.binary(max_size=200))
    def test_noise_raises_the_one_exception(self, noise: bytes) -> None:
        nested = b"\x91" * 100_000
        for data in (noise, noise + h("node cache", noise), nested + h("node cache", nested)):
            with pytest.raises(WireError):
                cachefile.load(data, Verifier(NETWORK), NOW)
