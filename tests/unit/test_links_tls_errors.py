"""What fails at one TLS connection isn't said of another one."""

from __future__ import annotations

import itertools
import socket
import ssl
import struct
from contextlib import suppress

import pytest
import trio
from links_world import tls_pair, until
from test_channel import pair

from phantom_tun.errors import CryptoError, LinkBroken
from phantom_tun.net.links.tls import HandshakeSteps, TlsConnection
from phantom_tun.wire.session import FrameKind

WRITE, READ, CLOSE, RESET = "write", "read", "close", "reset"


def break_off(connection: TlsConnection, how: str) -> None:
    """End a connection so that its peer learns of it from the kernel alone."""
    stream = connection._socket
    if how == RESET:
        reset_when_closed(stream)
    socket.socket.close(stream)


async def do(connection: TlsConnection, what: str) -> None:
    with suppress(LinkBroken):
        if what == WRITE:
            await connection.write_all(bytes(100))
        elif what == READ:
            connection.read_now(memoryview(bytearray(16)))
        elif what == RESET:
            connection.write_now(b"x")
        else:
            connection.close()


@pytest.mark.parametrize("how", [CLOSE, RESET])
async def test_what_a_connection_fails_with_stays_with_it(how: str) -> None:
    steps = [
        combination
        for length in (1, 2, 3, 4)
        for combination in itertools.product((WRITE, READ, CLOSE, RESET), repeat=length)
    ]
    view = memoryview(bytearray(16))
    async with tls_pair() as (sound, _):
        assert sound.read_now(view) is None
        for combination in steps:
            async with tls_pair() as (near, far):
                break_off(far, how)
                for what in combination:
                    await do(near, what)
                    assert sound.read_now(view) is None, combination
                with suppress(LinkBroken):
                    near.close()


async def test_a_stranger_that_breaks_a_handshake_off_harms_nobody_else() -> None:
    view = memoryview(bytearray(16))
    async with tls_pair() as (sound, far):
        assert sound.read_now(view) is None
        context = far._socket.context
        for sent in (b"", b"\x16\x03\x01", b"\x16\x03\x01\x40\x00\x01", b"GET / HTTP/1.1\r\n\r\n"):
            for how in (CLOSE, RESET):
                near, stranger = connected()
                near.setblocking(False)
                with (
                    stranger,
                    context.wrap_socket(
                        near, server_side=True, do_handshake_on_connect=False
                    ) as tls,
                ):
                    stranger.sendall(sent)
                    if how == RESET:
                        reset_when_closed(stranger)
                    stranger.close()
                    with suppress(OSError), trio.fail_after(5):
                        await HandshakeSteps(1).shake(tls)
                assert sound.read_now(view) is None, (sent, how)


async def test_an_alert_that_is_met_while_saying_goodbye_harms_nobody_else() -> None:
    view = memoryview(bytearray(16))
    for gently in (False, True):
        async with tls_pair() as (sound, _), tls_pair() as (near, far):
            assert sound.read_now(view) is None  # tickets, after which the list is empty anyway
            socket.socket.send(far._socket, b"\x17\x03\x03\x00\x20" + bytes(32))
            await until(lambda end=near: not end.is_quiet())
            with pytest.raises(LinkBroken):
                near.read_now(view)  # and tells the far end in an alert
            await until(lambda end=far: not end.is_quiet())
            if gently:
                near._socket.shutdown(socket.SHUT_RDWR)
                await far.close_gently()
            else:
                far.close()
            assert sound.read_now(view) is None


def test_nor_does_one_at_the_end_of_a_session() -> None:
    sound, _ = pair()
    caller, callee = pair()
    flipped = bytearray(caller.frame(FrameKind.DATA, b"x"))
    flipped[-1] ^= 1
    with pytest.raises(CryptoError):
        callee.receive(bytes(flipped))
    alert = callee.channel._outgoing.read()
    assert alert
    caller.channel._incoming.write(alert)
    with suppress(CryptoError):
        caller.close()
    with pytest.raises(ssl.SSLWantReadError):
        sound.channel._tls.read(1)


def connected() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    return near, far


def reset_when_closed(stream: socket.socket) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
