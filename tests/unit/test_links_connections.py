"""One conformance test for every kind of connection below links, then what is TLS's own."""

from __future__ import annotations

import random
import socket
import ssl

import links_world
import pytest
import trio
from links_world import LOOPBACK, listening, loopback_pair, plain_pair, tls_pair, until

from phantom_tun.errors import LinkBroken
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.tls import HandshakeSteps, TlsConnection, connect_tcp
from phantom_tun.wire.door import LinkKind

BIG = random.Random(1).randbytes(3_000_000)


@pytest.fixture(params=[loopback_pair, plain_pair, tls_pair], ids=["memory", "plain", "tls"])
async def pair(request, nursery):
    async with request.param() as ends:
        yield ends


async def read(connection, most=65_536):
    view = memoryview(bytearray(most))
    return bytes(view[: await connection.read_some(view)])


async def read_all(connection):
    found = bytearray()
    while data := await read(connection):
        found += data
    return bytes(found)


async def test_what_is_written_arrives_in_order_both_ways_at_once(pair):
    async def send(connection, data):
        for start in range(0, len(data), 70_000):
            await connection.write_all(memoryview(data)[start : start + 70_000])

    async def take(connection, data):
        found = bytearray()
        while len(found) < len(data):
            found += await read(connection)
        assert found == data

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for one, other, data in ((*pair, BIG), (*reversed(pair), BIG[::-1])):
                nursery.start_soon(send, one, data)
                nursery.start_soon(take, other, data)


async def test_what_is_begun_is_written_to_its_end(pair):
    async def take():
        found = bytearray()
        while len(found) < len(sent):
            found += await read(pair[1])
        assert found == sent

    sent, is_all, rng = b"", True, random.Random(2)
    while is_all:
        message = rng.randbytes(50_000)
        pair[0].begin_write(message)
        sent += message
        with trio.move_on_after(0.2) as scope:
            await pair[0].end_write()
        is_all = not scope.cancelled_caught
    with pytest.raises(LinkBroken):
        pair[0].begin_write(b"between")
    with trio.fail_after(30):
        assert not pair[0].usable
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await pair[0].end_write()
        assert pair[0].usable
        await pair[0].end_write()
        await pair[0].write_all(b"more")
        assert await read(pair[1]) == b"more"


async def test_what_is_begun_ends_with_the_connection(pair):
    while pair[0].begin_write(bytes(50_000)):
        pass
    pair[0].close()
    with pytest.raises(LinkBroken), trio.fail_after(5):
        await pair[0].end_write()


async def test_a_read_takes_no_more_than_it_was_asked_for(pair):
    await pair[0].write_all(b"abcdef")
    assert await read(pair[1], 2) == b"ab"
    await pair[1].wait_readable()
    assert await read(pair[1], 1) == b"c"
    assert await read(pair[1], 99) == b"def"


async def test_a_read_takes_all_that_is_there(pair):
    for _ in range(3):
        await pair[0].write_all(bytes(16_384))
    found = 0
    await until(lambda: not pair[1].is_quiet())
    while found < 3 * 16_384:
        found += len(await read(pair[1]))
    assert found == 3 * 16_384


async def test_the_end_is_seen_after_all_bytes(pair):
    await pair[0].write_all(b"last words")
    pair[0].close()
    assert await read_all(pair[1]) == b"last words"
    assert await read(pair[1]) == b""


async def test_a_reader_that_stops_stops_the_writer(pair):
    written = 0

    async def flood():
        nonlocal written
        while True:
            await pair[0].write_all(bytes(65_536))
            written += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        before = -1
        while written != before:
            before = written
            await trio.testing.wait_all_tasks_blocked(0.1)
        nursery.cancel_scope.cancel()
    assert not pair[0].usable  # the write was cut short
    with pytest.raises(LinkBroken):
        await pair[0].write_all(b"more")


async def test_a_cancelled_read_loses_nothing(pair):
    with trio.move_on_after(0.01):
        await read(pair[1])
    await pair[0].write_all(b"still here")
    assert await read(pair[1]) == b"still here"


@pytest.mark.parametrize("method", ["wait_readable", "read_some"])
async def test_closing_wakes_who_waits(pair, method):
    async def wait():
        arguments = [memoryview(bytearray(9))] if method == "read_some" else []
        with pytest.raises(LinkBroken):
            await getattr(pair[0], method)(*arguments)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            pair[0].close()


async def test_nothing_works_after_closing_and_closing_twice_is_fine(pair):
    pair[0].close()
    pair[0].close()
    assert not pair[0].usable
    assert not pair[0].is_quiet()
    pair[0].write_now(b"x")
    with pytest.raises(LinkBroken):
        await pair[0].write_all(b"x")
    with pytest.raises(LinkBroken):
        await pair[0].wait_readable()
    with pytest.raises(LinkBroken):
        await read(pair[0])


async def test_writing_to_a_closed_peer_fails_before_long(pair):
    pair[1].close()
    with trio.fail_after(30), pytest.raises(LinkBroken):
        while True:
            await pair[0].write_all(bytes(1000))
            await trio.sleep(0)


async def test_quiet_means_that_nothing_arrived(pair):
    assert pair[1].is_quiet()
    await pair[0].write_all(b"ab")
    await until(lambda: not pair[1].is_quiet())
    assert await read(pair[1], 1) == b"a"
    assert not pair[1].is_quiet()
    assert await read(pair[1], 1) == b"b"
    assert pair[1].is_quiet()
    pair[0].close()
    await until(lambda: not pair[1].is_quiet())


