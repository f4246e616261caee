"""Requests for a part of the page, for the page if it is, or isn't, a certain one, or for fewer
bytes, as nginx understands them. The page is never changed: what tells versions of it apart follows
from its bytes.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from http import HTTPStatus
from typing import NamedTuple

_EARLIEST = 1_686_000_000
_DAYS = 700
_DATE = re.compile(
    rb"[^ ,]*, *([0-9]{2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}).*"
)
_WEEKDAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
_MONTHS = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_RANGE = re.compile(rb"([0-9]{1,18}) *-(?: *([0-9]{1,18}))?|-([0-9]{1,18})")

_GZIP = re.compile(rb"(?:\A|[, ])gzip *(?:\Z|,|; *q=(?:1|0\.0{0,2}[1-9]))", re.IGNORECASE)


def http_date(moment: float) -> str:
    """A Unix time as headers say it, whatever the locale is. Python's own comes with modules for
    mail, 400 KB."""
    then = datetime.fromtimestamp(moment, UTC)
    month = _MONTHS[then.month - 1].decode()
    return f"{_WEEKDAYS[then.weekday()]}, {then:%d} {month} {then.year:04} {then:%H:%M:%S} GMT"


class Version(NamedTuple):
    """Of the page."""

    modified: int
    """Unix time."""
    tag: bytes

    @classmethod
    def of(cls, page: bytes) -> Version:
        """The one and only of ``page``."""
        chosen = int.from_bytes(blake2b(page, digest_size=8).digest())
        modified = _EARLIEST + chosen % (_DAYS * 86_400)
        return cls(modified, b'"%x-%x"' % (modified, len(page)))

    @property
    def date(self) -> str:
        """When it was modified, as headers say it."""
        return http_date(self.modified)

    def check(self, headers: Mapping[bytes, bytes]) -> HTTPStatus:
        """Whether the page is to be sent: 200, 304 or 412."""
        since, tags = headers.get(b"if-unmodified-since"), headers.get(b"if-match")
        if since is not None and _time(since) < self.modified:
            return HTTPStatus.PRECONDITION_FAILED
        if tags is not None and not self._is_one_of(tags, weak=False):
            return HTTPStatus.PRECONDITION_FAILED
        since, tags = headers.get(b"if-modified-since"), headers.get(b"if-none-match")
        if since is None and tags is None:
            return HTTPStatus.OK
        if since is not None and _time(since) != self.modified:
            return HTTPStatus.OK
        if tags is not None and not self._is_one_of(tags, weak=True):
            return HTTPStatus.OK
        return HTTPStatus.NOT_MODIFIED

    def _is_one_of(self, tags: bytes, *, weak: bool) -> bool:
        if tags == b"*":
            return True
        found = {tag.strip(b" \t") for tag in tags.split(b",")}
        return self.tag in found or (weak and b"W/" + self.tag in found)

    def allows_range(self, condition: bytes | None) -> bool:
        """Whether this is the version that the header ``If-Range`` means."""
        if condition is None:
            return True
        if len(condition) > 1 and condition.endswith(b'"'):
            return condition == self.tag
        return _time(condition) == self.modified


def _time(value: bytes) -> int:
    """-1 if it is none."""
    found = _DATE.fullmatch(value)
    if found is None or found[2] not in _MONTHS:
        return -1
    month = _MONTHS.index(found[2]) + 1
    day, year, hour, minute, second = (int(found[group]) for group in (1, 3, 4, 5, 6))
    try:
        return int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp())
    except ValueError:
        return -1


def ranges_of(value: bytes, length: int) -> list[range] | None:
    """The parts of the page that a ``Range`` header asks for: none if all of it is sent, ``None``
    if they can't be."""
    if len(value) < 7 or value[:6].lower() != b"bytes=":
        return []
    ranges: list[range] = []
    for part in value[6:].split(b","):
        found = _RANGE.fullmatch(part.strip(b" "))
        if found is None:
            return None
        first, last, suffix = found.groups()
        if suffix is not None:
            start, end = max(0, length - int(suffix)), length
        else:
            start = int(first)
            end = length if last is None else min(length, int(last) + 1)
        if start < end:
            ranges.append(range(start, end))
        elif start == 0:
            return []
    if not ranges:
        return None
    return ranges if sum(map(len, ranges)) <= length else []


def takes_gzip(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the visitor, no proxy, understands what :func:`gzip` makes."""
    return b"via" not in headers and _GZIP.search(headers.get(b"accept-encoding", b"")) is not None


@lru_cache(maxsize=8)
def gzip(body: bytes) -> bytes:
    """Compressed, in little time, and in one chunk of a chunked body."""
    compressor = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    packed = compressor.compress(body) + compressor.flush()
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(packed), packed)
