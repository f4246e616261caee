"""Override commands in whole networks of netdb services: spread, obeyed, kept."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from netdb_world import AP, AP4, AP6, everybody_knows, memory_network, reserve, start, wait_until
from trio.testing import MockClock

from phantom_tun.clock import HOUR
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.errors import RecordRefused, WireError
from phantom_tun.net.netdb.files import NetdbFiles
from phantom_tun.net.netdb.service import NetdbService
from phantom_tun.netdb.banned import pack_prefix
from phantom_tun.netdb.overrides import digest_of
from phantom_tun.netdb.rules import Caller
from phantom_tun.netdb.signing import sign_override
from phantom_tun.testing.netdb_network import MemoryNetwork, makers
from phantom_tun.testing.record_factory import NETWORK, NodeMaker
from phantom_tun.wire.netdb import (
    MissedOverrides,
    Override,
    OverrideList,
    Refusal,
    RegisterNode,
    Stored,
    decode_answer,
    decode_call,
)
from phantom_tun.wire.records import OverrideAction


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
    async def network(
        self, count: int, knowing: int | None = None
    ) -> AsyncIterator[tuple[MemoryNetwork, list[NetdbService]]]:
        async with memory_network() as network:
            network.override_keys = [self.KEY.public]
            services = start(network, count)
            await wait_until(everybody_knows(services, knowing or count - 1), 3)
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

    async def test_a_newcomer_gets_to_know_the_others_whatever_is_banned(
        self, autojump_clock: MockClock
    ) -> None:
        async with self.network(70, knowing=64) as (network, services):
            late = network.start(NodeMaker(170), [services[0].own_record.ref()])
            for number, service in enumerate(services[5:], 1):
                place = ipaddress.ip_network((service.own_record.ips[0], 16), strict=False)
                ban = self.command(network, number, OverrideAction.BAN_PREFIX, pack_prefix(place))
                late.command(ban)
            assert not late.in_force.banned_prefixes
            await trio.sleep(15)
            assert len(late.known_records()) >= 60
            told = [service for service in services if service.commands()]
            assert len(told) > 60
            for service in (late, *told):
                assert 1 <= sum(service.in_force.bans(each.own_record) for each in services) <= 4

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
