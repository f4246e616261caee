"""Neighbours and pools between several nodes in memory, in virtual time: everything that TLS and
the door don't matter for."""

from __future__ import annotations

import dataclasses
import ipaddress
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from links_world import Handlers, echo, receive_all, use
from trio.testing import wait_all_tasks_blocked

from phantom_tun.errors import (
    CapacityExceeded,
    DeadlineExpired,
    LinkBroken,
    ProtocolViolation,
    UsageError,
)
from phantom_tun.ids import CertHash, NodeId
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.neighbours import TIDY_EVERY
from phantom_tun.net.links.peers import Peer
from phantom_tun.net.links.pool import SPARE_PAUSE
from phantom_tun.testing.memory_links import MemoryNetwork
from phantom_tun.wire.door import LinkKind
from phantom_tun.wire.frames import Frame
from phantom_tun.wire.nodes import NodeRef

OPENING = bytes(64)


class Node:
    def __init__(self, network, number, limits, *, dialable=True) -> None:
        address = ipaddress.ip_address(f"10.{number}.0.1")
        node_id = NodeId(bytes([number]) * 32)
        self.ref = NodeRef(node_id, CertHash(bytes([number]) * 32), address, 443)
        self.links = network.links(self.ref, limits=limits, dialable=dialable)
        if not dialable:
            self.ref = dataclasses.replace(self.ref, port=0)
        self.handlers = Handlers()

    def count(self, name):
        return self.links.statistics().get(name, 0)


@asynccontextmanager
async def world(count, limits=None, *, undialable=0, **settings):
    network = MemoryNetwork(**settings)
    nodes = [
        Node(network, number + 1, limits or LinkLimits(), dialable=number < count)
        for number in range(count + undialable)
    ]
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.links.run, [], node.handlers)
        yield network, *nodes
        nursery.cancel_scope.cancel()


# --- signalling -----------------------------------------------------------------------------------


async def test_one_link_serves_both_sides(autojump_clock):
    async with world(2) as (_, a, b):
        await a.links.signal(b.ref, b"hello")
        assert await b.links.call(a.ref, b"abc") == b"cba"
        assert await a.links.call(b.ref, b"abc") == b"cba"
        await wait_all_tasks_blocked()
        assert b.handlers.signals == [b"hello"]
        assert b.handlers.peers[0].node_id == a.ref.node_id
        assert b.handlers.peers[0].address == a.ref.address
        for node in (a, b):
            assert node.count("signalling_links") == 1
            (info,) = node.links.neighbours()
            assert info.signalling
            assert info.dialed is (node is a)
            assert info.silent == 0


async def test_who_was_dialed_can_tell(autojump_clock):
    async with world(2) as (_, a, b):
        await a.links.signal(b.ref, b"hello")
        await wait_all_tasks_blocked()
        assert (a.count("links_accepted"), b.count("links_accepted")) == (0, 1)


async def test_waiting_together_dials_once(autojump_clock):
    async with world(2, latency=0.1, dial_round_trips=3) as (_, a, b):
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(a.links.signal, b.ref, b"%d" % number)
        await trio.sleep(1)
        assert sorted(b.handlers.signals) == [b"%d" % number for number in range(10)]
        assert a.count("signalling_links") == b.count("signalling_links") == 1


async def test_simultaneous_dials_become_one_link_and_lose_nothing(autojump_clock):
    async with world(2, latency=0.1, dial_round_trips=3) as (_, a, b):

        async def chat(one, other, name):
            for number in range(40):
                await one.links.signal(other.ref, b"%s%d" % (name, number))
                assert await one.links.call(other.ref, b"ab") == b"ba"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(chat, a, b, b"a")
            nursery.start_soon(chat, b, a, b"b")
            await trio.sleep(0.65)
            assert a.count("signalling_links") == 2
        await trio.sleep(5)
        assert b.handlers.signals == [b"a%d" % number for number in range(40)]
        assert a.handlers.signals == [b"b%d" % number for number in range(40)]
        assert a.count("signalling_links") == b.count("signalling_links") == 1
        assert a.links.neighbours()[0].dialed is not b.links.neighbours()[0].dialed
        assert not a.count("lost_messages") + b.count("lost_messages")
        assert not a.count("signalling_broken") + b.count("signalling_broken")


