"""What a hostile neighbour can have a node remember, and for how long; clocks that are set back."""

from __future__ import annotations

import ipaddress
import random
from collections import Counter

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from phantom_tun.errors import CapacityExceeded, LinkBroken
from phantom_tun.guard import COUNTER
from phantom_tun.ids import ConnectionId, NodeId, TunnelBlock
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.loopback import connection_pair
from phantom_tun.net.links.peers import Peer
from phantom_tun.net.links.rates import RateTable
from phantom_tun.net.links.signalling import Quotas, SignalLink
from phantom_tun.net.paths.member import ArrayLimits
from phantom_tun.path.member import Accepted
from phantom_tun.testing.path_nodes import path_world
from phantom_tun.tunnel.blocks import BLOCK_BURST, HopBlocks
from phantom_tun.wire.frames import CHUNK_LEN, MAX_CALL_LEN, Frame, pack_frame
from phantom_tun.wire.setup import ARRAY_LEN, Neighbour
from phantom_tun.wire.signalling import FIRST, LAST
from phantom_tun.wire.tunnel import Opening, pack_opening

# --- clocks --------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_takes_no_tokens_away():
    table = RateTable(10.0, 5.0)
    assert all(table.allow("x", 1000.0) for _ in range(4))
    assert table.allow("x", 10.0)
    assert not table.allow("x", 10.0)
    assert table.allow("x", 10.2)


def test_blocks_pass_also_when_the_clock_was_set_back():
    blocks = HopBlocks(b"s" * 32, 1000.0)
    passed = 0
    for number in range(int(BLOCK_BURST)):
        blocks.pass_on(TunnelBlock(number.to_bytes(16, "big")), 0, 10.0 if number else 1000.0)
        passed += 1
    assert passed == BLOCK_BURST
    with pytest.raises(CapacityExceeded):
        blocks.pass_on(TunnelBlock(b"x" * 16), 0, 10.0)
    blocks.pass_on(TunnelBlock(b"x" * 16), 0, 10.1)


# --- calls ---------------------------------------------------------------------------------------


class Owner:
    """Whoever the calls are for."""

    def __init__(self) -> None:
        self.calls = []
        self.answer = b"answer"

    def signalled(self, _peer, _payload):
        raise KeyError("a mistake of ours")

    async def called(self, _peer, payload):
        self.calls.append(payload)
        if payload == b"trap":
            raise KeyError("a mistake of ours")
        return self.answer

    def asked(self, _peer):
        return False

    def declined(self, _peer):
        pass

    def is_busy(self, _peer):
        return False


class Attacked:
    """A link whose other end is a bare connection in the hands of the test."""

    def __init__(self, nursery, limits, quotas, name=b"p", address="192.0.2.1"):
        near, self.far = connection_pair()
        self.owner, self.counts = Owner(), Counter()
        self.link = SignalLink(
            near,
            Peer(NodeId(name * 32), ipaddress.ip_address(address)),
            dialed=False,
            limits=limits,
            quotas=quotas,
            events=self.owner,
            counts=self.counts,
        )
        nursery.start_soon(self.run)
        self.failures = []

    async def run(self):
        try:
            await self.link.run()
        except* KeyError as group:
            self.failures.append(group)

    async def send(self, number, flags, data):
        chunk = number.to_bytes(4, "big") + bytes([flags]) + data
        await self.far.write_all(pack_frame(Frame.CALL, chunk))

    async def answers(self):
        await wait_all_tasks_blocked()
        view = memoryview(bytearray(100_000))
        with trio.move_on_after(0.1):
            return bytes(view[: await self.far.read_some(view)])
        return b""


