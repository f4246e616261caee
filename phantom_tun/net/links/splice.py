"""A relay's hot loop: bytes from one bulk link, through one layer, to another
(docs/spec/links.md, "Splice").

Cost of a 64 KiB chunk on one core (``scripts/bench_splice``), about 200 µs: TLS in and out 85,
kernel 60, keystream and authentication 33, one turn of the scheduler 16, the rest of Python 6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from phantom_tun.errors import LinkBroken, PeerError
from phantom_tun.net.links.buffers import POOL, SLACK
from phantom_tun.net.links.bulk import Bulk


class Layer(Protocol):
    """What is done to the bytes of one direction."""

    def process(self, view: memoryview, start: int, end: int) -> None:
        """Transform ``view[start:end]`` in place."""
        ...


def process_bytes(layer: Layer, data: bytes) -> bytes:
    """``data`` through ``layer``; for what isn't in a buffer."""
    if not data:
        return data
    view = memoryview(bytearray(len(data) + SLACK))
    view[: len(data)] = data
    layer.process(view, 0, len(data))
    return bytes(view[: len(data)])


async def pump(source: Bulk, sink: Bulk, layer: Layer, on_bytes: Callable[[int], None]) -> None:
    """One direction, until FIN went through.

    :raises LinkBroken: either side has failed.
    :raises PeerError: or broken the framing.
    """
    process = layer.process
    while True:
        buffer = await source.receive_pooled()  # yields once per chunk: that is the fairness
        try:
            at_end = source.at_end
            view = buffer.view
            for start, end in buffer.segments:
                process(view, start, end)
            await sink.send(buffer, fin=at_end)
            on_bytes(buffer.payload_len())
            if at_end:
                return
        finally:
            POOL.give_back(buffer)


def ignore(_count: int) -> None:
    """For those who don't count."""


async def splice(
    a: Bulk,
    b: Bulk,
    a_to_b: Layer,
    b_to_a: Layer,
    on_bytes: Callable[[int], None] | None = None,
) -> None:
    """Join two uses until FIN went through both ways; a reset, end or failure of either resets
    both. Doesn't raise for the peers' sake; ``on_bytes`` is told every chunk's size."""
    count = on_bytes or ignore
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump, a, b, a_to_b, count)
            await pump(b, a, b_to_a, count)
    except* (LinkBroken, PeerError):
        a.reset()
        b.reset()
