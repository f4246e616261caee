"""Whole routing tunnels over links in memory: owner, hops, exit, entry, and what breaks them."""

import dataclasses
import ipaddress
import random
from contextlib import asynccontextmanager

import pytest
import trio

from phantom_tun.clock import SystemClock
from phantom_tun.crypto.signing import SigningKey, node_id_of
from phantom_tun.errors import PathUnavailable, StreamReset, Unreachable
from phantom_tun.ids import CertHash, ConnectionId, EntryId, TunnelBlock
from phantom_tun.net.links.buffers import POOL, Buffer
from phantom_tun.net.links.peers import Peer
from phantom_tun.net.tunnels import connector as connector_module
from phantom_tun.net.tunnels import hops
from phantom_tun.net.tunnels.connector import LOOK_EVERY, MAX_PRIVATE, Connector
from phantom_tun.net.tunnels.entry_node import EntryDesk
from phantom_tun.net.tunnels.exit_node import EntryDialer
from phantom_tun.net.tunnels.hops import IDLE_LIFE, SWEEP_EVERY, HopHost
from phantom_tun.net.tunnels.hub import TunnelHub
from phantom_tun.net.tunnels.owned_exit import OwnedExit
from phantom_tun.net.tunnels.ready_pool import PoolLimits
from phantom_tun.net.tunnels.switchboard import Switchboard
from phantom_tun.path.hop import OwnedPath, PathHop
from phantom_tun.testing.memory_links import MemoryNetwork
from phantom_tun.tunnel.blocks import PENDING_BYTES, SEEN_BYTES
from phantom_tun.wire.nodes import NodeRef
from phantom_tun.wire.sizes import ANSWER_LEN, SEALED_REQUEST_LEN
from phantom_tun.wire.tunnel import pack_block

RNG = random.Random(3)


class FakeDatabase:
    """What terminating nodes ask; answers from a table."""

    def __init__(self, refs):
        self.refs = refs
        self.calls = []

    def known_ref(self, _node_id):
        return None

    async def find_ref(self, node_id):
        if node_id not in self.refs:
            raise Unreachable("no such node")
        return self.refs[node_id]

    async def perform_for_exit(self, call):
        self.calls.append(call)
        return b"answer to " + call

    async def perform_for_entry(self, call):
        self.calls.append(call)


class TestNode:
    """A node without a path builder: paths are made by hand."""

    __test__ = False

    def __init__(self, network, number, refs):
        key = SigningKey(RNG.randbytes(32))
        self.ref = NodeRef(
            node_id_of(key.public),
            CertHash(RNG.randbytes(32)),
            ipaddress.IPv4Address(f"10.{number}.0.1"),
            443,
        )
        refs[self.ref.node_id] = self.ref
        self.links = network.links(self.ref)
        self.database = FakeDatabase(refs)
        self.desk = EntryDesk(SystemClock())
        self.board = Switchboard(self.no_array, self.desk.handle, self.no_call)
        self.hub = TunnelHub(self.links, self.board, PoolLimits(), SystemClock(), RNG)
        dialer = EntryDialer(self.hub, self.database)
        self.published = []
        self.hops = HopHost(
            self.hub,
            self.desk,
            self.database,
            dialer,
            publish=self.publish,
            on_end=lambda _hop: None,
        )
        self.connector = Connector(self.hub, self.desk, self.database, dialer, self)
        self.dead = []
        self.doubted = []
        self.handler = echo

    async def no_array(self, *_):
        raise AssertionError

    no_call = no_array

    async def publish(self, route):
        self.published.append(route)

    async def handle_request(self, identity, sealed_request, accept):
        await self.handler(identity, sealed_request, accept)

    async def private_exit(self, identity):
        raise PathUnavailable("not here")

    def path_doubted(self, path):
        self.doubted.append(path)

    def path_died(self, path):
        self.dead.append(path)
        self.connector.drop(path)


