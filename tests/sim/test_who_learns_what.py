"""What each role of the protocol can learn, from everything its node receives and can make of it
(docs/threats.md, "By role").

One connection is made in a network of real nodes, both its ends behind paths of their own. All that
went over the links and all that any node unsealed, unlocked or deciphered is on record
(``whole_network.py``); each test asks what a role can and can't find in its part of that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv4Address
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock
from whole_network import (
    IDENTITY,
    Event,
    Eyes,
    Owner,
    WholeNetwork,
    WholeNode,
    calls,
    echo,
    events,
    exchange,
    received,
    whole_network,
)

from phantom_tun.crypto.signing import node_id_of
from phantom_tun.ids import NodeId
from phantom_tun.net.addresses.identities import LeaseState
from phantom_tun.path.build import Build
from phantom_tun.path.ring import member_count
from phantom_tun.wire.frames import Frame
from phantom_tun.wire.netdb import (
    ExtendApLease,
    ReserveAp,
    ResolveAp,
    UpdateApRoutes,
    decode_call,
)
from phantom_tun.wire.puzzles import SOLUTION_LEN
from phantom_tun.wire.records import APRoute, decode
from phantom_tun.wire.setup import ARRAY_LEN, SLOT_LEN
from phantom_tun.wire.sizes import (
    ANSWER_LEN,
    OPENING_LEN,
    PACKAGE_LEN,
    SEALED_REQUEST_LEN,
)
from phantom_tun.wire.tunnel import (
    BLOCK_SIGNAL_LEN,
    ENTRY_ANSWER_LEN,
    ENTRY_REQUEST_LEN,
    Body,
    ConnectRequest,
    Opening,
    Operation,
)

NODES = 26
FEWEST_MEMBERS = 15
"""Of all builds together."""
PORT, SOURCE_PORT = 0x7A69, 0xC53B
"""Not found anywhere by chance: two bytes each, so looked for together with what stands beside."""
MARKER = b"nobody between the two ends may ever read this text"
TIMES = 400
REPLY = bytes(byte ^ 0xFF for byte in MARKER)


@dataclass
class Roles:
    """Who was what in some builds."""

    owners: set[NodeId] = field(default_factory=set)
    ys: set[NodeId] = field(default_factory=set)
    interior: set[NodeId] = field(default_factory=set)
    exits: set[NodeId] = field(default_factory=set)
    entries: set[NodeId] = field(default_factory=set)
    beside_owner: set[NodeId] = field(default_factory=set)
    """Next to it in the ring or on the path."""

    @property
    def terminating(self) -> set[NodeId]:
        return self.exits | self.entries

    @property
    def members(self) -> set[NodeId]:
        return self.ys | self.interior | self.terminating


def roles_of(builds: Iterable[tuple[NodeId | None, Build]]) -> Roles:
    roles = Roles()
    for owner, build in builds:
        assert owner is not None
        roles.owners.add(owner)
        members = [member.node_id for member in build.members]
        x_nodes = [member.node_id for member in build.x_nodes]
        roles.ys.update(set(members) - set(x_nodes))
        roles.interior.update(x_nodes[:-1])
        (roles.exits if build.entry_id is None else roles.entries).add(x_nodes[-1])
        roles.beside_owner.update((members[0], members[-1], x_nodes[0]))
    return roles


@dataclass
class Observed:
    """A network after one connection, with everything that any node could see."""

    net: WholeNetwork
    eyes: Eyes
    caller: WholeNode
    callee: WholeNode

    def builds(self, owner: WholeNode, kind: str | None = None) -> list[Build]:
        return [
            build
            for who, build in self.eyes.builds
            if who == owner.node_id
            and kind in {None, "exit" if build.entry_id is None else "entry"}
        ]

    def roles(self, owner: WholeNode, kind: str | None = None) -> Roles:
        return roles_of((owner.node_id, build) for build in self.builds(owner, kind))

    @cached_property
    def events(self) -> list[Event]:
        """Every frame of a bulk link, and every signal."""
        return events(self.net.medium)

    @cached_property
    def views(self) -> dict[NodeId, list[bytes]]:
        """All that each node received and made of it, but for netdb calls over signalling links."""
        views = received(self.events)
        return {node: views[node] + self.eyes.of(node) for node in self.net.by_id}

    def finders(self, secret: bytes, *, netdb: bool = True) -> set[NodeId]:
        """The nodes whose view has ``secret`` in it; ``netdb``: netdb calls and answers, too."""
        found = {node for node, blobs in self.views.items() if any(secret in b for b in blobs)}
        if netdb:
            found |= {item.receiver for item in calls(self.net.medium) if secret in item.data}
        return found


def as_written(address: IPv4Address) -> tuple[bytes, bytes]:
    """An AP4 address as messages hold it: in a record or a call, and mapped into IPv6. Four bytes
    alone would sooner or later be found in ciphertext by chance."""
    return b"\xc4\x04" + address.packed, b"\0" * 10 + b"\xff\xff" + address.packed


async def observe(exit_hops: int, entry_hops: int, wait: float) -> Observed:
    """Have one connection made, and ``wait`` some seconds for what follows from it."""
    with pytest.MonkeyPatch.context() as patch:
        eyes = Eyes().install(patch)
        owners = {0: Owner(exit_hops=exit_hops, publish=False), 1: Owner(entry_hops=entry_hops)}
        async with whole_network(NODES, owners) as net:
            caller, callee = net.nodes[:2]
            callee.rules.expose(IDENTITY, "tcp", PORT)
            callee.host.streams[PORT] = echo
            with trio.fail_after(120):
                await caller.bring_up()
                await callee.bring_up()
                stream = await caller.connect(callee.identity.ap6, PORT, SOURCE_PORT)
                with caller.viewing():
                    assert await exchange(stream, MARKER * TIMES) == REPLY * TIMES
            await trio.sleep(wait)
            net.check_untroubled()
    return Observed(net, eyes, caller, callee)


def observed(exit_hops: int, entry_hops: int, wait: float = 5.0) -> Observed:
    return trio.run(observe, exit_hops, entry_hops, wait, clock=MockClock(autojump_threshold=0))


@pytest.fixture(scope="module")
def seen() -> Observed:
    while has_coincidences(found := observed(3, 3, wait=100.0)):
        pass
    return found


def has_coincidences(seen: Observed) -> bool:
    """Whether members were drawn so that a test would take one thing for another: once in fifty
    times."""
    (way_out,), (way_in,) = seen.builds(seen.caller, "exit"), seen.builds(seen.callee, "entry")
    x_nodes = [[member.node_id for member in build.x_nodes] for build in (way_out, way_in)]
    ends = {nodes[-1] for nodes in x_nodes}
    one, other = ({frozenset(pair) for pair in pairwise(nodes)} for nodes in x_nodes)
    roles = [seen.roles(owner) for owner in (seen.caller, seen.callee)]
    return (
        len(ends) < 2  # one node is both, and talks to itself then
        or not one.isdisjoint(other)  # one link carries the connection twice
        or any(role.terminating <= role.beside_owner for role in roles)
        or len(roles_of(seen.eyes.builds).members) < FEWEST_MEMBERS
    )


# --- who somebody is -----------------------------------------------------------------------------


def names_of(node: WholeNode) -> list[bytes]:
    ref = node.ref
    return [ref.node_id, ref.cert_hash, ref.address.packed + ref.port.to_bytes(2, "big")]


def test_nobody_but_its_neighbours_is_told_who_an_owner_is(seen):
    for owner in (seen.caller, seen.callee):
        roles = seen.roles(owner)
        for name in names_of(owner):
            finders = seen.finders(name, netdb=False)
            assert finders <= roles.beside_owner | {owner.node_id}
            assert finders & roles.beside_owner, "the test sees those that do know"
            assert not finders & (roles.terminating - roles.beside_owner)
        assert roles.terminating - roles.beside_owner


def test_a_terminating_node_is_told_nothing_about_the_owner(seen):
    """Even if it stands beside the owner in another ring: its own packages don't say it."""
    for owner in (seen.caller, seen.callee):
        for build in seen.builds(owner):
            last = build.x_nodes[-1].node_id
            packages = [
                data
                for data in seen.eyes.of(last, "unsealed", "unlocked")
                if build.secrets[-1] in data or any(c in data for c in around(build, last))
            ]
            assert len(packages) >= 2
            for name in names_of(owner):
                assert not any(name in package for package in packages)


