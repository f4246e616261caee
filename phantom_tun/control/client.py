"""The other end of the control socket: blocking, small and quick to import.

A connection carries one request; it stays open both ways until the last line came, since closing
it tells the node to give up.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from phantom_tun import places
from phantom_tun.control.listener import peer_credentials
from phantom_tun.control.schema import (
    MAX_REPLY_BYTES,
    ControlError,
    Event,
    Failure,
    Request,
    Result,
    decode_reply,
    decode_value,
    encode_request,
)

CONNECT_TIMEOUT_S = 5.0
GRACE_S = 5.0
"""How much longer than the node's own deadline a client waits."""
_RECEIVE_BYTES = 64 * 1024

EventT = TypeVar("EventT")
ResultT = TypeVar("ResultT")


class ControlClient:
    """Asks the node whose control socket is at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def call(
        self,
        request: Request[EventT, ResultT],
        on_event: Callable[[EventT], None] | None = None,
    ) -> ResultT:
        """Send ``request``, hand each event to ``on_event``, return the result.

        :raises ControlError: ``no_daemon``, ``denied`` or ``timeout`` from here; any code from the
            node.
        """
        with self._connect() as connection:
            # A node that refuses us closes before it reads; its reason is there to be read.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(encode_request(request))
            connection.settimeout(
                None if request.deadline_s is None else request.deadline_s + GRACE_S
            )
            for line in self._lines(connection):
                match decode_reply(line):
                    case Event(value):
                        event = decode_value(value, request.event_type())
                        if on_event is not None:
                            on_event(event)
                    case Result(value):
                        result: ResultT = decode_value(value, request.result_type())
                        return result
                    case Failure(code, message):
                        raise ControlError(code, message)
        raise ControlError(
            "no_daemon", "the daemon went away before it answered; its log may say why"
        )

    def daemon_pid(self) -> int:
        """The process that listens there, as the kernel knows it.

        :raises ControlError: ``no_daemon`` or ``denied``.
        """
        with self._connect() as connection:
            pid, _uid, _gid = peer_credentials(connection)
            return pid

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(CONNECT_TIMEOUT_S)
        try:
            connection.connect(str(self.path))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            connection.close()
            raise ControlError(
                "no_daemon",
                f"no phantom-tun daemon answers at {self.path}: start one with "
                f"'{places.start_command()}', or name another one's socket with --socket",
            ) from error
        except PermissionError as error:
            connection.close()
            raise ControlError(
                "denied",
                f"no permission to use {self.path}: use sudo, or join the group that the node's "
                "setting control.group names",
            ) from error
        except TimeoutError as error:
            connection.close()
            raise self._too_slow() from error
        except OSError as error:
            connection.close()
            raise ControlError("failed", f"can't use {self.path}: {error}") from error
        return connection

    def _lines(self, connection: socket.socket) -> Iterator[bytes]:
        buffer = bytearray()
        while True:
            try:
                chunk = connection.recv(_RECEIVE_BYTES)
            except TimeoutError as error:
                raise self._too_slow() from error
            except ConnectionResetError:
                return
            if not chunk:
                return
            buffer += chunk
            while (end := buffer.find(b"\n")) >= 0:
                yield bytes(buffer[:end])
                del buffer[: end + 1]
            if len(buffer) > MAX_REPLY_BYTES:
                raise ControlError("failed", "the node's answer is too long to be one")

    def _too_slow(self) -> ControlError:
        return ControlError(
            "timeout",
            f"the daemon at {self.path} doesn't answer in time; it may be very busy, "
            "hang, or be frozen (SIGSTOP)",
        )