async def echo(_identity, sealed_request, accept):
    tunnel = await accept(sealed_request[:8].ljust(ANSWER_LEN, b"a"))
    try:
        while (buffer := await tunnel.receive_pooled()).segments:
            await tunnel.send(buffer)
            POOL.give_back(buffer)
        POOL.give_back(buffer)
        await tunnel.send_fin()
    except StreamReset:
        tunnel.reset()
    finally:
        await tunnel.aclose()


@asynccontextmanager
async def world(count):
    network = MemoryNetwork()
    refs = {}
    nodes = [TestNode(network, number, refs) for number in range(count)]
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.hub.run)
            await nursery.start(node.links.run, [], node.board)
            nursery.start_soon(node.hops.run)
        yield network, nodes
        nursery.cancel_scope.cancel()


def lay_path(owner, members, kind, first=1):
    """What a build would have left at everyone."""
    secrets = [RNG.randbytes(32) for _ in members]
    connections = [ConnectionId(RNG.randbytes(16)) for _ in members]
    entry_id = EntryId(RNG.randbytes(16)) if kind == "entry" else None
    before = owner
    for number, member in enumerate(members):
        neighbours = [(before.ref, connections[number])]
        last = number == len(members) - 1
        if not last:
            neighbours.append((members[number + 1].ref, connections[number + 1]))
        member.hops.add(
            PathHop(
                role=kind if last else "interior",
                neighbours=tuple(neighbours),
                path_secret=secrets[number],
                expires=2e10,
                entry_id=entry_id if last else None,
                route=b"route" if last and kind == "entry" else None,
            )
        )
        before = member
    return OwnedPath(
        number={"exit": first, "entry": first + 1}[kind],
        kind=kind,
        identity="default",
        members=[member.ref for member in members],
        secrets=secrets,
        first_connection=connections[0] if connections else ConnectionId(bytes(16)),
        entry_id=entry_id or EntryId(RNG.randbytes(16)),
        built=0,
        retires=2e10,
        expires=2e10,
        build_seconds=0,
    )


async def both_paths(nodes, exit_hops, entry_hops, first=1):
    """``first``: the number of the exit path; the entry path has the next."""
    caller, callee = nodes[0], nodes[-1]
    members = nodes[1 : 1 + exit_hops + entry_hops]
    exit_path = lay_path(caller, members[:exit_hops], "exit", first)
    entry_path = lay_path(callee, members[exit_hops:], "entry", first)
    await caller.connector.adopt(exit_path)
    await callee.connector.adopt(entry_path)
    entry_node = entry_path.members[-1].node_id if entry_path.members else callee.ref.node_id
    return exit_path, entry_path, entry_node


async def exchange(tunnel, data):
    got = bytearray()

    async def sender():
        for start in range(0, len(data), 50_000):
            buffer = Buffer()
            buffer.fill(data[start : start + 50_000])
            await tunnel.send(buffer)
        await tunnel.send_fin()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender)
        while (buffer := await tunnel.receive_pooled()).segments:
            for start, end in buffer.segments:
                got += buffer.view[start:end]
            POOL.give_back(buffer)
        POOL.give_back(buffer)
    await tunnel.aclose()
    return bytes(got)


REQUEST = b"sealed request".ljust(SEALED_REQUEST_LEN, b".")


async def connected(node, entry_node, entry_id):
    way = await node.connector.way_out("default")
    return await way.connect(entry_node, entry_id, REQUEST)


@pytest.mark.parametrize(("exit_hops", "entry_hops"), [(0, 0), (1, 0), (0, 1), (3, 3), (8, 2)])
async def test_bytes_arrive_unchanged_through_any_number_of_hops(
    autojump_clock, exit_hops, entry_hops
):
    async with world(2 + exit_hops + entry_hops) as (network, nodes):
        _, entry_path, entry_node = await both_paths(nodes, exit_hops, entry_hops)
        answer, tunnel = await connected(nodes[0], entry_node, entry_path.entry_id)
        assert answer == b"sealed r".ljust(ANSWER_LEN, b"a")
        data = RNG.randbytes(700_000)
        assert await exchange(tunnel, data) == data
        # Nothing of it is found on a path's link; exit → entry is the end-to-end layer's concern.
        joint = {nodes[exit_hops].ref.node_id, entry_node}
        for item in network.recorded:
            if {item.sender, item.receiver} != joint:
                assert data[1000:1016] not in item.data