def around(build: Build, member: NodeId) -> list[bytes]:
    """The two ring connection ids that a member of a build is told."""
    place = [node.node_id for node in build.members].index(member)
    return list(build._ring_ids[place : place + 2])


def test_caller_and_callee_are_not_told_each_others_node(seen):
    for one, other in ((seen.caller, seen.callee), (seen.callee, seen.caller)):
        for name in names_of(other):
            assert not any(name in blob for blob in seen.views[one.node_id])


def test_only_the_callee_learns_who_calls_and_for_which_port(seen):
    identity = seen.caller.identity
    request = next(
        data for data in seen.eyes.of(seen.callee.node_id, "unsealed") if MARKER not in data
        and identity.public_key in data
    )  # fmt: skip
    target = seen.callee.identity.ap6.packed + PORT.to_bytes(2, "big")
    source = SOURCE_PORT.to_bytes(2, "big") + identity.public_key
    for secret in (
        identity.public_key,
        identity.ap6.packed,
        *as_written(identity.candidate),
        identity.certificate.der[-64:],
        node_id_of(identity.public_key),
        source,
        target,
    ):
        assert seen.finders(secret) <= {seen.callee.node_id}
    assert source in request
    assert target in request


def test_the_called_address_is_told_to_the_resolving_exit_and_the_netdb_alone(seen):
    identity = seen.callee.identity
    resolvers = seen.roles(seen.caller).exits
    publishers = seen.roles(seen.callee).terminating
    allowed = resolvers | publishers | {seen.callee.node_id, seen.caller.node_id}
    for name in (identity.ap6.packed, identity.public_key, *as_written(identity.ap4)):
        assert seen.finders(name, netdb=False) <= allowed
    assert seen.finders(identity.ap6.packed, netdb=False) & resolvers
    # The exit node isn't told it where it is told the entry node.
    requests = [
        ConnectRequest.unpack(body.content)
        for node in resolvers
        for body in bodies(seen.eyes.of(node, "unlocked"))
        if body.operation is Operation.CONNECT
    ]
    assert requests
    for request in requests:
        whole = request.entry_node + request.entry_id + request.sealed_request
        assert identity.ap6.packed not in whole
        assert identity.public_key not in whole


