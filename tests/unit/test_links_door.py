"""The door over real TLS: what strangers, impostors and replayers get."""

from __future__ import annotations

import dataclasses
import random
import ssl
import time

import pytest
import trio
from links_world import (
    CERTIFICATES,
    LOOPBACK,
    NETWORK_ID,
    PAGE,
    TlsNode,
    listening,
    tls_nodes,
    until,
)

from phantom_tun.crypto.certificates import link_client_context
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.errors import DeadlineExpired, LinkBroken
from phantom_tun.net.links.links import LinkLimits
from phantom_tun.net.links.listener import Strangers
from phantom_tun.net.links.tls import HandshakeSteps, TlsConnection, connect_tcp
from phantom_tun.wire.door import NONCE_LEN, Door, LinkKind, from_header, to_header
from phantom_tun.wire.frames import Frame, pack_frame
from phantom_tun.wire.nodes import NodeRef

NOT_FOUND = b"GET /no-such-page HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.fixture
async def node(nursery):
    async with tls_nodes(1) as (found,):
        yield found


async def visit(node: TlsNode) -> TlsConnection:
    """A TLS connection to a node, as anyone could make it."""
    tcp = await connect_tcp(LOOPBACK, node.ref.port, LinkLimits())
    tls = link_client_context().wrap_socket(tcp, do_handshake_on_connect=False)
    connection = TlsConnection(tls)
    try:
        await HandshakeSteps(1).shake(tls)
    except OSError:
        connection.close()
        raise
    return connection


async def read_answer(connection: TlsConnection) -> bytes:
    view = memoryview(bytearray(65_536))
    with trio.fail_after(30):
        return bytes(view[: await connection.read_some(view)])


async def ask(node: TlsNode, request: bytes) -> bytes:
    connection = await visit(node)
    await connection.write_all(request)
    answer = await read_answer(connection)
    connection.close()
    return answer


def same_but_for_the_date(one: bytes, other: bytes) -> bool:
    return _without_date(one) == _without_date(other)


def _without_date(answer: bytes) -> list[bytes]:
    return [line for line in answer.split(b"\r\n") if not line.startswith(b"Date: ")]


def upgrade(door: Door, token: bytes) -> bytes:
    return (
        f"GET {door.path} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: phantom\r\n"
        f"Phantom-Token: {to_header(token)}\r\n\r\n"
    ).encode()


def token(door: Door, at: float | None = None) -> bytes:
    return door.token(time.time() if at is None else at, random.randbytes(NONCE_LEN))


async def pass_door(node: TlsNode) -> tuple[TlsConnection, bytes]:
    """A connection after the upgrade, and the server's nonce."""
    connection = await visit(node)
    sent = token(node.door)
    await connection.write_all(upgrade(node.door, sent))
    answer = await read_answer(connection)
    assert answer.startswith(b"HTTP/1.1 101 ")
    welcome = from_header(answer.partition(b"Phantom-Welcome: ")[2].strip())
    return connection, node.door.check_welcome(welcome, sent[8 : 8 + NONCE_LEN])


# --- strangers ------------------------------------------------------------------------------------


