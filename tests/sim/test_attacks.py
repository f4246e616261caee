"""Attacks on a simulated network by those who are part of it: neighbours, relays, exit and entry
nodes. Whatever they do, no node meets anything that it didn't expect (``check_untroubled``), nobody
is given anything but the truth or an error, and all is well again when they stop."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import suppress

import pytest
import trio
from test_tunnels import both_paths, world
from whole_network import Owner, WholeNetwork, WholeNode, echo, whole_network
from whole_network import exchange as talk

from phantom_tun.errors import PhantomError, WorldError
from phantom_tun.ids import ConnectionId, EntryId, NodeId
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.paths.member import ArrayLimits
from phantom_tun.net.tunnels.entry_node import EntryHop
from phantom_tun.net.tunnels.exit_node import FIND_TIMEOUT, MAX_FINDING, MAX_FINDING_FOR_ONE
from phantom_tun.path.hop import PathHop
from phantom_tun.testing.memory_links import Recorded
from phantom_tun.testing.record_factory import ApMaker
from phantom_tun.wire.frames import MAX_CALL_LEN, MAX_SIGNAL_LEN
from phantom_tun.wire.netdb import Resolution, WriteReport
from phantom_tun.wire.puzzles import NO_SOLUTION
from phantom_tun.wire.setup import ARRAY_LEN
from phantom_tun.wire.setup import Neighbour as ArrayNeighbour
from phantom_tun.wire.sizes import SEALED_REQUEST_LEN
from phantom_tun.wire.tunnel import Opening, Signal, Status, pack_opening

PORT = 80
DATA = random.Random(1).randbytes(100_000)
ANSWER = bytes(byte ^ 0xFF for byte in DATA)

CALLER, CALLEE = 1, 2
ONE_HOP = {CALLER: Owner(1, 1, publish=False), CALLEE: Owner(1, 1)}


async def bring_up(network: WholeNetwork) -> tuple[WholeNode, WholeNode]:
    """Caller and callee; the callee has an echo at :data:`PORT`."""
    caller, callee = network.nodes[CALLER], network.nodes[CALLEE]
    callee.rules.expose("default", "tcp", PORT)
    callee.host.streams[PORT] = echo
    with trio.fail_after(300):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.bring_up)
            nursery.start_soon(callee.bring_up)
    return caller, callee


async def attempt(caller: WholeNode, callee: WholeNode, source_port: int) -> str:
    """One connection: "whole", or how it ended instead. Never anything but what was sent."""
    got = None
    try:
        with trio.fail_after(60):
            stream = await caller.connect(callee.identity.ap6, PORT, source_port)
            got = await talk(stream, DATA)
    except* (WorldError, trio.TooSlowError):
        pass
    assert got in {None, ANSWER}
    return "failed" if got is None else "whole"


# --- on the way ----------------------------------------------------------------------------------


LONGEST = {"signal": MAX_SIGNAL_LEN, "call": MAX_CALL_LEN, "answer": MAX_CALL_LEN}


class Meddler:
    """Changes some of what passes between nodes; ``how`` it does that."""

    def __init__(self, how: str, share: float, spared: set[str]) -> None:
        self._rng = random.Random(how)
        self._how = how
        self._share = share
        self._spared = spared
        self._held: dict[tuple[object, ...], bytes] = {}
        self.done: Counter[str] = Counter()

    def __call__(self, item: Recorded) -> bytes | None:
        if item.kind in self._spared or self._rng.random() > self._share:
            return item.data
        self.done[item.kind] += 1
        rng, data = self._rng, bytearray(item.data)
        if self._how == "flip":
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif self._how == "cut":
            del data[rng.randrange(len(data)) :]
        elif self._how == "repeat":
            data *= 2
        elif self._how == "garbage":
            data[:] = rng.randbytes(rng.randrange(1, 1024))
        elif self._how == "lose":
            return None
        else:
            return self._swap(item)
        # What is longer than a message can be is refused before it is sent.
        return bytes(data[: LONGEST.get(item.kind, len(data))]) or None

    def _swap(self, item: Recorded) -> bytes | None:
        """Hold one thing back until the next one has gone by."""
        way = item.sender, item.receiver, item.kind, item.link
        earlier = self._held.pop(way, None)
        if earlier is None:
            self._held[way] = item.data
            return b"" if item.kind == "bulk" else None
        return item.data + earlier if item.kind == "bulk" else earlier


@pytest.mark.parametrize("how", ["flip", "cut", "repeat", "garbage", "lose", "swap"])
async def test_whatever_is_changed_on_the_way_nobody_is_told_anything_wrong(autojump_clock, how):
    async with whole_network(9, ONE_HOP) as network:
        caller, callee = await bring_up(network)
        assert await attempt(caller, callee, 40_000) == "whole"
        meddler = network.medium.on_transfer = Meddler(how, 0.03, set())
        outcomes = Counter()
        # A connection takes few messages, and not everything that is done to one of them harms it.
        for number in range(120):
            outcomes[await attempt(caller, callee, 41_000 + number)] += 1
            await trio.sleep(5)
            if number >= 12 and outcomes["failed"]:
                break
        network.check_untroubled()
        assert {"bulk", "call"} <= meddler.done.keys()
        assert outcomes["failed"]
        network.medium.on_transfer = lambda item: item.data
        with trio.fail_after(600):
            while await attempt(caller, callee, 42_000) != "whole":
                await trio.sleep(10)
        network.check_untroubled()


# --- a hostile neighbour -------------------------------------------------------------------------


async def flood(hostile: WholeNode, victim: WholeNode) -> None:
    """Everything that a neighbour can send, as fast as it goes."""
    rng = random.Random(5)
    links = hostile.links

    async def keep_on(send, times=400) -> None:
        for _ in range(times):
            with suppress(PhantomError):
                await send()

    async def signal() -> None:
        await trio.sleep(0.001)
        kind = bytes([rng.choice([*Signal, 77])])
        await links.signal(victim.ref, kind + rng.randbytes(rng.choice([32, 5, 900])))

    async def call() -> None:
        with trio.move_on_after(0.01):
            await links.call(victim.ref, rng.randbytes(rng.choice([3, 200, MAX_CALL_LEN])))

    async def use() -> None:
        kind = rng.choice([*Opening, 99])
        opening = bytes([kind]) + pack_opening(Opening.ARRAY, bytes(16), b"", rng)[1:]
        bulk = await links.open_bulk(victim.ref, opening)
        try:
            await bulk.send_bytes(rng.randbytes(rng.choice([1, 4096, 9000])))
            if rng.random() < 0.5:
                await trio.sleep(rng.choice([0, 30]))
        finally:
            bulk.reset()

    async def array() -> None:
        to = ArrayNeighbour(victim.ref, ConnectionId(rng.randbytes(16)))
        await hostile.member.send_array(to, rng.randbytes(ARRAY_LEN))

    async with trio.open_nursery() as nursery:
        for send in (use, use, use, array, *[call] * 8):
            nursery.start_soon(keep_on, send)
        nursery.start_soon(keep_on, signal, 4000)


async def test_a_node_that_is_flooded_still_serves_others(autojump_clock):
    async with whole_network(9, ONE_HOP) as network:
        caller, callee = await bring_up(network)
        exit_node = network[caller.connector.users()[0].path.members[0].node_id]
        hostile = next(
            node for node in network.nodes[3:] if node is not exit_node and not node.relayed
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood, hostile, exit_node)
            nursery.start_soon(flood, hostile, callee)
            await trio.sleep(1)
            for number in range(5):
                assert await attempt(caller, callee, 40_000 + number) == "whole"
                await trio.sleep(2)
            nursery.cancel_scope.cancel()
        network.check_untroubled()
        limits, arrays = LinkLimits(), ArrayLimits()
        for victim in (exit_node, callee):
            found = victim.links.statistics()
            assert found["bulk_of_neighbours"] <= limits.bulk_served
            assert found["drop_signal_rate"] > 0
            assert found["drop_call_rate"] > 0
            assert len(victim.links._quotas.memory) <= limits.calls_memory_per_node
            assert len(victim.member._receiving) <= arrays.receiving


# --- terminating nodes ---------------------------------------------------------------------------


def lies(truth: Resolution) -> dict[str, bytes]:
    """What an exit node can say instead."""
    other = ApMaker(9)
    foreign = other.route(time.time(), entry_node=NodeId(bytes(32))).encoded
    altered = bytearray(truth.key_record)
    altered[-1] ^= 1
    return {
        "nothing": Resolution(b"", (), 20, 20, ()).encode(),
        "another's record": Resolution(other.record(time.time()).encoded, (), 9, 9, ()).encode(),
        "an altered record": Resolution(bytes(altered), truth.routes, 9, 9, ()).encode(),
        "another's route": Resolution(truth.key_record, (foreign,), 9, 9, ()).encode(),
        "no answer to that": WriteReport(20, 20, 0, b"").encode(),
        "garbage": b"\xc1" * 500,
        "too much": bytes(7_900),
    }


async def test_no_lie_of_an_exit_node_is_believed(autojump_clock):
    async with whole_network(9, ONE_HOP) as network:
        caller, callee = await bring_up(network)
        truth = await callee.netdb.resolve(callee.identity.ap6)
        others = [node for node in network.nodes if node.owner is None]
        for lie in lies(truth).values():

            async def lying(_call: bytes, lie: bytes = lie) -> bytes:
                return lie

            for node in others:
                node.database.perform_for_exit = lying
            assert await attempt(caller, callee, 40_000) == "failed"
            await trio.sleep(60)  # what failed is remembered for a while
        assert caller.directory.statistics()["bad_answers"] > 0
        for node in others:
            del node.database.perform_for_exit
        assert await attempt(caller, callee, 40_001) == "whole"
        network.check_untroubled()


async def test_a_request_that_an_entry_node_repeats_leads_nowhere(autojump_clock, monkeypatch):
    brought = []
    serve = EntryHop.serve

    async def remember(hop, sealed_request, bulk, **options):
        brought.append((hop.hop.entry_id, sealed_request))
        return await serve(hop, sealed_request, bulk, **options)

    monkeypatch.setattr(EntryHop, "serve", remember)
    async with whole_network(9, ONE_HOP) as network:
        caller, callee = await bring_up(network)
        assert await attempt(caller, callee, 40_000) == "whole"
        entry_node = network[callee.connector.routes("default")[0].entry_node]
        ((entry_id, sealed),) = brought
        connects = len(callee.host.calls)
        for request in (sealed, bytes(len(sealed)), sealed[:-1] + b"?"):
            opening = pack_opening(Opening.ENTRY, entry_id, b"", random.Random(1))
            bulk = await network.nodes[3].links.open_bulk(entry_node.ref, opening)
            await bulk.send_bytes(request + NO_SOLUTION.pack())
            with trio.fail_after(30):
                assert (await bulk.receive_exactly(1))[0] == Status.NO_TUNNEL
            bulk.reset()
        assert len(callee.host.calls) == connects
        assert await attempt(caller, callee, 40_001) == "whole"
        network.check_untroubled()


async def test_an_entry_id_can_not_be_taken_from_its_owner(autojump_clock):
    """It stands in the route, for everybody to read."""
    async with world(5) as (_, nodes):
        _, entry_path, entry_node = await both_paths(nodes, 1, 1)
        caller, entry, thief = nodes[0], nodes[2], nodes[3]
        stolen = PathHop(
            "entry",
            ((thief.ref, ConnectionId(bytes(16))),),
            bytes(32),
            2e10,
            entry_path.entry_id,
            b"route",
        )
        entry.hops.add(stolen)
        await _connects(caller, entry_node, entry_path)
        assert entry.desk.statistics()["drop_entry_id_taken"] == 1
        entry.hops.remove(stolen)
        await _connects(caller, entry_node, entry_path)


async def test_entry_nodes_that_do_not_exist_take_few_lookups(autojump_clock):
    async with world(4) as (_, nodes):
        await both_paths(nodes, 1, 1)
        caller, exit_node = nodes[0], nodes[1]
        looking, most = 0, 0

        async def look_long(_node_id):
            nonlocal looking, most
            looking += 1
            most = max(most, looking)
            try:
                await trio.sleep(FIND_TIMEOUT + 1)
            finally:
                looking -= 1

        exit_node.database.find_ref = look_long

        async def ask_for_nobody():
            with pytest.raises(WorldError):
                way = await caller.connector.way_out("default")
                await way.connect(NodeId(bytes(32)), EntryId(bytes(16)), bytes(SEALED_REQUEST_LEN))

        async with trio.open_nursery() as nursery:
            for _ in range(4 * MAX_FINDING):
                nursery.start_soon(ask_for_nobody)
            await trio.sleep(1)
            # A node that is known is none of them.
            exit_node.database.known_ref = {caller.ref.node_id: caller.ref}.get
            began = trio.current_time()
            with pytest.raises(WorldError):
                way = await caller.connector.way_out("default")
                request = bytes(SEALED_REQUEST_LEN)
                await way.connect(caller.ref.node_id, EntryId(bytes(16)), request)
            assert trio.current_time() - began < 1
        assert most == MAX_FINDING_FOR_ONE


async def _connects(caller, entry_node, entry_path):
    way = await caller.connector.way_out("default")
    answer, tunnel = await way.connect(
        entry_node, entry_path.entry_id, b"sealed12".ljust(SEALED_REQUEST_LEN, b"x")
    )
    assert answer.startswith(b"sealed12")
    tunnel.reset()
