"""The one load generator for every system: a TCP (or TLS) server, and a client with few jobs.

``python -m phantom_tun.lab.bench.load server PORT [CERTIFICATE]`` serves until it is killed. A
connection stays open for any number of requests:

=====================  ==========================================================================
``E`` byte             answers the byte
``D`` float64          sends chunks for that many seconds
``U`` chunks           answers with their length in all, as uint64
=====================  ==========================================================================

A chunk is 64 KiB long; its first byte says whether it is the last. So a transfer takes as long as
it should on a fast and on a slow system, ends cleanly, and leaves nothing on the way.

``python -m phantom_tun.lab.bench.load client JOB`` (a :class:`Job` as JSON) connects, writes
``ready``, waits for a line, does the job, writes an :class:`Outcome` as JSON.
"""

from __future__ import annotations

import functools
import os
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import msgspec

CHUNK_LEN = 65_536
MORE, LAST = 0, 1
SECONDS, LENGTH = struct.Struct("!d"), struct.Struct("!Q")

SOCKET_TIMEOUT_S = 60.0
REACH_TIMEOUT_S = 5.0
REACH_PAUSE_S = 0.1
CONNECT_GAP_S = 0.05
WARM_UP_ECHOES = 5
BURST_WORKERS = 8
MAX_TRANSFER_S = 120.0
LISTEN_BACKLOG = 512

Clock = Callable[[], float]


class Target(msgspec.Struct, frozen=True):
    """How the client reaches the server."""

    host: str
    port: int
    tls: bool = False
    socks_port: int | None = None
    """Through the SOCKS5 proxy on this port of the client's own host."""
    isolated: bool = False
    """Connections made at the same time use SOCKS credentials of their own each."""


class Job(msgspec.Struct, frozen=True):
    """What a client does."""

    kind: Literal["reach", "connect", "burst", "echo", "down", "up"]
    target: Target
    seconds: float
    """The longest it may take; of ``burst``, ``down`` and ``up``: how long it takes."""
    count: int = 1
    """Connections, echoes, or streams at the same time."""


class Outcome(msgspec.Struct):
    """What came of it."""

    milliseconds: list[float] = msgspec.field(default_factory=list)
    """Each connection or echo."""
    transferred: int = 0
    """Bytes that arrived."""
    seconds: float = 0.0
    """From the first to the end of the last."""
    failed: int = 0
    errors: list[str] = msgspec.field(default_factory=list)

    def note(self, error: OSError) -> None:
        """Count a failure; each kind is described once."""
        self.failed += 1
        if (text := str(error) or type(error).__name__) not in self.errors:
            self.errors.append(text)


# --- bytes on a connection ------------------------------------------------------------------------


def receive_exactly(connection: socket.socket, buffer: memoryview) -> bool:
    """Fill ``buffer``; ``False``: the other side ended before its first byte.

    :raises ConnectionError: it ended within.
    """
    at = 0
    while at < len(buffer):
        count = connection.recv_into(buffer[at:])
        if not count:
            if at:
                raise ConnectionError("the connection ended too early")
            return False
        at += count
    return True


def _take(connection: socket.socket, length: int) -> bytes:
    buffer = bytearray(length)
    if not receive_exactly(connection, memoryview(buffer)):
        raise ConnectionError("the connection was closed instead of an answer")
    return bytes(buffer)


def send_chunks(connection: socket.socket, seconds: float, now: Clock = time.monotonic) -> int:
    """Send chunks until the time is over; at least one. Returns the bytes."""
    chunk = bytearray(os.urandom(CHUNK_LEN))
    chunk[0] = MORE
    end, sent = now() + seconds, 0
    while chunk[0] == MORE:
        if now() >= end:
            chunk[0] = LAST
        connection.sendall(chunk)
        sent += CHUNK_LEN
    return sent


def receive_chunks(connection: socket.socket) -> int:
    """Receive chunks up to the last one; returns the bytes.

    :raises ConnectionError: the connection ended before.
    """
    view = memoryview(bytearray(CHUNK_LEN))
    received = 0
    while True:
        if not receive_exactly(connection, view):
            raise ConnectionError("the connection ended before the last chunk")
        received += CHUNK_LEN
        if view[0] == LAST:
            return received


