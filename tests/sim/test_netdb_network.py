"""Whole networks of netdb services in memory and virtual time: joining, dying, splitting, lying."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from phantom_tun.clock import DAY, HOUR, MINUTE
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.errors import (
    CapacityExceeded,
    PeerError,
    ProtocolViolation,
    RecordRefused,
    Unreachable,
    WireError,
)
from phantom_tun.ids import NodeId
from phantom_tun.net.netdb.files import NetdbFiles
from phantom_tun.net.netdb.introductions import LAST_PAUSE
from phantom_tun.net.netdb.service import PERFORMED_AT_ONCE, NetdbService
from phantom_tun.net.netdb.upkeep import GOSSIP_SLOW
from phantom_tun.netdb import book, cachefile
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.netdb.overrides import digest_of
from phantom_tun.netdb.rules import Caller
from phantom_tun.netdb.signing import sign_override
from phantom_tun.testing.netdb_network import Handler, MemoryNetwork, makers
from phantom_tun.testing.record_factory import NETWORK, NOW, ApMaker, NodeMaker
from phantom_tun.wire.netdb import (
    Answer,
    CloserNodes,
    ClosestNodes,
    ExtendApLease,
    Held,
    Method,
    MissedOverrides,
    Override,
    OverrideList,
    Refusal,
    RegisterNode,
    ReserveAp,
    Resolution,
    ResolveAp,
    Stored,
    UpdateApRoutes,
    WriteReport,
    decode_answer,
    decode_call,
)
from phantom_tun.wire.nodes import NodeRef
from phantom_tun.wire.records import OverrideAction

AP = ApMaker(1)
AP6 = ap6_address(NETWORK, AP.key.public)
AP4 = ap4_candidate(NETWORK, AP.key.public, 0)
EXIT = frozenset({Method.RESOLVE_AP, Method.RESERVE_AP})


@pytest.fixture(autouse=True)
def files_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual time waits for no thread: files are written without one."""

    async def at_once(work: Callable[..., object], *args: object) -> object:
        await trio.lowlevel.checkpoint()
        return work(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)


@asynccontextmanager
async def memory_network(seed: int = 1, start: float = NOW) -> AsyncIterator[MemoryNetwork]:
    network = MemoryNetwork(seed, start=start)
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        yield network
        nursery.cancel_scope.cancel()


def ref_of(network: MemoryNetwork, maker: NodeMaker) -> NodeRef:
    return maker.record(network.clock.now()).ref()


def start(network: MemoryNetwork, count: int) -> list[NetdbService]:
    """``count`` nodes at once; the first is everybody's bootstrap node."""
    members = makers(count)
    bootstrap = [ref_of(network, members[0])]
    return [network.start(maker, bootstrap) for maker in members]


async def wait_until(condition: Callable[[], bool], within: float) -> float:
    """Virtual seconds until ``condition`` holds."""
    begun = trio.current_time()
    with trio.fail_after(within):
        while not condition():
            await trio.sleep(0.05)
    return trio.current_time() - begun


def everybody_knows(services: list[NetdbService], count: int) -> Callable[[], bool]:
    return lambda: all(len(service.candidates()) >= count for service in services)


async def reserve(service: NetdbService, maker: ApMaker, now: float, **more: int) -> WriteReport:
    record = maker.record(now, sequence=more.get("sequence", 1), ap4_n=more.get("ap4_n", 0))
    report = decode_answer(await service.write(ReserveAp(record.encoded)))
    assert isinstance(report, WriteReport)
    return report


