"""The first line of an HTTP request as nginx reads it (docs/spec/links.md, "The door"): what it
takes, what it refuses, and how early."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

MAX_LINE_LEN = 8_192
"""Bytes of the request line or of one header, with their line ends."""

_METHOD = rb"[A-Z_-]+"
_REST = rb"[^\x00-\x20\x7f]*"
_HOST = rb"(?:[A-Za-z0-9.-]+|\[[A-Za-z0-9:._~!$&'()*+,;=-]+\])"
_AUTHORITY = rb"[A-Za-z][A-Za-z0-9+.-]*://" + _HOST + rb"(?::[0-9]*)?"
_TARGET = rb"(?:/" + _REST + rb"|" + _AUTHORITY + rb"(?:[/?]" + _REST + rb")?)"
_WHOLE = re.compile(rb"(" + _METHOD + rb") +(" + _TARGET + rb")(?: +HTTP/1\.([0-9]{1,3}))? *\r?\n")
_TOO_NEW = re.compile(_METHOD + rb" +" + _TARGET + rb" +HTTP/(?:[2-9]|1[0-9])")
_BEGUN = re.compile(_METHOD + rb"(?: +(?:[/A-Za-z]" + _REST + rb"(?: +([^ ].*)?)?)?)?", re.DOTALL)
_VERSION_BEGUN = re.compile(rb"(?:[0-9]{1,3} *\r?)?")
_VERSION = b"HTTP/1."
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})|%00")
_BEFORE_PATH = re.compile(rb"[^/?]+://[^/?]*")
_BAD_HOST = re.compile(rb"[\x00-\x20/\x7f]|\.\.|\A\Z")
_PRINTABLE = bytes(range(0x21, 0x7F))


class RequestLine(NamedTuple):
    """One that is complete and fine."""

    method: bytes
    target: bytes
    """In ASCII."""
    minor: int | None
    """Of the version HTTP/1.x; ``None`` if there was none, as before HTTP/1.0."""
    length: int
    """Of the line as it came, with its end."""

    def pack(self) -> bytes:
        """The same in the only form that everybody takes."""
        return b"%s %s HTTP/1.%d\r\n" % (self.method, self.target, min(self.minor or 0, 1))


def read_line(data: bytes) -> RequestLine | HTTPStatus | None:
    """What ``data`` begins with: a line, why it is refused, or ``None`` if more has to come."""
    line, found, _ = data.partition(b"\n")
    line += found
    if _TOO_NEW.match(line):
        return HTTPStatus.HTTP_VERSION_NOT_SUPPORTED
    if len(line) > MAX_LINE_LEN or (not found and len(line) == MAX_LINE_LEN):
        return HTTPStatus.REQUEST_URI_TOO_LONG
    if not found:
        return None if _may_become_line(line) else HTTPStatus.BAD_REQUEST
    whole = _WHOLE.fullmatch(line)
    if whole is None:
        return HTTPStatus.BAD_REQUEST
    method, target, minor = whole.groups()
    ascii_target = quote(target, safe=_PRINTABLE).encode()
    return RequestLine(method, ascii_target, None if minor is None else int(minor), len(line))


def _may_become_line(line: bytes) -> bool:
    begun = _BEGUN.fullmatch(line)
    if not line or begun is None:
        return not line
    version = begun[1] or b""
    head, rest = version[: len(_VERSION)], version[len(_VERSION) :]
    return _VERSION.startswith(head) and _VERSION_BEGUN.fullmatch(rest) is not None


def path_of(target: bytes) -> bytes | None:
    """The page that a target means; ``None`` if it can't be one."""
    before = _BEFORE_PATH.match(target)
    path = re.split(rb"[?#]", target[before.end() if before else 0 :], maxsplit=1)[0]
    if _BAD_ESCAPE.search(path):
        return None
    parts = unquote_to_bytes(path).split(b"/")
    kept: list[bytes] = []
    for part in parts:
        if part == b"..":
            if not kept:
                return None
            kept.pop()
        elif part not in {b"", b"."}:
            kept.append(part)
    end = b"/" if kept and parts[-1] in {b"", b".", b".."} else b""
    return b"/" + b"/".join(kept) + end


def is_host(value: bytes) -> bool:
    """Whether a Host header can be one."""
    return _BAD_HOST.search(value) is None