async def test_a_browser_sees_a_page(node):
    answer = await ask(node, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: ")
    assert answer.endswith(PAGE)


async def test_a_connection_serves_several_requests(node):
    connection = await visit(node)
    for _ in range(3):
        await connection.write_all(NOT_FOUND)
        assert (await read_answer(connection)).startswith(b"HTTP/1.1 404 Not Found\r\n")
    connection.close()


async def test_many_requests_at_once_are_all_answered(node):
    connection = await visit(node)
    await connection.write_all(NOT_FOUND * 100)
    answers = b""
    while answers.count(b"</html>") < 100:
        answers += await read_answer(connection)
    assert answers.count(b"HTTP/1.1 404 ") == 100
    connection.close()


async def test_garbage_inside_tls_gets_bad_request_and_the_end(node):
    connection = await visit(node)
    await connection.write_all(b"\xff" * 30_000)
    assert (await read_answer(connection)).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert await read_answer(connection) == b""
    connection.close()


async def send_raw(node: TlsNode, data: bytes) -> bytes:
    """What comes back for bytes that aren't TLS, until the connection is closed."""
    tcp = await connect_tcp(LOOPBACK, node.ref.port, LinkLimits())
    async with trio.SocketStream(trio.socket.from_stdlib_socket(tcp)) as stream:
        await stream.send_all(data)
        with trio.fail_after(30):
            return b"".join([piece async for piece in stream])


async def test_http_without_tls_is_refused_in_clear(node):
    answer = await send_raw(node, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" + b"x" * 9000)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\nDate: ")
    assert b"<title>400 The plain HTTP request was sent to HTTPS port</title>" in answer
    assert same_but_for_the_date(answer, await send_raw(node, upgrade(node.door, token(node.door))))
    await until(lambda: node.links.statistics()["strangers"] == 0)
    assert node.links.statistics()["strangers_in_clear"] == 2
    assert "drop_tls_failed" not in node.links.statistics()


async def test_garbage_without_tls_is_a_bad_request_in_clear(node):
    for garbage in (b"\0\1garbage\r\n\r\n", b"SSH-2.0-x\r\n"):
        answer = await send_raw(node, garbage)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"<title>400 Bad Request</title>" in answer


@pytest.mark.parametrize(
    ("garbage", "answer"),
    [(b"\x16\3\1\0\5hello\r\n", b"\x15\3\3\0\2\2\n"), (b"\x80\1garbage\r\n", b"")],
)
async def test_what_begins_like_tls_is_refused_by_tls(node, garbage, answer):
    assert await send_raw(node, garbage) == answer
    await until(lambda: node.links.statistics().get("drop_tls_failed") == 1)
    assert "strangers_in_clear" not in node.links.statistics()


async def test_who_leaves_without_a_word_is_no_stranger_any_more(node):
    tcp = await connect_tcp(LOOPBACK, node.ref.port, LinkLimits())
    tcp.close()
    await until(lambda: node.links.statistics().get("drop_tls_failed") == 1)
    assert node.links.statistics()["strangers"] == 0


async def test_no_client_certificate_is_asked_for_and_old_tls_is_refused(node):
    tcp = await connect_tcp(LOOPBACK, node.ref.port, LinkLimits())
    context = link_client_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    tls = context.wrap_socket(tcp, do_handshake_on_connect=False)
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        await HandshakeSteps(1).shake(tls)
    tls.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda door: upgrade(door, token(dataclasses.replace(door, network_id=b"w" * 32))),
        lambda door: upgrade(dataclasses.replace(door, network_id=b"w" * 32), token(door)),
        lambda door: upgrade(door, token(door, time.time() - 400)),
        lambda door: upgrade(door, token(door, time.time() + 400)),
        lambda door: upgrade(door, token(door)[:-1]),
        lambda door: upgrade(door, b""),
        lambda door: upgrade(door, random.randbytes(56)),
        lambda door: upgrade(door, token(door)).replace(b"phantom\r\n", b"websocket\r\n"),
    ],
    ids=["network", "path", "expired", "ahead", "short", "none", "random", "protocol"],
)
async def test_every_bad_upgrade_looks_like_an_unknown_page(node, make):
    answer = await ask(node, make(node.door))
    assert same_but_for_the_date(answer, await ask(node, NOT_FOUND))


async def test_a_replayed_upgrade_looks_like_an_unknown_page(node):
    request = upgrade(node.door, token(node.door))
    assert (await ask(node, request)).startswith(b"HTTP/1.1 101 ")
    assert same_but_for_the_date(await ask(node, request), await ask(node, NOT_FOUND))