async def test_a_connect_takes_one_round_trip_when_tunnels_are_ready(autojump_clock):
    async with world(8) as (network, nodes):
        _, entry_path, entry_node = await both_paths(nodes, 3, 3)
        await trio.sleep(1)
        network.latency = 0.020
        # Existing connections keep their latency of zero; only the exit-entry link is new.
        start = trio.current_time()
        _, tunnel = await connected(nodes[0], entry_node, entry_path.entry_id)
        assert trio.current_time() - start <= 0.045
        tunnel.reset()


async def test_the_route_is_published_once_the_first_tunnel_answers(autojump_clock):
    async with world(6) as (_, nodes):
        await both_paths(nodes, 1, 3)
        await trio.sleep(1)
        assert nodes[4].published == [b"route"]


async def test_netdb_calls_go_out_through_the_exit_and_updates_through_the_entry(autojump_clock):
    async with world(8) as (_, nodes):
        await both_paths(nodes, 3, 3)
        assert await nodes[0].connector.netdb_call("default", b"resolve") == b"answer to resolve"
        assert nodes[3].database.calls == [b"resolve"]
        nodes[-1].connector.queue_update("default", b"update")
        await trio.sleep(5)
        assert nodes[6].database.calls == [b"update"]


async def test_an_unknown_entry_id_is_unreachable(autojump_clock):
    async with world(8) as (_, nodes):
        _, _, entry_node = await both_paths(nodes, 3, 3)
        with pytest.raises(Unreachable):
            await connected(nodes[0], entry_node, EntryId(bytes(16)))
        with pytest.raises(Unreachable):
            await connected(nodes[0], bytes(32), EntryId(bytes(16)))


async def test_a_callee_that_does_not_answer_leaves_the_path_usable(autojump_clock):
    async with world(8) as (_, nodes):
        _, entry_path, entry_node = await both_paths(nodes, 3, 3)

        async def refuse(*_):
            pass

        nodes[-1].handler = refuse
        with pytest.raises(Unreachable):
            await connected(nodes[0], entry_node, entry_path.entry_id)
        nodes[-1].handler = echo
        _, tunnel = await connected(nodes[0], entry_node, entry_path.entry_id)
        assert await exchange(tunnel, b"hello") == b"hello"


async def test_a_burst_of_connects_is_served(autojump_clock):
    async with world(8) as (_, nodes):
        _, entry_path, entry_node = await both_paths(nodes, 3, 3)
        done = []

        async def one(number):
            _, tunnel = await connected(nodes[0], entry_node, entry_path.entry_id)
            assert await exchange(tunnel, b"%d" % number) == b"%d" % number
            done.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(one, number)
        assert sorted(done) == list(range(50))


@pytest.mark.parametrize("victim", [1, 2, 3, 4, 5, 6])
async def test_a_killed_hop_ends_the_tunnel_at_both_ends_and_the_path_is_noticed(
    autojump_clock, victim
):
    async with world(8) as (network, nodes):
        _, entry_path, entry_node = await both_paths(nodes, 3, 3)
        ended = trio.Event()

        async def handler(identity, sealed_request, accept):
            await echo(identity, sealed_request, accept)
            ended.set()

        nodes[-1].handler = handler
        _, tunnel = await connected(nodes[0], entry_node, entry_path.entry_id)
        network.kill(nodes[victim].ref.node_id)
        with pytest.raises(StreamReset):
            await tunnel.receive_pooled()
        tunnel.reset()
        with trio.fail_after(10):
            await ended.wait()
        await trio.sleep(60)
        owner = nodes[0] if victim <= 3 else nodes[-1]
        assert len(owner.dead) >= 1


