"""The web server that everybody meets who isn't a dialer (docs/spec/links.md, "The door").

A :class:`Visitor` is the HTTP side of one connection, without any I/O. Whatever is wrong with an
upgrade, the visitor gets what any other request for an unknown page gets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

import h11

from phantom_tun.errors import PeerError
from phantom_tun.net.links.request_lines import (
    MAX_LINE_LEN,
    RequestLine,
    is_host,
    path_of,
    read_line,
)
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

IN_CLEAR = "The plain HTTP request was sent to HTTPS port"
HEAD_TOO_LARGE = "Request Header Or Cookie Too Large"

_REASONS = {
    HTTPStatus.METHOD_NOT_ALLOWED: "Not Allowed",
    HTTPStatus.REQUEST_URI_TOO_LONG: "Request-URI Too Large",
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED: "HTTP Version Not Supported",
}
_PADDING = b"<!-- a padding to disable MSIE and Chrome friendly error page -->\r\n" * 6
"""Some browsers replace error pages that are short by their own."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Site:
    """What the web server shows."""

    page: bytes
    """HTML of the one page there is."""
    software: str = "nginx"
    """Server header and signature of error pages."""

    def error_page(self, status: HTTPStatus, detail: str | None = None) -> bytes:
        """The ordinary HTML of an error."""
        heading = f"{status.value} {_reason(status)}"
        title = f"{status.value} {detail}" if detail else heading
        more = f"<center>{detail}</center>\r\n" if detail else ""
        return (
            f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n"
            f"<center><h1>{heading}</h1></center>\r\n{more}"
            f"<hr><center>{self.software}</center>\r\n"
            "</body>\r\n</html>\r\n"
        ).encode()


def _reason(status: HTTPStatus) -> str:
    return _REASONS.get(status, status.phrase)


class Visitor:
    """One connection's requests and answers."""

    __slots__ = ("_asked", "_check", "_http", "_in_clear", "_site", "closing", "nonce")

    def __init__(
        self, site: Site, check: Callable[[str, bytes, float], bytes], *, in_clear: bool = False
    ) -> None:
        """``check`` as :meth:`phantom_tun.wire.door.DoorKeeper.check`; ``in_clear``: the visitor
        speaks HTTP without TLS, so it is refused whatever it asks for."""
        self._site = site
        self._in_clear = in_clear
        self._check = check
        self._http = _new_http()
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
            line = self._read_line() if self._http.their_state is h11.IDLE else None
            if isinstance(line, HTTPStatus):
                return answer + self._refuse(line, now)
            if line is not None and line.minor is None:
                return answer + self._answer_bare(line)
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                status = HTTPStatus(error.error_status_hint)
                if status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
                    return answer + self._refuse(HTTPStatus.BAD_REQUEST, now, HEAD_TOO_LARGE)
                return answer + self._refuse(status, now)
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

    def _read_line(self) -> RequestLine | HTTPStatus | None:
        """The request line that comes next, if it is whole. h11 is stricter than web servers are:
        it gets the line without what it wouldn't take."""
        data, ended = self._http.trailing_data
        rest = data.lstrip(b"\r\n")
        line = read_line(rest)
        if isinstance(line, RequestLine):
            rest = line.pack() + rest[line.length :]
        if rest != data:
            self._http = _new_http()
            if rest:
                self._http.receive_data(rest)
            if ended:
                self._http.receive_data(b"")
        return line

    def _answer_bare(self, line: RequestLine) -> bytes:
        """To a request without version: only a body."""
        self.closing = True
        path = path_of(line.target)
        if path is None or line.method != b"GET":
            return self._site.error_page(HTTPStatus.BAD_REQUEST)
        if self._in_clear:
            return self._site.error_page(HTTPStatus.BAD_REQUEST, IN_CLEAR)
        return self._site.page if path in PAGES else self._site.error_page(HTTPStatus.NOT_FOUND)

    def _ask_to_upgrade(self, request: h11.Request, now: float) -> bytes | None:
        headers = dict(request.headers)
        token = headers.get(TOKEN_HEADER.lower().encode())
        if (
            token is None
            or self._in_clear
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
        headers = dict(request.headers)
        path = path_of(request.target)
        padded = _is_padded(headers.get(b"user-agent", b""))
        if path is None or request.method == b"CONNECT" or not is_host(headers.get(b"host", b"h")):
            return self._refuse(HTTPStatus.BAD_REQUEST, now)
        if any(len(name) + len(value) + 4 > MAX_LINE_LEN for name, value in headers.items()):
            return self._refuse(HTTPStatus.BAD_REQUEST, now, HEAD_TOO_LARGE)
        if request.method == b"TRACE":
            return self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, now, padded=padded)
        head_only = request.method == b"HEAD"
        if self._in_clear:
            self.closing = True
            return self._respond(
                HTTPStatus.BAD_REQUEST, now, IN_CLEAR, padded=padded, head_only=head_only
            )
        if request.method not in {b"GET", b"HEAD", b"POST"}:
            status = HTTPStatus.METHOD_NOT_ALLOWED
        elif path not in PAGES:
            status = HTTPStatus.NOT_FOUND
        elif request.method == b"POST":
            status = HTTPStatus.METHOD_NOT_ALLOWED
        else:
            status = HTTPStatus.OK
        has_body = bool(headers.keys() & {b"content-length", b"transfer-encoding"})
        go_on = _CONTINUE if has_body and self._http.they_are_waiting_for_100_continue else b""
        return go_on + self._respond(status, now, padded=padded, head_only=head_only)

    def _refuse(
        self, status: HTTPStatus, now: float, detail: str | None = None, *, padded: bool = False
    ) -> bytes:
        """Answer what no web server takes, and close."""
        self.closing = True
        if self._http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            return self._respond(status, now, detail, padded=padded)
        return b""

    def _respond(
        self,
        status: HTTPStatus,
        now: float,
        detail: str | None = None,
        *,
        padded: bool = False,
        head_only: bool = False,
    ) -> bytes:
        if status is HTTPStatus.OK:
            body = self._site.page
        else:
            body = self._site.error_page(status, detail) + (_PADDING if padded else b"")
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


def _new_http() -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_LEN)


def _is_padded(user_agent: bytes) -> bool:
    """Whether error pages are made longer for this browser."""
    if b"Opera" in user_agent:
        return False
    if len(user_agent.partition(b"MSIE ")[2]) > 2:
        return True
    return b"Chrome/" in user_agent and b"Gecko/" not in user_agent