async def test_strangers_are_limited_per_address_and_places_come_back():
    async with tls_nodes(1, LinkLimits(strangers_per_address=2)) as (node,):
        first, second = await visit(node), await visit(node)
        with pytest.raises(OSError):
            await visit(node)
        assert node.links.statistics()["drop_stranger_limit"] == 1
        assert node.links.statistics()["strangers"] == 2
        first.close()
        await until(lambda: node.links.statistics()["strangers"] == 1)
        assert (await ask(node, NOT_FOUND)).startswith(b"HTTP/1.1 404")
        second.close()


async def test_strangers_are_limited_in_all_and_the_oldest_of_a_crowd_goes():
    """Or a few addresses that talk slowly could keep every dialer out."""
    async with tls_nodes(1, LinkLimits(strangers=2)) as (node,):
        first, second = await visit(node), await visit(node)
        assert (await ask(node, NOT_FOUND)).startswith(b"HTTP/1.1 404")
        assert await read_answer(first) == b""
        assert node.links.statistics()["drop_stranger_crowd"] == 1
        await second.write_all(NOT_FOUND)
        assert (await read_answer(second)).startswith(b"HTTP/1.1 404")
        await until(lambda: node.links.statistics()["strangers"] <= 1)
        first.close()
        second.close()


async def test_the_address_with_most_places_loses_one():
    strangers = Strangers(4, 3)
    crowd = [strangers.admit(b"crowd") for _ in range(3)]
    assert strangers.admit(b"crowd") is None
    one = strangers.admit(b"one")
    other = strangers.admit(b"other")
    assert len(strangers) == 4
    assert [scope.cancel_called for scope in crowd] == [True, False, False]
    assert not (one.cancel_called or other.cancel_called)
    for key, scope in ((b"crowd", crowd[0]), (b"crowd", crowd[1]), (b"one", one)):
        strangers.leave(key, scope)
        strangers.leave(key, scope)
    assert len(strangers) == 2


async def test_silent_strangers_are_let_go():
    limits = LinkLimits(request_deadline=0.5)
    async with tls_nodes(1, limits) as (node,):
        tcp = await connect_tcp(LOOPBACK, node.ref.port, limits)
        idle = await visit(node)
        slow = await visit(node)
        await slow.write_all(NOT_FOUND[:9])
        clear = await connect_tcp(LOOPBACK, node.ref.port, limits)
        clear.send(NOT_FOUND[:9])
        assert await read_answer(idle) == await read_answer(slow) == b""
        await until(lambda: node.links.statistics()["strangers"] == 0)
        assert node.links.statistics()["drop_tls_failed"] == 1
        assert node.links.statistics()["strangers_gone"] == 3
        tcp.close()
        clear.close()
        idle.close()
        slow.close()


async def test_who_got_an_answer_has_longer_to_ask_again_and_no_longer_to_end():
    limits = LinkLimits(request_deadline=0.5, idle_deadline=1.0)
    async with tls_nodes(1, limits) as (node,):
        idle, slow = await visit(node), await visit(node)
        begun = trio.current_time()
        for connection in (idle, slow):
            await connection.write_all(NOT_FOUND)
            assert (await read_answer(connection)).startswith(b"HTTP/1.1 404 ")
        await slow.write_all(NOT_FOUND[:9])
        assert await read_answer(slow) == b""
        assert trio.current_time() - begun >= 0.5
        assert await read_answer(idle) == b""
        assert trio.current_time() - begun >= 1.0
        idle.close()
        slow.close()


# --- dialers that lie -----------------------------------------------------------------------------


async def closed_and_counted(node: TlsNode, connection: TlsConnection) -> bool:
    assert await read_answer(connection) == b""
    connection.close()
    await until(lambda: node.links.statistics().get("drop_dialer_not_authenticated") == 1)
    return not node.links.neighbours()


async def test_an_honest_dialer_becomes_a_neighbour(node):
    connection, nonce = await pass_door(node)
    dialer = SigningKey.generate()
    auth = node.door.auth(dialer, nonce, LinkKind.SIGNALLING)
    await connection.write_all(pack_frame(Frame.AUTH, auth) + pack_frame(Frame.SIGNAL, b"hello"))
    await until(lambda: node.handlers.signals == [b"hello"])
    assert node.handlers.peers[0].address == LOOPBACK
    connection.close()


