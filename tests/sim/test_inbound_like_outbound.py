"""No hop can tell from what passes it whether it is part of an exit path or of an entry path, and
so on which side of it the owner is: idle paths from their first block to their last."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter

import pytest
import trio
from test_tunnels import both_paths, connected, exchange, lay_path, world
from trio.testing import MockClock
from whole_network import events

from phantom_tun.errors import DeadlineExpired, PathUnavailable, Unreachable
from phantom_tun.testing.path_nodes import TrioClock
from phantom_tun.testing.record_factory import ApMaker
from phantom_tun.wire.frames import Frame
from phantom_tun.wire.tunnel import Opening

LIFE = 500.0
"""Seconds until the owners stop using the paths."""
EARLY = 200.0
"""Seconds until they do if they have replaced them before."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """Something that one hop saw."""

    from_announcer: bool
    """Whether it came from the side that sends the blocks."""
    what: str
    size: int
    moment: float


class Watch:
    """Notes when things were sent, as the medium doesn't."""

    def __init__(self, network):
        self.moments = []
        pass_on = network.on_transfer
        self.network = network

        def note(item):
            self.moments.append(trio.current_time())
            return pass_on(item)

        network.on_transfer = note

    def at(self, hop, announcer_side, other_side):
        """What came to ``hop`` from its two neighbours on one path, in order."""
        found = []
        kinds = {}
        for event in events(self.network):
            if event.receiver != hop or event.sender not in {announcer_side, other_side}:
                continue
            if event.frame is Frame.OPEN:
                kinds[event.link] = event.payload[0]
            if event.link and kinds.get(event.link, Opening.TUNNEL) != Opening.TUNNEL:
                continue
            moment = self.moments[event.number]
            found.append(
                Seen(event.sender == announcer_side, event.frame.name, len(event.payload), moment)
            )
        return found


def let_time_pass(nodes):
    """Give the nodes a wall clock that follows trio's."""
    clock = TrioClock(time.time())
    for node in nodes:
        node.hub.clock = clock


def ids(nodes, *numbers):
    return [nodes[number].ref.node_id for number in numbers]


@dataclasses.dataclass
class Lives:
    """What the hops next to the senders of blocks saw, on an exit and on an entry path. (A hop
    further away sees the same later: how far away the two ends are is not hidden.)"""

    outbound: list[Seen]
    inbound: list[Seen]


async def observe(used_for):
    """Two idle paths, the owner of one of which publishes a few things meanwhile, over their whole
    lives, or out of use from some time on."""
    async with world(8) as (network, nodes):
        network.latency = 0.05
        watch = Watch(network)
        let_time_pass(nodes)
        caller, callee = nodes[0], nodes[-1]
        ends = time.time() + LIFE
        way_out = lay_path(caller, nodes[1:4], "exit")
        way_in = lay_path(callee, nodes[4:7], "entry")
        (hop,) = [host.hop for host in nodes[6].hops._hops.values()]
        route = ApMaker(1).route(time.time(), entry_node=nodes[6].ref.node_id, lifetime=LIFE)
        nodes[6].hops.remove(hop)
        nodes[6].hops.add(dataclasses.replace(hop, route=route.encoded))
        way_out, way_in = (
            dataclasses.replace(path, retires=ends, expires=ends + 60) for path in (way_out, way_in)
        )
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.connector.adopt, way_out)
            nursery.start_soon(callee.connector.adopt, way_in)
        for _ in range(3):
            await trio.sleep(60)
            callee.connector.queue_update("default", b"update")
        await trio.sleep(began + used_for - trio.current_time())
        caller.connector.drop(way_out)
        callee.connector.drop(way_in)
        assert not caller.connector.users() + callee.connector.users()
        await trio.sleep(LIFE - used_for + 120)
        assert nodes[6].database.calls == [b"update"] * 3
        assert not caller.connector._ending, "afterwards nothing of them is left"
        assert not callee.connector._ending
        exit_hop, exit_inner, exit_outer = ids(nodes, 1, 0, 2)
        entry_hop, entry_inner, entry_outer = ids(nodes, 5, 4, 6)
        lives = Lives(
            watch.at(exit_hop, exit_inner, exit_outer),
            watch.at(entry_hop, entry_outer, entry_inner),
        )
        for node in nodes:
            assert not node.hub.counts["internal_errors"]
        return lives


async def observe_private():
    """A path that is built for one question, over its whole life."""
    async with world(8) as (network, nodes):
        network.latency = 0.05
        watch = Watch(network)
        let_time_pass(nodes)
        owner = nodes[0]
        ends = time.time() + LIFE

        async def private_exit(_identity):
            way = lay_path(owner, nodes[1:4], "exit")
            return dataclasses.replace(way, retires=ends, expires=ends + 60)

        owner.private_exit = private_exit
        assert await owner.connector.netdb_call("default", b"?", private=True) == b"answer to ?"
        await trio.sleep(LIFE + 120)
        assert not owner.connector._ending
        assert not owner.connector._private
        return watch.at(*ids(nodes, 1, 0, 2))


@pytest.fixture(scope="module")
def lives():
    return trio.run(observe, LIFE, clock=MockClock(autojump_threshold=0))


@pytest.fixture(scope="module")
def replaced():
    return trio.run(observe, EARLY, clock=MockClock(autojump_threshold=0))


@pytest.fixture(scope="module")
def private():
    return trio.run(observe_private, clock=MockClock(autojump_threshold=0))