async def test_a_link_on_which_nothing_begins_any_more_is_closed(autojump_clock):
    limits = LinkLimits(spares=0, bulk_idle=1000, bulk_surplus=1000, bulk_idle_other=50)
    async with world(2, limits) as (_, a, b):
        for _ in range(2):
            bulk = await a.links.open_bulk(b.ref, OPENING)
            await trio.sleep(200)  # one that is used isn't closed
            await bulk.send_bytes(b"x")
            assert await bulk.receive_exactly(1) == b"x"
            await bulk.send_fin()
            assert not (await bulk.receive_pooled()).segments
            await bulk.aclose()
            await trio.sleep(40)
            assert b.count("bulk_of_neighbours") == 1
        await trio.sleep(10 + TIDY_EVERY)
        assert b.count("bulk_of_neighbours") == 0
        assert not b.count("bulk_broken")


async def test_a_lost_link_is_dialed_anew(autojump_clock):
    async with world(2) as (network, a, b):
        await a.links.ensure(b.ref)
        network.kill(b.ref.node_id)
        network.revive(b.ref.node_id)
        await trio.sleep(1)
        assert await a.links.call(b.ref, b"ab") == b"ba"


async def test_an_unreachable_node_is_reported_at_once(autojump_clock):
    async with world(2) as (network, a, b):
        network.kill(b.ref.node_id)
        start = trio.current_time()
        for attempt in (
            a.links.ensure(b.ref),
            a.links.signal(b.ref, b"x"),
            a.links.call(b.ref, b"x"),
            a.links.open_bulk(b.ref, OPENING),
        ):
            with pytest.raises(LinkBroken):
                await attempt
        assert trio.current_time() == start
        await trio.sleep(10)
        assert a.links.neighbours() == []
        assert a.count("neighbours") == 0


async def test_a_wrong_ref_fails_only_for_who_uses_it(autojump_clock):
    async with world(2, latency=0.1, dial_round_trips=3) as (_, a, b):
        wrong = dataclasses.replace(b.ref, cert_hash=CertHash(b"w" * 32))

        async def fail(method, *arguments):
            with pytest.raises(LinkBroken):
                await method(wrong, *arguments)

        await fail(a.links.ensure)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, a.links.open_bulk, OPENING)
            await a.links.signal(b.ref, b"x")
        # Once the node has proved who it is, it is reached whatever the ref says.
        await a.links.ensure(wrong)


async def test_a_frozen_neighbour_is_noticed_and_all_its_links_break(autojump_clock):
    async with world(3) as (network, a, b, c):
        await a.links.ensure(b.ref)
        to_b = await a.links.open_bulk(b.ref, OPENING)
        from_b = await b.links.open_bulk(a.ref, OPENING)
        to_c = await a.links.open_bulk(c.ref, OPENING)
        network.freeze(b.ref.node_id)
        start = trio.current_time()
        with pytest.raises(LinkBroken):
            await to_b.receive_exactly(1)
        assert trio.current_time() - start <= LinkLimits().dead_after
        await wait_all_tasks_blocked()
        assert a.count("neighbours_dead") == 1
        assert a.count("bulk_of_neighbours") == 0
        with pytest.raises(DeadlineExpired):
            await a.links.call(b.ref, b"x")
        assert await use(to_c) == b"data"
        network.thaw(b.ref.node_id)
        with pytest.raises(LinkBroken):
            await from_b.receive_exactly(1)
        assert await a.links.call(b.ref, b"ab") == b"ba"


async def test_links_that_start_over_break_and_are_made_anew(autojump_clock):
    async with world(2) as (_, ours, theirs):
        await ours.links.signal(theirs.ref, b"before")
        bulk = await ours.links.open_bulk(theirs.ref, OPENING)
        ours.links.start_over()
        with pytest.raises(LinkBroken):
            await bulk.receive_exactly(1)
        assert await ours.links.call(theirs.ref, b"olleh") == b"hello"
        await wait_all_tasks_blocked()
        assert ours.count("signalling_links") == theirs.count("signalling_links") == 1


async def test_what_callers_get_wrong_is_their_mistake(autojump_clock):
    async with world(2) as (_, a, b):
        for attempt in (
            a.links.signal(b.ref, b""),
            a.links.signal(b.ref, bytes(1025)),
            a.links.call(b.ref, bytes(64_001)),
            a.links.open_bulk(b.ref, bytes(63)),
        ):
            with pytest.raises(UsageError):
                await attempt


async def test_links_that_do_not_run_say_so(autojump_clock):
    node = Node(MemoryNetwork(), 1, LinkLimits())
    with pytest.raises(LinkBroken):
        await node.links.ensure(node.ref)


async def test_surplus_signalling_links_are_closed(autojump_clock):
    limits = LinkLimits(signalling_per_neighbour=2)
    async with world(2, limits) as (network, a, b):
        for _ in range(4):
            near, far = network.connect(a.ref.node_id, b.ref.node_id, LinkKind.SIGNALLING)
            b.links.spawn_accept(far, _peer(a), LinkKind.SIGNALLING)
            await wait_all_tasks_blocked()
        assert b.count("drop_signalling_surplus") == 2
        assert b.count("signalling_links") == 2
        assert near.usable