class TestJoining:
    async def test_a_lone_node_is_a_network(self, autojump_clock: MockClock) -> None:
        async with memory_network() as network:
            (alone,) = start(network, 1)
            await wait_until(lambda: alone.joined, 1)
            assert (await reserve(alone, AP, network.clock.now())).stored == 1
            assert (await alone.resolve(AP6)).key_record == AP.record(network.clock.now()).encoded

    @pytest.mark.parametrize("count", [2, 12, 25])
    async def test_a_crowd_that_starts_at_once(self, autojump_clock: MockClock, count: int) -> None:
        async with memory_network() as network:
            services = start(network, count)
            took = await wait_until(everybody_knows(services, count - 1), 3)
            assert took < 1.5
            own = {service.own_record.node_id for service in services}
            for service in services:
                known = {candidate.record.node_id for candidate in service.candidates()}
                assert known == own - {service.own_record.node_id}

    async def test_a_bootstrap_node_that_comes_late(self, autojump_clock: MockClock) -> None:
        async with memory_network() as network:
            members = makers(15)
            bootstrap = [ref_of(network, members[0])]
            services = [network.start(maker, bootstrap) for maker in members[1:]]
            await trio.sleep(3)
            assert not any(service.joined for service in services)
            services.append(network.start(members[0], bootstrap))
            assert await wait_until(everybody_knows(services, 14), 4) < 3

    async def test_a_quiet_network_asks_little(self, autojump_clock: MockClock) -> None:
        async with memory_network() as network:
            services = start(network, 12)
            await wait_until(everybody_knows(services, 11), 3)
            await trio.sleep(60)
            before = network.calls.total()
            await trio.sleep(100)
            assert (network.calls.total() - before) / 12 / 100 < 0.5

    async def test_a_newcomer_among_many(self, autojump_clock: MockClock) -> None:
        async with memory_network() as network:
            services = start(network, 20)
            await wait_until(everybody_knows(services, 19), 3)
            await trio.sleep(60)
            late = network.start(NodeMaker(77), [services[3].own_record.ref()])
            everyone = [*services, late]
            assert await wait_until(everybody_knows(everyone, 20), 3) < 1.5

    async def test_the_cache_replaces_the_bootstrap_node(
        self, autojump_clock: MockClock, tmp_path: Path
    ) -> None:
        async with memory_network() as network:
            members = makers(6)
            bootstrap = [ref_of(network, members[0])]
            file = NetdbFiles(tmp_path / "nodes")
            services = [network.start(maker, bootstrap) for maker in members[:-1]]
            last = network.start(members[-1], bootstrap, file)
            await wait_until(everybody_knows([*services, last], 5), 3)
            network.stop(last.own_record.node_id)
            await trio.sleep(1)
            network.stop(services[0].own_record.node_id)
            again = network.start(members[-1], bootstrap, file)
            assert await wait_until(lambda: again.joined, 3) < 0.5
            await wait_until(everybody_knows([again], 4), 3)

    @pytest.mark.parametrize("content", [b"", b"noise" * 100])
    async def test_a_corrupted_cache_is_ignored(
        self, autojump_clock: MockClock, tmp_path: Path, content: bytes
    ) -> None:
        file = tmp_path / "nodes"
        file.write_bytes(content)
        async with memory_network() as network:
            first = network.start(NodeMaker(0), [])
            second = network.start(NodeMaker(1), [first.own_record.ref()], NetdbFiles(file))
            await wait_until(everybody_knows([first, second], 1), 3)
            network.stop(second.own_record.node_id)
            await trio.sleep(1)
        assert file.read_bytes() != content

    async def test_an_unwritable_cache_stops_nobody(
        self, autojump_clock: MockClock, tmp_path: Path
    ) -> None:
        async with memory_network() as network:
            first = network.start(NodeMaker(0), [])
            missing = tmp_path / "no" / "such" / "directory"
            second = network.start(
                NodeMaker(1), [first.own_record.ref()], NetdbFiles(missing, missing)
            )
            await wait_until(everybody_knows([first, second], 1), 3)
            await trio.sleep(30)
            assert second.joined