def bodies(unlocked: Iterable[bytes]) -> list[Body]:
    return [Body.unpack(data) for data in unlocked if len(data) == PACKAGE_LEN - 16]


# --- what is said --------------------------------------------------------------------------------


def test_what_applications_say_is_readable_at_the_two_ends_alone(seen):
    assert seen.finders(MARKER[:16]) == {seen.callee.node_id}
    assert seen.finders(REPLY[:16]) == {seen.caller.node_id}


def test_an_entry_node_is_told_its_owners_route_and_no_more(seen):
    (build,) = seen.builds(seen.callee, "entry")
    entry = build.x_nodes[-1].node_id
    (package,) = [d for d in seen.eyes.of(entry, "unlocked") if build.secrets[-1] in d]
    at = package.index(build.entry_id) + len(build.entry_id)
    length = int.from_bytes(package[at : at + 2], "big")
    route = decode(APRoute, package[at + 2 : at + 2 + length])
    assert (route.entry_node, route.entry_id) == (entry, build.entry_id)
    assert route.public_key == seen.callee.identity.public_key
    told = {body.operation for body in bodies(seen.eyes.of(entry, "unlocked"))}
    if entry in roles_of(seen.eyes.builds).exits:  # on another path
        told -= {Operation.NETDB, Operation.CONNECT}
    assert told <= {Operation.READY, Operation.UPDATE, Operation.ANSWER}