def _peer(node):
    return Peer(node.ref.node_id, node.ref.address)


async def test_neighbours_are_limited(autojump_clock):
    limits = LinkLimits(neighbours=2)
    async with world(4, limits) as (_, a, b, c, d):
        await b.links.ensure(a.ref)
        await trio.sleep(1)
        await a.links.ensure(c.ref)
        await a.links.ensure(d.ref)
        # b, whom a doesn't need, had to go
        ids = {info.node_id for info in a.links.neighbours()}
        assert ids == {c.ref.node_id, d.ref.node_id}
        assert a.count("drop_neighbour_limit") == 1
        await wait_all_tasks_blocked()
        assert b.count("signalling_links") == 0


async def test_neighbours_at_one_address_are_limited(autojump_clock):
    async with world(3, LinkLimits(neighbours_per_address=1)) as (_, a, b, c):
        c.links.ref = dataclasses.replace(c.ref, address=b.ref.address)
        await b.links.ensure(a.ref)
        await wait_all_tasks_blocked()
        await c.links.ensure(a.ref)
        await wait_all_tasks_blocked()
        assert a.count("drop_neighbour_address") == 1
        assert c.count("signalling_links") == 0
        await b.links.open_bulk(a.ref, OPENING)  # who is there already is not concerned
        assert await a.links.call(c.links.ref, b"ab") == b"ba"  # nor are our own dials


def _move(node, address):
    node.links.ref = dataclasses.replace(node.ref, address=ipaddress.ip_address(address))


def _ids(node):
    return {info.node_id for info in node.links.neighbours()}


async def test_neighbours_in_one_network_are_limited(autojump_clock):
    async with world(5, LinkLimits(neighbours_per_network=2)) as (_, a, b, c, d, e):
        for number, node in enumerate((b, c, d)):
            _move(node, f"2001:db8:{number}::1")
        _move(e, "2001:db9::1")
        for node in (b, c, d, e):
            await node.links.ensure(a.ref)
            await wait_all_tasks_blocked()
        assert _ids(a) == {b.ref.node_id, c.ref.node_id, e.ref.node_id}
        assert a.count("drop_neighbour_network") == 1
        await a.links.ensure(d.links.ref)  # our own dials are not concerned
        assert d.ref.node_id in _ids(a)


@pytest.mark.parametrize("crowd", ["2001:db8:{}::1", "198.51.{}.1"])
async def test_the_most_crowded_network_loses_a_neighbour(autojump_clock, crowd):
    async with world(6, LinkLimits(neighbours=4)) as (_, a, b, c, d, e, f):
        _move(c, crowd.format(1))
        _move(d, crowd.format(2))
        await b.links.ensure(a.ref)
        await trio.sleep(5)
        for node in (c, d, e, f):
            await node.links.ensure(a.ref)
            await trio.sleep(1)
        # b has been silent longest, but is alone where it is
        assert _ids(a) == {b.ref.node_id, d.ref.node_id, e.ref.node_id, f.ref.node_id}
        assert a.count("drop_neighbour_limit") == 1


async def test_neighbours_with_uses_in_either_direction_stay(autojump_clock):
    async with world(6, LinkLimits(neighbours=3, spares=0)) as (_, a, b, c, d, e, f):
        for number, node in enumerate((b, c)):
            _move(node, f"2001:db8:{number}::1")
        theirs = await b.links.open_bulk(a.ref, OPENING)
        ours = await a.links.open_bulk(c.links.ref, OPENING)
        await wait_all_tasks_blocked()
        await trio.sleep(1)
        for node in (d, e, f):
            await node.links.ensure(a.ref)
            await trio.sleep(1)
        assert _ids(a) == {b.ref.node_id, c.ref.node_id, f.ref.node_id}
        assert await use(theirs) == b"data"
        assert await use(ours) == b"data"


async def test_a_use_that_is_over_protects_nobody(autojump_clock):
    async with world(4, LinkLimits(neighbours=2, spares=0)) as (_, a, b, c, d):
        assert await use(await b.links.open_bulk(a.ref, OPENING)) == b"data"
        await trio.sleep(1)
        await c.links.ensure(a.ref)
        await d.links.ensure(a.ref)
        await wait_all_tasks_blocked()
        assert _ids(a) == {c.ref.node_id, d.ref.node_id}