class TestFailures:
    async def test_a_killed_node_leaves_and_a_restarted_one_returns(
        self, autojump_clock: MockClock
    ) -> None:
        async with memory_network() as network:
            services = start(network, 12)
            await wait_until(everybody_knows(services, 11), 3)
            victim = services[5].own_record.node_id
            others = [service for service in services if service is not services[5]]
            network.stop(victim)
            for service in others:
                service.report_failure(victim)
                assert victim not in {c.record.node_id for c in service.candidates()}
            await trio.sleep(20)
            for service in others:
                assert victim not in {c.record.node_id for c in service.candidates()}
            network.start(NodeMaker(5), [others[0].own_record.ref()])
            assert await wait_until(everybody_knows(others, 11), 5) < 2

    async def test_a_wrongly_reported_node_is_back_soon(self, autojump_clock: MockClock) -> None:
        async with memory_network() as network:
            services = start(network, 5)
            await wait_until(everybody_knows(services, 4), 3)
            services[1].report_failure(services[2].own_record.node_id)
            assert len(services[1].candidates()) == 3
            assert await wait_until(everybody_knows(services, 4), 5) < 3
            services[1].report_failure(services[2].own_record.node_id)
            services[1].report_success(services[2].own_record.node_id)
            assert len(services[1].candidates()) == 4

    async def test_an_unreported_death_is_noticed(self, autojump_clock: MockClock) -> None:
        async with memory_network() as network:
            services = start(network, 8)
            await wait_until(everybody_knows(services, 7), 3)
            network.stop(services[3].own_record.node_id)
            rest = [service for service in services if service is not services[3]]
            gone = lambda: all(len(service.candidates()) == 6 for service in rest)  # noqa: E731
            assert await wait_until(gone, 120) < 100

    async def test_stopped_processes_don_t_hold_up_a_resolution(
        self, autojump_clock: MockClock
    ) -> None:
        async with memory_network() as network:
            services = start(network, 16)
            await wait_until(everybody_knows(services, 15), 3)
            await trio.sleep(5)
            await reserve(services[1], AP, network.clock.now())
            for service in services[4:8]:
                network.members[service.own_record.node_id].silent = True
            begun = trio.current_time()
            assert (await services[2].resolve(AP6)).key_record
            assert trio.current_time() - begun < 1.5


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


class TestNodes:
    async def test_finding_a_node(self, autojump_clock: MockClock) -> None:
        async with memory_network() as network:
            services = start(network, 6)
            await wait_until(everybody_knows(services, 5), 3)
            wanted = services[4].own_record
            assert await services[1].find_node(wanted.node_id) == wanted
            assert await services[1].find_node(services[1].own_record.node_id) == (
                services[1].own_record
            )
            with pytest.raises(Unreachable):
                await services[1].find_node(NodeId(bytes(32)))

    async def test_a_new_record_is_announced(self, autojump_clock: MockClock) -> None:
        async with memory_network() as network:
            services = start(network, 8)
            await wait_until(everybody_knows(services, 7), 3)
            await trio.sleep(60)
            renewed = NodeMaker(3).record(network.clock.now(), path_key=b"n" * 1_216)
            services[3].set_own_record(renewed, b"n" * 1_216)
            await trio.sleep(1)
            for service in services[:3]:
                known = {c.record.node_id: c for c in service.candidates()}[renewed.node_id]
                assert known.record == renewed
                assert known.path_key == b"n" * 1_216
            with pytest.raises(ValueError, match="another node"):
                services[3].set_own_record(NodeMaker(4).record(), NodeMaker(4).path_key)

    async def test_a_rotated_key_reaches_those_who_missed_the_announcement(
        self, autojump_clock: MockClock
    ) -> None:
        async with memory_network() as network:
            services = start(network, 45)
            await wait_until(everybody_knows(services, 44), 20)
            await trio.sleep(10)
            told = {service.own_record.node_id for service in services[::3]}
            rotating = services[4]
            own_id = rotating.own_record.node_id
            network.allowed = lambda caller, callee: caller != own_id or callee in told
            rotating.set_own_record(
                NodeMaker(4).record(network.clock.now(), path_key=b"n" * 1_216), b"n" * 1_216
            )
            await trio.sleep(2)
            network.allowed = lambda _caller, _callee: True

            def has_new_key(service: NetdbService) -> bool:
                keys = {c.record.node_id: c.path_key for c in service.candidates()}
                return keys.get(own_id) == b"n" * 1_216

            others = [service for service in services if service is not rotating]
            assert 10 < sum(map(has_new_key, others)) < 40
            await wait_until(lambda: all(map(has_new_key, others)), 900)

    async def test_random_nodes_of_a_small_network(self, autojump_clock: MockClock) -> None:
        async with memory_network() as network:
            services = start(network, 12)
            await wait_until(everybody_knows(services, 11), 3)
            drawn = await services[1].random_nodes(5)
            assert len({candidate.record.node_id for candidate in drawn}) == 5