@pytest.mark.parametrize("victim", [1, 2, 3, 4, 5, 6])
async def test_a_killed_hop_raises_doubt_within_seconds(autojump_clock, victim):
    async with world(8) as (network, nodes):
        await both_paths(nodes, 3, 3)
        await trio.sleep(10)
        owner, other = (nodes[0], nodes[-1]) if victim <= 3 else (nodes[-1], nodes[0])
        network.kill(nodes[victim].ref.node_id)
        await trio.sleep(4)
        assert owner.doubted
        assert not other.doubted


@pytest.mark.parametrize("victim", [1, 2, 3])
async def test_a_frozen_hop_raises_doubt_when_a_request_is_lost(autojump_clock, victim):
    async with world(8) as (network, nodes):
        _, entry_path, entry_node = await both_paths(nodes, 3, 3)
        await trio.sleep(10)
        network.freeze(nodes[victim].ref.node_id)
        with trio.move_on_after(4):
            await connected(nodes[0], entry_node, entry_path.entry_id)
        assert nodes[0].doubted
        assert nodes[0].connector.users()[0].ready == 0


async def test_an_entry_node_says_soon_that_its_path_gives_no_tunnels(autojump_clock):
    async with world(8) as (network, nodes):
        _, entry_path, entry_node = await both_paths(nodes, 3, 3)
        await trio.sleep(10)
        network.kill(nodes[5].ref.node_id)
        await trio.sleep(1)
        with trio.fail_after(3), pytest.raises(Unreachable, match="no tunnel"):
            await connected(nodes[0], entry_node, entry_path.entry_id)


@pytest.mark.parametrize("victim", [4, 5, 6])
async def test_a_frozen_hop_of_an_entry_path_raises_doubt(autojump_clock, victim):
    """Its neighbours' links notice."""
    async with world(8) as (network, nodes):
        await both_paths(nodes, 3, 3)
        await trio.sleep(10)
        network.freeze(nodes[victim].ref.node_id)
        with trio.fail_after(60):
            while not nodes[-1].doubted:
                await trio.sleep(1)


@pytest.mark.parametrize("hop", [1, 2, 3])
async def test_a_bit_flipped_on_the_way_never_reaches_the_application_unnoticed(
    autojump_clock, hop
):
    """The layers garble what follows; the end-to-end layer (not here) would end the connection."""
    async with world(8) as (network, nodes):
        _, entry_path, entry_node = await both_paths(nodes, 3, 3)
        _, tunnel = await connected(nodes[0], entry_node, entry_path.entry_id)
        flipped = []

        def flip(item):
            data = item.data
            if (
                item.kind == "bulk"
                and item.receiver == nodes[hop].ref.node_id
                and item.sender == nodes[hop - 1].ref.node_id
                and len(data) > 40_000
                and not flipped
            ):
                flipped.append(True)
                return data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]
            return data

        network.on_transfer = flip
        data = bytes(400_000)
        got = await exchange(tunnel, data)
        assert flipped
        assert len(got) == len(data)
        assert got[200_000:].count(0) < 5_000


async def test_a_flipped_reply_or_block_is_refused_and_counted(autojump_clock):
    async with world(8) as (network, nodes):
        exit_path, entry_path, entry_node = await both_paths(nodes, 3, 3)
        await trio.sleep(1)

        def flip(item):
            if item.kind == "bulk" and len(item.data) == 8196 and item.receiver == exit_id:
                return item.data[:5000] + bytes([item.data[5000] ^ 1]) + item.data[5001:]
            return item.data

        exit_id = exit_path.members[-1].node_id
        network.on_transfer = flip
        with pytest.raises(PathUnavailable):
            await connected(nodes[0], entry_node, entry_path.entry_id)
        assert nodes[3].hub.counts["drop_exit_CryptoError"] == 1

        def flip_block(item):
            if item.kind == "signal" and item.receiver == exit_id:
                return item.data[:-1] + bytes([item.data[-1] ^ 1])
            return item.data

        network.on_transfer = flip_block
        before = nodes[2].board.statistics().get("drop_opening_ProtocolViolation", 0)
        nodes[0].connector.users()[0]._announcer.discard_ready()
        await trio.sleep(3)
        assert nodes[2].board.statistics()["drop_opening_ProtocolViolation"] > before


