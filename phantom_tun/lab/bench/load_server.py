"""The server of the load generator; what it answers is in :mod:`~phantom_tun.lab.bench.load`."""

from __future__ import annotations

import socket
import ssl
import sys
import threading

from phantom_tun.lab.bench.load_udp import Tallies
from phantom_tun.lab.bench.load_wire import (
    LENGTH,
    MAX_TRANSFER_S,
    SECONDS,
    receive_chunks,
    receive_exactly,
    send_chunks,
    take,
)

SOCKET_TIMEOUT_S = 900.0
"""A connection may stand idle for this long."""
_STACK_BYTES = 256 * 1024


def answer(connection: socket.socket, tallies: Tallies) -> None:
    """Serve one connection until the other side ends it.

    :raises OSError: it broke, or took too long.
    :raises ValueError: that is no request.
    """
    kind = memoryview(bytearray(1))
    while receive_exactly(connection, kind):
        match bytes(kind):
            case b"E":
                connection.sendall(take(connection, 1))
            case b"D":
                (seconds,) = SECONDS.unpack(take(connection, SECONDS.size))
                if not 0 <= seconds <= MAX_TRANSFER_S:
                    raise ValueError(f"{seconds} seconds are too long")
                send_chunks(connection, seconds)
            case b"U":
                connection.sendall(LENGTH.pack(receive_chunks(connection)))
            case b"T":
                (flow,) = LENGTH.unpack(take(connection, LENGTH.size))
                connection.sendall(tallies.of(flow).pack())
            case other:
                raise ValueError(f"{other!r} is no request")


def serve(listener: socket.socket, context: ssl.SSLContext | None, tallies: Tallies) -> None:
    """Serve for ever, a thread for each connection."""
    # Threads that move bytes must not keep an echo waiting for long.
    sys.setswitchinterval(0.0005)
    threading.stack_size(_STACK_BYTES)
    while True:
        connection, _ = listener.accept()
        arguments = (connection, context, tallies)
        threading.Thread(target=_serve_one, args=arguments, daemon=True).start()


def _serve_one(connection: socket.socket, context: ssl.SSLContext | None, tallies: Tallies) -> None:
    with connection:
        try:
            connection.settimeout(SOCKET_TIMEOUT_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is None:
                answer(connection, tallies)
            else:
                with context.wrap_socket(connection, server_side=True) as secured:
                    answer(secured, tallies)
        except (OSError, ValueError):
            return  # the client sees it, and reports it


def server_context(certificate: str) -> ssl.SSLContext:
    """TLS with the certificate and key in a file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context