# --- what could be compared ----------------------------------------------------------------------


def met(seen: Observed) -> set[frozenset[NodeId]]:
    """Pairs of nodes that had anything to do with each other but netdb calls."""
    return {
        frozenset((item.sender, item.receiver))
        for item in seen.net.medium.recorded
        if item.kind in {"bulk", "signal"}
    }


def masks(seen: Observed) -> list[bytes]:
    """What everybody may know: who the nodes are, and the records of the called identity."""
    public = [node.ref.pack() for node in seen.net.nodes] + list(seen.net.by_id)
    identity = seen.callee.identity
    records: list[bytes] = [identity.certificate.der, identity.public_key, identity.ap6.packed]
    records += [key.public for key in identity.request_keys]
    for item in calls(seen.net.medium):
        if item.kind == "call":
            call = decode_call(item.data)
            if isinstance(call, UpdateApRoutes):
                records += call.routes
            elif isinstance(call, ReserveAp | ExtendApLease):
                records.append(call.record)
    return sorted(set(records), key=len, reverse=True) + public


def split(blobs: Iterable[bytes], masks: Iterable[bytes]) -> list[bytes]:
    parts = list(blobs)
    for mask in masks:
        parts = [piece for part in parts for piece in part.split(mask)]
    return [part for part in parts if len(part) >= RUN]


RUN = 16
"""Bytes in a row that two strangers must not share."""
_STEP = 8


def shared_runs(views: dict[NodeId, list[bytes]]) -> set[frozenset[NodeId]]:
    """Pairs of nodes with at least ``RUN`` bytes in a row in common (any run contains a window of
    ``_STEP`` bytes that begins at a multiple of ``_STEP``). Runs of zeros are padding."""
    index: dict[bytes, list[tuple[NodeId, bytes, int]]] = defaultdict(list)
    for node, blobs in views.items():
        for blob in blobs:
            for at in range(0, len(blob) - _STEP + 1, _STEP):
                window = blob[at : at + _STEP]
                if window.count(0) < _STEP // 2:
                    index[window].append((node, blob, at))
    found = set()
    for node, blobs in views.items():
        for blob in blobs:
            for at in range(len(blob) - _STEP + 1):
                for other, theirs, there in index.get(blob[at : at + _STEP], ()):
                    pair = frozenset((node, other))
                    is_new = node != other and pair not in found
                    if is_new and common_run(blob, at, theirs, there) >= RUN:
                        found.add(pair)
    return found


def common_run(one: bytes, at: int, other: bytes, there: int) -> int:
    start = 0
    while start < min(at, there) and one[at - start - 1] == other[there - start - 1]:
        start += 1
    end = 0
    while at + end < len(one) and there + end < len(other) and one[at + end] == other[there + end]:
        end += 1
    return start + end


def test_a_shared_run_is_found_wherever_it_stands():
    text = bytes(range(1, 40))
    one, other, third = (NodeId(bytes([number]) * 32) for number in range(3))
    for offset in range(9):
        views = {one: [b"x" * offset + text], other: [b"yyy" + text[7:23]], third: [text[:15]]}
        assert shared_runs(views) == {frozenset((one, other))}


def test_two_relays_that_are_no_neighbours_have_nothing_to_compare(seen):
    """No id, key, secret, block, array or stretch of a stream, on one path or on the two."""
    members = roles_of(seen.eyes.builds).members
    hidden = masks(seen)
    views = {node: split(seen.views[node], hidden) for node in members}
    assert len(views) >= FEWEST_MEMBERS
    neighbours = met(seen)
    shared = shared_runs(views)
    assert shared, "neighbours do share what went between them"
    assert shared <= neighbours