async def test_there_is_room_even_if_all_neighbours_have_uses(autojump_clock):
    async with world(4, LinkLimits(neighbours=2, spares=0)) as (_, a, b, c, d):
        for node in (b, c):
            await node.links.open_bulk(a.ref, OPENING)
        await wait_all_tasks_blocked()
        assert await d.links.call(a.ref, b"ab") == b"ba"
        assert len(_ids(a)) == 2
        assert a.count("drop_neighbour_limit") >= 1


async def test_pings_make_nobody_useful(autojump_clock):
    async with world(4, LinkLimits(neighbours=2)) as (_, a, b, c, d):
        await b.links.ensure(a.ref)
        await trio.sleep(1)
        await c.links.ensure(a.ref)
        await trio.sleep(1)
        b.links._neighbours[a.ref.node_id].best_link()._reply(Frame.PING)
        await wait_all_tasks_blocked()
        silent = {info.node_id: info.silent for info in a.links.neighbours()}
        assert silent[b.ref.node_id] < silent[c.ref.node_id]
        await d.links.ensure(a.ref)
        await wait_all_tasks_blocked()
        assert _ids(a) == {c.ref.node_id, d.ref.node_id}


async def test_whom_we_are_dialing_stays(autojump_clock, nursery):
    network_settings = {"latency": 0.1, "dial_round_trips": 30}
    async with world(4, LinkLimits(neighbours=2), **network_settings) as (network, a, b, c, d):
        nursery.start_soon(a.links.ensure, b.ref)
        await trio.sleep(1)
        for node in (c, d):
            _, far = network.connect(node.ref.node_id, a.ref.node_id, LinkKind.SIGNALLING)
            a.links.spawn_accept(far, _peer(node), LinkKind.SIGNALLING)
            await trio.sleep(0.1)
        await trio.sleep(10)
        assert _ids(a) == {b.ref.node_id, d.ref.node_id}


async def test_a_node_is_its_own_neighbour(autojump_clock):
    """An exit node can be the entry node of the same connection."""
    async with world(1) as (_, a):
        await a.links.signal(a.ref, b"hello")
        assert await a.links.call(a.ref, b"ab") == b"ba"
        await wait_all_tasks_blocked()
        assert a.handlers.signals == [b"hello"]
        for _ in range(2):
            assert await use(await a.links.open_bulk(a.ref, OPENING), bytes(500_000)) == bytes(
                500_000
            )
        await trio.sleep(100)
        assert await a.links.call(a.ref, b"ab") == b"ba"


# --- bulk links -----------------------------------------------------------------------------------


async def test_links_are_used_again(autojump_clock):
    async with world(2, LinkLimits(spares=0)) as (network, a, b):
        for number in range(5):
            opening = bytes([number]) * 64
            assert await use(await a.links.open_bulk(b.ref, opening)) == b"data"
            assert b.handlers.openings[-1] == opening
        assert len({item.link for item in network.recorded if item.kind == "bulk"}) == 1


async def test_a_late_fin_still_gives_the_link_back(autojump_clock):
    async with world(2, LinkLimits(spares=0), latency=0.1) as (network, a, b):
        for _ in range(3):
            bulk = await a.links.open_bulk(b.ref, OPENING)
            await bulk.send_fin()
            await bulk.aclose()
            await trio.sleep(1)
        assert a.count("bulk_idle") == 1
        assert len({item.link for item in network.recorded if item.kind == "bulk"}) == 1


async def test_a_fin_that_never_comes_closes_the_link(autojump_clock):
    async with world(2, LinkLimits(spares=0)) as (_, a, b):

        async def never(bulk):
            await receive_all(bulk)
            await trio.sleep_forever()

        b.handlers.on_bulk = never
        bulk = await a.links.open_bulk(b.ref, OPENING)
        await bulk.send_fin()
        await bulk.aclose()
        await trio.sleep(LinkLimits().fin_deadline + 1)
        assert a.count("bulk_idle") == a.count("bulk_in_use") == 0


async def test_data_after_our_interest_has_ended_closes_the_link(autojump_clock):
    async with world(2, LinkLimits(spares=0)) as (_, a, b):

        async def talk(bulk):
            await receive_all(bulk)
            await trio.sleep(1)
            await bulk.send_bytes(b"more")
            await bulk.send_fin()

        b.handlers.on_bulk = talk
        bulk = await a.links.open_bulk(b.ref, OPENING)
        await bulk.send_fin()
        await bulk.aclose()
        await trio.sleep(2)
        assert a.count("bulk_not_settled") == 1
        assert a.count("bulk_idle") == a.count("bulk_in_use") == 0


