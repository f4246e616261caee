"""One routing tunnel at one of its two ends: the owner's or the terminating node's
(docs/spec/tunnel.md, "Packages" and "Data").

The owner has one layer per hop, the terminating node its own, a tunnel of a path of length zero
none. Everything is ciphered in place in the buffer that goes to or came from the link.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from phantom_tun.crypto.streams import SLACK, ChainedStream
from phantom_tun.errors import DeadlineExpired, LinkBroken, PeerError, StreamReset
from phantom_tun.net.links.buffers import POOL, Buffer
from phantom_tun.net.links.bulk import Bulk
from phantom_tun.net.links.rest import Resting, rest
from phantom_tun.net.links.splice import process_bytes
from phantom_tun.tunnel.layers import PackageBox
from phantom_tun.wire.sizes import PACKAGE_LEN
from phantom_tun.wire.tunnel import Body, Package

FINISH_TIMEOUT = 10.0
"""Seconds to wait for the other end's FIN before the links are closed instead of reused."""

MORE = 8_000
"""Bytes that are passed on together with an answer that they have come with: a message less at
every hop that follows."""

_AT_REST = -1


class Tunnel:
    """A bulk link with the stream layers of one tunnel."""

    __slots__ = (
        "_box",
        "_moved",
        "_released",
        "_resting",
        "bulk",
        "bytes_in",
        "bytes_out",
        "incoming",
        "outgoing",
        "owed",
        "path_number",
    )

    def __init__(
        self,
        bulk: Bulk,
        outgoing: tuple[ChainedStream, ...] = (),
        incoming: tuple[ChainedStream, ...] = (),
        box: PackageBox | None = None,
        *,
        path_number: int = 0,
    ) -> None:
        """``outgoing`` and ``incoming`` in the order in which they are applied; ``path_number`` at
        the owner, who knows which of the paths it belongs to."""
        self.bulk = bulk
        self.outgoing = outgoing
        self.path_number = path_number
        self.incoming = incoming
        self.bytes_in = 0
        self.bytes_out = 0
        self.owed = b""
        """What whoever uses the tunnel has to send before all else."""
        self._box = box
        self._moved = _AT_REST
        """Bytes that had moved when it was last looked whether any do."""
        self._resting: Resting | None = None
        self._released = trio.Event()

    @classmethod
    async def open(
        cls,
        open_bulk: Callable[[bytes], Awaitable[Bulk]],
        outgoing: tuple[ChainedStream, ...],
        incoming: tuple[ChainedStream, ...],
        box: PackageBox,
        init: Body,
        *,
        path_number: int = 0,
    ) -> Tunnel:
        """The tunnel on a new use of a link, made by ``open_bulk`` with the first payload it is
        given: the package ``init``.

        :raises WorldError: as ``open_bulk``.
        """
        data = box.lock(Package.INIT, init)
        for layer in outgoing:
            data = process_bytes(layer, data)
        bulk = await open_bulk(data)
        tunnel = cls(bulk, outgoing, incoming, box, path_number=path_number)
        tunnel.bytes_out = len(data)
        return tunnel

    async def wait_readable(self) -> None:
        """Wait until there is something to receive; an idle tunnel holds no buffer."""
        try:
            await self.bulk.wait_readable()
        except LinkBroken as error:
            raise StreamReset("the tunnel ended") from error

    async def receive_pooled(self) -> Buffer:
        """Wait for bytes, without memory meanwhile, and return them, layers removed, in a buffer of
        the pool, which the caller gives back; no segments once the other end sent FIN.

        :raises StreamReset: the tunnel died.
        """
        try:
            buffer = await self.bulk.receive_pooled()
        except (LinkBroken, PeerError) as error:
            raise StreamReset("the tunnel ended") from error
        view = buffer.view
        for start, end in buffer.segments:
            for layer in self.incoming:
                layer.process(view, start, end)
            self.bytes_in += end - start
        self._stir()
        return buffer

    async def send(self, buffer: Buffer, *, fin: bool = False) -> None:
        """Apply all layers to ``buffer`` in place and send it; with ``fin`` nothing follows.

        :raises StreamReset: the tunnel died.
        """
        view = buffer.view
        for start, end in buffer.segments:
            for layer in self.outgoing:
                layer.process(view, start, end)
            self.bytes_out += end - start
        self._stir()
        try:
            await self.bulk.send(buffer, fin=fin)
        except LinkBroken as error:
            raise StreamReset("the tunnel ended") from error

    async def end_send(self) -> None:
        """Send what a :meth:`send` that was cancelled has left, from the same buffer.

        :raises StreamReset: the tunnel died.
        """
        try:
            await self.bulk.end_send()
        except LinkBroken as error:
            raise StreamReset("the tunnel ended") from error

    async def send_fin(self) -> None:
        """No more bytes from this end.

        :raises StreamReset: the tunnel died.
        """
        try:
            await self.bulk.send_fin()
        except LinkBroken as error:
            raise StreamReset("the tunnel ended") from error

    async def wait_fin(self) -> None:
        """Wait for the other end's FIN; anything else that comes ends the tunnel.

        :raises StreamReset: the tunnel died, or bytes came.
        """
        buffer = await self.receive_pooled()
        came = bool(buffer.segments)
        POOL.give_back(buffer)
        if came:
            raise StreamReset("bytes after the end")

    async def finish(self, within: float = FINISH_TIMEOUT) -> None:
        """Say FIN and wait for the other end's, so that every link of the tunnel can be used again.

        :raises StreamReset: the tunnel died, or bytes came.
        """
        await self.send_fin()
        with trio.move_on_after(within):
            await self.wait_fin()

    def is_broken(self) -> bool:
        """Whether it died; for somebody who has all that can come but FIN, and reads no more."""
        return self.bulk.is_broken()

    def reset(self) -> None:
        """Tear the tunnel down now, unless it was parted with."""
        if not self._released.is_set():
            self.bulk.reset()
            self._release()

    async def aclose(self) -> None:
        """Release the link, unless it was parted with: to its pool if both ends sent FIN, else
        closed."""
        if not self._released.is_set():
            try:
                await self.bulk.aclose()
            finally:
                self._release()

    def part_with(self) -> Bulk:
        """Its use of the link, for whoever releases it from now on."""
        self._release()
        self.bulk.kept = True
        return self.bulk

    @property
    def is_released(self) -> bool:
        """Whether the user of this tunnel is done with it."""
        return self._released.is_set()

    async def wait_released(self) -> None:
        """Wait until the user of this tunnel is done with it."""
        await self._released.wait()

    def _release(self) -> None:
        self._released.set()
        if self._moved != _AT_REST:
            self._come_to_rest()

    # --- rest -----------------------------------------------------------------------------------

    def rest_with(self, other: Resting) -> None:
        """When nothing moves for a while, ``other`` lets go of what it can make again, too."""
        self._resting = other

    def look(self) -> None:
        """See :class:`~phantom_tun.net.links.rest.Restless`."""
        moved = self.bytes_in + self.bytes_out
        if moved != self._moved:
            self._moved = moved
            return
        self._come_to_rest()
        for layer in (*self.outgoing, *self.incoming):
            layer.rest()
        if self._resting is not None:
            self._resting.rest()

    def _stir(self) -> None:
        """Something moves: look from now on whether that ends."""
        if self._moved == _AT_REST and not self._released.is_set():
            self._moved = 0
            rest().watch(self)

    def _come_to_rest(self) -> None:
        self._moved = _AT_REST
        rest().unwatch(self)

    # --- set-up ---------------------------------------------------------------------------------

    def lock_package(self, package: Package, body: Body) -> bytes:
        """One of the three packages, to be sent as it is."""
        assert self._box is not None  # noqa: S101 - our own mistake, never a peer's
        return self._box.lock(package, body)

    async def send_package(self, package: Package, body: Body, more: bytes = b"") -> None:
        """Send one of the three packages, and ``more`` of the stream behind it, at most
        ``MORE`` bytes.

        :raises StreamReset: the tunnel died.
        """
        buffer = POOL.take()
        try:
            buffer.fill(self.lock_package(package, body) + more)
            await self.send(buffer)
        finally:
            POOL.give_back(buffer)

    def receive_more(self) -> bytes:
        """What has come behind a package already, at most ``MORE`` bytes; perhaps nothing.

        :raises StreamReset: the tunnel died.
        :raises PeerError: the neighbour broke the framing.
        """
        try:
            data = self.bulk.receive_now(MORE)
        except LinkBroken as error:
            raise StreamReset("the tunnel ended") from error
        self.bytes_in += len(data)
        for layer in self.incoming:
            data = process_bytes(layer, data)
        self._stir()
        return data

    async def receive_package(self, package: Package, within: float) -> Body:
        """Wait up to ``within`` seconds for one of the three packages.

        :raises StreamReset: the tunnel died.
        :raises DeadlineExpired: nothing came.
        :raises PeerError: what came isn't that package.
        """
        assert self._box is not None  # noqa: S101
        with trio.move_on_after(within):
            try:
                locked = await self.bulk.receive_exactly(PACKAGE_LEN)
            except LinkBroken as error:
                raise StreamReset("the tunnel ended") from error
            view = memoryview(bytearray(locked) + bytes(SLACK))
            for layer in self.incoming:
                layer.process(view, 0, PACKAGE_LEN)
            self._stir()
            return self._box.unlock(package, view[:PACKAGE_LEN])
        raise DeadlineExpired(f"no {package.name} package came")
