"""Accepting links behind a web server (docs/spec/links.md, "The door").

Every connection starts as a stranger's: TLS, then HTTP. Only one that asks for the upgrade in the
right way and then proves who it is becomes a link; all others meet an ordinary web server, who
doesn't begin TLS in clear, and none of them can hold more than a socket and a few kilobytes, for a
bounded time.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable

import trio

from phantom_tun.clock import Clock
from phantom_tun.crypto.certificates import Certificate, link_server_context
from phantom_tun.errors import LinkBroken, PeerError, ProtocolViolation, WireError
from phantom_tun.guard import Guard
from phantom_tun.net.links.credentials import Credentials
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.peers import Peer, origin
from phantom_tun.net.links.plain import PlainConnection
from phantom_tun.net.links.tls import HandshakeSteps, TlsConnection, linger, prepare_socket
from phantom_tun.net.links.web import Site, Visitor
from phantom_tun.wire.door import SERVER_NONCE_LEN, Door, DoorKeeper, LinkKind
from phantom_tun.wire.frames import AUTH_LEN, HEADER_LEN, Frame, parse_header
from phantom_tun.wire.nodes import IpAddress

READ_LEN = 4096

Accepted = tuple[TlsConnection, Peer, LinkKind]
"""An authenticated connection, who dialed it and what for."""

Greet = Callable[[socket.socket, IpAddress], Awaitable[Accepted | None]]
"""Owns an accepted TCP connection until it is a link; ``None`` if it didn't become one, or is one
somewhere else. The stranger's place is free again when this returns."""

OnLink = Callable[[TlsConnection, Peer, LinkKind], Awaitable[None]]


class Strangers:
    """Connections that have not authenticated, in all and per address. When there is no place left,
    the address that has most of them loses its oldest one: whoever talks slowly to keep all places
    taken only loses them, and a dialer that proves who it is needs one for a moment."""

    __slots__ = ("_by_address", "_per_address_limit", "_total", "_total_limit")

    def __init__(self, total: int, per_address: int) -> None:
        self._total_limit = total
        self._per_address_limit = per_address
        self._total = 0
        self._by_address: dict[bytes, list[trio.CancelScope]] = {}

    def __len__(self) -> int:
        return self._total

    def admit(self, address: bytes) -> trio.CancelScope | None:
        """What the stranger's conversation has to run in; ``None`` if its address has all the
        places that it can have."""
        if len(self._by_address.get(address, ())) >= self._per_address_limit:
            return None
        if self._total >= self._total_limit:
            crowd = max(self._by_address, key=lambda one: len(self._by_address[one]))
            oldest = self._by_address[crowd][0]
            oldest.cancel()
            self.leave(crowd, oldest)
        scope = trio.CancelScope()
        self._by_address.setdefault(address, []).append(scope)
        self._total += 1
        return scope

    def leave(self, address: bytes, scope: trio.CancelScope) -> None:
        """A stranger has gone, or is none any more. Idempotent."""
        scopes = self._by_address.get(address, [])
        if scope in scopes:
            scopes.remove(scope)
            self._total -= 1
            if not scopes:
                del self._by_address[address]


class Listener:
    """Accepts connections, not too many."""

    def __init__(
        self, greet: Greet, on_link: OnLink, *, limits: LinkLimits, counts: Counter[str]
    ) -> None:
        """``on_link`` owns an authenticated connection from then on."""
        self._greet = greet
        self._on_link = on_link
        self._counts = counts
        self._guard = Guard(counts)
        self._strangers = Strangers(limits.strangers, limits.strangers_per_address)

    @property
    def strangers(self) -> int:
        """Connections that have not authenticated (yet)."""
        return len(self._strangers)

    async def serve(self, listener: socket.socket) -> None:
        """Accept on one listening socket until cancelled."""
        listener.setblocking(False)
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(listener)
                try:
                    tcp, source = listener.accept()
                except BlockingIOError:
                    continue
                except OSError as error:
                    self._counts["accept_failed"] += 1
                    if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                        await trio.sleep(0.1)
                    continue
                address = ipaddress.ip_address(source[0].partition("%")[0])
                if isinstance(address, ipaddress.IPv6Address):
                    address = address.ipv4_mapped or address
                place = self._strangers.admit(origin(address))
                if place is not None:
                    nursery.start_soon(self._guard.once, self._meet, tcp, address, place)
                else:
                    self._counts["drop_stranger_limit"] += 1
                    tcp.close()

    async def _meet(self, tcp: socket.socket, address: IpAddress, place: trio.CancelScope) -> None:
        found = None
        try:
            with place:
                found = await self._greet(tcp, address)
        finally:
            self._strangers.leave(origin(address), place)
        if place.cancelled_caught:
            self._counts["drop_stranger_crowd"] += 1
        if found is not None:
            await self._on_link(*found)