async def test_the_accepting_side_settles_too(autojump_clock):
    async with world(2, LinkLimits(spares=0), latency=0.1) as (network, a, b):

        async def hasty(bulk):
            await bulk.send_fin()

        b.handlers.on_bulk = hasty
        for _ in range(2):
            bulk = await a.links.open_bulk(b.ref, OPENING)
            assert await receive_all(bulk) == b""
            await trio.sleep(1)
            await bulk.send_fin()
            await bulk.aclose()
            await trio.sleep(1)
        assert len({item.link for item in network.recorded if item.kind == "bulk"}) == 1


@pytest.mark.parametrize("error", [ProtocolViolation("no"), LinkBroken("gone")])
async def test_a_handler_that_fails_resets_the_link(autojump_clock, error):
    async with world(2, LinkLimits(spares=0)) as (_, a, b):

        async def fail(_bulk):
            raise error

        b.handlers.on_bulk = fail
        bulk = await a.links.open_bulk(b.ref, OPENING)
        with pytest.raises(LinkBroken):
            await bulk.receive_exactly(1)
        assert b.count("bulk_handler_failed") == 1
        bulk.reset()
        assert a.count("bulk_idle") == a.count("bulk_in_use") == 0


async def test_a_handler_that_returns_early_resets_the_link(autojump_clock):
    async with world(2, LinkLimits(spares=0)) as (_, a, b):

        async def leave(_bulk):
            pass

        b.handlers.on_bulk = leave
        bulk = await a.links.open_bulk(b.ref, OPENING)
        with pytest.raises(LinkBroken):
            await bulk.receive_exactly(1)


async def test_an_idle_link_that_was_closed_is_replaced_before_the_opening_counts(autojump_clock):
    async with world(2, LinkLimits(spares=0)) as (_, a, b):
        assert await use(await a.links.open_bulk(b.ref, OPENING)) == b"data"
        (served,) = b.links._neighbours[a.ref.node_id].served
        served.connection.close()
        assert await use(await a.links.open_bulk(b.ref, OPENING)) == b"data"
        assert a.count("bulk_idle_broken") == 1


async def test_an_idle_link_that_breaks_while_the_opening_is_written_is_replaced(autojump_clock):
    async with world(2, LinkLimits(spares=0)) as (network, a, b):
        assert await use(await a.links.open_bulk(b.ref, OPENING)) == b"data"
        first = network.recorded[-1].link
        network.on_transfer = lambda item: None if item.link == first else item.data
        assert await use(await a.links.open_bulk(b.ref, OPENING)) == b"data"


async def test_a_burst_leaves_spares_for_the_next(autojump_clock):
    limits = LinkLimits(spare_after=0)
    async with world(2, limits, latency=0.1, dial_round_trips=3) as (_, a, b):

        async def one():
            start = trio.current_time()
            assert await use(await a.links.open_bulk(b.ref, OPENING)) == b"data"
            waits.append(trio.current_time() - start)

        for expected in (0.8, 0.2):
            waits = []
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(one)
            assert max(waits) == pytest.approx(expected)
            await trio.sleep(2)
        assert a.count("bulk_idle") == 16


async def test_who_waits_takes_what_comes_back_first(autojump_clock):
    async with world(2, LinkLimits(spares=0), latency=0.1, dial_round_trips=30) as (_, a, b):
        bulk = await a.links.open_bulk(b.ref, OPENING)
        start = trio.current_time()

        async def give_back():
            await trio.sleep(1)
            assert await use(bulk) == b"data"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_back)
            second = await a.links.open_bulk(b.ref, OPENING)
            assert trio.current_time() - start == pytest.approx(1.2)
        await trio.sleep(10)
        assert a.count("bulk_idle") == 1  # what was dialed meanwhile
        second.reset()


async def test_who_is_new_gets_no_spares(autojump_clock):
    limits = LinkLimits()
    async with world(2, limits) as (_, a, b):
        bulks = [await a.links.open_bulk(b.ref, OPENING) for _ in range(5)]
        await trio.sleep(limits.spare_after - 1)
        assert a.count("bulk_spares_dialed") == 0
        await trio.sleep(1 + 2 * TIDY_EVERY)
        assert a.count("bulk_spares_dialed") == a.count("bulk_idle") == 1
        bulks += [await a.links.open_bulk(b.ref, OPENING) for _ in range(4)]
        await trio.sleep(1)
        assert a.count("bulk_idle") == 4
        for bulk in bulks:
            assert await use(bulk) == b"data"


async def test_brief_uses_call_for_no_spares(autojump_clock):
    async with world(2, LinkLimits(spare_after=0)) as (_, a, b):
        for _ in range(5):
            assert await use(await a.links.open_bulk(b.ref, OPENING, brief=True)) == b"data"
        await trio.sleep(2 * TIDY_EVERY)
        assert a.count("bulk_spares_dialed") == 0
        assert a.count("bulk_idle") == 1
        bulk = await a.links.open_bulk(b.ref, OPENING)
        await trio.sleep(1)
        assert a.count("bulk_spares_dialed") == 1
        assert await use(bulk) == b"data"