class TestSplits:
    async def test_two_networks_merge_over_one_pair(self, autojump_clock: MockClock) -> None:
        async with memory_network() as network:
            left_makers, right_makers = makers(6), makers(6, first=100)
            bridge = ref_of(network, left_makers[0])
            sides: dict[NodeId, str] = {}
            for maker in left_makers:
                sides[ref_of(network, maker).node_id] = "left"
            for maker in right_makers:
                sides[ref_of(network, maker).node_id] = "right"
            network.allowed = lambda caller, callee: sides[caller] == sides[callee]
            left = [network.start(maker, [bridge]) for maker in left_makers]
            home = ref_of(network, right_makers[0])
            right = [network.start(right_makers[0], [home, bridge])]
            right += [network.start(maker, [home]) for maker in right_makers[1:]]
            await wait_until(everybody_knows([*left, *right], 5), 5)
            await trio.sleep(300)
            assert all(len(service.candidates()) == 5 for service in [*left, *right])
            await reserve(left[1], AP, network.clock.now())
            network.allowed = lambda _caller, _callee: True
            took = await wait_until(everybody_knows([*left, *right], 11), 90)
            assert took < 1.5 * LAST_PAUSE + 2 * GOSSIP_SLOW
            await trio.sleep(5)
            again = AP.record(network.clock.now(), sequence=2)
            await left[1].write(ExtendApLease(again.encoded))
            assert (await right[3].resolve(AP4)).key_record == again.encoded

    @pytest.mark.parametrize("split_for", [90.0, 900.0])
    async def test_halves_that_gave_each_other_up_find_together(
        self, autojump_clock: MockClock, split_for: float
    ) -> None:
        async with memory_network() as network:
            services = start(network, 16)
            await wait_until(everybody_knows(services, 15), 3)
            left = {service.own_record.node_id for service in services[:8]}
            network.allowed = lambda caller, callee: (caller in left) == (callee in left)
            await trio.sleep(split_for)
            await wait_until(lambda: all(len(s.candidates()) == 7 for s in services), 60)
            network.allowed = lambda _caller, _callee: True
            assert await wait_until(everybody_knows(services, 15), 200) < 60

    async def test_a_trusted_node_is_enough_when_all_bootstrap_nodes_are_gone(
        self, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(book, "GIVE_UP_AFTER", 4)
        async with memory_network() as network:
            members = makers(12)
            home = ref_of(network, members[0])
            friend = ref_of(network, members[11]).node_id
            services = [network.start(maker, [home]) for maker in members[:5]]
            network.trusted = frozenset({friend})
            services.append(network.start(members[5], [home]))
            network.trusted = frozenset()
            services += [network.start(maker, [home]) for maker in members[6:]]
            await wait_until(everybody_knows(services, 11), 3)
            network.stop(home.node_id)
            services = services[1:]
            left = {service.own_record.node_id for service in services[:5]}
            network.allowed = lambda caller, callee: (caller in left) == (callee in left)
            await trio.sleep(400)
            remembered = [len(service.known_records()) for service in services]
            assert max(remembered[:4]) <= 5, "everybody else is forgotten"
            network.allowed = lambda _caller, _callee: True
            assert await wait_until(everybody_knows(services, 10), 700) < 75

    async def test_hostile_bootstrap_nodes_and_one_honest_contact(
        self, autojump_clock: MockClock
    ) -> None:
        async with memory_network(seed=5) as network:
            honest = start(network, 24)
            await wait_until(everybody_knows(honest, 23), 3)
            written = AP.record(network.clock.now())
            await honest[1].write(ReserveAp(written.encoded))
            liars = Liars(network, makers(12, first=500))
            bootstrap = [*(record.ref() for record in liars.records), honest[17].own_record.ref()]
            newcomer = network.start(NodeMaker(300), bootstrap)
            true = {service.own_record.node_id for service in honest}

            def known() -> set[NodeId]:
                return {record.node_id for record in newcomer.known_records()}

            assert await wait_until(lambda: true <= known(), 30) < 10
            for address in (AP6, AP4):
                found = await newcomer.resolve(address)
                assert found.key_record == written.encoded
            own = newcomer.own_record.node_id
            assert all(own in {r.node_id for r in s.known_records()} for s in honest)

    async def test_a_long_pause_is_survived_without_the_profile(
        self, autojump_clock: MockClock, tmp_path: Path
    ) -> None:
        """All records of the cache have expired, and the node of the profile is gone."""
        async with memory_network() as network:
            members = makers(6)
            file = tmp_path / "nodes"
            past = NOW - 9 * DAY
            known = book.NodeBook(ref_of(network, members[5]).node_id, random.Random(1))
            for maker in members[:5]:
                known.met(maker.record(past), past, maker.path_key)
            file.write_bytes(cachefile.dump(NETWORK.network_id, known))
            others = [network.start(maker, [ref_of(network, members[1])]) for maker in members[1:5]]
            late = network.start(members[5], [ref_of(network, members[0])], NetdbFiles(nodes=file))
            await wait_until(everybody_knows([*others, late], 4), 5)


class TestOverrides:
    KEY = SigningKey(b"o" * 32)

    def command(
        self,
        network: MemoryNetwork,
        number: int,
        action: OverrideAction,
        subject: bytes,
        **more: Any,
    ) -> bytes:
        now = network.clock.now()
        return sign_override(
            more.pop("key", self.KEY),
            NETWORK.network_id,
            number=number,
            action=action,
            subject=subject,
            created=now,
            expires=now + HOUR,
            **more,
        ).encoded

    @asynccontextmanager
    async def network(self, count: int) -> AsyncIterator[tuple[MemoryNetwork, list[NetdbService]]]:
        async with memory_network() as network:
            network.override_keys = [self.KEY.public]
            services = start(network, count)
            await wait_until(everybody_knows(services, count - 1), 3)
            yield network, services

    async def test_a_ban_cuts_a_node_from_everybody(self, autojump_clock: MockClock) -> None:
        async with self.network(24) as (network, services):
            hostile = services[7]
            node_id = hostile.own_record.node_id
            others = [service for service in services if service is not hostile]
            given = self.command(network, 1, OverrideAction.BAN_NODE, node_id)
            assert services[3].command(given)

            def cut(service: NetdbService) -> bool:
                return node_id not in {record.node_id for record in service.known_records()}

            assert await wait_until(lambda: all(map(cut, others)), 5) < 1
            await trio.sleep(120)
            assert all(map(cut, others))
            assert all(service.in_force.bans(hostile.own_record) for service in others)
            lifted = self.command(network, 2, OverrideAction.UNBAN_NODE, node_id)
            services[9].command(lifted)
            assert await wait_until(everybody_knows(others, 23), 60) < 5

    async def test_forged_and_replayed_commands_change_nothing(
        self, autojump_clock: MockClock
    ) -> None:
        async with self.network(6) as (network, services):
            victim = services[2].own_record.node_id
            forged = self.command(
                network, 1, OverrideAction.BAN_NODE, victim, key=SigningKey(b"x" * 32)
            )
            with pytest.raises(RecordRefused):
                services[1].command(forged)
            with pytest.raises(WireError):
                services[1].command(b"noise")
            caller = Caller(services[2].own_record.node_id, services[2].own_record.ips[0])
            for bad, refusal in ((forged, Refusal.SIGNATURE), (b"noise", Refusal.MALFORMED)):
                answer = await services[1].handle_call(caller, Override(bad).encode())
                assert decode_answer(answer) == Stored(refusal, b"")
            await trio.sleep(2)
            assert not any(service.commands() for service in services)
            ban = self.command(network, 1, OverrideAction.BAN_NODE, victim)
            services[1].command(ban)
            services[1].command(self.command(network, 2, OverrideAction.UNBAN_NODE, victim))
            await trio.sleep(2)
            before = network.calls.total()
            assert not services[3].command(ban)
            await trio.sleep(1)
            assert network.calls.total() - before < 10
            for service in services:
                assert not service.in_force.banned_nodes

    async def test_a_newcomer_is_told(self, autojump_clock: MockClock) -> None:
        async with self.network(6) as (network, services):
            victim = services[2].own_record.node_id
            services[1].command(self.command(network, 1, OverrideAction.BAN_NODE, victim))
            await trio.sleep(2)
            late = network.start(NodeMaker(70), [services[0].own_record.ref()])
            await wait_until(lambda: victim in late.in_force.banned_nodes, 3)

    async def test_a_newcomer_is_told_all_of_many(self, autojump_clock: MockClock) -> None:
        async with self.network(6) as (network, services):
            given = [
                self.command(network, number, OverrideAction.DELETE_RECORD, bytes([number]) * 32)
                for number in range(1, 201)
            ]
            for each in given:
                services[1].command(each)
            await wait_until(lambda: all(len(s.commands()) == 200 for s in services), 30)
            before = network.calls.total()
            late = network.start(NodeMaker(70), [services[0].own_record.ref()])
            assert await wait_until(lambda: len(late.commands()) == 200, 10) < 3
            await trio.sleep(10)
            assert network.calls.total() - before < 400  # nobody pushes them once more

    async def test_who_was_cut_off_catches_up(self, autojump_clock: MockClock) -> None:
        async with self.network(8) as (network, services):
            victim = services[2].own_record.node_id
            away = services[5].own_record.node_id
            network.allowed = lambda caller, callee: away not in {caller, callee}
            services[1].command(self.command(network, 1, OverrideAction.BAN_NODE, victim))
            await trio.sleep(20)
            assert services[1].in_force.banned_nodes == {victim}
            assert not services[5].in_force.banned_nodes
            network.allowed = lambda _caller, _callee: True
            await wait_until(lambda: services[5].in_force.banned_nodes == {victim}, 60)

    async def test_two_networks_that_merge_exchange_theirs(self, autojump_clock: MockClock) -> None:
        async with self.network(4) as (network, left):
            right = [network.start(maker, []) for maker in makers(1, first=100)]
            home = right[0].own_record.ref()
            right += [network.start(maker, [home]) for maker in makers(3, first=101)]
            await wait_until(everybody_knows(right, 3), 5)
            for number, side in ((1, left), (2, right)):
                subject = bytes([number]) * 32
                given = self.command(network, number, OverrideAction.DELETE_RECORD, subject)
                side[1].command(given)
            await trio.sleep(1)
            bridge = network.start(NodeMaker(200), [home, left[0].own_record.ref()])
            everybody = [*left, *right, bridge]
            await wait_until(lambda: all(len(s.commands()) == 2 for s in everybody), 30)

    async def test_a_restart_forgets_no_command(
        self, autojump_clock: MockClock, tmp_path: Path
    ) -> None:
        async with self.network(5) as (network, services):
            files = NetdbFiles(overrides=tmp_path / "overrides")
            maker = NodeMaker(90)
            last = network.start(maker, [services[0].own_record.ref()], files)
            victim = services[2].own_record.node_id
            services[1].command(self.command(network, 1, OverrideAction.BAN_NODE, victim))
            await wait_until(lambda: victim in last.in_force.banned_nodes, 5)
            assert files.overrides is not None
            await wait_until(files.overrides.exists, 60)
            saved = files.overrides.read_bytes()
            network.stop(last.own_record.node_id)
            await trio.sleep(1)
            network.allowed = lambda _caller, _callee: False
            again = network.start(maker, [], files)
            await trio.sleep(0.1)
            assert again.in_force.banned_nodes == {victim}
            network.stop(last.own_record.node_id)
            files.overrides.write_bytes(saved[:-1] + b"?")
            forgetful = network.start(maker, [], files)
            await trio.sleep(0.1)
            assert not forgetful.commands()

    async def test_nodes_that_can_t_be_dialed_are_told_over_their_links(
        self, autojump_clock: MockClock
    ) -> None:
        async with self.network(5) as (network, services):
            hidden = NodeMaker(80, dialable=False)
            inside = network.start(hidden, [services[0].own_record.ref()])
            await wait_until(lambda: inside.joined, 5)
            await trio.sleep(5)
            node_id = inside.own_record.node_id
            network.linked = lambda _node: [inside.own_record.ref()]
            assert all(node_id not in {r.node_id for r in s.known_records()} for s in services)
            victim = services[2].own_record.node_id
            services[1].command(self.command(network, 1, OverrideAction.BAN_NODE, victim))
            await wait_until(lambda: inside.in_force.banned_nodes == {victim}, 1)

    async def test_who_serves_other_commands_than_announced_is_not_believed(
        self, autojump_clock: MockClock
    ) -> None:
        async with self.network(4) as (network, services):
            victim = services[2].own_record.node_id
            ban = self.command(network, 1, OverrideAction.BAN_NODE, victim)
            services[1].command(ban)
            await trio.sleep(1)
            digest = digest_of(command for command, _ in services[1].commands())
            liar = NodeMaker(95)
            honest = network.service_for(liar)

            async def handle(caller: Caller, payload: bytes) -> bytes:
                if isinstance(decode_call(payload), MissedOverrides):
                    return OverrideList(()).encode()
                return await honest.handle_call(caller, payload)

            network.add_impostor(liar, handle)
            late = network.start(NodeMaker(96), [])
            record = liar.record(network.clock.now())
            call = RegisterNode(record.encoded, liar.path_key, digest).encode()
            await network.carry(record.node_id, liar, late.own_record.ref(), call)
            await trio.sleep(5)
            assert not late.commands()
            member = NodeMaker(1)
            known = services[1].own_record
            call = RegisterNode(known.encoded, member.path_key, digest).encode()
            await network.carry(known.node_id, member, late.own_record.ref(), call)
            await wait_until(lambda: late.in_force.banned_nodes == {victim}, 5)

    async def test_a_deleted_record_is_gone_and_a_pinned_one_is_back(
        self, autojump_clock: MockClock
    ) -> None:
        async with self.network(8) as (network, services):
            now = network.clock.now()
            await reserve(services[1], AP, now)
            delete = self.command(network, 1, OverrideAction.DELETE_RECORD, AP.key.public)
            services[5].command(delete)
            await trio.sleep(2)
            assert not (await services[2].resolve(AP4)).key_record
            assert (await reserve(services[1], AP, now, sequence=2)).refusal == Refusal.BANNED
            record = AP.record(now, sequence=3)
            pin = self.command(
                network, 2, OverrideAction.PIN_RECORD, AP.key.public, record=record.encoded
            )
            services[4].command(pin)
            await trio.sleep(2)
            found = await services[2].resolve(AP4)
            assert found.key_record == record.encoded
            assert [vote.storers for vote in found.votes] == [8]

    async def test_records_kept_by_who_doesn_t_obey_count_for_nothing(
        self, autojump_clock: MockClock
    ) -> None:
        async with self.network(4) as (network, services):
            network.obeying = False
            home = services[0].own_record.ref()
            stubborn = [network.start(maker, [home]) for maker in makers(6, first=60)]
            await wait_until(everybody_knows([*services, *stubborn], 9), 5)
            await reserve(services[1], AP, network.clock.now())
            victim = services[3].own_record.node_id
            for number, (action, subject) in enumerate(
                (
                    (OverrideAction.DELETE_RECORD, AP.key.public),
                    (OverrideAction.BAN_NODE, victim),
                ),
                1,
            ):
                services[1].command(self.command(network, number, action, subject))
            await trio.sleep(2)
            assert not (await services[2].resolve(AP4)).key_record
            assert not (await services[2].resolve(AP6)).key_record
            for service in stubborn:
                assert len(service.commands()) == 2  # passed on all the same
                assert victim in {record.node_id for record in service.known_records()}
                assert (await service.resolve(AP4)).key_record


class Liars:
    """Colluding nodes: they name only one another, hold nothing, and take nothing."""

    def __init__(self, network: MemoryNetwork, members: list[NodeMaker]) -> None:
        self._network = network
        self.makers = members
        now = network.clock.now()
        self.records = [maker.record(now) for maker in members]
        for maker in members:
            network.add_impostor(maker, self._handler(maker))

    def _handler(self, maker: NodeMaker) -> Handler:
        honest = self._network.service_for(maker)

        async def handle(caller: Caller, payload: bytes) -> bytes:
            match decode_call(payload):
                case ClosestNodes(target=target):
                    place = int.from_bytes(target, "big")
                    named = sorted(
                        self.records,
                        key=lambda record: int.from_bytes(record.node_id, "big") ^ place,
                    )
                    return CloserNodes(tuple(r.encoded for r in named[:20])).encode()
                case ResolveAp():
                    return Held(b"", 0, b"", b"", ()).encode()
                case ReserveAp() | ExtendApLease() | UpdateApRoutes():
                    return Stored(0, b"").encode()
                case RegisterNode():
                    return await honest.handle_call(caller, payload)
                case _:
                    raise PeerError("silence")

        return handle

    async def join(self, services: list[NetdbService]) -> None:
        """Make themselves known to everybody."""
        for maker, record in zip(self.makers, self.records, strict=True):
            call = RegisterNode(record.encoded, maker.path_key).encode()
            for service in services:
                ref = service.own_record.ref()
                await self._network.carry(record.node_id, maker, ref, call)


@pytest.mark.slow
async def test_sixty_nodes_a_fifth_of_them_liars(autojump_clock: MockClock) -> None:
    """Right answers only, and no more liars among random nodes than there are in the network."""
    async with memory_network(seed=7) as network:
        honest = start(network, 48)
        liars = Liars(network, makers(12, first=500))
        await liars.join(honest)
        await trio.sleep(20)
        false = {record.node_id for record in liars.records}
        now = network.clock.now()
        rng = random.Random(3)
        for number in range(8):
            maker = ApMaker(number)
            report = await reserve(rng.choice(honest), maker, now)
            assert report.stored >= 20
            for address in (
                ap6_address(NETWORK, maker.key.public),
                ap4_candidate(NETWORK, maker.key.public, 0),
            ):
                found = await rng.choice(honest).resolve(address)
                assert found.key_record == maker.record(now).encoded
        drawn = [
            candidate.record.node_id
            for service in honest[:5]
            for candidate in await service.random_nodes(16)
        ]
        assert len(drawn) == 80
        assert 0.1 < sum(node_id in false for node_id in drawn) / len(drawn) < 0.3
