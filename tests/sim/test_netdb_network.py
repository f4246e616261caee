"""Whole networks of netdb services in memory and virtual time: joining, dying, splitting, lying."""

from __future__ import annotations

import ipaddress
import random
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import trio
from netdb_world import (
    AP,
    AP4,
    AP6,
    Liars,
    everybody_knows,
    memory_network,
    ref_of,
    reserve,
    start,
    wait_until,
)
from structlog.testing import capture_logs
from trio.testing import MockClock

from phantom_tun.clock import DAY
from phantom_tun.errors import Unreachable
from phantom_tun.ids import NodeId
from phantom_tun.net.netdb.calls import CALL_DEADLINE
from phantom_tun.net.netdb.files import NetdbFiles
from phantom_tun.net.netdb.introductions import LAST_PAUSE
from phantom_tun.net.netdb.service import NetdbService
from phantom_tun.net.netdb.upkeep import GOSSIP_SLOW
from phantom_tun.netdb import book, cachefile
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.testing.netdb_network import makers
from phantom_tun.testing.record_factory import NETWORK, NOW, ApMaker, NodeMaker
from phantom_tun.wire.netdb import ExtendApLease, ReserveAp
from phantom_tun.wire.records import NodeAddress


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

    @pytest.mark.parametrize("first", [True, False])
    @pytest.mark.parametrize(
        ("address", "routable", "within"),
        [
            # Nodes here have IPv4 addresses, so they try those of others first.
            ("2001:db8::1", False, 0.1),
            ("2001:db8::1", True, 0.1),
            # Where nothing can be sent to, the next address is tried at once.
            ("192.0.2.7", False, 0.1),
            ("192.0.2.7", True, CALL_DEADLINE + 0.1),
        ],
    )
    async def test_a_bootstrap_node_with_an_address_that_leads_nowhere(
        self,
        autojump_clock: MockClock,
        address: str,
        *,
        routable: bool,
        within: float,
        first: bool,
    ) -> None:
        async with memory_network() as network:
            inviter = network.start(NodeMaker(0), [])
            right = inviter.own_record.ref()
            wrong = replace(right, address=ipaddress.ip_address(address))
            if not routable:
                network.unroutable.add(wrong.address)
            late = network.start(NodeMaker(1), [wrong, right] if first else [right, wrong])
            assert await wait_until(lambda: late.joined, 10) < within
            await wait_until(everybody_knows([inviter, late], 1), 3)
            assert late.unanswered() == []

    async def test_what_became_of_each_address_is_told(self, autojump_clock: MockClock) -> None:
        async with memory_network() as network:
            gone = NodeMaker(0).record().ref()
            silent = replace(gone, address=ipaddress.IPv4Address("192.0.2.7"))
            nowhere = replace(gone, address=ipaddress.IPv6Address("2001:db8::1"))
            network.unroutable.add(nowhere.address)
            network.start(NodeMaker(0), [])
            network.members[gone.node_id].silent = True
            with capture_logs() as logs:
                late = network.start(NodeMaker(1), [nowhere, silent])
                await trio.sleep(7)
            assert late.unanswered() == [
                (silent, "the node did not answer in time"),
                (nowhere, "the node can't be reached (Network is unreachable)"),
            ]
            told = {(entry["log_level"], entry["address"], entry["port"]) for entry in logs}
            assert told == {("debug", str(ref.address), ref.port) for ref in (silent, nowhere)}

    async def test_the_address_that_works_is_remembered(self, autojump_clock: MockClock) -> None:
        async with memory_network() as network:
            two = NodeMaker(0)
            nowhere = ipaddress.IPv4Address("192.0.2.9")
            network.unroutable.add(nowhere)
            record = two.record()
            addresses = (NodeAddress.of(nowhere, 443), *record.addresses)
            record = msgspec.structs.replace(record, addresses=addresses)
            calls = network.service_for(NodeMaker(1))._calls
            network.start(two, [])
            assert [ref.address for ref in calls.refs(record)] == [nowhere, two.ip]
            await calls.register(calls.refs(record))
            assert calls.ref(record).address == two.ip
            network.dialed.clear()
            await calls.register(calls.refs(record))
            assert [ref.address for ref in network.dialed] == [two.ip]

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
            other = services[2].own_record
            services[1].report_failure(other.node_id)
            assert services[1].record_of(other.node_id) == other, "as long as it is valid"
            services[1].report_success(other.node_id)
            assert len(services[1].candidates()) == 4
            now = network.clock.now()
            brief = NodeMaker(99).record(now, lifetime=60)
            assert services[1].record_of(brief.node_id) is None
            services[1]._book.met(brief, now)
            assert services[1].record_of(brief.node_id) == brief
            await trio.sleep(61)
            assert services[1].record_of(brief.node_id) is None

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
            assert await wait_until(everybody_knows(services, 10), 700) < 60

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
