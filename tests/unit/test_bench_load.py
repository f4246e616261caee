"""The load generator: transfers that end by themselves, and every job, over loopback."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from phantom_tun.lab.bench import load, load_client, load_server, load_udp, load_wire
from phantom_tun.lab.bench.load_client import Client
from phantom_tun.lab.bench.load_udp import Tallies
from phantom_tun.lab.bench.load_wire import CHUNK_LEN, Job, Outcome, Target


@pytest.fixture
def target() -> Iterator[Target]:
    """A server in threads of this process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                load_server.serve(listener, None, Tallies())

        threading.Thread(target=serve, daemon=True).start()
        yield Target("127.0.0.1", listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


def outcome_of(job: Job) -> Outcome:
    client = Client(job)
    try:
        client.prepare()
        return client.run()
    finally:
        client.close()


@contextmanager
def answering() -> Iterator[tuple[socket.socket, list[BaseException]]]:
    """A connection that the server's code serves, and what that raised."""
    near, far = socket.socketpair()
    raised: list[BaseException] = []

    def serve() -> None:
        try:
            load_server.answer(far, Tallies())
        except (OSError, ValueError) as error:
            raised.append(error)
        finally:
            far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    with near:
        near.settimeout(10)
        yield near, raised
        near.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_a_transfer_ends_when_its_time_is_over_and_says_so() -> None:
    near, far = socket.socketpair()
    received: list[int] = []
    reader = threading.Thread(target=lambda: received.append(load_wire.receive_chunks(far)))
    with near, far:
        reader.start()
        ticks = itertools.count()
        sent = load_wire.send_chunks(near, seconds=5, now=lambda: float(next(ticks)))
        reader.join(10)
    assert sent == 5 * CHUNK_LEN
    assert received == [sent]


def test_a_transfer_of_no_time_is_one_chunk() -> None:
    near, far = socket.socketpair()
    with near, far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * CHUNK_LEN)
        assert load_wire.send_chunks(near, seconds=0) == CHUNK_LEN
        assert load_wire.receive_chunks(far) == CHUNK_LEN


@pytest.mark.parametrize("given", [b"", b"\0" * 100])
def test_a_transfer_that_breaks_off_is_no_transfer(given: bytes) -> None:
    near, far = socket.socketpair()
    with far:
        with near:
            near.sendall(given)
        with pytest.raises(ConnectionError):
            load_wire.receive_chunks(far)


def test_the_connection_can_be_used_again_after_a_transfer() -> None:
    with answering() as (connection, raised):
        connection.sendall(b"D" + load_wire.SECONDS.pack(0.0))
        assert load_wire.receive_chunks(connection) == CHUNK_LEN
        load_wire.echo(connection)
    assert not raised


@pytest.mark.parametrize(
    "request_bytes",
    [b"?", b"D" + struct.pack("!d", 1e6), b"D" + struct.pack("!d", float("nan"))],
)
def test_the_server_refuses_what_is_no_request(request_bytes: bytes) -> None:
    with answering() as (connection, raised):
        connection.sendall(request_bytes)
        assert connection.recv(1) == b""
    assert isinstance(raised[0], ValueError)


def test_another_byte_is_no_echo() -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(b"y")
        with pytest.raises(ConnectionError):
            load_wire.echo(near)


@pytest.mark.parametrize("kind", ["down", "up"])
@pytest.mark.parametrize("streams", [1, 3])
def test_transfers_of_several_streams_are_added(target: Target, kind: str, streams: int) -> None:
    job = Job(kind, target, seconds=0.02, count=streams)  # type: ignore[arg-type]
    outcome = outcome_of(job)
    assert outcome.transferred >= streams * CHUNK_LEN
    assert outcome.transferred % CHUNK_LEN == 0
    assert outcome.seconds >= 0.02
    assert not outcome.failed


def test_echoes_and_connections_are_timed_one_by_one(target: Target) -> None:
    for kind in ("echo", "connect"):
        outcome = outcome_of(Job(kind, target, seconds=10, count=4))  # type: ignore[arg-type]
        assert len(outcome.milliseconds) == 4
        assert all(0 < each < 10_000 for each in outcome.milliseconds)


def test_a_burst_makes_connections_until_the_time_is_over(target: Target) -> None:
    outcome = outcome_of(Job("burst", target, seconds=0.05))
    assert len(outcome.milliseconds) >= load_client.BURST_WORKERS
    assert outcome.seconds >= 0.05