def test_all_keys_ids_and_secrets_of_a_build_are_different(seen):
    drawn = []
    for _, build in seen.eyes.builds:
        drawn += [*build._ring_ids, *build._path_ids, *build.secrets]
        for member in build._members:
            drawn += [
                member.construction.public,
                member.cover.layer_secret,
                member.cover.fill_secret,
                member.round2_key,
            ]
    assert len(set(drawn)) == len(drawn) > 100


def arrays(seen: Observed, build: Build) -> list[list[bytes]]:
    """Of both rounds: the array as it went from member to member, owner to owner."""
    by_id = defaultdict(list)
    kind = None
    uses: dict[int, tuple[bytes, bytearray]] = {}
    for event in seen.events:
        if event.frame is Frame.OPEN:
            kind = event.payload[0]
            if kind == Opening.ARRAY:
                uses[event.link] = event.payload[1:17], bytearray()
            else:
                uses.pop(event.link, None)
        elif event.frame is Frame.DATA and event.link in uses:
            uses[event.link][1].extend(event.payload)
            if len(uses[event.link][1]) == ARRAY_LEN:
                name, array = uses.pop(event.link)
                by_id[name].append(bytes(array))
    return [[by_id[name][number] for name in build._ring_ids] for number in (0, 1)]


def test_an_array_has_nothing_in_common_on_the_two_sides_of_a_member(seen):
    for build in seen.builds(seen.caller, "exit") + seen.builds(seen.callee, "entry"):
        for round_ in arrays(seen, build):
            assert len(round_) == member_count(len(build.x_nodes)) + 1
            for before, after in pairwise(round_):
                slots = {before[at : at + SLOT_LEN] for at in range(0, ARRAY_LEN, SLOT_LEN)}
                assert not any(
                    after[at : at + SLOT_LEN] in slots for at in range(0, ARRAY_LEN, SLOT_LEN)
                )
                sides = {NodeId(b"1" * 32): [before], NodeId(b"2" * 32): [after]}
                assert shared_runs(sides) == set()


# --- sizes ---------------------------------------------------------------------------------------


def test_sizes_say_nothing_about_length_kind_role_or_place(seen):
    shapes = defaultdict(set)
    for one in (seen, observed(2, 4), observed(4, 2)):
        for event in one.events:
            if event.frame in {Frame.SIGNAL, Frame.OPEN}:
                shapes[event.frame].add(len(event.payload))
        for _, build in one.eyes.builds:
            shapes["array"] |= {len(array) for both in arrays(one, build) for array in both}
        for uses in tunnel_uses(one).values():
            for use in uses:
                shapes["packages"] |= {size for _, size in use.packages()}
    assert shapes == {
        Frame.SIGNAL: {BLOCK_SIGNAL_LEN},
        Frame.OPEN: {OPENING_LEN},
        "array": {ARRAY_LEN},
        "packages": {PACKAGE_LEN},
    }


def test_a_request_and_its_answer_have_one_size_between_exit_and_entry(seen):
    uses = []
    for place, event in enumerate(seen.events):
        if event.frame is Frame.OPEN and event.payload[0] == Opening.ENTRY:
            uses.append((place, event.link, event.sender))
    assert uses
    for place, link, sender in uses:
        first = {True: b"", False: b""}
        for event in seen.events[place:]:
            if event.link == link and event.frame is Frame.DATA:
                first[event.sender == sender] = first[event.sender == sender] or event.payload
        assert len(first[True]) == ENTRY_REQUEST_LEN == SEALED_REQUEST_LEN + SOLUTION_LEN
        assert len(first[False]) == ENTRY_ANSWER_LEN == ANSWER_LEN + 1


# --- inbound and outbound ------------------------------------------------------------------------


