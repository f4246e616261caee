"""The control server: one request per connection, answered by the node's backend.

Bounded everywhere: clients at once, the request line, the time to send it, the time to answer and
the time a client may take to read a line. A client that goes away cancels what it asked for. A
mistake in the node's own code costs the one who asked an answer, and nobody else anything.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog
import trio

from phantom_tun.control.backend import ControlBackend
from phantom_tun.control.dispatch import dispatch
from phantom_tun.control.listener import Access, peer_credentials
from phantom_tun.control.model import Answer
from phantom_tun.control.schema import (
    MAX_REQUEST_BYTES,
    AnyRequest,
    ControlError,
    Shutdown,
    decode_request,
    encode_event,
    encode_failure,
    encode_result,
)

MAX_CLIENTS = 32
REQUEST_LINE_DEADLINE_S = 10.0
SEND_DEADLINE_S = 10.0
_RECEIVE_BYTES = 4096
_COUNTERS = ("answered", "refused", "denied", "busy", "gone", "internal_errors")

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class ControlServer:
    """Serves ``backend`` to those whom ``access`` allows; ``stop`` is called for a shutdown."""

    backend: ControlBackend
    access: Access
    stop: Callable[[], None]
    _clients: int = field(default=0, init=False)
    _counters: Counter[str] = field(default_factory=Counter, init=False)

    def statistics(self) -> dict[str, int]:
        """Counters since the start, and ``clients`` now."""
        return {name: self._counters[name] for name in _COUNTERS} | {"clients": self._clients}

    async def serve(
        self,
        listener: socket.socket,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept connections on a listening Unix socket until cancelled; closes it."""
        listener.setblocking(False)
        listening = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._serve_client, [listening])
            task_status.started()

    async def _serve_client(self, stream: trio.SocketStream) -> None:
        self._clients += 1
        try:
            async with stream:
                await self._answer_one(stream)
        except (trio.BrokenResourceError, trio.TooSlowError):
            self._counters["gone"] += 1
        except Exception:  # noqa: BLE001 - the daemon goes on, whatever became of this client
            self._mistake()
        finally:
            self._clients -= 1

    def _mistake(self) -> None:
        self._counters["internal_errors"] += 1
        _log.exception("a control request failed")

    async def _answer_one(self, stream: trio.SocketStream) -> None:
        try:
            self._admit(stream)
            request = decode_request(await _receive_line(stream))
        except ControlError as error:
            await self._refuse(stream, error)
            return
        try:
            last = await self._dispatch(request, stream)
            if last is not None:
                await _send(stream, last)
        except ControlError as error:
            await self._refuse(stream, error)
        finally:
            # Only now, so that the acknowledgement still goes out.
            if isinstance(request, Shutdown):
                self.stop()

    async def _refuse(self, stream: trio.SocketStream, error: ControlError) -> None:
        self._counters["refused"] += 1
        await _send(stream, encode_failure(error))

    def _admit(self, stream: trio.SocketStream) -> None:
        _pid, uid, gid = peer_credentials(stream.socket)
        if not self.access.allows(uid, gid):
            self._counters["denied"] += 1
            _log.warning("control request denied", own_uid=self.access.uid, client_uid=uid)
            raise ControlError(
                "denied",
                f"uid {uid} may not control this node: use sudo, or join the group that the "
                "node's setting control.group names",
            )
        if self._clients > MAX_CLIENTS:
            self._counters["busy"] += 1
            raise ControlError(
                "busy", f"{MAX_CLIENTS} commands are being answered already; try again"
            )

    async def _dispatch(self, request: AnyRequest, stream: trio.SocketStream) -> bytes | None:
        """The last line to send, or ``None`` when the client went away."""
        sending = trio.Lock()
        last: bytes | None = None
        failure: ControlError | None = None
        async with trio.open_nursery() as nursery:

            async def report(event: Answer) -> None:
                try:
                    async with sending:
                        await _send(stream, encode_event(event))
                except (trio.BrokenResourceError, trio.TooSlowError):
                    nursery.cancel_scope.cancel()
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(_cancel_when_gone, stream, nursery.cancel_scope)
            try:
                with trio.move_on_after(_deadline(request)) as limit:
                    last = await self._answer(request, report)
                if limit.cancelled_caught:
                    failure = ControlError(
                        "timeout",
                        f"the node did not finish within {request.deadline_s:.0f} s; "
                        "'phantom-tun status' shows what it is doing",
                    )
            except ControlError as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        self._counters["gone" if last is None else "answered"] += 1
        return last

    async def _answer(
        self, request: AnyRequest, report: Callable[[Answer], Awaitable[None]]
    ) -> bytes:
        """The last line if all goes well.

        :raises ControlError: it doesn't.
        """
        try:
            return encode_result(await dispatch(request, self.backend, report=report))
        except ControlError:
            raise
        except trio.TooSlowError as error:
            raise ControlError("timeout", "what this needs didn't come in time") from error
        except Exception as error:
            self._mistake()
            raise ControlError(
                "failed",
                f"the node made a mistake ({type(error).__name__}); its log has the details, "
                "please report it",
            ) from error


def _deadline(request: AnyRequest) -> float:
    return math.inf if request.deadline_s is None else request.deadline_s


async def _receive_line(stream: trio.SocketStream) -> bytes:
    """The request line without its newline.

    :raises ControlError: ``invalid``, too long, too slow or cut off.
    """
    buffer = bytearray()
    with trio.move_on_after(REQUEST_LINE_DEADLINE_S):
        while True:
            chunk = await stream.receive_some(_RECEIVE_BYTES)
            buffer += chunk
            line, newline, rest = bytes(buffer).partition(b"\n")
            if newline and not rest and len(line) < MAX_REQUEST_BYTES:
                return line
            if newline and rest:
                raise ControlError("invalid", "one connection carries one request")
            if len(buffer) >= MAX_REQUEST_BYTES:
                raise ControlError("invalid", f"a request has at most {MAX_REQUEST_BYTES} bytes")
            if not chunk:
                raise ControlError("invalid", "the request ends before its newline")
    raise ControlError("invalid", f"no request came within {REQUEST_LINE_DEADLINE_S:.0f} s")


async def _cancel_when_gone(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    """A client says nothing more after its request: whatever can be read means it is done."""
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.receive_some(1)
    scope.cancel()


async def _send(stream: trio.SocketStream, line: bytes) -> None:
    with trio.fail_after(SEND_DEADLINE_S):
        await stream.send_all(line)