def test_reach_gives_up_in_time_and_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    outcome = outcome_of(Job("reach", Target("127.0.0.1", port), seconds=0))
    assert not outcome.milliseconds
    assert outcome.failed == 1
    assert "refused" in outcome.errors[0]


def test_a_job_without_a_connection_does_not_begin() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        outcome_of(Job("echo", Target("127.0.0.1", port), seconds=1))


def test_a_connection_stands_before_its_first_byte_comes_back(target: Target) -> None:
    outcome = outcome_of(Job("connect", target, seconds=10, count=3))
    assert len(outcome.established) == 3
    assert all(a < b for a, b in zip(outcome.established, outcome.milliseconds, strict=True))


def test_connections_held_are_looked_at_in_the_end(target: Target) -> None:
    client = Client(Job("hold", target, seconds=10, count=5))
    client.prepare()
    outcome = client.run()
    client.close()
    assert len(outcome.milliseconds) == 5
    assert not outcome.failed


def test_a_held_connection_that_died_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = Target("127.0.0.1", listener.getsockname()[1])

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(connection.recv(2)[1:])

        thread = threading.Thread(target=serve)
        thread.start()
        client = Client(Job("hold", closed, seconds=10, count=1))
        client.prepare()
        thread.join(10)
        outcome = client.run()
        client.close()
    assert outcome.failed == 1


@pytest.fixture
def both() -> Iterator[Target]:
    """A server for connections and datagrams."""
    tallies = Tallies()
    datagrams = load_udp.receiver(0)
    port = datagrams.getsockname()[1]
    with datagrams, socket.create_server(("127.0.0.1", port)) as listener:

        def serve(function: Callable[..., None], *arguments: object) -> None:
            with suppress(OSError):
                function(*arguments)

        receive = (load_udp.receive, datagrams, tallies)
        answer = (load_server.serve, listener, None, tallies)
        threads = [
            threading.Thread(target=serve, args=each, daemon=True) for each in (receive, answer)
        ]
        for thread in threads:
            thread.start()
        yield Target("127.0.0.1", port)
        listener.shutdown(socket.SHUT_RDWR)


def test_datagrams_are_counted_at_the_other_end(
    both: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_client, "DRAIN_S", 0.05)
    monkeypatch.setattr(load_client, "WARM_UP_DATAGRAMS_S", 0.01)
    outcome = outcome_of(Job("udp", both, seconds=0.1, size=200, rate=1.6e6))
    assert 0 < outcome.received <= outcome.sent <= outcome.seconds * 1000 + 1
    assert outcome.transferred == 200 * outcome.received
    assert outcome.seconds > 0.09
    assert not outcome.failed


class Proxy:
    """A SOCKS5 proxy that notes what it is asked, and serves the connection itself."""

    def __init__(self, code: int = 0) -> None:
        self.credentials = b""
        self.asked = b""
        self._code = code
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, suppress(ConnectionError):
            method = connection.recv(3)[2]
            connection.sendall(bytes((5, method)))
            if method == 2:
                self.credentials = connection.recv(100)
                connection.sendall(b"\1\0")
            self.asked = connection.recv(100)
            connection.sendall(bytes((5, self._code, 0, 1)) + bytes(6))
            if not self._code:
                load_server.answer(connection, Tallies())


def test_isolated_connections_go_to_the_proxy_with_their_own_credentials() -> None:
    proxy = Proxy()
    target = Target("abc.onion", 7000, socks_port=proxy.port, isolated=True)
    with load_client.connect(target, index=3) as connection:
        load_wire.echo(connection)
    proxy.close()
    assert proxy.credentials == b"\1\2s3\2s3"
    assert proxy.asked == b"\5\1\0\3\x09abc.onion" + (7000).to_bytes(2, "big")


def test_a_refusal_of_the_proxy_is_an_error() -> None:
    proxy = Proxy(code=4)
    with pytest.raises(ConnectionError, match="answers 4"):
        load_client.connect(Target("abc.onion", 7000, socks_port=proxy.port))
    proxy.close()


def test_the_client_needs_to_be_told_what_to_do() -> None:
    with pytest.raises(SystemExit, match="usage"):
        load.main(["neither"])
