"""Nodes with real TLS links over the loopback interface, on ports the kernel chooses."""

from __future__ import annotations

import ipaddress
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import trio

from phantom_tun.clock import SystemClock
from phantom_tun.crypto.certificates import Certificate, link_client_context, link_server_context
from phantom_tun.crypto.signing import SigningKey, node_id_of
from phantom_tun.crypto.x509 import make_certificate
from phantom_tun.net.links.buffers import POOL
from phantom_tun.net.links.bulk import Bulk
from phantom_tun.net.links.links import LinkLimits, Links, Peer
from phantom_tun.net.links.loopback import connection_pair
from phantom_tun.net.links.plain import PlainConnection, socket_pair
from phantom_tun.net.links.tls import HandshakeSteps, TlsConnection, connect_tcp, prepare_socket
from phantom_tun.net.links.workers import WorkerPlan
from phantom_tun.wire.door import Door
from phantom_tun.wire.nodes import NodeRef

LOOPBACK = ipaddress.IPv4Address("127.0.0.1")
NETWORK_ID = b"n" * 32
PAGE = b"<html>an ordinary page</html>"
CERTIFICATES = [make_certificate("www.example.org", time.time()) for _ in range(2)]
"""Making one takes a while."""


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that a real socket is about to bring."""
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.001)


@contextmanager
def listening(address: str = "127.0.0.1") -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))
        listener.listen(100)
        yield listener


@dataclass
class Handlers:
    """Records what comes; echoes bulk data and turns calls round, unless told otherwise."""

    signals: list[bytes] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)
    openings: list[bytes] = field(default_factory=list)
    on_bulk: Callable[[Bulk], Awaitable[None]] | None = None
    on_call: Callable[[bytes], Awaitable[bytes]] | None = None

    def signalled(self, peer: Peer, payload: bytes) -> None:
        self.peers.append(peer)
        self.signals.append(payload)

    async def called(self, peer: Peer, payload: bytes) -> bytes:
        self.peers.append(peer)
        if self.on_call is not None:
            return await self.on_call(payload)
        return payload[::-1]

    async def bulk_opened(self, peer: Peer, opening: bytes, bulk: Bulk) -> None:
        self.peers.append(peer)
        self.openings.append(opening)
        await (self.on_bulk or echo)(bulk)


async def echo(bulk: Bulk) -> None:
    while (buffer := await bulk.receive_pooled()).segments:
        await bulk.send(buffer)
        POOL.give_back(buffer)
    POOL.give_back(buffer)
    await bulk.send_fin()


async def receive(bulk: Bulk) -> bytes:
    """What has come, at least a byte; nothing at FIN."""
    buffer = await bulk.receive_pooled()
    data = b"".join(buffer.view[start:end] for start, end in buffer.segments)
    POOL.give_back(buffer)
    return data


async def receive_all(bulk: Bulk) -> bytes:
    found = bytearray()
    while data := await receive(bulk):
        found += data
    return bytes(found)


async def use(bulk: Bulk, data: bytes = b"data") -> bytes:
    """A whole use of an echoing link."""
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            await bulk.send_bytes(data)
            await bulk.send_fin()

        nursery.start_soon(send)
        found = await receive_all(bulk)
    await bulk.aclose()
    return found


class TlsNode:
    """A node with its links."""

    def __init__(
        self,
        listener: socket.socket | None,
        *,
        limits: LinkLimits,
        network_id: bytes = NETWORK_ID,
        certificate: Certificate = CERTIFICATES[0],
        identity: SigningKey | None = None,
        workers: WorkerPlan | None = None,
    ) -> None:
        self.identity = identity or SigningKey.generate()
        self.certificate = certificate
        self.listener = listener
        self.handlers = Handlers()
        self.links = Links(
            self.identity,
            certificate,
            network_id,
            limits=limits,
            clock=SystemClock(),
            rng=random.Random(),
            web_page=PAGE,
            workers=workers,
        )
        port = listener.getsockname()[1] if listener else 0
        node_id = node_id_of(self.identity.public)
        self.ref = NodeRef(node_id, certificate.hash, LOOPBACK, port)
        self.door = Door(network_id, node_id, certificate.hash)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = [self.listener] if self.listener else []
        await self.links.run(listeners, self.handlers, task_status=task_status)


@asynccontextmanager
async def tls_nodes(
    count: int, limits: LinkLimits | None = None, *, undialable: int = 0
) -> AsyncIterator[list[TlsNode]]:
    """``count`` nodes that listen and then ``undialable`` ones that don't."""
    with listening() as first, listening() as second, listening() as third:
        listeners = [first, second, third][:count] + [None] * undialable
        nodes = [TlsNode(listener, limits=limits or LinkLimits()) for listener in listeners]
        async with trio.open_nursery() as nursery:
            for node in nodes:
                await nursery.start(node.run)
            yield nodes
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def tls_pair() -> AsyncIterator[tuple[TlsConnection, TlsConnection]]:
    """Two ends of one TLS connection; the first one dialed."""
    limits, steps = LinkLimits(), HandshakeSteps(8)
    with listening() as listener:
        tcp = await connect_tcp(LOOPBACK, listener.getsockname()[1], limits)
        accepted, _ = listener.accept()
    prepare_socket(accepted, limits)
    near = link_client_context().wrap_socket(tcp, do_handshake_on_connect=False)
    far = link_server_context(CERTIFICATES[0]).wrap_socket(
        accepted, server_side=True, do_handshake_on_connect=False
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(steps.shake, near)
        nursery.start_soon(steps.shake, far)
    pair = TlsConnection(near), TlsConnection(far)
    try:
        yield pair
    finally:
        for connection in pair:
            connection.close()


@asynccontextmanager
async def plain_pair() -> AsyncIterator[tuple[PlainConnection, PlainConnection]]:
    """Two ends of a connection between processes of a node."""
    first, second = (PlainConnection(end) for end in socket_pair())
    yield first, second
    first.close()
    second.close()


@asynccontextmanager
async def loopback_pair() -> AsyncIterator[tuple[object, object]]:
    yield connection_pair()