@pytest.mark.parametrize(
    ("frame", "places", "counter"),
    [
        (Frame.SIGNAL, ("192.0.2.1", "192.0.3.1", "192.1.0.1"), "drop_signal_network_rate"),
        (Frame.CALL, ("2001:db8::1", "2001:db8:1::1", "2001:db9::1"), "drop_call_network_rate"),
    ],
)
async def test_many_node_ids_in_one_network_share_what_they_may_send(
    autojump_clock, nursery, frame, places, counter
):
    names = {"signal_rate": 1, "signal_burst": 3, "call_rate": 1, "call_burst": 3}
    limits = LinkLimits(**names, network_rates=2)
    quotas = Quotas(limits)
    payload = {Frame.SIGNAL: b"x", Frame.CALL: b"\0\0\0\1\3"}[frame]
    links = [
        Attacked(nursery, limits, quotas, bytes([number]), places[number // 3])
        for number in range(9)
    ]
    for link in links:
        link.owner.signalled = lambda *_: None
        for _ in range(2):
            await link.far.write_all(pack_frame(frame, payload))
            await wait_all_tasks_blocked()
    dropped = [link.counts[counter] for link in links]
    assert dropped == [0, 0, 0, 2, 2, 2, 0, 0, 0]
    assert not any(link.counts[counter.replace("network_", "")] for link in links)
    nursery.cancel_scope.cancel()


async def test_calls_that_are_never_finished_are_forgotten(autojump_clock, nursery):
    limits = LinkLimits()
    quotas = Quotas(limits)
    attacked = Attacked(nursery, limits, quotas)
    for number in range(limits.calls_served):
        await attacked.send(number, FIRST, bytes(CHUNK_LEN))
    await attacked.send(99, FIRST | LAST, b"late")
    await wait_all_tasks_blocked()
    assert len(quotas.memory) == limits.calls_served * CHUNK_LEN
    assert attacked.counts["drop_call_limit"] == 1
    for _ in range(10):  # that the peer is alive keeps nothing
        await trio.sleep(limits.call_patience / 5)
        await attacked.far.write_all(pack_frame(Frame.PONG))
    assert len(quotas.memory) == 0
    assert attacked.counts["drop_call_unfinished"] == limits.calls_served
    await attacked.send(1, 0, b"more of it")
    await attacked.send(100, FIRST | LAST, b"now")
    await wait_all_tasks_blocked()
    assert attacked.owner.calls == [b"now"]
    attacked.far.close()


async def test_unfinished_calls_of_all_neighbours_share_one_room(autojump_clock, nursery):
    limits = LinkLimits(calls_memory=3 * CHUNK_LEN)
    quotas = Quotas(limits)
    one, other = Attacked(nursery, limits, quotas), Attacked(nursery, limits, quotas)
    await one.send(1, FIRST, bytes(CHUNK_LEN))
    await one.send(1, 0, bytes(CHUNK_LEN))
    await one.send(2, FIRST, bytes(CHUNK_LEN))
    await wait_all_tasks_blocked()
    await other.send(1, FIRST, b"x")
    await other.send(1, LAST, b"y")
    await wait_all_tasks_blocked()
    assert other.counts["drop_call_memory"] >= 1
    assert other.owner.calls == []
    one.far.close()  # what a link held goes with it
    await wait_all_tasks_blocked()
    assert len(quotas.memory) == 0
    await other.send(2, FIRST, b"x")
    await other.send(2, LAST, b"y")
    await wait_all_tasks_blocked()
    assert other.owner.calls == [b"xy"]
    assert len(quotas.memory) == 0
    other.far.close()


async def test_one_neighbour_does_not_get_all_the_room(autojump_clock, nursery):
    limits = LinkLimits(calls_memory_per_node=2 * CHUNK_LEN)
    quotas = Quotas(limits)
    one, other = (Attacked(nursery, limits, quotas, name) for name in (b"o", b"p"))
    for number in range(4):
        await one.send(number, FIRST, bytes(CHUNK_LEN))
    await other.send(1, FIRST | LAST, b"call")
    await wait_all_tasks_blocked()
    assert one.counts["drop_call_memory"] == 2
    assert other.owner.calls == [b"call"]
    one.far.close()
    other.far.close()


@pytest.mark.parametrize("violation", ["two firsts", "too long"])
async def test_a_link_that_ends_with_a_violation_holds_nothing(autojump_clock, nursery, violation):
    quotas = Quotas(LinkLimits())
    attacked = Attacked(nursery, LinkLimits(), quotas)
    await attacked.send(1, FIRST, bytes(CHUNK_LEN))
    if violation == "two firsts":
        await attacked.send(1, FIRST | LAST, bytes(CHUNK_LEN))
    else:
        for _ in range(MAX_CALL_LEN // CHUNK_LEN + 1):
            await attacked.send(1, 0, bytes(CHUNK_LEN))
    await wait_all_tasks_blocked()
    assert attacked.counts["drop_signalling_violation"] == 1
    assert len(quotas.memory) == 0
    attacked.far.close()


async def test_who_takes_no_answers_is_let_go(autojump_clock, nursery):
    """It could ask on and on, and show that it lives."""
    limits = LinkLimits()
    quotas = Quotas(limits)
    attacked = Attacked(nursery, limits, quotas)
    attacked.owner.answer = bytes(MAX_CALL_LEN)
    for number in range(limits.calls_served):
        await attacked.send(number, FIRST | LAST, b"call")
    await wait_all_tasks_blocked()
    assert 0 < len(quotas.memory) <= limits.calls_memory_per_node
    assert attacked.counts["calls_unanswered"] > 0
    with pytest.raises(LinkBroken):
        while True:
            await trio.sleep(limits.ping_after)
            await attacked.far.write_all(pack_frame(Frame.PONG))
    assert attacked.link.dead
    assert len(quotas.memory) == 0


async def test_a_call_that_we_fail_on_gets_no_answer_and_ends_nothing(autojump_clock, nursery):
    limits = LinkLimits()
    attacked = Attacked(nursery, limits, Quotas(limits))
    await attacked.send(1, FIRST | LAST, b"trap")
    assert await attacked.answers() == b""
    assert attacked.counts[COUNTER] == 1
    await attacked.send(2, FIRST | LAST, b"again")
    assert b"answer" in await attacked.answers()
    attacked.far.close()


# --- arrays --------------------------------------------------------------------------------------


async def test_one_neighbour_can_not_keep_others_from_bringing_arrays(autojump_clock):
    async with path_world(3) as world:
        victim, hostile, honest = world.nodes
        limits = ArrayLimits()
        opening = pack_opening(Opening.ARRAY, b"c" * 16, b"", hostile.rng)
        bulks = [
            await hostile.links.open_bulk(victim.ref, opening) for _ in range(limits.receiving + 10)
        ]
        await trio.sleep(1)
        assert (
            victim.paths.statistics()["drop_array_receiving"]
            == len(bulks) - limits.receiving_per_node
        )
        await honest.paths.send_array(
            Neighbour(victim.ref, ConnectionId(b"c" * 16)), random.Random(1).randbytes(ARRAY_LEN)
        )
        await trio.sleep(1)
        assert victim.paths.statistics()["drop_array_no_slot"] == 1
        for bulk in bulks:
            bulk.reset()


async def test_arrays_for_members_that_never_answer_hold_few_places(autojump_clock):
    """An owner may name anybody as the next member."""
    async with path_world(3) as world:
        victim, hostile, silent = world.nodes
        limits = ArrayLimits()
        to = Neighbour(silent.ref, ConnectionId(b"d" * 16))
        victim.member.receive = lambda *_, **__: Accepted(bytes(ARRAY_LEN), to)
        world.network.freeze(silent.node_id)
        began = trio.current_time()
        for _ in range(limits.forwarding_per_node + 4):
            await _bring_array(hostile, victim)
        # Whoever brings them can't tell by how long the link is busy which ones went on.
        assert trio.current_time() == began
        assert victim.links.statistics()["bulk_of_neighbours"] < limits.forwarding_per_node
        assert victim.paths.statistics()["drop_array_forwarding"] == 4
        await trio.sleep(limits.forward_deadline)
        assert victim.paths.statistics()["drop_array_next_unreachable"] == 16
        await _bring_array(hostile, victim)
        assert victim.paths.statistics()["arrays_accepted"] == 17
        world.network.thaw(silent.node_id)


async def test_arrays_that_are_refused_hold_no_places(autojump_clock):
    async with path_world(2) as world:
        victim, hostile = world.nodes
        for _ in range(ArrayLimits().forwarding_per_node + 4):
            await _bring_array(hostile, victim)
        assert victim.paths.statistics()["drop_array_no_slot"] == 20


async def _bring_array(sender, receiver):
    to = Neighbour(receiver.ref, ConnectionId(b"c" * 16))
    await sender.paths.send_array(to, random.Random(1).randbytes(ARRAY_LEN))
    await wait_all_tasks_blocked()