async def test_spares_follow_use_and_expire(autojump_clock):
    limits = LinkLimits(spare_after=0)
    async with world(2, limits) as (_, a, b):
        bulks = [await a.links.open_bulk(b.ref, OPENING) for _ in range(5)]
        await trio.sleep(1)
        assert a.count("bulk_idle") == 5
        for bulk in bulks:
            assert await use(bulk) == b"data"
        assert a.count("bulk_idle") == 10
        await trio.sleep(limits.spare_window + limits.bulk_surplus + 10)
        assert a.count("bulk_idle") == 1
        await trio.sleep(limits.spare_active + limits.bulk_surplus + 10)
        assert a.count("bulk_idle") == 0
        await wait_all_tasks_blocked()
        assert b.count("bulk_of_neighbours") == 0


async def test_old_links_are_replaced_while_a_neighbour_is_active(autojump_clock):
    limits = LinkLimits(spare_active=10_000)
    async with world(2, limits) as (network, a, b):
        assert await use(await a.links.open_bulk(b.ref, OPENING)) == b"data"
        await trio.sleep(3000)
        assert a.count("bulk_idle") == 1
        assert await use(await a.links.open_bulk(b.ref, OPENING)) == b"data"
        assert max(item.link for item in network.recorded) > 5
        assert b.count("bulk_broken") == 0


async def test_no_spares_for_a_while_when_they_can_not_be_dialed(autojump_clock):
    async with world(2, LinkLimits(spare_after=0)) as (network, a, b):
        bulk = await a.links.open_bulk(b.ref, OPENING)
        await trio.sleep(1)
        network.kill(b.ref.node_id)
        bulk.reset()
        await trio.sleep(6)
        network.revive(b.ref.node_id)
        await b.links.ensure(a.ref)
        await trio.sleep(SPARE_PAUSE / 2)
        assert a.count("bulk_idle") == 0
        await trio.sleep(SPARE_PAUSE)
        assert a.count("bulk_idle") == 1


async def test_idle_links_are_limited(autojump_clock):
    async with world(2, LinkLimits(spares=0, idle_bulk=3)) as (_, a, b):
        bulks = [await a.links.open_bulk(b.ref, OPENING) for _ in range(5)]
        for bulk in bulks:
            assert await use(bulk) == b"data"
        assert a.count("bulk_idle") == 3


async def test_waiting_is_limited_and_has_a_deadline(autojump_clock):
    limits = LinkLimits(waiting=1, open_deadline=2, spares=0)
    async with world(2, limits) as (network, a, b):
        network.freeze(b.ref.node_id)
        async with trio.open_nursery() as nursery:

            async def wait():
                start = trio.current_time()
                with pytest.raises(DeadlineExpired):
                    await a.links.open_bulk(b.ref, OPENING)
                assert trio.current_time() - start == 2

            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            with pytest.raises(CapacityExceeded):
                await a.links.open_bulk(b.ref, OPENING)
            assert a.count("drop_bulk_queue_full") == 1


async def test_a_cancelled_wait_keeps_what_it_would_have_got(autojump_clock):
    async with world(2, LinkLimits(spares=0), latency=0.1, dial_round_trips=3) as (_, a, b):
        with trio.move_on_after(0.3):
            await a.links.open_bulk(b.ref, OPENING)
        await trio.sleep(1)
        assert a.count("bulk_idle") == 1
        assert await use(await a.links.open_bulk(b.ref, OPENING)) == b"data"


@pytest.mark.parametrize(
    "limit", ["bulk_per_neighbour", "bulk_per_address", "bulk_per_network", "bulk_served"]
)
async def test_links_of_a_neighbour_are_limited(autojump_clock, limit):
    limits = dataclasses.replace(LinkLimits(spares=0), **{limit: 2})
    async with world(2, limits) as (_, a, b):
        bulks = [await a.links.open_bulk(b.ref, OPENING) for _ in range(2)]
        with pytest.raises(LinkBroken):
            await (await a.links.open_bulk(b.ref, OPENING)).receive_exactly(1)
        assert b.count("drop_bulk_limit") == 1
        for bulk in bulks:
            assert await use(bulk) == b"data"


async def test_a_bulk_link_brings_a_signalling_link(autojump_clock):
    async with world(2) as (_, a, b):
        bulk = await a.links.open_bulk(b.ref, OPENING)
        await wait_all_tasks_blocked()
        assert a.count("signalling_links") == b.count("signalling_links") == 1
        await trio.sleep(2 * LinkLimits().signalling_idle)
        assert a.count("signalling_links") == 1  # as long as the bulk link is in use
        assert await use(bulk) == b"data"


