"""Requests for a certain version of the page, or a part of it."""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus

import pytest

from phantom_tun.net.links.conditions import Version, http_date, ranges_of, takes_gzip

VERSION = Version.of(b"page")
TAG, DATE = VERSION.tag, VERSION.date.encode()
OK, KNOWN, FAILED = HTTPStatus.OK, HTTPStatus.NOT_MODIFIED, HTTPStatus.PRECONDITION_FAILED
EARLY, LATE = b"Thu, 01 Jan 1970 00:00:00 GMT", b"Fri, 01 Jan 2038 00:00:00 GMT"


def test_the_version_follows_from_the_page() -> None:
    assert Version.of(b"page") == VERSION != Version.of(b"pagE")
    assert b'"%x-4"' % VERSION.modified == TAG


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        (b"if-match", TAG, OK),
        (b"if-match", b"*", OK),
        (b"if-match", b'"x", ' + TAG, OK),
        (b"if-match", b"W/" + TAG, FAILED),
        (b"if-match", b'"x"', FAILED),
        (b"if-none-match", TAG, KNOWN),
        (b"if-none-match", b"W/" + TAG, KNOWN),
        (b"if-none-match", b"*", KNOWN),
        (b"if-none-match", b'"x"', OK),
        (b"if-modified-since", DATE, KNOWN),
        (b"if-modified-since", LATE, OK),
        (b"if-modified-since", b"junk", OK),
        (b"if-unmodified-since", DATE, OK),
        (b"if-unmodified-since", LATE, OK),
        (b"if-unmodified-since", EARLY, FAILED),
        (b"if-unmodified-since", b"Fri, 31 Feb 2038 00:00:00 GMT", FAILED),
        (b"if-unmodified-since", b"Fri, 01 Abc 2038 00:00:00 GMT", FAILED),
    ],
)
def test_one_condition(name: bytes, value: bytes, status: HTTPStatus) -> None:
    assert VERSION.check({name: value}) is status


def test_both_have_to_say_that_the_page_is_known() -> None:
    assert VERSION.check({b"if-none-match": TAG, b"if-modified-since": EARLY}) is OK
    assert VERSION.check({b"if-none-match": TAG, b"if-modified-since": DATE}) is KNOWN


@pytest.mark.parametrize("condition", [None, TAG, DATE])
def test_a_range_of_this_version(condition: bytes | None) -> None:
    assert VERSION.allows_range(condition)


@pytest.mark.parametrize("condition", [b'"x"', b"W/" + TAG, LATE, b"*", b""])
def test_a_range_of_another_version(condition: bytes) -> None:
    assert not VERSION.allows_range(condition)


@pytest.mark.timeout(5)
def test_no_range_takes_long_to_read() -> None:
    for _ in range(100):
        assert ranges_of(b"bytes=1" + b" " * 4000 + b"-" + b" " * 4000 + b"x", 100) is None
        assert not VERSION.allows_range(b" " * 8000 + b"," + b" " * 8000)


@pytest.mark.parametrize(
    ("value", "ranges"),
    [
        (b"bytes=0-9", [range(10)]),
        (b"BYTES= 1 - 1 ", [range(1, 2)]),
        (b"bytes=90-", [range(90, 100)]),
        (b"bytes=90-1000", [range(90, 100)]),
        (b"bytes=-5", [range(95, 100)]),
        (b"bytes=-1000", [range(100)]),
        (b"bytes=0-0,-1", [range(1), range(99, 100)]),
        (b"bytes=0-0,200-", [range(1)]),
        (b"bytes=0-,0-", []),
        (b"lines=0-9", []),
        (b"bytes=", []),
        (b"bytes=x", None),
        (b"bytes=0-1,", None),
        (b"bytes=100-", None),
        (b"bytes=-0", None),
        (b"bytes=5-2", None),
        (b"bytes=99999999999999999999-", None),
    ],
)
def test_ranges(value: bytes, ranges: list[range] | None) -> None:
    assert ranges_of(value, 100) == ranges


@pytest.mark.parametrize(
    ("value", "takes"),
    [
        (b"gzip", True),
        (b"deflate, GZIP;q=0.5, br", True),
        (b"gzip; q=1", True),
        (b"gzip;q=0", False),
        (b"gzip;q=0.000", False),
        (b"gzipx", False),
        (b"xgzip", False),
        (b"*", False),
    ],
)
def test_who_takes_gzip(value: bytes, takes: bool) -> None:
    assert takes_gzip({b"accept-encoding": value}) is takes
    assert not takes_gzip({b"accept-encoding": value, b"via": b"x"})


@pytest.mark.parametrize("moment", [0, 1.9, 951_782_399, 1_709_164_800.0, 4_102_444_799.99])
def test_dates_are_written_as_the_mail_library_would(moment: float) -> None:
    assert http_date(moment) == formatdate(moment, usegmt=True)