async def test_strangers_can_not_use_a_connection_id(autojump_clock):
    async with world(9) as (_, nodes):
        exit_path, _, _ = await both_paths(nodes[:8], 3, 3)
        stranger = nodes[8]
        await stranger.links.signal(
            exit_path.members[0], b"\1" + exit_path.first_connection + RNG.randbytes(16)
        )
        await stranger.links.signal(exit_path.members[0], b"\1short")
        await trio.sleep(1)
        counts = nodes[1].board.statistics()
        assert counts["drop_block_unknown_connection"] == 1
        assert counts["drop_signal_WireError"] == 1


async def test_every_opening_and_package_has_one_size_whatever_it_carries(autojump_clock):
    async with world(8) as (network, nodes):
        _, entry_path, entry_node = await both_paths(nodes, 3, 3)
        await nodes[0].connector.netdb_call("default", b"resolve")
        _, tunnel = await connected(nodes[0], entry_node, entry_path.entry_id)
        tunnel.reset()
        await trio.sleep(1)
        signals = {len(item.data) for item in network.recorded if item.kind == "signal"}
        assert signals == {33}
        sizes = {
            len(item.data)
            for item in network.recorded
            if item.kind == "bulk"
            and {item.sender, item.receiver} != {nodes[3].ref.node_id, entry_node}
        }
        # an opening with the first package, package (perhaps with FIN), FIN or RESET
        assert sizes - {8196 + 4} == {68 + 8196, 8196, 4}


class MovedClock:
    """The system's clock, some time later."""

    def __init__(self):
        self.ahead = 0.0

    def now(self):
        return SystemClock().now() + self.ahead


async def test_a_hop_whose_owner_is_gone_is_forgotten(autojump_clock):
    async with world(8) as (network, nodes):
        await both_paths(nodes, 3, 3)
        await trio.sleep(1)
        clock = MovedClock()
        nodes[2].hub.clock = clock
        assert nodes[2].hops.statistics()["hops"] == 1
        network.kill(nodes[0].ref.node_id)
        clock.ahead = IDLE_LIFE - 60
        await trio.sleep(SWEEP_EVERY + 1)
        assert nodes[2].hops.statistics()["hops"] == 1
        clock.ahead = IDLE_LIFE + 60
        await trio.sleep(SWEEP_EVERY + 1)
        assert nodes[2].hops.statistics()["hops"] == 0
        assert nodes[2].board.statistics()["path_connections"] == 0


def relayed(before, relay, after):
    """A hop of somebody's path between two nodes; returns it and how ``before`` sends blocks."""
    connections = [ConnectionId(RNG.randbytes(16)) for _ in range(2)]
    hop = PathHop(
        role="interior",
        neighbours=((before.ref, connections[0]), (after.ref, connections[1])),
        path_secret=RNG.randbytes(32),
        expires=2e10,
    )
    relay.hops.add(hop)

    def send(count):
        for _ in range(count):
            block = TunnelBlock(RNG.randbytes(16))
            relay.board.signalled(
                Peer(before.ref.node_id, before.ref.address), pack_block(connections[0], block)
            )

    return hop, send


def standing(node):
    return [host.hop for host in node.hops._hops.values()]


