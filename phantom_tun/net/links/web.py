"""The web server that everybody meets who isn't a dialer (docs/spec/links.md, "The door").

A :class:`Visitor` is the HTTP side of one connection, without any I/O. Whatever is wrong with an
upgrade, the visitor gets what any other request for an unknown page gets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

from phantom_tun.errors import PeerError
from phantom_tun.net.links.conditions import Version, gzip, http_date, ranges_of, takes_gzip
from phantom_tun.net.links.request_heads import Body, Head, RefusedError
from phantom_tun.net.links.request_lines import RequestLine, path_of
from phantom_tun.wire.door import (
    PROTOCOL_NAME,
    TOKEN_HEADER,
    WELCOME_HEADER,
    from_header,
    to_header,
)

ENOUGH = 16_384
"""Bytes of answers after which the next request waits until they are sent."""

MIN_PACKED_LEN = 20

PAGES = frozenset({b"/", b"/index.html"})

IN_CLEAR = "The plain HTTP request was sent to HTTPS port"

MAX_REQUESTS = 1_000
"""On one connection."""
MAX_AGE = 3_600.0
"""Seconds after which a connection ends with the next answer."""

_REASONS = {
    HTTPStatus.METHOD_NOT_ALLOWED: "Not Allowed",
    HTTPStatus.REQUEST_URI_TOO_LONG: "Request-URI Too Large",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "Request Entity Too Large",
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: "Requested Range Not Satisfiable",
    HTTPStatus.NOT_MODIFIED: "Not Modified",
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
    version: Version = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", Version.of(self.page))

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


_TOKEN = TOKEN_HEADER.lower().encode()
_WANTED = (_TOKEN, b"accept-encoding", b"via")
_Headers = list[tuple[str, str]]


class Visitor:
    """One connection's requests and answers."""

    __slots__ = (
        "_answered",
        "_begun",
        "_body",
        "_check",
        "_data",
        "_ended",
        "_head",
        "_in_clear",
        "_site",
        "closing",
        "has_more",
        "nonce",
    )

    def __init__(
        self, site: Site, check: Callable[[str, bytes, float], bytes], *, in_clear: bool = False
    ) -> None:
        """``check`` as :meth:`phantom_tun.wire.door.DoorKeeper.check`; ``in_clear``: the visitor
        speaks HTTP without TLS, so it is refused whatever it asks for."""
        self._site = site
        self._in_clear = in_clear
        self._check = check
        self._data = bytearray()
        self._ended = False
        self._head = Head(*_WANTED)
        self._body: Body | None = None
        self._answered = 0
        self._begun: float | None = None
        self.closing = False
        """The connection is to be closed after what was returned is sent."""
        self.has_more = False
        """Requests may have come that are not answered yet: :meth:`go_on` comes next."""
        self.nonce: bytes | None = None
        """Of a token that was found good: :meth:`welcome` or :meth:`decline` comes next."""

    @property
    def is_idle(self) -> bool:
        """Something was answered, and nothing has come since."""
        waits = self._body is None and not self._head.begun and not self.has_more
        return self._answered > 0 and waits

    def feed(self, data: bytes, now: float) -> bytes:
        """Take what the visitor sent (``b""`` at its end); returns what to send back."""
        if self._begun is None:
            self._begun = now
        self._data += data
        self._ended = not data
        return self.go_on(now)

    def go_on(self, now: float) -> bytes:
        """What is to be sent back to what has come and wasn't answered so far."""
        answers: list[bytes] = []
        self.has_more = False
        while not self.closing and self.nonce is None:
            if self._data and sum(map(len, answers)) >= ENOUGH:
                self.has_more = True
                break
            try:
                if self._body is not None:
                    if not self._body.skip(self._data):
                        break
                    self._body = None
                self._head.read(self._data)
            except RefusedError as error:
                self.closing = True
                if self._body is None:
                    answers.append(self._refuse(error, now))
                break
            if not self._head.complete or self._head.line is None:
                break
            self.nonce = self._ask_to_upgrade(self._head, self._head.line, now)
            if self.nonce is None:
                answers.append(self._answer(self._head.line, now))
        waits = self.has_more or self.nonce is not None
        self.closing = self.closing or (self._ended and not waits)
        return b"".join(answers)

    def decline(self, now: float) -> bytes:
        """The token won't do after all: what any other request would have got, and what is to be
        sent back to what came with it."""
        if self.nonce is None or self._head.line is None:
            return b""
        self.nonce = None
        return self._answer(self._head.line, now) + self.go_on(now)

    def welcome(self, welcome: bytes) -> bytes:
        """The answer that ends HTTP on this connection.

        :raises PeerError: the visitor has already sent more than it can have known about.
        """
        if self._data:
            raise PeerError("bytes before the upgrade was answered")
        return _pack(
            "101 Switching Protocols",
            [
                ("Server", self._site.software),
                ("Connection", "upgrade"),
                ("Upgrade", PROTOCOL_NAME),
                (WELCOME_HEADER, to_header(welcome)),
            ],
        )

    def _ask_to_upgrade(self, head: Head, line: RequestLine, now: float) -> bytes | None:
        token = head.headers.get(_TOKEN)
        if (
            token is None
            or self._in_clear
            or line.method != b"GET"
            or head.headers.get(b"upgrade", b"").lower() != PROTOCOL_NAME.encode()
            or head.headers.keys() & {b"content-length", b"transfer-encoding"}
        ):
            return None
        try:
            return self._check(line.target.decode(), from_header(token), now)
        except PeerError:
            return None

    def _answer(self, line: RequestLine, now: float) -> bytes:
        """To a whole head; what comes next begins after it."""
        head = self._head
        self._answered += 1
        too_old = self._begun is not None and now - self._begun > MAX_AGE
        self.closing = not head.keeps or self._answered >= MAX_REQUESTS or too_old
        if self._in_clear:
            self.closing = True
            return self._refuse(RefusedError(HTTPStatus.BAD_REQUEST, IN_CLEAR), now)
        try:
            self._body = head.body()
        except RefusedError as error:
            self.closing = True
            return self._refuse(error, now)
        if path_of(line.target) not in PAGES:
            status = HTTPStatus.NOT_FOUND
        elif line.method not in {b"GET", b"HEAD"}:
            status = HTTPStatus.METHOD_NOT_ALLOWED
        else:
            status = HTTPStatus.OK
        go_on = b""
        if self._body is not None:
            expected = head.headers.get(b"expect", b"").lower() == b"100-continue"
            if status is HTTPStatus.OK and head.is_new and expected:
                go_on = _CONTINUE
            try:
                if self._body.skip(self._data):
                    self._body = None
            except RefusedError:
                self.closing = True
                status = HTTPStatus.BAD_REQUEST if status is HTTPStatus.OK else status
        if status is HTTPStatus.OK:
            answer = self._show(now)
        else:
            answer = self._respond(status, now, self._site.error_page(status))
        self._head = Head(*_WANTED)
        return go_on + answer

    def _show(self, now: float) -> bytes:
        """The page, or what was asked for of it."""
        site, headers = self._site, self._head.headers
        status = site.version.check(headers)
        if status is HTTPStatus.PRECONDITION_FAILED:
            answer = self._respond(status, now, site.error_page(status))
            self.closing = True  # that it doesn't say so is what nginx does
            return answer
        modified = ("Last-Modified", site.version.date)
        tag = ("ETag", site.version.tag.decode())
        if status is HTTPStatus.NOT_MODIFIED:
            return self._respond(status, now, None, [modified], [tag])
        if self._packs(status, site.page):
            weak = ("ETag", "W/" + site.version.tag.decode())
            return self._respond(status, now, site.page, [modified], [weak])
        ranges: list[range] | None = []
        if b"range" in headers and site.version.allows_range(headers.get(b"if-range")):
            ranges = ranges_of(headers[b"range"], len(site.page))
        if ranges is None:
            status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            where = ("Content-Range", f"bytes */{len(site.page)}")
            return self._respond(status, now, site.error_page(status), after=[where])
        if len(ranges) == 1:
            (part,) = ranges
            where = ("Content-Range", f"bytes {part.start}-{part.stop - 1}/{len(site.page)}")
            piece = site.page[part.start : part.stop]
            return self._respond(HTTPStatus.PARTIAL_CONTENT, now, piece, [modified], [tag, where])
        accepts = ("Accept-Ranges", "bytes")
        return self._respond(status, now, site.page, [modified], [tag, accepts])

    def _packs(self, status: HTTPStatus, body: bytes) -> bool:
        head = self._head
        worth_it = status in {HTTPStatus.OK, HTTPStatus.NOT_FOUND} and len(body) >= MIN_PACKED_LEN
        return worth_it and head.is_new and takes_gzip(head.headers)

    def _refuse(self, error: RefusedError, now: float) -> bytes:
        """What no web server takes."""
        page = self._site.error_page(error.status, error.detail)
        return self._respond(error.status, now, page)

    def _respond(
        self,
        status: HTTPStatus,
        now: float,
        body: bytes | None,
        before: _Headers | None = None,
        after: _Headers | None = None,
    ) -> bytes:
        """``before``, ``after``: headers around the one that says whether the connection stays."""
        line = self._head.line
        if line is not None and line.minor is None:
            return body or b""
        agent = self._head.headers.get(b"user-agent", b"")
        if body is not None and status >= HTTPStatus.BAD_REQUEST and _is_padded(agent):
            body += _PADDING
        headers = [("Server", self._site.software), ("Date", http_date(now))]
        head_only = line is not None and line.method == b"HEAD"
        packed = body is not None and self._packs(status, body)
        if body is not None:
            headers.append(("Content-Type", "text/html"))
            if not packed:
                headers.append(("Content-Length", str(len(body))))
        headers += before or []
        if packed and not head_only:
            headers.append(("Transfer-Encoding", "chunked"))
        headers.append(("Connection", "close" if self.closing else "keep-alive"))
        headers += after or []
        if packed:
            headers.append(("Content-Encoding", "gzip"))
        head = _pack(f"{status.value} {_reason(status)}", headers)
        if body is None or head_only:
            return head
        return head + (gzip(body) if packed else body)


def _pack(status: str, headers: _Headers) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode()


def _is_padded(user_agent: bytes) -> bool:
    """Whether error pages are made longer for this browser."""
    if b"Opera" in user_agent:
        return False
    if len(user_agent.partition(b"MSIE ")[2]) > 2:
        return True
    return b"Chrome/" in user_agent and b"Gecko/" not in user_agent
