"""Dialing links (docs/spec/links.md, "The door"): TCP, TLS, the pinned certificate, the upgrade,
the server's proof, our own."""

from __future__ import annotations

import ssl
from collections import Counter

import h11
import trio

from phantom_tun.clock import Clock, Rng
from phantom_tun.crypto.certificates import check_peer, link_client_context
from phantom_tun.errors import CapacityExceeded, DeadlineExpired, LinkBroken, PeerError, WireError
from phantom_tun.net.links.credentials import Credentials
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.tls import HandshakeSteps, TlsConnection, connect_tcp
from phantom_tun.wire.door import (
    NONCE_LEN,
    PROTOCOL_NAME,
    TOKEN_HEADER,
    WELCOME_HEADER,
    Door,
    LinkKind,
    from_header,
    to_header,
)
from phantom_tun.wire.frames import Frame, pack_frame
from phantom_tun.wire.nodes import NodeRef

_READ_LEN = 4096


class Dialer:
    """The client side of links."""

    def __init__(
        self,
        credentials: Credentials,
        network_id: bytes,
        *,
        limits: LinkLimits,
        steps: HandshakeSteps,
        clock: Clock,
        rng: Rng,
        counts: Counter[str],
    ) -> None:
        self._credentials = credentials
        self._network_id = network_id
        self._limits = limits
        self._steps = steps
        self._clock = clock
        self._rng = rng
        self._counts = counts
        self._context = link_client_context()
        self._slots = trio.CapacityLimiter(limits.dials)

    async def dial(self, ref: NodeRef, kind: LinkKind) -> TlsConnection:
        """A connection on which frames can be sent. A server that turns us down after that closes
        it.

        :raises LinkBroken: refused, unreachable, or not the node that ``ref`` names.
        :raises DeadlineExpired: no answer.
        :raises CapacityExceeded: too many dials wait already.
        """
        if self._slots.statistics().tasks_waiting >= self._limits.waiting:
            self._counts["drop_dial_queue_full"] += 1
            raise CapacityExceeded("too many links are being dialed")
        try:
            with trio.fail_after(self._limits.dial_deadline):
                async with self._slots:
                    connection = await self._connect(ref)
                    return await self._upgrade(connection, ref, kind)
        except trio.TooSlowError as error:
            self._counts["dials_timed_out"] += 1
            raise DeadlineExpired("the node didn't answer in time") from error
        except (OSError, trio.ClosedResourceError) as error:
            self._counts["dials_failed"] += 1
            raise LinkBroken(f"the node can't be reached ({_reason(error)})") from error
        except LinkBroken:
            self._counts["dials_failed"] += 1
            raise
        except PeerError as error:
            self._counts["drop_dialed_impostor"] += 1
            raise LinkBroken(f"the node is not the one that was dialed: {error}") from error

    async def _connect(self, ref: NodeRef) -> TlsConnection:
        tcp = await connect_tcp(ref.address, ref.port, self._limits)
        tls: ssl.SSLSocket | None = None
        shaken = False
        try:
            tls = self._context.wrap_socket(tcp, do_handshake_on_connect=False)
            await self._steps.shake(tls)
            check_peer(tls, ref.cert_hash)
            shaken = True
        finally:
            if not shaken:
                (tls or tcp).close()
        return TlsConnection(tls)

    async def _upgrade(
        self, connection: TlsConnection, ref: NodeRef, kind: LinkKind
    ) -> TlsConnection:
        done = False
        try:
            door = Door(self._network_id, ref.node_id, ref.cert_hash)
            token_nonce = self._rng.randbytes(NONCE_LEN)
            http = h11.Connection(h11.CLIENT)
            token = door.token(self._clock.now(), token_nonce)
            await connection.write_all(_request(http, door, ref, token))
            nonce = door.check_welcome(await _read_welcome(connection, http), token_nonce)
            auth = await self._credentials.auth(door, nonce, kind)
            await connection.write_all(pack_frame(Frame.AUTH, auth))
            connection.become_link(kind, self._limits)
            done = True
        finally:
            if not done:
                connection.close()
        return connection


def _reason(error: OSError | trio.ClosedResourceError) -> str:
    """Why, without addresses: "Connection refused"."""
    said = error.strerror if isinstance(error, OSError) else None
    return said or "the connection was closed"


def _request(http: h11.Connection, door: Door, ref: NodeRef, token: bytes) -> bytes:
    host = f"[{ref.address}]" if ref.address.version == 6 else str(ref.address)
    request = h11.Request(
        method="GET",
        target=door.path,
        headers=[
            ("Host", host if ref.port == 443 else f"{host}:{ref.port}"),
            ("Connection", "Upgrade"),
            ("Upgrade", PROTOCOL_NAME),
            (TOKEN_HEADER, to_header(token)),
        ],
    )
    return (http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b"")


async def _read_welcome(connection: TlsConnection, http: h11.Connection) -> bytes:
    view = memoryview(bytearray(_READ_LEN))
    try:
        while (event := http.next_event()) is h11.NEED_DATA:
            http.receive_data(bytes(view[: await connection.read_some(view)]))
    except h11.RemoteProtocolError as error:
        raise WireError("the server doesn't speak HTTP") from error
    if not isinstance(event, h11.InformationalResponse) or event.status_code != 101:
        raise LinkBroken("the server refused the upgrade")
    if http.trailing_data[0]:
        raise WireError("bytes before we said who we are")
    return from_header(dict(event.headers).get(WELCOME_HEADER.lower().encode(), b""))
