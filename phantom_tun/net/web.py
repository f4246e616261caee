"""The web server that everybody meets who isn't a dialer (docs/spec/links.md, "The door").

A :class:`Visitor` is the HTTP side of one connection, without any I/O. Whatever is wrong with an
upgrade, the visitor gets what any other request for an unknown page gets.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

import h11

from phantom_tun.errors import PeerError
from phantom_tun.wire.door import (
    PROTOCOL_NAME,
    TOKEN_HEADER,
    WELCOME_HEADER,
    from_header,
    to_header,
)

MAX_HEAD_LEN = 16_384
"""Bytes of a request before its end must have come."""

PAGES = frozenset({b"/", b"/index.html"})

_REQUEST_LINE = re.compile(rb"[A-Z][A-Z_-]{0,31} \S+ HTTP/1\.[01]\r?")
_REASONS = {HTTPStatus.METHOD_NOT_ALLOWED: "Not Allowed"}


@dataclass(frozen=True, slots=True)
class Site:
    """What the web server shows."""

    page: bytes
    """HTML of the one page there is."""
    software: str = "nginx"
    """Server header and signature of error pages."""

    def error_page(self, status: HTTPStatus) -> bytes:
        """The ordinary HTML of an error."""
        title = f"{status.value} {_reason(status)}"
        return (
            f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n"
            f"<center><h1>{title}</h1></center>\r\n<hr><center>{self.software}</center>\r\n"
            "</body>\r\n</html>\r\n"
        ).encode()


def _reason(status: HTTPStatus) -> str:
    return _REASONS.get(status, status.phrase)


class Visitor:
    """One connection's requests and answers."""

    __slots__ = ("_asked", "_check", "_http", "_site", "closing", "nonce")

    def __init__(self, site: Site, check: Callable[[str, bytes, float], bytes]) -> None:
        """``check`` as :meth:`phantom_tun.wire.door.DoorKeeper.check`."""
        self._site = site
        self._check = check
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_LEN)
        self._asked: h11.Request | None = None
        self.closing = False
        """The connection is to be closed after what was returned is sent."""
        self.nonce: bytes | None = None
        """Of a token that was found good: :meth:`welcome` or :meth:`decline` comes next."""

    def feed(self, data: bytes, now: float) -> bytes:
        """Take what the visitor sent (``b""`` at its end); returns what to send back."""
        self._http.receive_data(data)
        return self._go_on(b"", now)

    def _go_on(self, answer: bytes, now: float) -> bytes:
        while not self.closing:
            if self._starts_with_garbage():
                return answer + self._refuse(HTTPStatus.BAD_REQUEST, now)
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                return answer + self._refuse(_status_for(error), now)
            if event is h11.NEED_DATA or event is h11.PAUSED:
                break
            if isinstance(event, h11.Request):
                self.nonce = self._ask_to_upgrade(event, now)
                if self.nonce is not None:
                    self._asked = event
                    break
                answer += self._answer(event, now)
            elif isinstance(event, h11.ConnectionClosed):
                self.closing = True
            self._finish_cycle()
        return answer

    def _finish_cycle(self) -> None:
        if self._http.our_state is h11.MUST_CLOSE:
            self.closing = True
        elif self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()

    def decline(self, now: float) -> bytes:
        """The token won't do after all: what any other request would have got, and what is to be
        sent back to what came with it."""
        asked, self._asked, self.nonce = self._asked, None, None
        if asked is None:
            return b""
        answer = self._answer(asked, now)
        self._finish_cycle()
        return self._go_on(answer, now)

    def welcome(self, welcome: bytes) -> bytes:
        """The answer that ends HTTP on this connection.

        :raises PeerError: the visitor has already sent more than it can have known about.
        """
        self._http.next_event()  # the end of the request
        trailing, _ = self._http.trailing_data
        if trailing:
            raise PeerError("bytes before the upgrade was answered")
        response = h11.InformationalResponse(
            status_code=HTTPStatus.SWITCHING_PROTOCOLS,
            headers=[
                ("Server", self._site.software),
                ("Connection", "upgrade"),
                ("Upgrade", PROTOCOL_NAME),
                (WELCOME_HEADER, to_header(welcome)),
            ],
            reason="Switching Protocols",
        )
        return self._http.send(response) or b""

    def _starts_with_garbage(self) -> bool:
        """Whether what comes can't become a request line; h11 itself would wait for its end."""
        if self._http.their_state is not h11.IDLE:
            return False
        data, _ = self._http.trailing_data
        line, found, _ = data.partition(b"\n")
        if found:
            return _REQUEST_LINE.fullmatch(line) is None
        return bool(line) and not line[:1].isupper()

    def _ask_to_upgrade(self, request: h11.Request, now: float) -> bytes | None:
        headers = dict(request.headers)
        token = headers.get(TOKEN_HEADER.lower().encode())
        if (
            token is None
            or request.method != b"GET"
            or headers.get(b"upgrade", b"").lower() != PROTOCOL_NAME.encode()
            or headers.keys() & {b"content-length", b"transfer-encoding"}
        ):
            return None
        try:
            return self._check(request.target.decode(), from_header(token), now)
        except PeerError:
            return None

    def _answer(self, request: h11.Request, now: float) -> bytes:
        if request.method not in {b"GET", b"HEAD"}:
            return self._respond(HTTPStatus.METHOD_NOT_ALLOWED, now)
        path = request.target.partition(b"?")[0]
        status = HTTPStatus.OK if path in PAGES else HTTPStatus.NOT_FOUND
        return self._respond(status, now, head_only=request.method == b"HEAD")

    def _refuse(self, status: HTTPStatus, now: float) -> bytes:
        """Answer what isn't HTTP, and close."""
        self.closing = True
        if self._http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            return self._respond(status, now)
        return b""

    def _respond(self, status: HTTPStatus, now: float, *, head_only: bool = False) -> bytes:
        body = self._site.page if status is HTTPStatus.OK else self._site.error_page(status)
        response = h11.Response(
            status_code=status,
            headers=[
                ("Server", self._site.software),
                ("Date", formatdate(now, usegmt=True)),
                ("Content-Type", "text/html"),
                ("Content-Length", str(len(body))),
                ("Connection", "close" if self.closing else "keep-alive"),
            ],
            reason=_reason(status),
        )
        http = self._http
        parts = (response, h11.Data(data=b"" if head_only else body), h11.EndOfMessage())
        return b"".join(http.send(part) or b"" for part in parts)


def _status_for(error: h11.RemoteProtocolError) -> HTTPStatus:
    status = HTTPStatus(error.error_status_hint)
    if status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
        return HTTPStatus.BAD_REQUEST
    return status