async def test_write_now_sends_when_there_is_room(pair):
    pair[0].write_now(b"now")
    assert await read(pair[1]) == b"now"


async def test_write_now_leaves_a_write_under_way_alone(pair):
    async def write():
        await pair[0].write_all(BIG * 5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked(0.1)
        pair[0].write_now(b"garbage in the middle")
        found = bytearray()
        while len(found) < len(BIG) * 5:
            found += await read(pair[1])
    assert found == BIG * 5


# --- TLS only -------------------------------------------------------------------------------------


async def test_a_stopped_reader_leaves_little_in_the_senders_kernel():
    async with tls_pair() as (near, _):
        near.become_link(LinkKind.BULK, LinkLimits(unsent=32_768))
        sent = 0

        async def flood():
            nonlocal sent
            while True:
                await near.write_all(bytes(16_384))
                sent += 16_384

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            before = -1
            while sent != before:
                before = sent
                await trio.testing.wait_all_tasks_blocked(0.1)
            nursery.cancel_scope.cancel()
        assert sent < 8_000_000


async def test_an_unreachable_port_is_reported_at_once():
    with listening() as listener:
        port = listener.getsockname()[1]
    with trio.fail_after(30), pytest.raises(ConnectionRefusedError):
        await connect_tcp(LOOPBACK, port, LinkLimits())


async def test_socket_options_are_set():
    limits = LinkLimits(
        send_buffer=100_000, receive_buffer=100_000, congestion_control="reno", keepalive=7
    )
    with listening() as listener:
        tcp = await connect_tcp(LOOPBACK, listener.getsockname()[1], limits)
    with tcp:
        assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 200_000
        assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 200_000
        assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7
        # It would also end connections whose reader takes a break.
        assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
        found = tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        assert found.rstrip(b"\0") == b"reno"


async def test_an_unknown_congestion_control_is_no_reason_to_fail():
    with listening() as listener:
        limits = LinkLimits(congestion_control="none-such")
        (await connect_tcp(LOOPBACK, listener.getsockname()[1], limits)).close()


async def test_a_handshake_that_waits_holds_no_place():
    """Strangers who never say anything don't keep others out."""
    steps, limits = HandshakeSteps(1), LinkLimits()
    context = links_world.link_server_context(links_world.CERTIFICATES[0])
    streams = []
    with listening() as listener, trio.fail_after(30):
        port = listener.getsockname()[1]

        async def accept():
            accepted, _ = listener.accept()
            accepted.setblocking(False)
            tls = context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
            streams.append(tls)
            await steps.shake(tls)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                streams.append(await connect_tcp(LOOPBACK, port, limits))
                nursery.start_soon(accept)
                await trio.testing.wait_all_tasks_blocked()
            tcp = await connect_tcp(LOOPBACK, port, limits)
            nursery.start_soon(accept)
            near = links_world.link_client_context().wrap_socket(tcp, do_handshake_on_connect=False)
            streams.append(near)
            await steps.shake(near)
            nursery.cancel_scope.cancel()
    for stream in streams:
        stream.close()


async def test_garbage_instead_of_tls_is_answered_with_an_alert(nursery):
    with listening() as listener:
        near = await connect_tcp(LOOPBACK, listener.getsockname()[1], LinkLimits())
        accepted, _ = listener.accept()
    context = links_world.link_server_context(links_world.CERTIFICATES[0])
    accepted.setblocking(False)
    far = context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
    near.send(b"\x16\x03\x01\x00\x05hello")
    with pytest.raises(ssl.SSLError):
        await HandshakeSteps(1).shake(far)
    await trio.lowlevel.wait_readable(near)
    assert near.recv(100)[:1] == b"\x15"  # an alert
    near.close()
    far.close()


async def test_half_a_tls_record_is_not_readable(nursery):
    """Else an authenticated neighbour could make every idle tunnel hold a buffer."""
    with listening() as front, listening() as back:
        front.setblocking(False)
        context = links_world.link_server_context(links_world.CERTIFICATES[0])
        limits, steps = LinkLimits(), HandshakeSteps(8)
        tcp = await connect_tcp(LOOPBACK, front.getsockname()[1], limits)
        left, _ = front.accept()
        right = await connect_tcp(LOOPBACK, back.getsockname()[1], limits)
        accepted, _ = back.accept()
    left, right = (trio.SocketStream(trio.socket.from_stdlib_socket(s)) for s in (left, right))
    accepted.setblocking(False)
    far = context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
    near = links_world.link_client_context().wrap_socket(tcp, do_handshake_on_connect=False)

    async def carry(source, sink):
        async for data in source:
            await sink.send_all(data)

    async with trio.open_nursery() as inner:
        inner.start_soon(carry, left, right)
        inner.start_soon(carry, right, left)
        async with trio.open_nursery() as shaking:
            shaking.start_soon(steps.shake, near)
            shaking.start_soon(steps.shake, far)
        inner.cancel_scope.cancel()
    near, far = TlsConnection(near), TlsConnection(far)
    await near.write_all(b"secret")
    record = await left.receive_some(1000)
    await right.send_all(record[:10])
    with trio.move_on_after(0.1) as patience:
        await far.wait_readable()
    assert patience.cancelled_caught
    await right.send_all(record[10:])
    with trio.fail_after(30):
        await far.wait_readable()
    assert not far.is_quiet()
    assert await read(far) == b"secret"
    assert far.is_quiet()
    for end in (near, far):
        end.close()
    await left.aclose()
    await right.aclose()
