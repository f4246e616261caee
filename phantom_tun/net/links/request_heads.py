"""Requests without their meaning, as nginx reads them: headers, their limits, and where a
body ends (docs/spec/links.md, "The door"). Of headers only those that matter here are kept, of
bodies nothing.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from http import HTTPStatus

from phantom_tun.net.links.request_lines import (
    MAX_LINE_LEN,
    RequestLine,
    is_host,
    path_of,
    read_line,
)

HEAD_TOO_LARGE = "Request Header Or Cookie Too Large"
MAX_HEADERS = 1_000
MAX_BODY_LEN = 1_048_576
"""That a request may announce."""

_FIRST_ROOM = 1_024
_LARGE_ROOMS = 4
"""Of ``MAX_LINE_LEN``, one after the other, for lines that don't fit into what is left of the room
before."""

_UNIQUE = frozenset(
    {
        b"host",
        b"if-modified-since",
        b"if-unmodified-since",
        b"if-match",
        b"if-none-match",
        b"if-range",
        b"content-length",
        b"content-range",
        b"transfer-encoding",
        b"expect",
        b"authorization",
    }
)
_FIRST_COUNTS = frozenset({b"user-agent", b"range", b"upgrade"})

_NAME = rb"[^\x00-\x20\x7f:]+"
_LINE = re.compile(rb"(" + _NAME + rb")(?::([^\x00\r\n]*))?\r*\n")
_BEGUN = re.compile(rb"(?:" + _NAME + rb"(?::[^\x00\r\n]*)?\r*|\r?)")
_GOOD_NAME = re.compile(rb"[A-Za-z0-9-]+")
_NUMBER = re.compile(rb"[0-9]{1,19}")
_MAX_OFFSET = (1 << 63) - 1


class RefusedError(Exception):
    """A request that no answer but an error is for; the connection ends."""

    def __init__(self, status: HTTPStatus, detail: str | None = None) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail


class Head:
    """The head of one request, as far as it has come."""

    __slots__ = (
        "_count",
        "_keeps",
        "_rooms",
        "_space",
        "_wanted",
        "begun",
        "complete",
        "headers",
        "line",
    )

    def __init__(self, *wanted: bytes) -> None:
        """``wanted``: names of headers to keep besides those that mean something in HTTP."""
        self._wanted = _FIRST_COUNTS.union(wanted)
        self._space = _FIRST_ROOM
        self._rooms = 0
        self._count = 0
        self._keeps: bool | None = None
        self.line: RequestLine | None = None
        self.headers: dict[bytes, bytes] = {}
        """By name in lower case."""
        self.begun = False
        """Something has come, be it an empty line."""
        self.complete = False

    def read(self, data: bytearray) -> None:
        """Take whole lines from the beginning of ``data``, up to the end of the head.

        :raises RefusedError: it won't become a good head, whatever follows.
        """
        self.begun = self.begun or bool(data)
        if self.line is None:
            self._read_first_line(data)
        while self.line is not None and not self.complete:
            end = data.find(b"\n", 0, MAX_LINE_LEN) + 1
            self._make_room(end, len(data), HTTPStatus.BAD_REQUEST)
            if not end:
                if not _BEGUN.fullmatch(data):
                    raise RefusedError(HTTPStatus.BAD_REQUEST)
                return
            line = bytes(data[:end])
            del data[:end]
            if line in {b"\n", b"\r\n"}:
                self._finish()
            else:
                self._read_header(line)

    def _read_first_line(self, data: bytearray) -> None:
        rest = data.lstrip(b"\r\n")
        del data[: len(data) - len(rest)]
        line = read_line(bytes(data[: MAX_LINE_LEN + 1]))
        if isinstance(line, HTTPStatus):
            raise RefusedError(line)
        self._make_room(line.length if line else 0, len(data), HTTPStatus.REQUEST_URI_TOO_LONG)
        if line is None:
            return
        self.line = line
        del data[: line.length]
        self.complete = line.minor is None
        if path_of(line.target) is None or (self.complete and line.method != b"GET"):
            raise RefusedError(HTTPStatus.BAD_REQUEST)

    def _make_room(self, length: int, present: int, status: HTTPStatus) -> None:
        """For a line of ``length``, or for one without end so far (0) of which ``present`` bytes
        have come."""
        if (length or present + 1) > self._space:
            self._rooms += 1
            self._space = MAX_LINE_LEN
            if self._rooms > _LARGE_ROOMS or (length or present + 1) > MAX_LINE_LEN:
                large = status is HTTPStatus.BAD_REQUEST
                raise RefusedError(status, HEAD_TOO_LARGE if large else None)
        self._space -= length

    def _read_header(self, line: bytes) -> None:
        found = _LINE.fullmatch(line)
        if found is None:
            raise RefusedError(HTTPStatus.BAD_REQUEST)
        name, value = found[1].lower(), (found[2] or b"").strip(b" ")
        if not _GOOD_NAME.fullmatch(name):
            return
        self._count += 1
        if self._count > MAX_HEADERS:
            raise RefusedError(HTTPStatus.BAD_REQUEST, HEAD_TOO_LARGE)
        if name == b"connection":
            asked = value.lower()
            if b"close" in asked:
                self._keeps = False
            elif b"keep-alive" in asked:
                self._keeps = True
        elif name in _UNIQUE:
            if name in self.headers or (name == b"host" and not is_host(value)):
                raise RefusedError(HTTPStatus.BAD_REQUEST)
            self.headers[name] = value
        elif name in self._wanted:
            self.headers.setdefault(name, value)

    def _finish(self) -> None:
        self.complete = True
        length, coding = (
            self.headers.get(name) for name in (b"content-length", b"transfer-encoding")
        )
        if b"host" not in self.headers and self.is_new:
            raise RefusedError(HTTPStatus.BAD_REQUEST)
        if length is not None and (not _NUMBER.fullmatch(length) or int(length) > _MAX_OFFSET):
            raise RefusedError(HTTPStatus.BAD_REQUEST)
        if coding is not None:
            if not self.is_new:
                raise RefusedError(HTTPStatus.BAD_REQUEST)
            if coding.lower() != b"chunked":
                raise RefusedError(HTTPStatus.NOT_IMPLEMENTED)
            if length is not None:
                raise RefusedError(HTTPStatus.BAD_REQUEST)
        if self.line is not None and self.line.method in {b"TRACE", b"CONNECT"}:
            raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED)

    @property
    def is_new(self) -> bool:
        """HTTP/1.1 or later."""
        return self.line is not None and bool(self.line.minor)

    @property
    def keeps(self) -> bool:
        """The connection is to go on after the answer."""
        return self.is_new if self._keeps is None else self._keeps

    def body(self) -> Body | None:
        """What follows the head, if anything does.

        :raises RefusedError: too much of it.
        """
        if b"transfer-encoding" in self.headers:
            return Body(None)
        length = int(self.headers.get(b"content-length", b"0"))
        if length > MAX_BODY_LEN:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return Body(length) if length else None


class _At(Enum):
    SIZE = auto()
    MORE_SIZE = auto()
    EXTENSION = auto()
    SIZE_END = auto()
    DATA = auto()
    DATA_END = auto()
    DATA_LINE_END = auto()
    TRAILER = auto()
    TRAILER_LINE = auto()
    TRAILER_LINE_END = auto()
    LAST_END = auto()
    DONE = auto()


_ORDINARY = re.compile(rb"[^\r\n]+")
_CR, _LF = 0x0D, 0x0A
_LINE_ENDS = {
    _At.DATA_END: (_At.DATA_LINE_END, _At.SIZE),
    _At.TRAILER: (_At.LAST_END, _At.DONE),
    _At.TRAILER_LINE: (_At.TRAILER_LINE_END, _At.TRAILER),
}
"""Where CR and LF lead."""
_AFTER_CR = {
    _At.DATA_LINE_END: _At.SIZE,
    _At.TRAILER_LINE_END: _At.TRAILER,
    _At.LAST_END: _At.DONE,
}


class Body:
    """What is left to come of a body; what comes is thrown away."""

    __slots__ = ("_at", "_chunked", "_left")

    def __init__(self, length: int | None) -> None:
        """``None``: it comes in chunks."""
        self._chunked = length is None
        self._left = length or 0
        self._at = _At.SIZE if self._chunked else _At.DATA

    def skip(self, data: bytearray) -> bool:
        """Take it from the beginning of ``data``; returns whether that was the end of it.

        :raises RefusedError: these are no chunks.
        """
        place = 0
        while place < len(data) and self._at is not _At.DONE:
            if self._at is _At.DATA:
                count = min(self._left, len(data) - place)
                self._left -= count
                place += count
                if not self._left:
                    self._at = _At.DATA_END if self._chunked else _At.DONE
                continue
            if self._at in {_At.EXTENSION, _At.TRAILER_LINE}:
                run = _ORDINARY.match(data, place)
                if run is not None:
                    place = run.end()
                    continue
            self._at = self._step(data[place])
            place += 1
        del data[:place]
        return self._at is _At.DONE

    def _step(self, char: int) -> _At:
        at = self._at
        if at in {_At.SIZE, _At.MORE_SIZE}:
            return self._read_size(char)
        if at in {_At.EXTENSION, _At.SIZE_END}:
            if char == _LF:
                return _At.DATA if self._left else _At.TRAILER
            if at is _At.EXTENSION and char == _CR:
                return _At.SIZE_END
        elif at in _LINE_ENDS:
            if char in {_CR, _LF}:
                return _LINE_ENDS[at][char == _LF]
            if at is not _At.DATA_END:
                return _At.TRAILER_LINE
        elif char == _LF:
            return _AFTER_CR[at]
        raise RefusedError(HTTPStatus.BAD_REQUEST)

    def _read_size(self, char: int) -> _At:
        digit = b"0123456789abcdef".find(bytes([char]).lower())
        if digit >= 0 and self._left <= _MAX_OFFSET // 16:
            self._left = self._left * 16 + digit
            return _At.MORE_SIZE
        if self._at is _At.MORE_SIZE:
            if char in b";\t ":
                return _At.EXTENSION
            if char in {_CR, _LF}:
                self._at = _At.EXTENSION
                return self._step(char)
        raise RefusedError(HTTPStatus.BAD_REQUEST)
