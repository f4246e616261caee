"""Bulk links that a worker process has accepted, as the node sees them (docs/spec/workers.md,
"Local links").

Everything a neighbour starts on such a link goes through the same hands as if the link ended in
this process. Only who carries a tunnel further has a choice: :meth:`WorkerBulk.hand_over`.
"""

from __future__ import annotations

from collections.abc import Callable

from phantom_tun.errors import LinkBroken, ProtocolViolation
from phantom_tun.net.links.bulk import Bulk, BulkLink, Ending, OnEnd
from phantom_tun.net.links.connection import Connection
from phantom_tun.wire.frames import HEADER_LEN
from phantom_tun.wire.worker import Join, LocalFrame, pack_local, parse_local

_TAKE = pack_local(LocalFrame.TAKE)


async def read_exactly(connection: Connection, length: int) -> bytes:
    """
    :raises LinkBroken: the connection ended before that.
    """
    data = bytearray(length)
    view = memoryview(data)
    filled = 0
    while filled < length:
        count = await connection.read_some(view[filled:])
        if not count:
            raise LinkBroken("the other process closed the link")
        filled += count
    return bytes(data)


class WorkerLink(BulkLink):
    """A bulk link on which a neighbour starts uses, accepted by a worker."""

    __slots__ = ()

    def new_use(self, on_end: OnEnd) -> Bulk:
        """See :meth:`BulkLink.new_use`."""
        return WorkerBulk(self, on_end)


class WorkerBulk(Bulk):
    """One use of it. The worker passes nothing on before it knows for whom."""

    __slots__ = ("_taken",)

    at_worker = True

    def __init__(self, link: BulkLink, on_end: OnEnd) -> None:
        super().__init__(link, on_end)
        self._taken = False

    def _live(self) -> BulkLink:
        """The link, whose bytes come to this process from now on."""
        link = super()._live()
        if not self._taken:
            self._taken = True
            # Between two uses nothing is under way: there is room.
            link.connection.write_now(_TAKE)
        return link

    async def hand_over(self, join: Join, on_joined: Callable[[], None]) -> bool:
        """See :meth:`Bulk.hand_over`."""
        link = super()._live()
        if self._taken:
            return False
        try:
            await link.connection.write_all(pack_local(LocalFrame.JOIN, join.pack()))
            answer = await _answer(link)
            if answer is LocalFrame.REFUSED:
                return False
            if answer is LocalFrame.JOINED:
                on_joined()
                answer = await _answer(link)
            if answer is not LocalFrame.DONE:
                raise ProtocolViolation("a worker said something out of turn")
        except LinkBroken:
            self.reset()
        else:
            self._link = None
            self._on_end(link, Ending.CLEAN)
        return True


async def _answer(link: BulkLink) -> LocalFrame | None:
    return parse_local(await read_exactly(link.connection, HEADER_LEN))
