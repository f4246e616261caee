"""The client of the load generator: one job, on connections to the server."""

from __future__ import annotations

import functools
import secrets
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor

from phantom_tun.lab.bench import load_udp
from phantom_tun.lab.bench.load_wire import (
    LENGTH,
    SECONDS,
    Clock,
    Job,
    Outcome,
    Target,
    echo,
    receive_chunks,
    send_chunks,
    take,
)

SOCKET_TIMEOUT_S = 60.0
REACH_TIMEOUT_S = 5.0
REACH_PAUSE_S = 0.1
CONNECT_GAP_S = 0.05
WARM_UP_ECHOES = 5
BURST_WORKERS = 8
HOLD_WORKERS = 16
HOLD_ATTEMPTS = 3
WARM_UP_DATAGRAMS_S = 0.2
DRAIN_S = 1.0
"""How long the last datagrams may take."""


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
    if take(connection, 2) != bytes((5, method)):
        raise ConnectionError("the SOCKS proxy refuses the method")
    if credentials:
        field = bytes((len(credentials),)) + credentials.encode()
        connection.sendall(b"\x01" + field + field)
        if take(connection, 2)[1]:
            raise ConnectionError("the SOCKS proxy refuses the credentials")
    name = target.host.encode()
    connection.sendall(
        bytes((5, 1, 0, 3, len(name))) + name + target.port.to_bytes(2, "big"),
    )
    _, code, _, kind = take(connection, 4)
    if code:
        raise ConnectionError(f"the SOCKS proxy answers {code}")
    rest = {1: 4, 4: 16}.get(kind)
    take(connection, (rest if rest is not None else take(connection, 1)[0]) + 2)


@functools.cache
def _client_context() -> ssl.SSLContext:
    """Nobody's certificate is checked: what is measured are the cost and time of encryption."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Client:
    """Prepares a job, then does it."""

    def __init__(self, job: Job, now: Clock = time.perf_counter) -> None:
        self._job = job
        self._now = now
        self._open: list[socket.socket] = []
        self._datagrams: socket.socket | None = None
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
        elif job.kind == "hold":
            with ThreadPoolExecutor(HOLD_WORKERS) as pool:
                self._open = list(pool.map(self._persistently, range(job.count)))
        elif job.kind == "udp":
            self._open = [self._connected(0)]
            self._datagrams = _datagram_socket(job.target)
            # The flow is opened by its first datagram, which shall not be measured.
            self._send_datagrams(WARM_UP_DATAGRAMS_S, secrets.randbits(63))
            time.sleep(DRAIN_S)
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
            case "hold":
                self._hold(began)
            case "udp":
                self._udp()
            case "down" | "up":
                with ThreadPoolExecutor(len(self._open)) as pool:
                    self._outcome.transferred = sum(pool.map(self._transfer, self._open))
        self._outcome.seconds = self._outcome.seconds or self._now() - began
        return self._outcome

    def close(self) -> None:
        """Close what is open."""
        for connection in self._open:
            connection.close()
        if self._datagrams is not None:
            self._datagrams.close()

    def _persistently(self, index: int) -> socket.socket:
        """A connection, even if the first attempts fail."""
        for _ in range(HOLD_ATTEMPTS - 1):
            try:
                return self._connected(index)
            except OSError as error:
                self._outcome.note(error)
        return self._connected(index)

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
                stood = self._now()
                echo(connection)
                self._outcome.milliseconds.append((self._now() - began) * 1e3)
                self._outcome.established.append((stood - began) * 1e3)
        except OSError as error:
            self._outcome.note(error)

    def _hold(self, began: float) -> None:
        """Every connection still works."""
        for connection in self._open:
            sent = self._now()
            try:
                echo(connection)
                self._outcome.milliseconds.append((self._now() - sent) * 1e3)
            except OSError as error:
                self._outcome.note(error)
            if self._now() - began > self._job.seconds:
                return

    def _udp(self) -> None:
        flow = secrets.randbits(63)
        try:
            began = self._now()
            self._outcome.sent = self._send_datagrams(self._job.seconds, flow)
            self._outcome.seconds = self._now() - began
            time.sleep(DRAIN_S)
            (connection,) = self._open
            connection.sendall(b"T" + LENGTH.pack(flow))
            tally = load_udp.TALLY.unpack(take(connection, load_udp.TALLY.size))
        except OSError as error:
            self._outcome.note(error)
            return
        self._outcome.received, self._outcome.transferred, seconds, jitter = tally
        # Those that are late belong to the time they took.
        self._outcome.seconds = max(self._outcome.seconds, seconds)
        self._outcome.jitter_ms = jitter * 1e3

    def _send_datagrams(self, seconds: float, flow: int) -> int:
        if self._datagrams is None:
            return 0
        return load_udp.send_steadily(
            self._datagrams.send, flow, seconds=seconds, size=self._job.size, rate=self._job.rate
        )

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
            (arrived,) = LENGTH.unpack(take(connection, LENGTH.size))
        except OSError as error:
            self._outcome.note(error)
            return 0
        return int(arrived)


def _datagram_socket(target: Target) -> socket.socket:
    """A socket that talks to the server only.

    :raises OSError: there is no such place.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        target.host, target.port, type=socket.SOCK_DGRAM
    )[0]
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, load_udp.RECEIVE_BUFFER)
    sock.connect(address)
    return sock
