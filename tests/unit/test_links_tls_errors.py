"""What fails at one TLS connection isn't said of another one."""

from __future__ import annotations

import itertools
import socket
import struct
from contextlib import suppress

import pytest
import trio
from links_world import tls_pair

from phantom_tun.errors import LinkBroken
from phantom_tun.net.links.tls import HandshakeSteps, TlsConnection

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


def connected() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    return near, far


def reset_when_closed(stream: socket.socket) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
