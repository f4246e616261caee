"""What bans may cover, over time: nodes that are met later, and starts."""

from __future__ import annotations

import ipaddress
import random
from pathlib import Path

import pytest

from phantom_tun.clock import DAY, HOUR
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.net.netdb.files import Keeper, NetdbFiles
from phantom_tun.netdb import unmet as module
from phantom_tun.netdb.banned import pack_prefix
from phantom_tun.netdb.book import NodeBook
from phantom_tun.netdb.overrides import BAN_SHARE, ENOUGH_KNOWN, InForce, Overrides, Standing
from phantom_tun.netdb.signing import sign_override
from phantom_tun.netdb.store import ApStore
from phantom_tun.netdb.unmet import Unmet
from phantom_tun.netdb.verifier import Verifier
from phantom_tun.testing.record_factory import NETWORK, NOW, NodeMaker
from phantom_tun.wire.records import NodeRecord, OverrideAction

KEY = SigningKey(b"o" * 32)
OWN = NodeMaker(0).record().node_id


def elsewhere(number: int) -> NodeMaker:
    """A node in a /8 of its own, none of them 11.0.0.0/8."""
    return NodeMaker(number, address=ipaddress.IPv4Address(f"{number}.1.2.3"))


class Node:
    """What one node knows of nodes and of commands."""

    def __init__(self, overrides: Overrides | None = None) -> None:
        self.overrides = overrides or Overrides(NETWORK, [KEY.public], ())
        self.book = NodeBook(OWN, random.Random(1))
        self.view = InForce()

    def ban(self, number: int, prefix: str) -> None:
        command = sign_override(
            KEY,
            NETWORK.network_id,
            number=number,
            action=OverrideAction.BAN_PREFIX,
            subject=pack_prefix(ipaddress.ip_network(prefix)),
            created=NOW,
            expires=NOW + 30 * DAY,
        )
        self.overrides.receive(command.encoded, None, NOW)

    def meets(self, maker: NodeMaker, now: float = NOW) -> None:
        """Somebody names a node; it is introduced to if it may be."""
        record = maker.record(now)
        if self.book.heard(record):
            self.book.met(record, now, maker.path_key)

    def review(self, now: float = NOW) -> list[NodeRecord]:
        known, unmet = self.book.known_records(), self.book.unmet_records()
        self.view = self.overrides.in_force(known, now, unmet=unmet)
        return self.book.obey(self.view)

    def standings(self, now: float = NOW) -> list[Standing]:
        return [standing for _, standing in self.overrides.standings(self.view, now)]


@pytest.mark.parametrize("known", [0, 20, ENOUGH_KNOWN, 100])
def test_bans_of_all_places_where_nobody_is_known_cut_off_few(known: int) -> None:
    node = Node()
    for number in range(1, 222):
        if number not in {10, 11, 127}:
            node.ban(number, f"{number}.0.0.0/8")
    for number in range(1, known + 1):
        node.meets(NodeMaker(number))
    node.review()
    others = {number: elsewhere(number) for number in range(128, 221)}
    for maker in others.values():
        node.meets(maker)
        for freed in node.review():
            node.meets(others[freed.ips[0].packed[0]])
    for maker in others.values():
        node.meets(maker)
    total = known + len(others)
    assert len(node.book) >= total - BAN_SHARE * total - 1
    if total >= 2 * ENOUGH_KNOWN:
        assert Standing.IN_FORCE in node.standings()


def test_who_is_freed_counts_until_it_is_met() -> None:
    node = Node()
    for number in range(1, 71):
        node.meets(NodeMaker(number))
    node.ban(1, "140.0.0.0/8")
    node.review()
    makers = [
        NodeMaker(number, address=ipaddress.IPv4Address(f"140.{number}.0.1"))
        for number in range(100, 104)
    ]
    for maker in makers:
        node.meets(maker)
    freed = node.review()
    assert {record.node_id for record in freed} == {maker.record().node_id for maker in makers}
    assert node.standings() == [Standing.OVER_BUDGET]
    assert node.review() == []
    assert node.standings() == [Standing.OVER_BUDGET]
    for maker in makers:
        node.meets(maker)
    assert len(node.book) == 74
    assert node.book.unmet_records() == []
    node.review()
    assert node.standings() == [Standing.OVER_BUDGET]