async def test_a_neighbour_whose_paths_have_too_many_blocks_loses_the_fullest(
    autojump_clock, monkeypatch
):
    monkeypatch.setattr(hops, "BLOCK_MEMORY", 4_000 * SEEN_BYTES)
    monkeypatch.setattr(hops, "BLOCK_MEMORY_EACH", 300 * SEEN_BYTES)
    async with world(5) as (_, nodes):
        relay = nodes[0]
        paths = [relayed(nodes[1], relay, nodes[4]) for _ in range(3)]
        other, send = relayed(nodes[2], relay, nodes[3])
        send(250)
        for (_, send), count in zip(paths, (50, 200, 100), strict=True):
            send(count)
        clock = MovedClock()
        relay.hub.clock = clock
        clock.ahead = 60  # what is pending is forgotten
        await trio.sleep(SWEEP_EVERY + 1)
        assert standing(relay) == [paths[0][0], paths[2][0], other]
        assert relay.hub.counts["drop_hop_block_memory"] == 1
        assert relay.board.statistics()["path_connections"] == 6


async def test_when_all_paths_have_too_many_blocks_those_with_most_lose_theirs(
    autojump_clock, monkeypatch
):
    monkeypatch.setattr(hops, "BLOCK_MEMORY", 400 * SEEN_BYTES)
    async with world(5) as (_, nodes):
        relay = nodes[0]
        paths = [relayed(nodes[number], relay, nodes[4]) for number in (1, 1, 2, 3)]
        for (_, send), count in zip(paths, (150, 100, 200, 50), strict=True):
            send(count)
        clock = MovedClock()
        relay.hub.clock = clock
        clock.ahead = 60
        await trio.sleep(SWEEP_EVERY + 1)
        assert standing(relay) == [hop for hop, _ in paths[1:]]
        assert relay.hub.counts["drop_hop_block_memory"] == 1


async def test_blocks_that_nobody_comes_back_for_count_for_more(autojump_clock, monkeypatch):
    monkeypatch.setattr(hops, "BLOCK_MEMORY_EACH", 200 * PENDING_BYTES)
    async with world(3) as (_, nodes):
        kept, send = relayed(nodes[1], nodes[0], nodes[2])
        send(150)
        await trio.sleep(SWEEP_EVERY + 1)
        assert standing(nodes[0]) == [kept]
        send(100)
        await trio.sleep(SWEEP_EVERY + 1)
        assert standing(nodes[0]) == []


# --- paths out of use, and paths for questions ----------------------------------------------------


def plugged(node):
    """Paths of an owner that stand, in use or not."""
    return len(set(node.board._receivers.values()))


class Layer:
    """Lays private paths when asked, and numbers them."""

    def __init__(self, owner, members):
        self.owner, self.members = owner, members
        self.laid = []
        owner.private_exit = self.lay

    async def lay(self, identity):
        path = lay_path(self.owner, self.members, "exit")
        path = dataclasses.replace(
            path, identity=identity, number=100 + len(self.laid), retires=2e10, aside=True
        )
        self.laid.append(path)
        return path


async def test_questions_about_oneself_take_a_path_each_until_there_are_enough(
    autojump_clock, monkeypatch
):
    used = []
    call = OwnedExit.netdb_call

    async def noted(way, what):
        used.append((way.path.identity, way.number))
        return await call(way, what)

    monkeypatch.setattr(OwnedExit, "netdb_call", noted)
    async with world(5) as (_, nodes):
        owner, layer = nodes[0], Layer(nodes[0], nodes[1:4])
        for _ in range(3 * MAX_PRIVATE):
            await owner.connector.netdb_call("default", b"?", private=True)
            await trio.sleep(1)
        assert len(layer.laid) == MAX_PRIVATE, "they cost others, too"
        numbers = [path.number for path in layer.laid]
        assert used == [("default", number) for number in 3 * numbers]
        await owner.connector.netdb_call("other", b"?", private=True)
        assert used[-1] == ("other", layer.laid[-1].number), "none serves two identities"
        assert plugged(owner) == MAX_PRIVATE + 1


