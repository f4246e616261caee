"""Records of AP identities in whole networks of netdb services: written, read, disputed."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
import trio
from netdb_world import (
    AP,
    AP4,
    AP6,
    EXIT,
    everybody_knows,
    memory_network,
    ref_of,
    reserve,
    start,
    wait_until,
)
from trio.testing import MockClock

from phantom_tun.clock import HOUR, MINUTE
from phantom_tun.errors import CapacityExceeded, ProtocolViolation, WireError
from phantom_tun.ids import NodeId
from phantom_tun.net.netdb.files import NetdbFiles
from phantom_tun.net.netdb.service import PERFORMED_AT_ONCE, NetdbService
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.netdb.rules import Caller
from phantom_tun.testing.netdb_network import makers
from phantom_tun.testing.record_factory import NETWORK, NOW, ApMaker, NodeMaker
from phantom_tun.wire.netdb import (
    Answer,
    ClosestNodes,
    ExtendApLease,
    Held,
    Method,
    Refusal,
    ReserveAp,
    Resolution,
    ResolveAp,
    UpdateApRoutes,
    WriteReport,
    decode_answer,
    decode_call,
)


class TestRecords:
    async def test_what_one_writes_another_reads(self, autojump_clock: MockClock) -> None:
        async with memory_network() as network:
            services = start(network, 12)
            await wait_until(everybody_knows(services, 11), 3)
            now = network.clock.now()
            report = await reserve(services[1], AP, now)
            assert (report.asked, report.stored, report.lease_holder) == (12, 12, AP.key.public)
            entry = services[4].own_record.node_id
            route = AP.route(now, entry_node=entry)
            written = decode_answer(await services[4].write(UpdateApRoutes((route.encoded,))))
            assert isinstance(written, WriteReport)
            assert written.stored == 12
            for address in (AP6, AP4):
                found = await services[9].resolve(address)
                assert found.key_record == AP.record(now).encoded
                assert found.routes == (route.encoded,)
                assert [vote.storers for vote in found.votes] == [12]

    async def test_an_unknown_address(self, autojump_clock: MockClock) -> None:
        async with memory_network() as network:
            services = start(network, 5)
            await wait_until(everybody_knows(services, 4), 3)
            for address in (AP6, AP4):
                found = await services[1].resolve(address)
                assert (found.key_record, found.routes, found.votes) == (b"", (), ())
                assert found.answered == 5

    async def test_a_storer_that_names_another_record_every_time_is_asked_twice(
        self, autojump_clock: MockClock
    ) -> None:
        async with memory_network() as network:
            services = start(network, 5)
            await wait_until(everybody_knows(services, 4), 3)
            liar = network.members[services[3].own_record.node_id]
            honest, told = liar.handler, 0

            async def lie(caller: Caller, payload: bytes) -> bytes:
                nonlocal told
                if not isinstance(decode_call(payload), ResolveAp):
                    return await honest(caller, payload)
                told += 1
                return Held(AP.key.public, 1, told.to_bytes(32, "big"), b"", ()).encode()

            liar.handler = lie
            for asked, address in ((2, AP6), (4, AP4)):
                with trio.fail_after(10):
                    found = await services[1].resolve(address)
                assert (found.key_record, found.votes) == (b"", ())
                assert told == asked

    async def test_calls_for_anonymized_nodes(self, autojump_clock: MockClock) -> None:
        async with memory_network() as network:
            services = start(network, 5)
            await wait_until(everybody_knows(services, 4), 3)
            record = AP.record(network.clock.now())
            exit_node = services[2]

            async def perform(call: bytes) -> Answer:
                return decode_answer(await exit_node.perform(call, EXIT))

            assert isinstance(await perform(ReserveAp(record.encoded).encode()), WriteReport)
            found = await perform(ResolveAp.of(AP4).encode())
            assert isinstance(found, Resolution)
            assert found.key_record == record.encoded
            with pytest.raises(ProtocolViolation):
                await perform(ExtendApLease(record.encoded).encode())
            with pytest.raises(ProtocolViolation):
                await exit_node.perform(ClosestNodes(bytes(32)).encode(), frozenset(Method))
            with pytest.raises(WireError):
                await perform(b"noise")
            malformed = await perform(ReserveAp(b"noise").encode())
            assert malformed == WriteReport(0, 0, Refusal.MALFORMED, b"")

    async def test_calls_for_anonymized_nodes_are_bounded(self, autojump_clock: MockClock) -> None:
        async with memory_network() as network:
            services = start(network, 3)
            await wait_until(everybody_knows(services, 2), 3)
            call = ResolveAp.of(AP6).encode()
            refused = 0

            async def one() -> None:
                nonlocal refused
                try:
                    await services[1].perform(call, EXIT)
                except CapacityExceeded:
                    refused += 1

            async with trio.open_nursery() as nursery:
                for _ in range(PERFORMED_AT_ONCE + 5):
                    nursery.start_soon(one)
            assert refused == 5

    async def test_routes_of_two_identities_don_t_share_a_call(
        self, autojump_clock: MockClock
    ) -> None:
        async with memory_network() as network:
            (alone,) = start(network, 1)
            now = network.clock.now()
            routes = [
                maker.route(now, entry_node=NodeId(bytes(32))).encoded for maker in (AP, ApMaker(2))
            ]
            report = decode_answer(await alone.write(UpdateApRoutes(tuple(routes))))
            assert report == WriteReport(0, 0, Refusal.MALFORMED, b"")

    async def test_an_address_is_found_while_its_storage_keys_move(
        self, autojump_clock: MockClock
    ) -> None:
        """In a network with more nodes than storers of one key, around 16:00 UTC."""
        move = NOW + 8 * HOUR
        async with memory_network(start=move - 4 * MINUTE) as network:
            services = start(network, 34)
            await trio.sleep(30)
            record = AP.record(network.clock.now())
            await services[1].write(ExtendApLease(record.encoded))
            while network.clock.now() < move + 4 * MINUTE:
                for address in (AP6, AP4):
                    found = await services[2].resolve(address)
                    assert found.key_record == record.encoded
                await trio.sleep(MINUTE)

    async def test_what_was_held_survives_restarts_of_everybody(
        self, autojump_clock: MockClock, tmp_path: Path
    ) -> None:
        async with memory_network() as network:
            members = makers(6)
            bootstrap = [ref_of(network, members[0])]

            def restart(maker: NodeMaker) -> NetdbService:
                name = str(maker.number)
                files = NetdbFiles(tmp_path / f"nodes-{name}", tmp_path / f"held-{name}")
                return network.start(maker, bootstrap, files)

            services = [restart(maker) for maker in members]
            await wait_until(everybody_knows(services, 5), 3)
            now = network.clock.now()
            await reserve(services[1], AP, now)
            route = AP.route(now, entry_node=NodeId(bytes(32)))
            await services[1].write(UpdateApRoutes((route.encoded,)))
            await trio.sleep(15)
            for maker, service in zip(members, services, strict=True):
                network.stop(service.own_record.node_id)
                await trio.sleep(0.5)
                restart(maker)
                await trio.sleep(5)
            fresh = network.start(NodeMaker(99), bootstrap)
            await wait_until(everybody_knows([fresh], 6), 3)
            found = await fresh.resolve(AP4)
            assert found.key_record == AP.record(now).encoded
            assert found.routes == (route.encoded,)

    async def test_an_old_record_is_taken_when_most_others_hold_it(
        self, autojump_clock: MockClock
    ) -> None:
        async with memory_network() as network:
            services = start(network, 9)
            await wait_until(everybody_knows(services, 8), 3)
            record = AP.record(network.clock.now())
            await services[1].write(ReserveAp(record.encoded))
            await trio.sleep(10 * MINUTE)
            newcomer = network.start(NodeMaker(50), [services[0].own_record.ref()])
            await wait_until(everybody_knows([*services, newcomer], 9), 5)
            await trio.sleep(3)
            await services[2].write(ExtendApLease(record.encoded))
            await trio.sleep(5)
            assert newcomer.statistics()["held_aps"] == 1
            assert newcomer.statistics()["surveys_followed"] == 1

    async def test_an_old_record_that_nobody_holds_is_not_taken(
        self, autojump_clock: MockClock
    ) -> None:
        async with memory_network() as network:
            services = start(network, 6)
            await wait_until(everybody_knows(services, 5), 3)
            record = AP.record(network.clock.now())
            await trio.sleep(10 * MINUTE)
            report = decode_answer(await services[1].write(ReserveAp(record.encoded)))
            assert report == WriteReport(6, 0, Refusal.TOO_OLD, b"")
            await trio.sleep(10)
            assert not (await services[2].resolve(AP6)).key_record


class TestLeases:
    @pytest.fixture
    def rival(self, monkeypatch: pytest.MonkeyPatch) -> ApMaker:
        """An identity whose candidate 0 is the AP4 address of ``AP`` too."""

        def colliding(network: object, public_key: bytes, n: int) -> ipaddress.IPv4Address:
            return AP4 if n == 0 else ap4_candidate(NETWORK, public_key, n)

        for module in ("store", "server", "votes"):
            monkeypatch.setattr(f"phantom_tun.netdb.{module}.ap4_candidate", colliding)
        return ApMaker(2)

    async def test_who_comes_second_is_told_and_moves_on(
        self, autojump_clock: MockClock, rival: ApMaker
    ) -> None:
        async with memory_network() as network:
            services = start(network, 9)
            await wait_until(everybody_knows(services, 8), 3)
            now = network.clock.now()
            await reserve(services[1], AP, now)
            report = await reserve(services[2], rival, now)
            assert report.lease_holder == AP.key.public
            assert (await services[3].resolve(AP4)).key_record == AP.record(now).encoded
            rival6 = ap6_address(NETWORK, rival.key.public)
            assert (await services[3].resolve(rival6)).key_record == rival.record(now).encoded
            moved = await reserve(services[2], rival, now, sequence=2, ap4_n=1)
            assert moved.lease_holder == rival.key.public

    async def test_storers_that_were_taken_by_surprise_follow_the_majority(
        self, autojump_clock: MockClock, rival: ApMaker
    ) -> None:
        """The rival reached a third of the storers first; one republish later all agree."""
        async with memory_network() as network:
            services = start(network, 12)
            await wait_until(everybody_knows(services, 11), 3)
            await trio.sleep(3)
            surprised = {service.own_record.node_id for service in services[8:]}
            now = network.clock.now()
            network.allowed = lambda _, callee: callee in surprised
            await reserve(services[11], rival, now)
            network.allowed = lambda _, callee: callee not in surprised
            await reserve(services[1], AP, now)
            network.allowed = lambda _caller, _callee: True
            await trio.sleep(30)
            contested = await services[2].resolve(AP4)
            assert contested.key_record == AP.record(now).encoded
            assert [vote.storers for vote in contested.votes] == [8, 4]
            later = network.clock.now()
            assert (await reserve(services[1], AP, later, sequence=2)).lease_holder == (
                AP.key.public
            )
            await trio.sleep(10)
            settled = await services[2].resolve(AP4)
            assert [vote.storers for vote in settled.votes if vote.public_key == AP.key.public] == [
                12
            ]