# --- the server -----------------------------------------------------------------------------------


def answer(connection: socket.socket) -> None:
    """Serve one connection until the other side ends it.

    :raises OSError: it broke, or took too long.
    :raises ValueError: that is no request.
    """
    kind = memoryview(bytearray(1))
    while receive_exactly(connection, kind):
        match bytes(kind):
            case b"E":
                connection.sendall(_take(connection, 1))
            case b"D":
                (seconds,) = SECONDS.unpack(_take(connection, SECONDS.size))
                if not 0 <= seconds <= MAX_TRANSFER_S:
                    raise ValueError(f"{seconds} seconds are too long")
                send_chunks(connection, seconds)
            case b"U":
                connection.sendall(LENGTH.pack(receive_chunks(connection)))
            case other:
                raise ValueError(f"{other!r} is no request")


def serve(listener: socket.socket, context: ssl.SSLContext | None) -> None:
    """Serve for ever, a thread for each connection."""
    # Threads that move bytes must not keep an echo waiting for long.
    sys.setswitchinterval(0.0005)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve_one, args=(connection, context), daemon=True).start()


def _serve_one(connection: socket.socket, context: ssl.SSLContext | None) -> None:
    with connection:
        try:
            connection.settimeout(SOCKET_TIMEOUT_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is None:
                answer(connection)
            else:
                with context.wrap_socket(connection, server_side=True) as secured:
                    answer(secured)
        except (OSError, ValueError):
            return  # the client sees it, and reports it


def _server_context(certificate: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


# --- the client -----------------------------------------------------------------------------------


def connect(target: Target, index: int = 0, timeout: float = SOCKET_TIMEOUT_S) -> socket.socket:
    """A connection to the server, not used yet.

    :param index: which of those at the same time this is.
    :raises OSError: none could be had.
    """
    if target.socks_port is None:
        connection = socket.create_connection((target.host, target.port), timeout)
    else:
        connection = socket.create_connection(("127.0.0.1", target.socks_port), timeout)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if target.socks_port is not None:
            _ask_proxy(connection, target, f"s{index}" if target.isolated else "")
        if target.tls:
            return _client_context().wrap_socket(connection)
    except OSError:
        connection.close()
        raise
    return connection


def _ask_proxy(connection: socket.socket, target: Target, credentials: str) -> None:
    """SOCKS5 (RFC 1928), with user name and password (RFC 1929) if there are credentials."""
    method = 2 if credentials else 0
    connection.sendall(bytes((5, 1, method)))
    if _take(connection, 2) != bytes((5, method)):
        raise ConnectionError("the SOCKS proxy refuses the method")
    if credentials:
        field = bytes((len(credentials),)) + credentials.encode()
        connection.sendall(b"\x01" + field + field)
        if _take(connection, 2)[1]:
            raise ConnectionError("the SOCKS proxy refuses the credentials")
    name = target.host.encode()
    connection.sendall(
        bytes((5, 1, 0, 3, len(name))) + name + target.port.to_bytes(2, "big"),
    )
    _, code, _, kind = _take(connection, 4)
    if code:
        raise ConnectionError(f"the SOCKS proxy answers {code}")
    rest = {1: 4, 4: 16}.get(kind)
    _take(connection, (rest if rest is not None else _take(connection, 1)[0]) + 2)


@functools.cache
def _client_context() -> ssl.SSLContext:
    """Nobody's certificate is checked: what is measured are the cost and time of encryption."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def echo(connection: socket.socket) -> None:
    """One byte there and back.

    :raises OSError: it doesn't come.
    """
    connection.sendall(b"Ex")
    if _take(connection, 1) != b"x":
        raise ConnectionError("another byte came back")


class Client:
    """Prepares a job, then does it."""

    def __init__(self, job: Job, now: Clock = time.perf_counter) -> None:
        self._job = job
        self._now = now
        self._open: list[socket.socket] = []
        self._outcome = Outcome()

    def prepare(self) -> None:
        """Connections that the job uses or whose making isn't measured.

        :raises OSError: one could not be had.
        """
        job = self._job
        if job.kind in ("down", "up"):
            with ThreadPoolExecutor(job.count) as pool:
                self._open = list(pool.map(self._connected, range(job.count)))
        elif job.kind == "echo":
            self._open = [self._connected(0)]
            for _ in range(WARM_UP_ECHOES):
                echo(self._open[0])
        elif job.kind == "burst":
            with ThreadPoolExecutor(BURST_WORKERS) as pool:
                for connection in pool.map(self._connected, range(BURST_WORKERS)):
                    connection.close()

    def run(self) -> Outcome:
        """Do it."""
        began = self._now()
        match self._job.kind:
            case "reach":
                self._reach(began)
            case "connect":
                self._connect_in_turn(began)
            case "burst":
                with ThreadPoolExecutor(BURST_WORKERS) as pool:
                    list(pool.map(self._burst, range(BURST_WORKERS)))
            case "echo":
                self._echo(began)
            case "down" | "up":
                with ThreadPoolExecutor(len(self._open)) as pool:
                    self._outcome.transferred = sum(pool.map(self._transfer, self._open))
        self._outcome.seconds = self._now() - began
        return self._outcome

    def close(self) -> None:
        """Close what is open."""
        for connection in self._open:
            connection.close()

    def _connected(self, index: int) -> socket.socket:
        connection = connect(self._job.target, index)
        try:
            echo(connection)
        except OSError:
            connection.close()
            raise
        return connection

    def _reach(self, began: float) -> None:
        """Try until it works."""
        while True:
            try:
                with connect(self._job.target, timeout=REACH_TIMEOUT_S) as connection:
                    echo(connection)
                self._outcome.milliseconds.append((self._now() - began) * 1e3)
            except OSError as error:
                self._outcome.note(error)
                if self._now() - began > self._job.seconds:
                    return
                time.sleep(REACH_PAUSE_S)
            else:
                return

    def _connect_in_turn(self, began: float) -> None:
        for _ in range(self._job.count):
            if self._now() - began > self._job.seconds:
                return
            self._connect_once(0)
            # The end of one connection shall not be measured as part of the next.
            time.sleep(CONNECT_GAP_S)

    def _burst(self, worker: int) -> None:
        end = self._now() + self._job.seconds
        while self._now() < end:
            self._connect_once(worker)

    def _connect_once(self, index: int) -> None:
        began = self._now()
        try:
            with connect(self._job.target, index) as connection:
                echo(connection)
                self._outcome.milliseconds.append((self._now() - began) * 1e3)
        except OSError as error:
            self._outcome.note(error)

    def _echo(self, began: float) -> None:
        (connection,) = self._open
        try:
            for _ in range(self._job.count):
                sent = self._now()
                if sent - began > self._job.seconds:
                    return
                echo(connection)
                self._outcome.milliseconds.append((self._now() - sent) * 1e3)
        except OSError as error:
            self._outcome.note(error)

    def _transfer(self, connection: socket.socket) -> int:
        try:
            if self._job.kind == "down":
                connection.sendall(b"D" + SECONDS.pack(self._job.seconds))
                return receive_chunks(connection)
            connection.sendall(b"U")
            send_chunks(connection, self._job.seconds)
            (arrived,) = LENGTH.unpack(_take(connection, LENGTH.size))
        except OSError as error:
            self._outcome.note(error)
            return 0
        return int(arrived)


def main(arguments: list[str]) -> None:
    """Be the server, or do a client's job."""
    match arguments:
        case ["server", port, *certificate]:
            context = _server_context(certificate[0]) if certificate else None
            listener = socket.create_server(
                ("::", int(port)),
                family=socket.AF_INET6,
                dualstack_ipv6=True,
                backlog=LISTEN_BACKLOG,
            )
            serve(listener, context)
        case ["client", text]:
            client = Client(msgspec.json.decode(text, type=Job))
            client.prepare()
            print("ready", flush=True)
            sys.stdin.readline()
            outcome = client.run()
            print(msgspec.json.encode(outcome).decode(), flush=True)
            client.close()
        case _:
            sys.exit(f"usage: {sys.argv[0]} server PORT [CERTIFICATE] | client JOB")


if __name__ == "__main__":
    main(sys.argv[1:])
