"""Two owners with the same AP4 address, who claimed it in halves of a network that knew nothing of
each other: real publishers, real nodes, virtual time."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

from phantom_tun.crypto.hashes import h
from phantom_tun.ids import ApAddress, PublicKey
from phantom_tun.net.addresses.identities import (
    DEFAULT_NAME,
    DIRECTORY,
    IdentityStore,
    Lease,
    LeaseState,
)
from phantom_tun.net.addresses.publisher import ARRIVAL, REFRESH, Publisher
from phantom_tun.net.netdb.node_database import ENTRY_CALLS, EXIT_CALLS
from phantom_tun.net.netdb.service import NetdbService
from phantom_tun.netdb.rules import Caller
from phantom_tun.testing.fake_owner import SMALL_NETWORK, FakeOwner
from phantom_tun.testing.netdb_network import Handler, MemoryNetwork
from phantom_tun.testing.record_factory import NodeMaker
from phantom_tun.wire.netdb import (
    Held,
    RegisterNode,
    ReserveAp,
    Resolution,
    ResolveAp,
    WriteReport,
    decode_answer,
    decode_call,
)
from phantom_tun.wire.records import APKeyRecord, decode

SETTLED_WITHIN = REFRESH + ARRIVAL + 60.0
"""Of a merge: both owners have published once more, and looked whether it arrived."""


@dataclass
class Paths:
    """Calls go out from one node, as through a path that ends there."""

    service: NetdbService
    nursery: trio.Nursery

    async def netdb_call(
        self,
        identity: str,
        call: bytes,
        *,
        path_index: int | None = None,
        hidden: bool = False,
        private: bool = False,
    ) -> bytes:
        return await self.service.perform(call, EXIT_CALLS)

    def queue_update(self, identity: str, call: bytes) -> None:
        self.nursery.start_soon(self.service.perform, call, ENTRY_CALLS)

    def exit_count(self, identity: str, *, hidden: bool = False) -> int:
        return 1


class Halves:
    """Two networks that can be joined."""

    def __init__(self, network: MemoryNetwork, left: int, right: int) -> None:
        self.network = network
        self._left = [NodeMaker(number, SMALL_NETWORK) for number in range(left)]
        self._right = [NodeMaker(100 + number, SMALL_NETWORK) for number in range(right)]
        now = network.clock.now()
        sides = {
            maker.record(now).node_id: side
            for side, makers in enumerate((self._left, self._right))
            for maker in makers
        }
        network.allowed = lambda caller, callee: sides[caller] == sides[callee]
        bridge, home = self._left[0].record(now).ref(), self._right[0].record(now).ref()
        self.left = [network.start(maker, [bridge]) for maker in self._left]
        self.right = [
            network.start(maker, [home, bridge] if maker is self._right[0] else [home])
            for maker in self._right
        ]

    @property
    def services(self) -> list[NetdbService]:
        return [*self.left, *self.right]

    def join(self) -> None:
        self.network.allowed = lambda _caller, _callee: True

    async def ask_all(self, address: ApAddress) -> list[Resolution]:
        return [await service.resolve(address) for service in self.services]


def store_with(state: Path, network: MemoryNetwork, owner: FakeOwner) -> IdentityStore:
    """One identity on disk, which has the key of ``owner``."""
    state.mkdir(mode=0o700)
    IdentityStore(state, SMALL_NETWORK, network.clock).load()
    (state / DIRECTORY / DEFAULT_NAME / "ap.key").write_bytes(owner.key.seed)
    store = IdentityStore(state, SMALL_NETWORK, network.clock)
    store.load()
    store.set_lease(store.get(DEFAULT_NAME), Lease(owner.n))
    return store


@pytest.mark.parametrize(
    ("left", "right"),
    [pytest.param(8, 5, id="majority", marks=pytest.mark.slow), pytest.param(6, 6, id="tie")],
)
async def test_one_winner_everywhere_within_one_republish_interval(
    nursery: trio.Nursery, autojump_clock: MockClock, tmp_path: Path, left: int, right: int
) -> None:
    network = MemoryNetwork(1)
    await nursery.start(network.run)
    halves = Halves(network, left, right)
    await trio.sleep(30)
    first = FakeOwner()
    owners = (first, first.rival())
    assert owners[0].ap4 == owners[1].ap4
    contested = owners[0].ap4
    stores = [
        store_with(tmp_path / str(index), network, owner) for index, owner in enumerate(owners)
    ]
    identities = [store.get(DEFAULT_NAME) for store in stores]
    publishers = []
    for store, identity, service in zip(
        stores, identities, (halves.left[1], halves.right[1]), strict=True
    ):
        publisher = Publisher(
            identity,
            store,
            Paths(service, nursery),
            lambda _name: [],
            on_lease=lambda _identity: None,
            clock=network.clock,
            rng=random.Random(7),
        )
        publishers.append(publisher)
        await nursery.start(publisher.run)
    await trio.sleep(30)
    assert [identity.ap4 for identity in identities] == [contested, contested]

    halves.join()
    began = trio.current_time()
    winner, loser = expected(owners, left, right)
    while not await settled(halves, contested, owners[winner].key.public):
        assert trio.current_time() - began < SETTLED_WITHIN
        await trio.sleep(100)
    assert identities[winner].ap4 == contested
    assert publishers[winner].warnings() == []

    while identities[loser].ap4 is None or identities[loser].ap4 == contested:
        assert trio.current_time() - began < SETTLED_WITHIN
        await trio.sleep(5)
    assert identities[loser].ap4_state is LeaseState.HELD
    moved = identities[loser].ap4
    assert publishers[loser].warnings() == [
        "the AP4 address of 'default' had to change, because another identity holds the lease of "
        f"the former one; now it is {moved}"
    ]
    for found in await halves.ask_all(moved):
        assert [vote.public_key for vote in found.votes] == [owners[loser].key.public]
    assert await settled(halves, contested, owners[winner].key.public)


def expected(owners: tuple[FakeOwner, FakeOwner], left: int, right: int) -> tuple[int, int]:
    """Whose address it must be, and whose not."""
    if left != right:
        return (0, 1) if left > right else (1, 0)
    ranks = [h("lease", owner.key.public, bytes([owner.n])) for owner in owners]
    return (0, 1) if ranks[0] < ranks[1] else (1, 0)


async def settled(halves: Halves, address: ApAddress, winner: PublicKey) -> bool:
    """Whether every node finds the same owner, and not one storer still says otherwise."""
    return all(
        {vote.public_key for vote in found.votes} == {winner}
        and sum(vote.storers for vote in found.votes) == len(halves.services)
        for found in await halves.ask_all(address)
    )


class Usurpers:
    """Nodes that store an AP4 address for somebody who has no right to it."""

    def __init__(self, network: MemoryNetwork, count: int) -> None:
        self.claim: Held | None = None
        """What they say they hold; nothing special if None."""
        self.shown = b""
        """The record they show when they are asked for it."""
        self.asked = 0
        self._network = network
        self._makers = [NodeMaker(500 + number, SMALL_NETWORK) for number in range(count)]
        for maker in self._makers:
            network.add_impostor(maker, self._handler(maker))

    def _handler(self, maker: NodeMaker) -> Handler:
        honest = self._network.service_for(maker)

        async def handle(caller: Caller, payload: bytes) -> bytes:
            call = decode_call(payload)
            if not isinstance(call, ResolveAp) or call.ip.version == 6 or self.claim is None:
                return await honest.handle_call(caller, payload)
            self.asked += 1
            if call.full and self.shown:
                return msgspec.structs.replace(self.claim, key_record=self.shown).encode()
            return self.claim.encode()

        return handle

    async def join(self, services: list[NetdbService]) -> None:
        for maker in self._makers:
            record = maker.record(self._network.clock.now())
            call = RegisterNode(record.encoded, maker.path_key).encode()
            for service in services:
                await self._network.carry(record.node_id, maker, service.own_record.ref(), call)

    def leave(self, count: int) -> None:
        for maker in self._makers[:count]:
            self._network.stop(maker.record().node_id)


@dataclass
class Usurped:
    network: MemoryNetwork
    services: list[NetdbService]
    usurpers: Usurpers
    owner: FakeOwner
    rival: FakeOwner


@pytest.fixture
async def usurped(nursery: trio.Nursery, autojump_clock: MockClock) -> Usurped:
    """Nine nodes that hold an address for its owner, and eight that can say what they like."""
    network = MemoryNetwork(1)
    await nursery.start(network.run)
    makers = [NodeMaker(number, SMALL_NETWORK) for number in range(9)]
    bootstrap = [makers[0].record(network.clock.now()).ref()]
    services = [network.start(maker, bootstrap) for maker in makers]
    usurpers = Usurpers(network, 8)
    await trio.sleep(10)
    await usurpers.join(services)
    await trio.sleep(40)
    owner = FakeOwner()
    rival = owner.rival()
    record = owner.record(network.clock.now())
    report = decode_answer(
        await services[0].perform(ReserveAp(record.encoded).encode(), EXIT_CALLS)
    )
    assert isinstance(report, WriteReport)
    assert report.stored == 17
    return Usurped(network, services, usurpers, owner, rival)


def names(record: APKeyRecord) -> Held:
    return Held(record.public_key, record.sequence, record.digest, b"", ())


async def test_divided_storers_decide_nothing_and_a_plain_majority_does(
    autojump_clock: MockClock, usurped: Usurped
) -> None:
    services, usurpers, owner = usurped.services, usurped.usurpers, usurped.owner
    claim = usurped.rival.record(usurped.network.clock.now())
    usurpers.claim, usurpers.shown = names(claim), claim.encoded
    found = await services[3].resolve(owner.ap4)
    assert found.key_record == b""
    assert {vote.public_key: vote.storers for vote in found.votes} == {
        owner.key.public: 9,
        usurped.rival.key.public: 8,
    }
    statistics = services[3].statistics()
    assert (statistics["second_looks"], statistics["undecided"]) == (1, 1)
    usurpers.leave(2)
    await trio.sleep(90)
    found = await services[4].resolve(owner.ap4)
    assert decode(APKeyRecord, found.key_record).public_key == owner.key.public
    assert [vote.storers for vote in found.votes] == [9, 6]
    assert services[4].statistics()["second_looks"] == 1
    usurpers.leave(8)
    await trio.sleep(90)
    found = await services[5].resolve(owner.ap4)
    assert [vote.storers for vote in found.votes] == [9]
    assert "second_looks" not in services[5].statistics()


async def test_a_key_that_nobody_shows_a_record_of_divides_nobody(
    autojump_clock: MockClock, usurped: Usurped
) -> None:
    services, usurpers, owner = usurped.services, usurped.usurpers, usurped.owner
    usurpers.claim = Held(b"f" * 32, 1, b"g" * 32, b"", ())
    found = await services[3].resolve(owner.ap4)
    assert decode(APKeyRecord, found.key_record).public_key == owner.key.public
    assert [vote.storers for vote in found.votes] == [9]
    assert usurpers.asked == 16  # once each for the name, once for the record