async def test_a_silent_path_for_questions_makes_room_for_another(autojump_clock):
    async with world(8) as (network, nodes):
        owner, layer = nodes[0], Layer(nodes[0], nodes[1:4])
        for _ in range(MAX_PRIVATE):
            await owner.connector.netdb_call("default", b"?", private=True)
        network.kill(nodes[2].ref.node_id)
        await trio.sleep(200)
        layer.members = nodes[4:7]
        for _ in range(3):
            assert await owner.connector.netdb_call("default", b"?", private=True)
        assert len(owner.connector._private) == MAX_PRIVATE
        assert len(layer.laid) == MAX_PRIVATE + 2, "and none is used twice in a row"


async def test_paths_out_of_use_are_limited_and_those_without_tunnels_go_first(
    autojump_clock, monkeypatch
):
    monkeypatch.setattr(connector_module, "MAX_ENDING", 4)
    async with world(8) as (network, nodes):
        owner = nodes[0]
        paths = []
        for number in range(7):
            kind = "entry" if number % 2 else "exit"
            members = nodes[4:7] if number == 3 else nodes[1:4]
            path = lay_path(owner, members, kind)
            ends = 2e10 + number
            path = dataclasses.replace(path, number=number, retires=ends, expires=ends)
            await owner.connector.adopt(path)
            paths.append(path)
        await trio.sleep(5)
        assert plugged(owner) == 7
        network.kill(nodes[5].ref.node_id)
        await trio.sleep(60)
        for path in paths:
            owner.connector.drop(path)
            assert len(owner.connector._ending) <= 4
        assert [user.path.number for user in owner.connector._ending] == [2, 4, 5, 6]
        assert plugged(owner) == 4
        assert all(user.ready for user in owner.connector._ending)


async def test_a_jump_of_the_clock_ends_paths_out_of_use(autojump_clock):
    async with world(8) as (_, nodes):
        exit_path, entry_path, _ = await both_paths(nodes, 3, 3)
        for node, path in ((nodes[0], exit_path), (nodes[-1], entry_path)):
            clock = node.hub.clock = MovedClock()
            node.connector.drop(path)
            await trio.sleep(100)
            assert plugged(node) == 1
            clock.ahead = 3e10
            await trio.sleep(LOOK_EVERY + 1)
            assert plugged(node) == 0
            assert not node.connector._ending


async def test_what_has_to_do_with_being_called_never_takes_a_shorter_exit(autojump_clock):
    async with world(8) as (_, nodes):
        owner, exit_node = nodes[0], nodes[3]
        await owner.connector.adopt(lay_path(owner, [], "exit"))
        assert await owner.connector.netdb_call("default", b"1", hidden=True)
        assert owner.database.calls == [b"1"], "nothing is hidden as long as there's no entry path"
        await owner.connector.adopt(lay_path(owner, nodes[4:7], "entry"))
        assert owner.connector.exit_count("default", hidden=True) == 0
        with pytest.raises(PathUnavailable):
            await owner.connector.netdb_call("default", b"2", hidden=True)
        aside = dataclasses.replace(lay_path(owner, nodes[1:4], "exit"), aside=True, number=3)
        await owner.connector.adopt(aside)
        assert owner.connector.exit_count("default", hidden=True) == 1
        for path_index in (None, 0, 1):
            assert await owner.connector.netdb_call(
                "default", b"3", hidden=True, path_index=path_index
            )
        assert exit_node.database.calls == [b"3"] * 3
        assert owner.database.calls == [b"1"]
        # Connections go the short way, as was wished.
        for _ in range(20):
            assert not (await owner.connector.way_out("default")).path.aside
        assert owner.connector.exit_count("default") == 1
        assert aside in owner.connector.standing()
        assert aside not in {user.path for user in owner.connector.users()}
        owner.connector.drop(aside)
        assert owner.connector.exit_count("default", hidden=True) == 0