def restarted(node: Node, path: Path, now: float) -> Node:
    """The same node after a restart, with the same commands."""
    again = Node(node.overrides)
    for each, before in ((node, True), (again, False)):
        keeper = Keeper(
            NetdbFiles(nodes=path),
            NETWORK.network_id,
            each.book,
            ApStore(NETWORK),
            overrides=each.overrides,
            rng=random.Random(1),
        )
        if before:
            keeper.save()
        else:
            keeper.load(Verifier(NETWORK), now)
    return again


def banned_and_not() -> Node:
    """A node that obeys one ban, and not another one for which no budget is left."""
    node = Node()
    for number in range(1, 61):
        node.meets(NodeMaker(number))
    for place in (140, 150):
        for number in range(100, 103):
            address = ipaddress.IPv4Address(f"{place}.{number}.0.1")
            node.meets(NodeMaker(place * 1000 + number, address=address))
        node.ban(place, f"{place}.0.0.0/8")
    node.review()
    assert node.standings() == [Standing.IN_FORCE, Standing.OVER_BUDGET]
    return node


def test_a_ban_over_budget_stays_so_after_a_restart(tmp_path: Path) -> None:
    node = banned_and_not()
    again = restarted(node, tmp_path / "nodes", NOW + HOUR)
    again.review(NOW + HOUR)
    assert again.standings() == [Standing.IN_FORCE, Standing.OVER_BUDGET]
    assert len(again.book) == 63


def test_a_ban_over_budget_stays_so_after_a_long_pause(tmp_path: Path) -> None:
    later = NOW + 2 * DAY
    again = restarted(banned_and_not(), tmp_path / "nodes", later)
    again.review(later)
    assert again.standings(later) == [Standing.TOO_FEW_KNOWN] * 2
    for number in range(1, 70):
        again.meets(NodeMaker(number), later + HOUR)
    again.book.expire(later + HOUR)
    again.review(later + HOUR)
    assert again.standings(later) == [Standing.IN_FORCE, Standing.OVER_BUDGET]
    # What the ban in force covers is remembered for as long as it lasts.
    again.book.expire(later + DAY + 1)
    assert {record.ips[0].packed[0] for record in again.book.unmet_records()} == {140}
    third = restarted(again, tmp_path / "nodes", later + HOUR)
    assert {record.ips[0].packed[0] for record in third.book.unmet_records()} == {140}


class TestUnmet:
    def test_of_one_network_only_few_count(self) -> None:
        unmet = Unmet()
        for number in range(50):
            address = ipaddress.IPv4Address(f"140.1.{number // 3}.{number}")
            unmet.add(NodeMaker(number, address=address).record())
        assert len(unmet) == 4
        unmet.discard(unmet.records()[0].node_id)
        unmet.add(NodeMaker(60, address=ipaddress.IPv4Address("140.1.99.1")).record())
        unmet.add(NodeMaker(61, address=ipaddress.IPv4Address("140.1.99.2")).record())
        assert len(unmet) == 4

    def test_those_that_were_known_all_count(self) -> None:
        unmet = Unmet()
        for number in range(10):
            address = ipaddress.IPv4Address(f"140.1.1.{number}")
            unmet.add(NodeMaker(number, address=address).record(), proven=True)
        assert len(unmet) == 10
        for record in unmet.records():
            unmet.discard(record.node_id)
        unmet.discard(OWN)
        assert not unmet._narrow
        assert not unmet._wide

    def test_they_are_few_and_the_oldest_make_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_UNMET", 3)
        unmet = Unmet()
        records = [NodeMaker(number).record() for number in range(5)]
        for record in records:
            unmet.add(record)
        assert unmet.records() == records[2:]

    def test_the_newest_record_counts(self) -> None:
        unmet = Unmet()
        newer = NodeMaker(1).record(NOW + 60)
        for record in (NodeMaker(1).record(), newer, NodeMaker(1).record()):
            unmet.add(record)
        assert unmet.records() == [newer]
        unmet.expire(newer.expires, lambda _: True)
        assert len(unmet) == 1
        unmet.expire(newer.expires, lambda _: False)
        assert len(unmet) == 0