async def test_a_lost_signalling_link_is_replaced_while_bulk_links_are_in_use(autojump_clock):
    async with world(2) as (_, a, b):
        bulk = await a.links.open_bulk(b.ref, OPENING)
        await wait_all_tasks_blocked()
        a.links._neighbours[b.ref.node_id].best_link().close()
        await wait_all_tasks_blocked()
        assert a.count("signalling_links") == 0
        await trio.sleep(6)
        assert a.count("signalling_links") == 1
        assert await use(bulk) == b"data"


async def test_stopping_breaks_every_link(autojump_clock):
    async with world(2) as (network, a, b):
        async with trio.open_nursery() as nursery:
            c = Node(network, 9, LinkLimits())
            await nursery.start(c.links.run, [], c.handlers)
            ours = await c.links.open_bulk(a.ref, OPENING)
            theirs = await b.links.open_bulk(c.ref, OPENING)
            nursery.cancel_scope.cancel()
        for bulk in (ours, theirs):
            with pytest.raises(LinkBroken):
                await bulk.receive_exactly(1)
        assert c.links.neighbours() == []


# --- nodes that can't be dialed -------------------------------------------------------------------


async def test_who_can_not_be_dialed_is_reached_over_its_own_link(autojump_clock):
    async with world(1, undialable=1) as (_, a, hidden):
        with pytest.raises(LinkBroken, match="can't be dialed"):
            await a.links.signal(hidden.ref, b"x")
        with pytest.raises(LinkBroken, match="can't be dialed"):
            await a.links.open_bulk(hidden.ref, OPENING)
        await hidden.links.ensure(a.ref)
        await wait_all_tasks_blocked()
        await a.links.signal(hidden.ref, b"x")
        assert await a.links.call(hidden.ref, b"ab") == b"ba"
        assert hidden.handlers.signals == [b"x"]


async def test_who_can_not_be_dialed_dials_bulk_links_when_asked(autojump_clock):
    async with world(1, undialable=1, latency=0.1, dial_round_trips=3) as (_, a, hidden):
        await hidden.links.ensure(a.ref)
        await wait_all_tasks_blocked()
        for number in range(3):
            start = trio.current_time()
            bulk = await a.links.open_bulk(hidden.ref, bytes([number]) * 64)
            assert trio.current_time() - start == pytest.approx(0.7 if number == 0 else 0)
            assert await use(bulk) == b"data"
            await trio.sleep(2)
        assert hidden.handlers.openings == [bytes([number]) * 64 for number in range(3)]
        # the other way round needs no asking
        assert await use(await hidden.links.open_bulk(a.ref, OPENING)) == b"data"


async def test_a_burst_towards_who_can_not_be_dialed(autojump_clock):
    async with world(1, undialable=1) as (_, a, hidden):
        await hidden.links.ensure(a.ref)
        await wait_all_tasks_blocked()

        async def one():
            assert await use(await a.links.open_bulk(hidden.ref, OPENING)) == b"data"

        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(one)


async def test_a_dial_that_fails_is_followed_by_asking(autojump_clock):
    """Behind a firewall that lets only outgoing connections pass."""
    async with world(1, undialable=1) as (_, a, hidden):
        await hidden.links.ensure(a.ref)
        await wait_all_tasks_blocked()
        claims_to_be_dialable = dataclasses.replace(hidden.ref, port=443)
        assert await use(await a.links.open_bulk(claims_to_be_dialable, OPENING)) == b"data"


async def test_an_ask_that_can_not_be_followed_is_declined(autojump_clock):
    async with world(2) as (_, a, b):
        await a.links.ensure(b.ref)
        # b has never dialed a, so it doesn't know where to
        start = trio.current_time()
        with pytest.raises(LinkBroken, match="won't dial"):
            await a.links.open_bulk(dataclasses.replace(b.ref, port=0), OPENING)
        await b.links.ensure(a.ref)
        b.links._neighbours[a.ref.node_id].ref = dataclasses.replace(a.ref, port=9)
        with pytest.raises(LinkBroken, match="won't dial"):
            await a.links.open_bulk(dataclasses.replace(b.ref, port=0), OPENING)
        assert trio.current_time() == start


async def test_who_waits_for_a_dial_learns_that_the_link_is_gone(autojump_clock):
    async with world(1, undialable=1, latency=1, dial_round_trips=3) as (network, a, hidden):
        await hidden.links.ensure(a.ref)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:

            async def open_():
                with pytest.raises(LinkBroken):
                    await a.links.open_bulk(hidden.ref, OPENING)

            nursery.start_soon(open_)
            await trio.sleep(1.5)
            network.kill(hidden.ref.node_id)