async def test_a_wrong_signature_is_refused(node):
    connection, nonce = await pass_door(node)
    auth = bytearray(node.door.auth(SigningKey.generate(), nonce, LinkKind.BULK))
    auth[-1] ^= 1
    await connection.write_all(pack_frame(Frame.AUTH, bytes(auth)))
    assert await closed_and_counted(node, connection)


async def test_a_replayed_auth_is_refused(node):
    first, nonce = await pass_door(node)
    auth = pack_frame(Frame.AUTH, node.door.auth(SigningKey.generate(), nonce, LinkKind.BULK))
    await first.write_all(auth)
    await until(node.links.neighbours)
    first.close()
    await until(lambda: node.links.statistics()["bulk_of_neighbours"] == 0)
    second, _ = await pass_door(node)
    await second.write_all(auth)
    assert await read_answer(second) == b""
    assert node.links.statistics()["drop_dialer_not_authenticated"] == 1
    second.close()


async def test_an_auth_for_another_network_is_refused(node):
    connection, nonce = await pass_door(node)
    other = dataclasses.replace(node.door, network_id=b"w" * 32)
    auth = other.auth(SigningKey.generate(), nonce, LinkKind.BULK)
    await connection.write_all(pack_frame(Frame.AUTH, auth))
    assert await closed_and_counted(node, connection)


@pytest.mark.parametrize(
    "frame",
    [
        pack_frame(Frame.OPEN, bytes(64)) + bytes(40),
        pack_frame(Frame.PING) + bytes(97),
        b"\xff" * 101,
        b"\1\0\0\x60" + bytes(97),
        pack_frame(Frame.AUTH, bytes(97)),
    ],
    ids=["open", "ping", "unknown", "length", "kind"],
)
async def test_a_link_begins_with_auth(node, frame):
    connection, _ = await pass_door(node)
    await connection.write_all(frame)
    assert await closed_and_counted(node, connection)


async def test_nothing_may_be_sent_before_the_upgrade_is_answered(node):
    connection = await visit(node)
    await connection.write_all(upgrade(node.door, token(node.door)) + b"early")
    assert await closed_and_counted(node, connection)


async def test_an_upgraded_dialer_must_prove_itself_in_time():
    async with tls_nodes(1, LinkLimits(handshake_deadline=0.1)) as (node,):
        connection, _ = await pass_door(node)
        assert await read_answer(connection) == b""
        connection.close()


# --- servers that lie -----------------------------------------------------------------------------


async def test_a_foreign_certificate_is_refused_before_a_byte_is_sent():
    async with tls_nodes(2) as (node, other):
        ref = dataclasses.replace(node.ref, cert_hash=CERTIFICATES[1].hash)
        with pytest.raises(LinkBroken, match="certificate"):
            await other.links.ensure(ref)
        assert other.links.statistics()["drop_dialed_impostor"] == 1
        await until(lambda: node.links.statistics()["strangers"] == 0)
        assert "strangers_served" in node.links.statistics() or (
            node.links.statistics()["strangers_gone"] == 1
        )
        assert node.handlers.peers == []


async def test_another_network_is_no_network(nursery):
    with listening() as listener:
        async with tls_nodes(1) as (node,):
            stranger = TlsNode(listener, limits=LinkLimits(), network_id=b"w" * 32)
            await nursery.start(stranger.run)
            for one, other in ((node, stranger), (stranger, node)):
                with pytest.raises(LinkBroken, match="refused the upgrade"):
                    await one.links.ensure(other.ref)
                assert one.links.statistics()["dials_failed"] == 1
        nursery.cancel_scope.cancel()


async def test_a_wrong_node_id_is_refused():
    async with tls_nodes(2) as (node, other):
        ref = dataclasses.replace(node.ref, node_id=SigningKey.generate().public)
        with pytest.raises(LinkBroken):
            await other.links.open_bulk(ref, bytes(64))