def begins(seen):
    """The first seconds, as (side, what, size, moment since the first block in 50 ms)."""
    first = seen[0].moment
    return [
        (one.from_announcer, one.what, one.size, round(20 * (one.moment - first)))
        for one in seen
        if one.moment - first < 10
    ]


def test_a_path_begins_in_the_same_way(lives):
    assert begins(lives.outbound) == begins(lives.inbound)
    assert Counter(what for _, what, *_ in begins(lives.outbound))["OPEN"] >= 3


def test_an_idle_path_is_kept_ready_in_the_same_way(lives):
    for seen in (lives.outbound, lives.inbound):
        what = Counter((one.from_announcer, one.what) for one in seen)
        assert set(what) == {
            (True, "SIGNAL"),
            (False, "OPEN"),
            (False, "DATA"),
            (True, "RESET"),
        }, "blocks and the ends of tunnels come from one side, tunnels from the other"
        assert what[True, "SIGNAL"] > 9


def test_a_path_ends_in_the_same_way_whatever_it_was_for_and_whether_it_is_used(
    lives, replaced, private
):
    paths = (lives.outbound, lives.inbound, replaced.outbound, replaced.inbound, private)
    for seen in paths:
        began = seen[0].moment
        assert began + LIFE - 120 < max(one.moment for one in seen if one.what == "SIGNAL")
        assert max(one.moment for one in seen if one.what == "SIGNAL") < began + LIFE
        # A tunnel may just have been replaced, or be about to.
        signals = [one.moment for one in seen if one.what == "SIGNAL"]
        end = max(began + LIFE - 3, *signals)
        last = [one.what for one in seen if one.from_announcer and one.moment > end]
        assert last in (["RESET"] * 3, ["RESET"] * 4)
        assert max(one.moment for one in seen if not one.from_announcer) < began + LIFE + 0.5


async def test_a_path_on_which_nobody_answers_is_knocked_at_in_the_same_way(autojump_clock):
    async with world(8) as (network, nodes):
        watch = Watch(network)
        way_out = lay_path(nodes[0], nodes[1:4], "exit")
        lay_path(nodes[7], nodes[4:7], "entry")
        nodes[1].hops.remove(next(iter(nodes[1].hops._hops.values())).hop)
        with pytest.raises(DeadlineExpired):
            await nodes[0].connector.adopt(way_out)
        await trio.sleep(30)
        first, owner, beyond = ids(nodes, 1, 0, 2)
        outer, entry, inner = ids(nodes, 5, 6, 4)
        outbound, inbound = watch.at(first, owner, beyond), watch.at(outer, entry, inner)
        # The owner of the exit path gives up after eight seconds, the entry node after ten.
        assert begins(outbound) == [one for one in begins(inbound) if one[3] < 160]


async def test_a_used_tunnel_is_replaced_in_the_same_way(autojump_clock):
    """Which hops see while a connection is made: a block with the request, a tunnel with the
    answer."""
    async with world(8) as (network, nodes):
        network.latency = 0.05
        _, entry_path, entry_node = await both_paths(nodes, 3, 3)
        await trio.sleep(5)
        watch = Watch(network)
        network.recorded.clear()
        _, tunnel = await connected(nodes[0], entry_node, entry_path.entry_id)
        assert await exchange(tunnel, b"x" * 100) == b"x" * 100
        await trio.sleep(5)
        outbound = watch.at(*ids(nodes, 1, 0, 2))
        inbound = watch.at(*ids(nodes, 5, 6, 4))

        def story(seen):
            """How many frames of each kind and how many bytes came from which side. (How bytes are
            cut into frames depends on nothing but the moment.)"""
            count, volume = Counter(), Counter()
            for one in seen:
                if one.what == "DATA":
                    volume[one.from_announcer] += one.size
                else:
                    count[one.from_announcer, one.what] += 1
            return count, volume

        assert story(outbound) == story(inbound)


async def test_a_request_that_a_hop_spoils_is_followed_by_the_same(autojump_clock):
    """Or it could try, and tell by what follows."""
    async with world(8) as (network, nodes):
        network.latency = 0.05
        _, entry_path, entry_node = await both_paths(nodes, 3, 3)
        await trio.sleep(5)
        stories = []
        for sender, receiver, watched in ((2, 3, (1, 0, 2)), (5, 4, (5, 6, 4))):
            watch = Watch(network)
            network.recorded.clear()
            pass_on = network.on_transfer
            spoilt = []
            (one,), (other,) = ids(nodes, sender), ids(nodes, receiver)

            def spoil(item, one=one, other=other, pass_on=pass_on, spoilt=spoilt):
                data = pass_on(item)
                is_request = (item.kind, len(data)) == ("bulk", 8196)
                if is_request and (item.sender, item.receiver) == (one, other) and not spoilt:
                    spoilt.append(item)
                    return data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]
                return data

            network.on_transfer = spoil
            with pytest.raises((PathUnavailable, Unreachable)):
                await connected(nodes[0], entry_node, entry_path.entry_id)
            await trio.sleep(3)
            assert spoilt
            network.on_transfer = pass_on
            seen = watch.at(*ids(nodes, *watched))
            stories.append(
                Counter((one.from_announcer, one.what) for one in seen if one.what != "DATA")
            )
        assert stories[0] == stories[1]
        assert stories[0][True, "RESET"] > 1