@dataclass
class Use:
    """One tunnel on one link, from the side that sent the block."""

    link: int
    block: bytes
    opener: NodeId
    frames: list[tuple[bool, Frame, int, float]] = field(default_factory=list)
    """(Whether the opener sent it, frame, payload bytes, moment)."""

    def packages(self) -> list[tuple[bool, int]]:
        """The frames before any data: who, and how long."""
        sizes = [(opener, size) for opener, frame, size, _ in self.frames if frame is Frame.DATA]
        return sizes[:3]

    def shape(self) -> list[tuple[bool, str, int]]:
        """What an observer on the link sees, bytes in a row of one side added up."""
        found: list[tuple[bool, str, int]] = []
        for opener, frame, size, _ in self.frames:
            goes_on = bool(found) and found[-1][:2] == (opener, "DATA") and frame is Frame.DATA
            found.append((opener, frame.name, size + (found.pop()[2] if goes_on else 0)))
        return found


def tunnel_uses(seen: Observed) -> dict[tuple[NodeId, NodeId], list[Use]]:
    """Every tunnel on every link, by (who opened it, towards whom)."""
    found: dict[tuple[NodeId, NodeId], list[Use]] = defaultdict(list)
    current: dict[int, Use] = {}
    for event in seen.events:
        if event.frame is Frame.OPEN:
            current.pop(event.link, None)
            if event.payload[0] == Opening.TUNNEL:
                use = Use(event.link, event.payload[17:33], event.sender)
                current[event.link] = use
                found[event.sender, event.receiver].append(use)
        elif event.link in current:
            use = current[event.link]
            use.frames.append(
                (event.sender == use.opener, event.frame, len(event.payload), event.number)
            )
    return found


def connection_at(seen: Observed, build: Build, index: int) -> list[list[tuple[bool, str, int]]]:
    """The tunnel that carried the connection, as the ``index``-th X-node saw it: on the link where
    it was opened towards it, and on the one that it opened."""
    node = build.x_nodes[index].node_id
    ends = {build.x_nodes[index + 1].node_id}
    ends.add(build.x_nodes[index - 1].node_id if index else owner_of(seen, build))
    shapes = []
    for (opener, other), uses in tunnel_uses(seen).items():
        if node in {opener, other} and {opener, other} - {node} <= ends:
            shapes += [
                use.shape()
                for use in uses
                if sum(size for _, _, size, _ in use.frames) > 2 * len(MARKER) * TIMES
            ]
    return shapes


def owner_of(seen: Observed, build: Build) -> NodeId:
    (owner,) = {who for who, other in seen.eyes.builds if other is build}
    assert owner is not None
    return owner


def test_a_connection_looks_the_same_at_hops_of_exit_and_entry_paths(seen):
    """Packages and volumes, in which direction, in which order, which side ends what first."""
    (way_out,) = seen.builds(seen.caller, "exit")
    (way_in,) = seen.builds(seen.callee, "entry")
    shapes = [
        shape
        for build in (way_out, way_in)
        for index in (0, 1)
        for shape in connection_at(seen, build, index)
    ]
    assert len(shapes) == 8, "four interior hops with two links each"
    setup = [(True, "DATA", PACKAGE_LEN), (False, "DATA", PACKAGE_LEN)]
    for shape in shapes:
        assert shape[:2] == setup
        assert totals(shape) == totals(shapes[0])
        assert {end[:2] for end in shape if end[1] != "DATA"} == {(True, "FIN"), (False, "FIN")}


def totals(shape: list[tuple[bool, str, int]]) -> dict[bool, int]:
    found = {True: 0, False: 0}
    for opener, _, size in shape:
        found[opener] += size
    return found


# --- the network database ------------------------------------------------------------------------


