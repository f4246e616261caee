"""An overlay without anonymity over plain TCP, for tests and measurements of the interface alone.

A connection starts with one line of JSON, answered by one byte; then a stream's bytes follow as
they are (FIN is END, RST is reset), or messages, each after its length in 2 bytes.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address

import trio

from phantom_tun.endpoints import Endpoint, LocalHost
from phantom_tun.errors import Filtered, Refused, StreamReset, Unreachable
from phantom_tun.ids import ApAddress
from phantom_tun.testing.fake_overlay import Kind

_CHUNK = 65_536
_BUFFER = 1 << 20
_MAX_LINE = 1024
_LINGER_RESET = struct.pack("ii", 1, 0)
_OPENED = b"O"
_FAILURES: dict[bytes, type[Refused | Filtered | Unreachable]] = {
    b"R": Refused,
    b"F": Filtered,
    b"U": Unreachable,
}


class TcpStream:
    """A plain TCP connection as a :class:`phantom_tun.endpoints.ByteStream`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = memoryview(bytearray(_CHUNK))

    async def receive(self) -> memoryview:
        """See :class:`~phantom_tun.endpoints.ByteStream`."""
        while True:
            try:
                return self._buffer[: self._sock.recv_into(self._buffer)]
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
            except OSError as error:
                raise StreamReset("the connection is gone") from error

    async def send_all(self, data: memoryview) -> None:
        """See :class:`~phantom_tun.endpoints.ByteStream`."""
        done = 0
        while done < len(data):
            try:
                done += self._sock.send(data[done:])
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)
            except OSError as error:
                raise StreamReset("the connection is gone") from error

    async def send_end(self) -> None:
        """See :class:`~phantom_tun.endpoints.ByteStream`."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise StreamReset("the connection is gone") from error
        await trio.lowlevel.checkpoint()

    def is_broken(self) -> bool:
        """See :class:`~phantom_tun.endpoints.ByteStream`."""
        sock = self._sock
        return sock.fileno() == -1 or bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def abort(self) -> None:
        """See :class:`~phantom_tun.endpoints.ByteStream`."""
        if self._sock.fileno() != -1:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            self._close()

    async def aclose(self) -> None:
        """See :class:`~phantom_tun.endpoints.ByteStream`."""
        if self._sock.fileno() != -1:
            self._close()
        await trio.lowlevel.checkpoint()

    async def receive_exactly(self, length: int) -> bytes | None:
        """So many bytes, or ``None`` at the end."""
        data = bytearray()
        while len(data) < length:
            try:
                piece = self._sock.recv(length - len(data))
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            except OSError as error:
                raise StreamReset("the connection is gone") from error
            if not piece:
                return None
            data += piece
        return bytes(data)

    def _close(self) -> None:
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()


class TcpDatagrams:
    """Messages over a plain TCP connection."""

    def __init__(self, stream: TcpStream) -> None:
        self._stream = stream

    async def receive(self) -> bytes | None:
        """See :class:`~phantom_tun.endpoints.DatagramStream`."""
        header = await self._stream.receive_exactly(2)
        if header is None:
            return None
        return await self._stream.receive_exactly(int.from_bytes(header, "big"))

    async def send(self, message: bytes | memoryview) -> None:
        """See :class:`~phantom_tun.endpoints.DatagramStream`."""
        await self._stream.send_all(memoryview(len(message).to_bytes(2, "big") + bytes(message)))

    async def aclose(self) -> None:
        """See :class:`~phantom_tun.endpoints.DatagramStream`."""
        await self._stream.aclose()


class TcpOverlay:
    """Implements :class:`phantom_tun.endpoints.Overlay` between processes.

    :param directory: where the node that owns an AP address listens.
    :param filtered: target ports that the serving side doesn't let anyone reach.
    """

    def __init__(
        self, directory: Mapping[ApAddress, tuple[str, int]], filtered: frozenset[int]
    ) -> None:
        self._directory = directory
        self._filtered = filtered

    def is_steady(self, source: Endpoint, target: Endpoint) -> bool:
        """See :class:`~phantom_tun.endpoints.Overlay`; it doesn't know."""
        del source, target
        return False

    async def open_stream(
        self, source: Endpoint, target: Endpoint, first: bytes = b""
    ) -> TcpStream:
        """See :class:`~phantom_tun.endpoints.Overlay`."""
        stream = await self._open("stream", source, target)
        await stream.send_all(memoryview(first))
        return stream

    async def open_datagrams(self, source: Endpoint, target: Endpoint) -> TcpDatagrams:
        """See :class:`~phantom_tun.endpoints.Overlay`."""
        return TcpDatagrams(await self._open("datagrams", source, target))

    async def open_echo(self, source: Endpoint, target: Endpoint) -> TcpDatagrams:
        """See :class:`~phantom_tun.endpoints.Overlay`."""
        return TcpDatagrams(await self._open("echo", source, target))

    async def serve(
        self,
        host: LocalHost,
        address: tuple[str, int],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Let other nodes reach this machine's services."""
        with socket.create_server(address, backlog=4096) as listener:
            listener.setblocking(False)
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    await trio.lowlevel.wait_readable(listener)
                    with suppress(BlockingIOError):
                        while True:
                            nursery.start_soon(self._answer, host, listener.accept()[0])

    async def _open(self, kind: Kind, source: Endpoint, target: Endpoint) -> TcpStream:
        where = self._directory.get(target.address)
        if where is None:
            raise Unreachable("nobody has this address")
        sock = socket.socket()
        stream = TcpStream(sock)
        try:
            _prepare(sock)
            with suppress(BlockingIOError):
                sock.connect(where)
            await trio.lowlevel.wait_writable(sock)
            ends = [[str(end.address), end.port] for end in (source, target)]
            await stream.send_all(memoryview(json.dumps([kind, *ends]).encode() + b"\n"))
            answer = await stream.receive_exactly(1)
        except (OSError, StreamReset) as error:
            await stream.aclose()
            raise Unreachable("the node is down") from error
        except trio.Cancelled:
            stream.abort()
            raise
        if answer != _OPENED:
            await stream.aclose()
            raise _FAILURES.get(answer or b"", Unreachable)("the far side says so")
        return stream

    async def _answer(self, host: LocalHost, sock: socket.socket) -> None:
        _prepare(sock)
        stream = TcpStream(sock)
        try:
            request = await _receive_line(stream)
            if request is None:
                return
            kind, source, target = json.loads(request)
            await self._carry(
                host, kind, stream,
                Endpoint(ip_address(source[0]), source[1]),
                Endpoint(ip_address(target[0]), target[1]),
            )  # fmt: skip
        except StreamReset:
            stream.abort()
        finally:
            with trio.CancelScope(shield=True):
                await stream.aclose()

    async def _carry(
        self, host: LocalHost, kind: Kind, stream: TcpStream, caller: Endpoint, target: Endpoint
    ) -> None:
        if kind == "echo":
            await stream.send_all(memoryview(_OPENED))
            messages = TcpDatagrams(stream)
            while (message := await messages.receive()) is not None:
                await messages.send(message)
            return
        if target.port in self._filtered:
            await stream.send_all(memoryview(b"F"))
            return
        try:
            if kind == "stream":
                connection = await host.connect_stream(caller, target)
                await stream.send_all(memoryview(_OPENED))
                await connection.carry(stream)
            else:
                association = await host.open_datagrams(caller, target)
                await stream.send_all(memoryview(_OPENED))
                await association.carry(TcpDatagrams(stream))
        except Refused:
            await stream.send_all(memoryview(b"R"))
        except Filtered:
            await stream.send_all(memoryview(b"F"))


def _prepare(sock: socket.socket) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)


async def _receive_line(stream: TcpStream) -> bytes | None:
    line = b""
    while not line.endswith(b"\n") and len(line) < _MAX_LINE:
        piece = await stream.receive_exactly(1)
        if piece is None:
            return None
        line += piece
    return line
