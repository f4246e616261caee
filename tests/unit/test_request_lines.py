"""Request lines as an ordinary web server reads them."""

from __future__ import annotations

from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_tun.net.links.request_lines import (
    MAX_LINE_LEN,
    RequestLine,
    is_host,
    path_of,
    read_line,
)

BAD, TOO_NEW = HTTPStatus.BAD_REQUEST, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED


@pytest.mark.parametrize(
    ("data", "packed"),
    [
        (b"GET / HTTP/1.1\r\nHost", b"GET / HTTP/1.1\r\n"),
        (b"G-_T  /x  HTTP/1.0  \n", b"G-_T /x HTTP/1.0\r\n"),
        (b"GET /\xff HTTP/1.999\r\n", b"GET /%FF HTTP/1.1\r\n"),
        (b"GET a+b://[::1]:8?x HTTP/1.1\r\n", b"GET a+b://[::1]:8?x HTTP/1.1\r\n"),
    ],
)
def test_what_is_taken(data: bytes, packed: bytes) -> None:
    line = read_line(data)
    assert isinstance(line, RequestLine)
    assert line.pack() == packed
    assert line.length == data.index(b"\n") + 1


def test_a_line_without_version() -> None:
    assert read_line(b"GET / \r\n") == RequestLine(b"GET", b"/", None, 8)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"g", BAD),
        (b"SSH-2", BAD),
        (b"GET *", BAD),
        (b"GET /a b", BAD),
        (b"GET / HTTP/0", BAD),
        (b"GET / HTTP/1.x", BAD),
        (b"GET / HTTP/1.1000", BAD),
        (b"GET / HTTP/1.1\rX", BAD),
        (b"GET /\1", BAD),
        (b"GET\n", BAD),
        (b"GET http://[::1 HTTP/1.1\r\n", BAD),
        (b"GET http://[::1]x/ HTTP/1.1\r\n", BAD),
        (b"GET http:///x HTTP/1.1\r\n", BAD),
        (b"GET http://u@a/ HTTP/1.1\r\n", BAD),
        (b"GET / HTTP/2", TOO_NEW),
        (b"GET / HTTP/11.1\r\n", TOO_NEW),
        (b"GET /" + b"a" * MAX_LINE_LEN, HTTPStatus.REQUEST_URI_TOO_LONG),
    ],
)
def test_what_is_refused_and_how_early(data: bytes, status: HTTPStatus) -> None:
    assert read_line(data) is status
    begun = data[:-1]
    if b"\n" not in data and len(data) < MAX_LINE_LEN:
        assert read_line(begun) is None


@given(st.sampled_from([b"GET / HTTP/1.1 \r\n", b"P-T  http://a:1/b?c  HTTP/1.234\r\n"]))
def test_every_beginning_of_a_good_line_waits_for_more(line: bytes) -> None:
    assert all(read_line(line[:end]) is None for end in range(len(line)))


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/", b"/"),
        (b"http://a", b"/"),
        (b"http://a?b", b"/"),
        (b"http://a/b", b"/b"),
        (b"/?a=http://b/c", b"/"),
        (b"/#a", b"/"),
        (b"//a/./b/../%63", b"/a/c"),
        (b"/a/", b"/a/"),
        (b"/a/b/..", b"/a/"),
        (b"/a/..", b"/"),
        (b"/..", None),
        (b"/%zz", None),
        (b"/%", None),
        (b"/%00", None),
        (b"/?%zz", b"/"),
    ],
)
def test_the_page_a_target_means(target: bytes, path: bytes | None) -> None:
    assert path_of(target) == path


@pytest.mark.parametrize("host", [b"", b"a b", b"a/b", b"a..b", b"\x7f"])
def test_what_cannot_be_a_host(host: bytes) -> None:
    assert not is_host(host)
    assert is_host(b"a.b:80") and is_host(b"[::1")
