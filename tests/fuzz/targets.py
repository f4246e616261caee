"""Everything that reads bytes from outside, as functions of bytes: what ``scripts/fuzz`` mutates
inputs for and ``test_fuzz_corpus`` replays the corpus through.

A target gets past signatures and seals by making them itself: what is under them is the attacker's
to choose. It keeps no state from one input to the next.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h11
import trio

from phantom_tun import config, profile
from phantom_tun.clock import HOUR
from phantom_tun.control.schema import ControlError, decode_reply, decode_request
from phantom_tun.crypto.certificates import callee_context, caller_context
from phantom_tun.crypto.hashes import h
from phantom_tun.crypto.packages import lock
from phantom_tun.crypto.sealing import seal
from phantom_tun.crypto.signing import SigningKey, node_id_of
from phantom_tun.crypto.work import NONCE_LEN
from phantom_tun.crypto.x509 import check_certificate, make_certificate
from phantom_tun.errors import (
    ConfigError,
    CryptoError,
    LinkBroken,
    PeerError,
    ProtocolViolation,
    RecordRefused,
    WireError,
)
from phantom_tun.ids import CertHash, ConnectionId
from phantom_tun.net.addresses.ap_database import check_resolution, check_write
from phantom_tun.net.links.buffers import CHUNK, POOL, Segment
from phantom_tun.net.links.bulk import Bulk, BulkLink
from phantom_tun.net.links.dialer import _read_welcome
from phantom_tun.net.links.peers import Peer
from phantom_tun.net.links.web import Site, Visitor
from phantom_tun.net.sessions.frames import FrameReader
from phantom_tun.net.sessions.unacknowledged import Memory, Unacknowledged
from phantom_tun.netdb import cachefile, holdings
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.netdb.book import NodeBook
from phantom_tun.netdb.overrides import Overrides
from phantom_tun.netdb.rules import Caller
from phantom_tun.netdb.server import OwnNode, Server
from phantom_tun.netdb.signing import sign_override
from phantom_tun.netdb.store import ApStore
from phantom_tun.netdb.verifier import Verifier
from phantom_tun.packet.answer import QUOTE, host_unreachable, port_unreachable, reset_for
from phantom_tun.packet.classify import Kind, classify
from phantom_tun.packet.framing import EchoFraming, UdpFraming, datagram_of
from phantom_tun.packet.header import endpoints_of, read_ip_header
from phantom_tun.packet.rewrite import make_translator
from phantom_tun.path.guards import GuardSet
from phantom_tun.path.keys import PURPOSE, PathKeys
from phantom_tun.path.layers import hash_without, hint
from phantom_tun.path.member import ROUND2_PURPOSE, ArrayRefused, Member, MemberLimits
from phantom_tun.profile import Bootstrap
from phantom_tun.testing.record_factory import NETWORK, NOW, ApMaker, NodeMaker
from phantom_tun.tunnel.answer import caller_wrap
from phantom_tun.tunnel.channel import CalleeHandshake, CallerHandshake
from phantom_tun.tunnel.early import EarlyOpener, EarlySealer, lock_early
from phantom_tun.tunnel.request import check_time
from phantom_tun.tunnel.resumption import Resuming, check_resumption
from phantom_tun.wire import session
from phantom_tun.wire.door import WELCOME_HEADER, Door, DoorKeeper, LinkKind, from_header, to_header
from phantom_tun.wire.frames import REGION_LEN, Frame, pack_frame
from phantom_tun.wire.netdb import (
    CloserNodes,
    ClosestNodes,
    ExtendApLease,
    Held,
    MissedOverrides,
    Override,
    OverrideList,
    RandomNodes,
    Registered,
    RegisterNode,
    ReserveAp,
    Resolution,
    ResolveAp,
    Stored,
    UpdateApRoutes,
    Vote,
    WriteReport,
    decode_answer,
    decode_call,
)
from phantom_tun.wire.nodes import NODE_REF_LEN, NodeRef
from phantom_tun.wire.puzzles import CHALLENGE_LEN, NO_SOLUTION, Challenge, Solution
from phantom_tun.wire.records import (
    APKeyRecord,
    APRoute,
    NodeRecord,
    OverrideAction,
    decode,
)
from phantom_tun.wire.session import FrameKind, Protocol, frame_header
from phantom_tun.wire.setup import (
    ROUND1_LEN,
    ROUND2_LEN,
    SLOT_LEN,
    SLOTS,
    InteriorPart,
    Neighbour,
    Role,
    Round1Package,
    Round2Package,
    TerminatingPart,
)
from phantom_tun.wire.signalling import Assembler, Chunk, SignalUnframer, call_frames
from phantom_tun.wire.sizes import SEALED_REQUEST_LEN
from phantom_tun.wire.tunnel import (
    BODY_LEN,
    ENTRY_ANSWER_LEN,
    ENTRY_REQUEST_LEN,
    Body,
    ConnectRequest,
    Opening,
    Operation,
    Status,
    failed_body,
    opening_block,
    opening_id,
    opening_kind,
    pack_block,
    pack_entry_failure,
    pack_opening,
    unpack_block,
    unpack_entry_answer,
    unpack_entry_request,
    unpack_failed,
)

NETWORK_ID = NETWORK.network_id


@dataclass(frozen=True)
class Target:
    """One way in."""

    run: Callable[[bytes], None]
    declared: tuple[type[Exception], ...]
    """What it may raise; anything else is a finding."""
    seeds: Callable[[], list[bytes]]
    """Good inputs to begin with."""
    longest: int = 4096
    """Bytes of an input."""


TARGETS: dict[str, Target] = {}


def target(
    *declared: type[Exception],
    seeds: Callable[[], list[bytes]],
    longest: int = 4096,
) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Register a target under its function's name."""

    def register(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        TARGETS[run.__name__] = Target(run, declared, seeds, longest)
        return run

    return register


async def _no_turn() -> None:
    pass


def run_now(work: Coroutine[Any, Any, Any]) -> Any:
    """The outcome of a coroutine that never really waits; nobody else needs a turn."""
    checkpoint, trio.lowlevel.checkpoint = trio.lowlevel.checkpoint, _no_turn
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    finally:
        trio.lowlevel.checkpoint = checkpoint
    raise AssertionError("the coroutine waits")


def padded(data: bytes, length: int) -> bytes:
    return data[:length].ljust(length, b"\0")


# --- who is there --------------------------------------------------------------------------------

NODE, OTHER, AP = NodeMaker(1), NodeMaker(2), ApMaker(1)
OVERRIDER = SigningKey(h("fuzz override"))
REF, OTHER_REF = NODE.record().ref(), OTHER.record().ref()
OWN_CERTIFICATE, PEER_CERTIFICATE = (make_certificate("localhost", NOW) for _ in range(2))
AP4 = ap4_candidate(NETWORK, AP.key.public, 0)


def signed_override(action: OverrideAction, subject: bytes, record: bytes = b"") -> bytes:
    return sign_override(
        OVERRIDER,
        NETWORK_ID,
        number=1,
        action=action,
        subject=subject,
        record=record,
        created=NOW,
        expires=NOW + HOUR,
    ).encoded


# --- records and calls of the netdb --------------------------------------------------------------


@target(WireError, seeds=lambda: [NODE.record().encoded, OTHER.record().encoded])
def node_record(data: bytes) -> None:
    record = decode(NodeRecord, data)
    record.ref(4).pack()
    _ = record.networks, record.public, record.node_id, record.digest, record.signed_part


@target(WireError, seeds=lambda: [AP.record().encoded, AP.record(ap4_n=None).encoded])
def ap_key_record(data: bytes) -> None:
    _ = decode(APKeyRecord, data).digest


@target(WireError, seeds=lambda: [AP.route(entry_node=REF.node_id).encoded])
def ap_route(data: bytes) -> None:
    _ = decode(APRoute, data).digest


@target(
    WireError,
    RecordRefused,
    seeds=lambda: [
        b"\0\5" + bytes([11, 1, 0, 0, 16]),
        b"\3\x20" + REF.node_id,
        b"\5\x20" + AP.key.public,
        b"\6\x20" + AP.key.public + AP.record().encoded,
    ],
)
def override_command(data: bytes) -> None:
    """Action, length of the subject, subject, record; signed as it should be."""
    length = data[1] % 33 if len(data) > 1 else 0
    action = OverrideAction(data[0] % 6 + 1) if data else OverrideAction.BAN_NODE
    overrides = Overrides(NETWORK, [OVERRIDER.public], [OTHER_REF.node_id])
    encoded = signed_override(action, data[2 : 2 + length], data[2 + length :])
    overrides.receive(encoded, REF.node_id, NOW)
    overrides.in_force([NODE.record(), OTHER.record()], NOW)


def _calls() -> list[bytes]:
    record = NODE.record()
    calls = (
        RegisterNode(record.encoded, NODE.path_key),
        ReserveAp(AP.record().encoded),
        ExtendApLease(AP.record(sequence=2).encoded),
        UpdateApRoutes((AP.route(entry_node=REF.node_id).encoded,)),
        RandomNodes(bytes(32)),
        ResolveAp.of(AP4),
        ClosestNodes(bytes(32)),
        Override(signed_override(OverrideAction.BAN_NODE, REF.node_id)),
        MissedOverrides(1, OVERRIDER.public),
    )
    return [call.encode() for call in calls]


@target(WireError, ProtocolViolation, seeds=_calls)
def netdb_call(data: bytes) -> None:
    """A call from a neighbour, up to the answer."""
    call = decode_call(data)
    book = NodeBook(OTHER_REF.node_id, random.Random(1))
    book.met(NODE.record(), NOW, NODE.path_key)
    own = OwnNode(OTHER.record(), OTHER.path_key)
    server = Server(NETWORK, own, book, ApStore(NETWORK), Verifier(NETWORK))
    decode_answer(server.answer(call, NOW, Caller(REF.node_id, REF.address)).encode())


def _answers() -> list[bytes]:
    key, route = (
        AP.record(certificate=OWN_CERTIFICATE.der),
        AP.route(entry_node=REF.node_id).encoded,
    )
    vote = Vote(key.public_key, 1, key.digest, 7)
    answers = (
        Resolution(key.encoded, (route,), 20, 19, (vote,)),
        Registered(0, NODE.record().encoded, NODE.path_key, (OTHER.record().encoded,)),
        Stored(3, b""),
        Held(key.public_key, 1, key.digest, key.encoded, (route,)),
        CloserNodes((NODE.record().encoded,)),
        WriteReport(20, 19, 0, key.public_key),
        OverrideList((signed_override(OverrideAction.BAN_NODE, REF.node_id),)),
    )
    return [answer.encode() for answer in answers]


@target(WireError, ProtocolViolation, CryptoError, RecordRefused, seeds=_answers)
def netdb_answer(data: bytes) -> None:
    """An answer, as those see it who asked for nodes, for an address, or for a write."""
    answer = decode_answer(data)
    if isinstance(answer, Registered | CloserNodes):
        Verifier(NETWORK).nodes(answer.nodes)
    with contextlib.suppress(ProtocolViolation):
        check_write(data)
    check_resolution(data, AP4, NETWORK, NOW)


@target(WireError, seeds=lambda: [cachefile.dump(NETWORK_ID, [])[:-32]])
def node_cache(data: bytes) -> None:
    cachefile.load(data + h("node cache", data), Verifier(NETWORK), NOW)


@target(WireError, seeds=lambda: [holdings.dump(NETWORK_ID, ApStore(NETWORK))[:-32]])
def held_records(data: bytes) -> None:
    holdings.load(data + h("holdings", data), Verifier(NETWORK), ApStore(NETWORK), NOW)


# --- links ---------------------------------------------------------------------------------------


class Wire:
    """The far end of a connection, which sends ``data`` in pieces of ``step`` bytes."""

    usable = True
    handle = None

    def __init__(self, data: bytes, step: int) -> None:
        self._data = memoryview(data)
        self._step = step

    async def wait_readable(self) -> None:
        pass

    async def wait_arrival(self) -> None:
        pass

    def read_now(self, view: memoryview) -> int:
        count = min(len(view), self._step, len(self._data))
        view[:count], self._data = self._data[:count], self._data[count:]
        return count

    def has_room(self) -> bool:
        return True

    async def read_some(self, view: memoryview) -> int:
        return self.read_now(view)

    async def write_all(self, data: memoryview | bytes) -> None:
        pass

    def write_now(self, data: bytes) -> None:
        pass

    def is_quiet(self) -> bool:
        return False

    def close(self) -> None:
        self._data = self._data[:0]


def _uses() -> list[bytes]:
    rng = random.Random(1)
    opening = pack_frame(Frame.OPEN, pack_opening(Opening.TUNNEL, bytes(16), bytes(16), rng))
    data = [pack_frame(Frame.DATA, bytes(length)) for length in (1, 8, 40)]
    use = opening + b"".join(data) + pack_frame(Frame.FIN)
    return [
        b"\xff\1" + use + use,
        b"\3\2" + use,
        b"\xff\0" + opening + data[0] + pack_frame(Frame.RESET),
    ]


@target(WireError, ProtocolViolation, LinkBroken, seeds=_uses)
def bulk_link(data: bytes) -> None:
    """Uses of a bulk link, read whole or in parts, in pieces as the network brings them."""
    step, way = (data[0] + 1, data[1]) if len(data) > 1 else (1, 0)
    link = BulkLink(Wire(data[2:], step), Peer(REF.node_id, REF.address))
    run_now(_serve_uses(link, way))


async def _serve_uses(link: BulkLink, way: int) -> None:
    while (opening := await link.receive_opening()) is not None:
        _ = opening_kind(opening), opening_id(opening), opening_block(opening)
        bulk = Bulk(link, lambda _link, _ending: None)
        if way & 1:
            await bulk.send_fin()
        if way & 2:
            await bulk.receive_exactly(1 + way // 4)
        while (buffer := await bulk.receive_pooled()).segments:
            assert 0 < buffer.payload_len() <= REGION_LEN
            POOL.give_back(buffer)
        POOL.give_back(buffer)
        await bulk.send_fin()
        await bulk.aclose()
        assert len(link.unframer.kept) <= REGION_LEN


def _signals() -> list[bytes]:
    long, short = bytes(range(256)) * 20, b"call"
    return [
        b"\xff" + b"".join(call_frames(Frame.CALL, 1, long)),
        b"\7" + b"".join([*call_frames(Frame.ANSWER, 2, short), pack_frame(Frame.PING)]),
        b"\2" + pack_frame(Frame.SIGNAL, pack_block(ConnectionId(bytes(16)), bytes(16))),
    ]


@target(WireError, ProtocolViolation, seeds=_signals)
def signalling(data: bytes) -> None:
    step = data[0] + 1 if data else 1
    unframer, assembler = SignalUnframer(), Assembler()
    for start in range(1, len(data), step):
        for frame, payload in unframer.feed(data[start : start + step]):
            if frame in {Frame.CALL, Frame.ANSWER}:
                body = assembler.add(Chunk.unpack(payload))
                assert body is None or len(body) <= len(data)
            elif frame is Frame.SIGNAL:
                with contextlib.suppress(WireError):
                    unpack_block(payload)


IDENTITY = SigningKey(h("fuzz node"))
DOOR = Door(NETWORK_ID, node_id_of(IDENTITY.public), CertHash(h("fuzz certificate")))
NONCE = bytes(16)


def _visits() -> list[bytes]:
    token = to_header(DOOR.token(NOW, NONCE))
    upgrade = (
        f"GET {DOOR.path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: phantom\r\n"
        f"Phantom-Token: {token}\r\n\r\n"
    ).encode()
    page = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    post = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
    part = page[:-2] + b'If-Range: x\r\nRange: bytes=0-1, 2 -,-3\r\nIf-Match: *,W/"a"\r\n'
    part += b"If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 1\r\n\r\na"
    return [
        b"\xff" + part + page,
        b"\xff" + page + upgrade,
        b"\x0f" + page + page,
        b"\x30" + post + page,
        b"\xffHEAD / H",
    ]


@target(seeds=_visits)
def web_visitor(data: bytes) -> None:
    """What strangers say to the web server."""
    step = 4 * data[0] + 1 if data else 1
    visitor = Visitor(Site(b"page"), DoorKeeper(DOOR).check)
    for start in range(1, len(data) + step, step):
        answer = visitor.feed(data[start : start + step], NOW)
        while visitor.has_more:
            answer += visitor.go_on(NOW)
        assert len(answer) <= 400 * (step + len(data))
        if visitor.nonce is not None and step % 8 == 1:
            visitor.decline(NOW)
        elif visitor.nonce is not None:
            with contextlib.suppress(PeerError):
                visitor.welcome(bytes(32))
            return
        if visitor.closing:
            return


UPGRADE = ("Upgrade", "phantom")


@target(
    WireError,
    LinkBroken,
    seeds=lambda: [
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: phantom\r\n"
        b"%s: %s\r\n\r\n" % (WELCOME_HEADER.encode(), to_header(bytes(128)).encode())
    ],
)
def dialed_server(data: bytes) -> None:
    """What a server that we dialed says."""
    http = h11.Connection(h11.CLIENT)
    http.send(
        h11.Request(method="GET", target="/", headers=[("Host", "a"), ("Upgrade", "phantom")])
    )
    http.send(h11.EndOfMessage())
    run_now(_read_welcome(Wire(data, 512), http))


@target(
    WireError,
    CryptoError,
    seeds=lambda: [
        b"\0" + DOOR.token(NOW, NONCE),
        b"\1" + DOOR.welcome(IDENTITY, NONCE, bytes(32)),
        b"\2" + DOOR.auth(IDENTITY, bytes(32), LinkKind.BULK),
        b"\3" + to_header(b"token").encode(),
    ],
    longest=256,
)
def door(data: bytes) -> None:
    parts: list[Callable[[bytes], object]] = [
        DOOR.check_token,
        lambda welcome: DOOR.check_welcome(welcome, NONCE),
        lambda payload: DOOR.check_auth(payload, bytes(32)),
        from_header,
    ]
    parts[data[0] % len(parts) if data else 0](data[1:])


# --- building paths ------------------------------------------------------------------------------

MEMBER_KEYS = PathKeys(NOW)
CONSTRUCTION = SigningKey(h("fuzz construction"))
INCOMING, OUTGOING = ConnectionId(b"i" * 16), ConnectionId(b"o" * 16)
EMPTY = bytes(SLOTS * SLOT_LEN)
EMPTY_HASH = hash_without(EMPTY, 0)
ROUND2_KEY = h("fuzz round 2")
EXPIRES = int(NOW) // 600 * 600 + 1200


def _array(number: int, sealed: bytes) -> bytes:
    return hint(INCOMING, number) + sealed + EMPTY[SLOT_LEN:]


def _first_package(role: Role) -> bytes:
    return Round1Package(
        role,
        EXPIRES,
        Neighbour(OTHER_REF, INCOMING),
        Neighbour(NodeMaker(3).record().ref(), OUTGOING),
        CONSTRUCTION.public,
        bytes(32),
        bytes(32),
        ROUND2_KEY,
        EMPTY_HASH,
    ).pack()


def _second_package(role: Role) -> bytes:
    neighbour = Neighbour(OTHER_REF, OUTGOING)
    route = AP.route(entry_node=REF.node_id).encoded
    part = {
        Role.Y: None,
        Role.INTERIOR: InteriorPart((neighbour, neighbour), bytes(32)),
        Role.EXIT: TerminatingPart(neighbour, True, bytes(32)),
        Role.ENTRY: TerminatingPart(neighbour, False, bytes(32), b"e" * 16, route),
    }[role]
    return bytes([role - 1]) + Round2Package(EMPTY_HASH, part).pack().rstrip(b"\0")


def _member() -> Member:
    return Member(REF.node_id, NETWORK_ID, MEMBER_KEYS, MemberLimits())


@target(ArrayRefused, seeds=lambda: [_first_package(role) for role in Role], longest=ROUND1_LEN)
def setup_round1(data: bytes) -> None:
    """A first array whose package is well sealed."""
    sealed = seal(padded(data, ROUND1_LEN), MEMBER_KEYS.published.public, PURPOSE, NETWORK_ID)
    _member().receive(OTHER_REF.node_id, INCOMING, _array(1, bytes(NONCE_LEN) + sealed), NOW)


@target(ArrayRefused, seeds=lambda: [_second_package(role) for role in Role], longest=1520)
def setup_round2(data: bytes) -> None:
    """A second array whose package is well signed and locked; the role, then the content."""
    role = Role(data[0] % len(Role) + 1) if data else Role.Y
    member = _member()
    first = seal(_first_package(role), MEMBER_KEYS.published.public, PURPOSE, NETWORK_ID)
    member.receive(OTHER_REF.node_id, INCOMING, _array(1, bytes(NONCE_LEN) + first), NOW)
    content = padded(data[1:], ROUND2_LEN - 64)
    signature = CONSTRUCTION.sign(ROUND2_PURPOSE, NETWORK_ID, content)
    locked = lock(ROUND2_KEY, content + signature, NETWORK_ID)
    accepted = member.receive(OTHER_REF.node_id, INCOMING, _array(2, locked), NOW)
    assert len(accepted.array) == len(EMPTY)


@target(WireError, seeds=lambda: [REF.pack()], longest=NODE_REF_LEN + 1)
def node_ref(data: bytes) -> None:
    assert NodeRef.unpack(data).pack() == data


# --- tunnels and sessions ------------------------------------------------------------------------


CHALLENGE = Challenge(b"s" * 16, 12)
CONNECT = ConnectRequest(REF.node_id, b"e" * 16, bytes(SEALED_REQUEST_LEN))


@target(
    WireError,
    seeds=lambda: [
        b"\0\0\0",
        CONNECT.body().pack().rstrip(b"\0"),
        failed_body(Status.NO_TUNNEL).pack()[: 3 + 1 + CHALLENGE_LEN],
        failed_body(Status.PUZZLE, CHALLENGE.pack()).pack()[: 3 + 1 + CHALLENGE_LEN],
        Body(Operation.NETDB, _calls()[5]).pack().rstrip(b"\0"),
    ],
)
def tunnel_package(data: bytes) -> None:
    body = Body.unpack(padded(data, BODY_LEN))
    if body.operation is Operation.CONNECT:
        ConnectRequest.unpack(body.content)
    elif body.operation is Operation.FAILED:
        unpack_failed(body.content)
    elif body.operation in {Operation.NETDB, Operation.UPDATE}:
        decode_call(body.content)


@target(
    WireError,
    seeds=lambda: [
        bytes(SEALED_REQUEST_LEN) + NO_SOLUTION.pack(),
        bytes(SEALED_REQUEST_LEN) + Solution(b"s" * 16, b"n" * 8).pack(),
    ],
    longest=ENTRY_REQUEST_LEN + 1,
)
def entry_request(data: bytes) -> None:
    sealed_request, solution = unpack_entry_request(data)
    assert sealed_request + solution.pack() == data


@target(
    WireError,
    seeds=lambda: [
        pack_entry_failure(Status.BUSY)[: 1 + CHALLENGE_LEN],
        pack_entry_failure(Status.PUZZLE, CHALLENGE)[: 1 + CHALLENGE_LEN],
        bytes([Status.OK]) + b"answer",
    ],
)
def entry_answer(data: bytes) -> None:
    reply = padded(data, ENTRY_ANSWER_LEN)
    status, said = unpack_entry_answer(reply)
    if status is not Status.OK:
        challenge = Challenge.unpack(said) if status is Status.PUZZLE else None
        assert pack_entry_failure(status, challenge) == reply
        assert unpack_failed(failed_body(status, said).content) == (status, challenge)


REQUEST = session.Request(
    protocol=Protocol.TCP,
    destination=AP4,
    port=443,
    caller=AP.key.public,
    certificate=PEER_CERTIFICATE.der,
    client_hello=CallerHandshake(caller_context(PEER_CERTIFICATE)).hello,
    time=session.TIME_STEP * (int(NOW) // session.TIME_STEP),
    nonce=bytes(32),
    secret=bytes(32),
    session_id=bytes(16),
    source_port=1,
)


TICKET = session.Ticket(b"t" * 16, b"T" * 32)
EARLY_REQUEST = replace(
    REQUEST,
    ticket=TICKET.number,
    early=lock_early(TICKET, REQUEST.secret, REQUEST.nonce, b"GET / HTTP/1.1"),
)
RESUME_SECRET = b"R" * session.RESUME_SECRET_LEN
RESUMED_REQUEST = replace(
    REQUEST,
    resumes=True,
    epoch=2,
    early=Resuming(RESUME_SECRET, 2, 70_000).say(REQUEST.session_id, REQUEST.nonce),
)
CONNECTED = session.Answer(session.Outcome.CONNECTED, bytes(32), b"flight")


@target(
    WireError,
    ProtocolViolation,
    seeds=lambda: [
        REQUEST.pack().rstrip(b"\0"),
        replace(REQUEST, keep=True).pack().rstrip(b"\0"),
        EARLY_REQUEST.pack().rstrip(b"\0"),
        RESUMED_REQUEST.pack().rstrip(b"\0"),
    ],
)
def session_request(data: bytes) -> None:
    request = session.Request.unpack(padded(data, session.REQUEST_BODY_LEN))
    assert request.pack() == padded(data, session.REQUEST_BODY_LEN)
    check_time(request, NOW, NOW - HOUR)
    if request.epoch and request != RESUMED_REQUEST:
        try:
            check_resumption(request, RESUME_SECRET)
        except ProtocolViolation:
            return
        # What else the request says is signed.
        assert request.early == RESUMED_REQUEST.early


OPENING = session.Opening(bytes(16), REQUEST.time, AP4, 443, 1, b"GET / HTTP/1.1")


@target(
    WireError,
    seeds=lambda: [
        OPENING.pack().rstrip(b"\0"),
        replace(OPENING, first=b"x" * session.MAX_EARLY).pack()[:64],
    ],
)
def session_opening(data: bytes) -> None:
    opening = session.Opening.unpack(padded(data, session.OPENING_LEN))
    assert opening.pack() == padded(data, session.OPENING_LEN)


@target(
    WireError,
    seeds=lambda: (
        [
            session.Answer(outcome, bytes(32), b"flight" * (outcome == 0)).pack().rstrip(b"\0")
            for outcome in session.Outcome
        ]
        + [replace(CONNECTED, received=70_000).pack().rstrip(b"\0")]
    ),
)
def session_answer(data: bytes) -> None:
    answer = session.Answer.unpack(padded(data, session.ANSWER_BODY_LEN))
    assert answer.pack() == padded(data, session.ANSWER_BODY_LEN)


def _early_records() -> list[bytes]:
    sealer = EarlySealer(TICKET, EARLY_REQUEST, CONNECTED)
    return [sealer.seal(memoryview(b"said early")) + sealer.end() + b"TLS", sealer.end()]


@target(CryptoError, seeds=_early_records)
def early_records(data: bytes) -> None:
    """What a callee says before TLS stands."""
    opener = EarlyOpener(TICKET, EARLY_REQUEST, CONNECTED)
    middle = len(data) // 3
    said = opener.feed(data[:middle]) + opener.feed(data[middle:])
    assert said in (b"", b"said early")
    if opener.is_over:
        assert data.endswith(opener.take_rest())


class PlainChannel:
    """A channel without TLS."""

    is_closed = False

    def __init__(self) -> None:
        self._fed = bytearray()

    def unwrap(self, view: memoryview, start: int, end: int) -> None:
        pass

    def feed(self, view: memoryview, start: int, end: int) -> None:
        self._fed += view[start:end]

    def read(self, view: memoryview, start: int, limit: int, *, more_follows: bool) -> int:
        del more_follows
        count = min(len(self._fed), limit - start)
        view[start : start + count] = self._fed[:count]
        del self._fed[:count]
        return start + count


@target(ProtocolViolation, seeds=lambda: [b"\0\0\x20\x40\x07", bytes(40)])
def acknowledgements(data: bytes) -> None:
    """What a peer says has arrived, between pieces that are sent."""
    memory = Memory(200_000)
    kept, sent = Unacknowledged(memory), bytearray()
    for number in range(0, len(data) - 2, 3):
        count = 20 * int.from_bytes(data[number : number + 2], "big") % (CHUNK + 1)
        piece = bytes([number % 251]) * count
        sent += piece
        if count:
            kept.add(memoryview(piece))
        kept.confirm(kept.confirmed + data[number + 2] * (kept.end - kept.confirmed) // 250)
        for position in {kept.confirmed, kept.end}:
            if kept.has(position):
                assert (
                    kept.read(position, 70_000)
                    == sent[position:][:70_000][: len(kept.read(position, 70_000))]
                )
        assert memory.used <= memory.limit
        assert (memory.used == 0) == (len(kept) == 0)


def _frames() -> list[bytes]:
    stream = frame_header(FrameKind.DATA, 5) + b"hello" + frame_header(FrameKind.END, 0)
    flow = b"".join(frame_header(FrameKind.DATAGRAM, n) + bytes(n) for n in (0, 3, 900))
    return [
        b"\xff" + stream,
        b"\1" + stream + flow,
        b"\x20" + flow + frame_header(FrameKind.RESET, 0),
        b"\xff" + frame_header(FrameKind.OPENED, 1) + b"\0" + stream,
        b"\1" + frame_header(FrameKind.SECRET, 32) + bytes(32) + session.pack_ack(2**40) + stream,
        b"\xff" + frame_header(FrameKind.OPEN, session.OPENING_LEN) + OPENING.pack() + stream,
    ]


@target(WireError, seeds=_frames)
def session_frames(data: bytes) -> None:
    """Frames inside an established channel."""
    step = 8 * data[0] + 1 if data else 1
    reader = FrameReader(PlainChannel())  # type: ignore[arg-type]
    got = 0
    for start in range(1, len(data), step):
        piece = data[start : start + step]
        buffer = POOL.take()
        buffer.view[4 : 4 + len(piece)] = piece
        buffer.segments = [Segment(4, 4 + len(piece))]
        reader.load(buffer)
        while (frame := reader.next()) is not None:
            got += len(frame.payload)
    assert got <= len(data)


@target(CryptoError, seeds=lambda: [OWN_CERTIFICATE.der, PEER_CERTIFICATE.der], longest=1024)
def certificate(data: bytes) -> None:
    check_certificate(data)
    callee_context(OWN_CERTIFICATE, data)


CALLEE_CONTEXT = callee_context(OWN_CERTIFICATE, PEER_CERTIFICATE.der)
CALLER_CONTEXT = caller_context(PEER_CERTIFICATE)


@target(CryptoError, seeds=lambda: [REQUEST.client_hello])
def client_hello(data: bytes) -> None:
    CalleeHandshake(CALLEE_CONTEXT, data)


@target(CryptoError, seeds=lambda: [b"\0\0\0"], longest=96)
def server_flight(data: bytes) -> None:
    """The flight of a callee who changes bytes of it: position u16 and value u8 of each."""
    caller = CallerHandshake(CALLER_CONTEXT)
    flight = bytearray(CalleeHandshake(CALLEE_CONTEXT, caller.hello).flight)
    for at in range(0, len(data) - 2, 3):
        flight[int.from_bytes(data[at : at + 2], "big") % len(flight)] ^= data[at + 2]
    caller.finish(bytes(flight), OWN_CERTIFICATE.hash, caller_wrap(REQUEST, CONNECTED))


# --- this machine --------------------------------------------------------------------------------


@target(
    ControlError,
    seeds=lambda: [
        b'{"version":1,"request":{"type":"status"}}',
        b'{"version":1,"request":{"type":"expose","address":"main","protocol":"tcp","port":80}}',
        b'{"version":1,"request":{"type":"ping","address":"240.1.2.3","count":3}}',
        b'{"type":"error","code":"busy","message":"x"}',
        b'{"type":"result","value":[1,{"a":null}]}',
    ],
)
def control_socket(data: bytes) -> None:
    with contextlib.suppress(ControlError):
        decode_reply(data)
    decode_request(data)


@target(ConfigError, seeds=lambda: [config.render(config.Config(), comments=False).encode()])
def config_file(data: bytes) -> None:
    parsed = config.parse(data, source=Path("/etc/phantom-tun.toml"))
    config.parse(config.render(parsed).encode(), source=Path("/etc/phantom-tun.toml"))


def _profile() -> profile.Profile:
    made = profile.new("fuzz", bytes(32), pow_bits=2)
    node = Bootstrap(REF.node_id, REF.address, 443, REF.cert_hash)
    return profile.with_bootstrap(made, (node,))


@target(ConfigError, seeds=lambda: [profile.dump(_profile()).encode()])
def network_profile(data: bytes) -> None:
    parsed = profile.parse(data, source="profile")
    assert (
        profile.parse(profile.dump(parsed).encode(), source="dump").network_id == parsed.network_id
    )


@target(
    ConfigError,
    seeds=lambda: [GuardSet(frozenset()).encode()],
)
def guard_file(data: bytes) -> None:
    GuardSet.decode(data)


GATEWAYS = {4: ipaddress.ip_address("240.0.0.1"), 6: ipaddress.ip_address("2001:2f::1")}


def _packets() -> list[bytes]:
    from phantom_tun.endpoints import Endpoint

    v4 = Endpoint(AP4, 1000), Endpoint(ipaddress.IPv4Address("241.0.0.1"), 80)
    ap6 = ap6_address(NETWORK, AP.key.public)
    v6 = Endpoint(ap6, 1000), Endpoint(ipaddress.IPv6Address("2001:2f::1:1"), 80)
    packets = []
    for source, destination in (v4, v6):
        packets.append(UdpFraming(source, destination).header(b"hello") + b"hello")
        packets.append(EchoFraming(source, destination, b"id").header(b"id12") + b"id12")
    tcp = bytes.fromhex("03e800500000000100000000500220000000000000")[:20]
    first = bytes.fromhex("4500002800004000400600000000")[:12]
    packets.append(first + v4[0].address.packed + v4[1].address.packed + tcp)
    return packets


@target(WireError, seeds=_packets, longest=2048)
def packet(data: bytes) -> None:
    """A packet that a program on this machine sends to the interface."""
    read_ip_header(data)
    buffer = bytearray(data.ljust(128, b"\0"))
    make_translator({})(buffer, len(data))
    found = datagram_of(data)
    if found is not None:
        endpoints_of(found[0])
    kind = classify(data).kind
    if kind in {Kind.SYN, Kind.SEGMENT}:
        reset_for(data)
    if kind in {Kind.SYN, Kind.DATAGRAM}:
        host_unreachable(data[:QUOTE], GATEWAYS[data[0] >> 4])
    if kind is Kind.DATAGRAM:
        port_unreachable(data[:QUOTE])