class Greeter:
    """The server side of a link's first second: TLS, web server, door."""

    def __init__(
        self,
        certificate: Certificate,
        door: Door,
        site: Site,
        credentials: Credentials,
        *,
        limits: LinkLimits,
        steps: HandshakeSteps,
        clock: Clock,
        counts: Counter[str],
    ) -> None:
        self._context = link_server_context(certificate)
        self._keeper = DoorKeeper(door)
        self._site = site
        self._credentials = credentials
        self._limits = limits
        self._steps = steps
        self._clock = clock
        self._counts = counts

    async def greet(self, tcp: socket.socket, address: IpAddress) -> Accepted | None:
        """See :data:`Greet`."""
        connection = await self._shake_hands(tcp)
        if connection is None:
            return None
        if isinstance(connection, PlainConnection):
            await self._answer_in_clear(connection)
            return None
        accepted = False
        try:
            nonce = await self._talk_http(connection, Visitor(self._site, self._keeper.check))
            if nonce is not None:
                with trio.fail_after(self._limits.handshake_deadline):
                    kind, node_id = self._keeper.door.check_auth(
                        await _read_auth(connection), nonce
                    )
                accepted = True
                connection.become_link(kind, self._limits)
                return connection, Peer(node_id, address), kind
        except PeerError:
            self._counts["drop_dialer_not_authenticated"] += 1
        except (LinkBroken, trio.TooSlowError):
            self._counts["strangers_gone"] += 1
        finally:
            if not accepted:
                connection.close()
        return None

    async def _answer_in_clear(self, connection: PlainConnection) -> None:
        visitor = Visitor(self._site, self._keeper.check, in_clear=True)
        try:
            await self._talk_http(connection, visitor)
        except (LinkBroken, trio.TooSlowError):
            self._counts["strangers_gone"] += 1
        finally:
            connection.close()

    async def _shake_hands(self, tcp: socket.socket) -> TlsConnection | PlainConnection | None:
        """As it came if the first byte isn't one of TLS; ``None`` if nothing comes of it."""
        stream: socket.socket = tcp
        shaken = False
        try:
            with trio.move_on_after(self._limits.request_deadline):
                prepare_socket(tcp, self._limits)
                await trio.lowlevel.wait_readable(tcp)
                first = tcp.recv(1, socket.MSG_PEEK)
                if first and not _begins_tls(first):
                    shaken = True
                    self._counts["strangers_in_clear"] += 1
                    return PlainConnection(tcp)
                tls = stream = self._context.wrap_socket(
                    tcp, server_side=True, do_handshake_on_connect=False
                )
                await self._steps.shake(tls)
                shaken = True
                self._counts["tls_accepted"] += 1
                return TlsConnection(tls)
        except ssl.SSLError:
            await linger(stream)
        except OSError:
            pass
        finally:
            if not shaken:
                stream.close()
        self._counts["drop_tls_failed"] += 1
        return None

    async def _talk_http(
        self, connection: TlsConnection | PlainConnection, visitor: Visitor
    ) -> bytes | None:
        """Be a web server; returns our nonce once an upgrade was answered, ``None`` when the
        visitor has left."""
        while not visitor.closing:
            if visitor.is_idle:
                with trio.fail_after(self._limits.idle_deadline):
                    await connection.wait_readable()
            with trio.fail_after(self._limits.request_deadline):
                answer = b""
                while not (answer or visitor.closing or visitor.nonce):
                    if visitor.has_more:
                        answer = visitor.go_on(self._clock.now())
                        continue
                    await connection.wait_readable()
                    view = memoryview(bytearray(READ_LEN))
                    count = await connection.read_some(view)
                    answer = visitor.feed(bytes(view[:count]), self._clock.now())
                await connection.write_all(answer)
                if visitor.nonce is not None:
                    nonce = await self._open_door(connection, visitor, visitor.nonce)
                    if nonce is not None:
                        return nonce
        self._counts["strangers_served"] += 1
        await connection.close_gently()
        return None

    async def _open_door(
        self,
        connection: TlsConnection | PlainConnection,
        visitor: Visitor,
        token_nonce: bytes,
    ) -> bytes | None:
        try:
            welcome = await self._credentials.welcome(token_nonce)
        except ProtocolViolation:
            await connection.write_all(visitor.decline(self._clock.now()))
            return None
        await connection.write_all(visitor.welcome(welcome))
        return welcome[:SERVER_NONCE_LEN]


def _begins_tls(first: bytes) -> bool:
    """A handshake record, or the greeting of SSL 2, which TLS refuses in its own way."""
    return first[0] == 0x16 or first[0] >= 0x80


async def _read_auth(connection: TlsConnection) -> bytes:
    """The payload of the AUTH frame, and not a byte more."""
    view = memoryview(bytearray(HEADER_LEN + AUTH_LEN))
    filled = 0
    while filled < len(view):
        count = await connection.read_some(view[filled:])
        if not count:
            raise LinkBroken("the dialer left")
        filled += count
        if filled >= HEADER_LEN and parse_header(view).frame is not Frame.AUTH:
            raise WireError("a link begins with AUTH")
    return bytes(view[HEADER_LEN:])