async def test_who_has_the_certificate_needs_the_identity_too(nursery):
    """A NodeRef comes in a package that nobody signed: a liar could put its own certificate hash
    beside somebody else's node id, and would then be taken for that node by everybody here."""
    with listening() as listener:
        async with tls_nodes(1) as (victim,):
            liar = TlsNode(listener, limits=LinkLimits(), certificate=CERTIFICATES[1])
            door = Door(NETWORK_ID, victim.ref.node_id, liar.certificate.hash)
            liar.links._greeter._keeper.door = liar.links._credentials._door = door
            await nursery.start(liar.run)
            ref = NodeRef(victim.ref.node_id, liar.certificate.hash, LOOPBACK, liar.ref.port)
            async with tls_nodes(1) as (dialer,):
                with pytest.raises(LinkBroken, match="another node"):
                    await dialer.links.signal(ref, b"for the victim only")
                assert dialer.links.statistics()["drop_dialed_impostor"] == 1
                assert dialer.links.statistics()["signalling_links"] == 0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: phantom\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 101 S\r\nUpgrade: phantom\r\nConnection: upgrade\r\nPhantom-Welcome: !\r\n\r\n",
        b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\nPhantom-Welcome: AA==\r\n\r\nmore",
        b"no HTTP at all\r\n\r\n",
        b"",
    ],
    ids=["200", "404", "no welcome", "bad welcome", "more", "garbage", "end"],
)
async def test_servers_that_answer_something_else_are_refused(nursery, answer):
    from links_world import link_server_context

    context = link_server_context(CERTIFICATES[0])
    with listening() as listener:
        listener.setblocking(False)

        async def serve():
            await trio.lowlevel.wait_readable(listener)
            accepted, _ = listener.accept()
            accepted.setblocking(False)
            tls = context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
            await HandshakeSteps(1).shake(tls)
            connection = TlsConnection(tls)
            await read_answer(connection)
            await connection.write_all(answer)
            connection.close()

        nursery.start_soon(serve)
        ref = NodeRef(b"s" * 32, CERTIFICATES[0].hash, LOOPBACK, listener.getsockname()[1])
        async with tls_nodes(0, undialable=1) as (dialer,):
            with trio.fail_after(30), pytest.raises(LinkBroken):
                await dialer.links.ensure(ref)


async def test_a_silent_server_costs_no_more_than_the_deadline():
    with listening() as listener:
        ref = NodeRef(b"s" * 32, CERTIFICATES[0].hash, LOOPBACK, listener.getsockname()[1])
        async with tls_nodes(0, LinkLimits(dial_deadline=0.1), undialable=1) as (dialer,):
            with pytest.raises(DeadlineExpired):
                await dialer.links.ensure(ref)
            assert dialer.links.statistics()["dials_timed_out"] == 1


async def test_a_refused_connection_is_reported_at_once():
    with listening() as listener:
        port = listener.getsockname()[1]
    ref = NodeRef(b"s" * 32, CERTIFICATES[0].hash, LOOPBACK, port)
    async with tls_nodes(0, undialable=1) as (dialer,):
        with trio.fail_after(30):
            for attempt in (
                dialer.links.ensure(ref),
                dialer.links.signal(ref, b"x"),
                dialer.links.call(ref, b"x"),
                dialer.links.open_bulk(ref, bytes(64)),
            ):
                with pytest.raises(LinkBroken):
                    await attempt


async def test_ipv6(nursery):
    import ipaddress

    with listening("::1") as listener:
        node = TlsNode(listener, limits=LinkLimits())
        ref = dataclasses.replace(node.ref, address=ipaddress.IPv6Address("::1"))
        await nursery.start(node.run)
        async with tls_nodes(0, undialable=1) as (dialer,):
            assert await dialer.links.call(ref, b"abc") == b"cba"
        assert node.handlers.peers[0].address == ref.address
        nursery.cancel_scope.cancel()
