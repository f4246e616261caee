"""What a link needs from the bytes below it; TLS over TCP is one, memory (in tests) another."""

from __future__ import annotations

from typing import Protocol


class Connection(Protocol):
    """A reliable byte stream with at most one reader and one writer at a time.

    Everything raises :class:`~phantom_tun.errors.LinkBroken` when the connection fails or is
    closed meanwhile.
    """

    async def wait_readable(self) -> None:
        """Return when a read gives something (bytes, the end or an error) without waiting; after
        at least one turn of the scheduler."""
        ...

    async def wait_arrival(self) -> None:
        """As :meth:`wait_readable`, but cheaper and sometimes mistaken: :meth:`read_now` may find
        nothing after all."""
        ...

    @property
    def handle(self) -> int | None:
        """The descriptor that can be read from when something arrives while this
        :meth:`is_quiet`; ``None`` if there is none."""
        ...

    def read_now(self, view: memoryview) -> int | None:
        """Take what is there, at most ``len(view)``, perhaps not all of it; ``None`` if nothing is.
        0 means the end."""
        ...

    def has_room(self) -> bool:
        """Whether a little can be written without waiting, or fails at once."""
        ...

    async def read_some(self, view: memoryview) -> int:
        """Wait for bytes and take what is there, at most ``len(view)``. 0 means the end."""
        ...

    async def write_all(self, data: memoryview | bytes) -> None:
        """Hand all of ``data`` to the transport. If this is cancelled, the connection is torn until
        :meth:`end_write` is through."""
        ...

    def begin_write(self, data: memoryview | bytes) -> bool:
        """Hand as much of ``data`` to the transport as it takes at once; whether that was all. If
        it wasn't, the connection is torn until :meth:`end_write` is through, and ``data`` may not
        change."""
        ...

    async def end_write(self) -> None:
        """Hand over what is left of a write that was begun, or cancelled; perhaps nothing."""
        ...

    def write_now(self, data: bytes) -> None:
        """Send ``data`` if that is possible without waiting, else don't. Never raises."""
        ...

    def is_quiet(self) -> bool:
        """Whether it is whole and nothing, not even its end, has arrived unread."""
        ...

    @property
    def usable(self) -> bool:
        """Neither closed nor torn."""
        ...

    def close(self) -> None:
        """End it now; whoever waits on it gets ``LinkBroken``. Idempotent, never raises."""
        ...