async def test_links_nobody_asked_for_are_closed(autojump_clock):
    async with world(1, undialable=1) as (network, a, hidden):
        near, far = network.connect(hidden.ref.node_id, a.ref.node_id, LinkKind.BULK_FOR_OTHER)
        a.links.spawn_accept(far, _peer(hidden), LinkKind.BULK_FOR_OTHER)
        await wait_all_tasks_blocked()
        assert a.count("drop_bulk_not_asked_for") == 1
        assert not far.usable
        near.close()


async def test_recorded_traffic_can_be_lost_and_altered(autojump_clock):
    """The memory network's own promises."""
    async with world(2) as (network, a, b):
        network.on_transfer = lambda item: None
        await a.links.signal(b.ref, b"lost")
        with pytest.raises(DeadlineExpired):
            await a.links.call(b.ref, b"lost")
        network.on_transfer = lambda item: None if item.kind == "answer" else item.data
        with pytest.raises(DeadlineExpired):
            await a.links.call(b.ref, b"abc")
        network.on_transfer = lambda item: item.data.replace(b"data", b"atad")
        assert await use(await a.links.open_bulk(b.ref, OPENING)) == b"data"[::-1]
        kinds = {item.kind for item in network.between(a.ref.node_id, b.ref.node_id)}
        assert kinds == {"signal", "call", "answer", "bulk"}
        assert {item.receiver for item in network.received_by(b.ref.node_id)} == {b.ref.node_id}


async def test_echo_is_what_the_other_tests_think(autojump_clock):
    async with world(2) as (_, a, b):
        b.handlers.on_bulk = echo
        data = bytes(range(256)) * 3000
        assert await use(await a.links.open_bulk(b.ref, OPENING), data) == data


async def test_spares_on_their_way_are_not_kept_once_all_links_are_closed(autojump_clock):
    limits = LinkLimits(spare_after=0)
    async with world(2, limits, latency=1.0, dial_round_trips=1) as (_, a, b):
        await a.links.open_bulk(b.ref, OPENING)
        neighbour = a.links._neighbours[b.ref.node_id]
        assert not neighbour.pool.idle
        assert not neighbour.pool.empty
        neighbour.close()
        await trio.sleep(2.1)
        assert a.count("bulk_spares_dialed") == 1
        assert not neighbour.pool.idle


# --- banned nodes ---------------------------------------------------------------------------------


async def test_a_barred_node_loses_its_links_at_once(autojump_clock):
    async with world(3) as (_, a, b, c):
        await a.links.signal(b.ref, b"hello")
        await c.links.signal(a.ref, b"hello")
        mine = await a.links.open_bulk(b.ref, OPENING)
        theirs = await b.links.open_bulk(a.ref, OPENING)
        a.links.bar(lambda node_id, _address: node_id == b.ref.node_id)
        assert [found.node_id for found in a.links.neighbours()] == [c.ref.node_id]
        for bulk in (mine, theirs):
            with pytest.raises(LinkBroken):
                await bulk.receive_exactly(1)
        assert a.count("drop_neighbour_banned") == 1
        await wait_all_tasks_blocked()
        assert not any(found.signalling for found in b.links.neighbours())
        assert a.count("bulk_of_neighbours") == 0


async def test_a_barred_node_gets_no_new_links(autojump_clock):
    async with world(2) as (_, a, b):
        a.links.bar(lambda _node_id, address: address == b.ref.address)
        for dial in (a.links.ensure, partial(a.links.open_bulk, opening=OPENING)):
            with pytest.raises(LinkBroken, match="banned"):
                await dial(b.ref)
        with pytest.raises(LinkBroken):
            await b.links.call(a.ref, b"abc")
        with pytest.raises(LinkBroken):
            await use(await b.links.open_bulk(a.ref, OPENING))
        assert not a.handlers.peers
        assert not a.links.neighbours()
        assert a.count("drop_link_of_banned") >= 2
        a.links.bar(lambda _node_id, _address: False)
        assert await b.links.call(a.ref, b"abc") == b"cba"


async def test_a_node_that_is_barred_while_it_is_dialed(autojump_clock):
    async with world(2, latency=1.0, dial_round_trips=1) as (_, a, b):
        async with trio.open_nursery() as nursery:

            async def dial():
                with pytest.raises(LinkBroken, match="banned"):
                    await a.links.ensure(b.ref)

            nursery.start_soon(dial)
            await wait_all_tasks_blocked()
            a.links.bar(lambda node_id, _address: node_id == b.ref.node_id)
        assert not a.links.neighbours()