def test_storers_hear_about_addresses_from_terminating_nodes_only(seen):
    readers, writers = seen.roles(seen.caller).exits, seen.roles(seen.callee)
    allowed = {
        ResolveAp: readers | writers.exits,
        ReserveAp: writers.exits,
        ExtendApLease: writers.entries,
        UpdateApRoutes: writers.entries,
    }
    counted = defaultdict(int)
    for item in calls(seen.net.medium):
        if item.kind != "call":
            continue
        call = decode_call(item.data)
        if type(call) in allowed:
            counted[type(call)] += 1
            assert item.sender in allowed[type(call)]
            for owner in (seen.caller, seen.callee):
                assert not any(name in item.data for name in names_of(owner))
    assert counted[ResolveAp]
    assert counted[ReserveAp]
    assert counted[UpdateApRoutes]


async def test_an_owner_without_exit_hops_is_hidden_from_storers_by_its_entry_hops(autojump_clock):
    """Publishing, looking, and asking who calls: nothing of it under the owner's own name."""
    with pytest.MonkeyPatch.context() as patch:
        eyes = Eyes().install(patch)
        owners = {0: Owner(), 1: Owner(exit_hops=0, entry_hops=3)}
        async with whole_network(NODES, owners) as net:
            caller, callee = net.nodes[:2]
            callee.rules.expose(IDENTITY, "tcp", PORT)
            callee.host.streams[PORT] = echo
            with trio.fail_after(300):
                await caller.bring_up()
                await callee.bring_up()
                while not callee.connector.exit_count(IDENTITY, hidden=True):
                    await trio.sleep(1)
                for address in (callee.identity.ap4, callee.identity.ap6):
                    with callee.viewing():
                        assert await callee.directory.ask(IDENTITY, address) is not None
                before = len(net.medium.recorded)
                stream = await caller.connect(callee.identity.ap4, PORT, SOURCE_PORT)
                assert await exchange(stream, MARKER) == REPLY
            connected = net.medium.recorded[before:]
            await trio.sleep(100)
            assert callee.identity.ap4_state is LeaseState.HELD
            net.check_untroubled()
    found = Observed(net, eyes, caller, callee)
    addresses = [caller.identity.ap4, callee.identity.ap4, callee.identity.ap6]
    counted = defaultdict(int)
    for item in calls(net.medium):
        call = decode_call(item.data) if item.kind == "call" else None
        if isinstance(call, ResolveAp | ReserveAp | ExtendApLease | UpdateApRoutes):
            assert item.sender != callee.node_id
            counted[type(call)] += 1
    assert counted[ResolveAp]
    assert counted[ReserveAp]
    assert counted[UpdateApRoutes]
    # The caller was confirmed, over an exit path of the callee's that has hops.
    (peer,) = {peer.address for peer, _ in callee.host.calls}
    assert peer == caller.identity.ap4
    askers = {
        item.sender
        for item in connected
        if item.kind == "call" and decode_call(item.data) == ResolveAp.of(addresses[0])
    }
    assert askers
    assert askers <= found.roles(callee, "exit").exits


def test_no_question_to_the_netdb_shows_who_is_chosen_for_a_path(seen):
    """What an owner asks under its own name is the same before it builds as while it does."""
    for owner in (seen.caller, seen.callee):
        for item in calls(seen.net.medium):
            if item.sender == owner.node_id and item.kind == "call":
                assert type(decode_call(item.data)).__name__ in {"RegisterNode", "ClosestNodes"}


# --- afterwards ----------------------------------------------------------------------------------


def test_members_forget_builds_and_tunnels_that_are_over(seen):
    x_nodes = dict.fromkeys(roles_of(seen.eyes.builds).members, 0)
    for _, build in seen.eyes.builds:
        for member in build.x_nodes:
            x_nodes[member.node_id] += 1
    for node, hops in x_nodes.items():
        statistics = seen.net[node].member.statistics()
        assert statistics["builds_pending"] == 0
        assert statistics["hops_standing"] == hops, "a Y-node keeps nothing"
        assert seen.net[node].hops.statistics()["hops"] == hops
