"""Headers and bodies as an ordinary web server reads them."""

from __future__ import annotations

from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_tun.net.links.request_heads import (
    HEAD_TOO_LARGE,
    MAX_HEADERS,
    Body,
    Head,
    RefusedError,
)

BEGIN = b"GET / HTTP/1.1\r\nHost: h\r\n"
BAD = HTTPStatus.BAD_REQUEST


def read(data: bytes, *wanted: bytes) -> Head:
    head = Head(*wanted)
    head.read(bytearray(data))
    return head


def refusal(data: bytes) -> tuple[HTTPStatus, str | None]:
    with pytest.raises(RefusedError) as caught:
        read(data)
    return caught.value.status, caught.value.detail


def test_only_what_matters_is_kept() -> None:
    head = read(BEGIN + b"A: b\r\nx-Token:  c d \r\nX-Token: e\nRange:\r\n\r\n", b"x-token")
    assert head.complete
    assert head.headers == {b"host": b"h", b"x-token": b"c d", b"range": b""}


def test_what_follows_is_left() -> None:
    data = bytearray(b"\r\n" + BEGIN + b"\r\nmore")
    Head().read(data)
    assert data == b"more"


@pytest.mark.parametrize(
    "line", [b"a_b: c", b"a.b: c", b"\x80: c", b"nocolon", b"a: \x80\1", b"a:b", b"a: b\r\r"]
)
def test_odd_headers_mean_nothing(line: bytes) -> None:
    assert read(BEGIN + line + b"\r\n\r\n").headers == {b"host": b"h"}


@pytest.mark.parametrize(
    "line", [b"a b", b"a :", b" a", b":", b"a: \0", b"a\0", b"a: b\rc", b"\rx", b"\t"]
)
def test_bad_headers_are_refused_before_they_end(line: bytes) -> None:
    assert refusal(BEGIN + line) == (BAD, None)


@pytest.mark.parametrize(
    "headers",
    [
        b"Host: h\r\n",
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"If-Match: *\r\nIf-Match: *\r\n",
        b"Content-Length: 5, 5\r\n\r\n",
        b"Content-Length: +5\r\n\r\n",
        b"Content-Length:\r\n\r\n",
        b"Content-Length: 9223372036854775808\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    ],
)
def test_what_contradicts_itself_is_refused(headers: bytes) -> None:
    assert refusal(BEGIN + headers) == (BAD, None)


def test_chunks_came_with_http_1_1() -> None:
    chunked = b"Transfer-Encoding: chunked\r\n\r\n"
    assert refusal(BEGIN.replace(b"/1.1", b"/1.0") + chunked) == (BAD, None)
    assert read(BEGIN + chunked).body() is not None
    assert refusal(BEGIN + b"Transfer-Encoding: gzip\r\n\r\n") == (HTTPStatus.NOT_IMPLEMENTED, None)


def test_there_can_be_too_many_headers() -> None:
    assert read(BEGIN + b"A: b\r\n" * (MAX_HEADERS - 1) + b"\r\n").complete
    assert refusal(BEGIN + b"A: b\r\n" * MAX_HEADERS) == (BAD, HEAD_TOO_LARGE)
    assert read(BEGIN + b"A_: b\r\n" * MAX_HEADERS + b"\r\n").complete


@pytest.mark.parametrize(("length", "most"), [(8192, 3), (4096, 7), (1000, 32)])
def test_all_headers_together_can_be_too_large(length: int, most: int) -> None:
    line = b"A: " + b"x" * (length - 5) + b"\r\n"
    assert read(BEGIN + line * most + b"\r\n").complete
    assert refusal(BEGIN + line * (most + 1) + b"\r\n") == (BAD, HEAD_TOO_LARGE)


def test_a_header_that_is_too_long_is_refused_before_it_ends() -> None:
    assert not read(BEGIN + b"A: " + b"x" * 8188).complete
    assert refusal(BEGIN + b"A: " + b"x" * 8189) == (BAD, HEAD_TOO_LARGE)


@pytest.mark.timeout(5)
def test_no_header_takes_long_to_read() -> None:
    for _ in range(100):
        assert refusal(BEGIN + b"A:" + b" " * 8000 + b"\0\n") == (BAD, None)
        assert refusal(BEGIN + b"A:" + b" b" * 4000 + b"\rx") == (BAD, None)


def test_a_body_is_thrown_away() -> None:
    body = Body(5)
    data = bytearray(b"abc")
    assert not body.skip(data)
    assert data == b""
    data += b"demore"
    assert body.skip(data)
    assert data == b"more"


CHUNKS = b"5\r\nabcde\r\n00A ;x\nabcdefghij\n0;y\r\nA: b\r\nc\n\r\n"


@given(st.integers(1, 60))
def test_chunks_are_thrown_away(step: int) -> None:
    body = Body(None)
    whole = CHUNKS + b"more"
    data = bytearray()
    done = False
    for start in range(0, len(whole), step):
        data += whole[start : start + step]
        done = done or body.skip(data)
    assert done
    assert data == b"more"


@pytest.mark.parametrize(
    "data", [b"ZZ", b"\r\n", b"1\r\nab", b"1\rx", b"1;x\rx", b"0\r\n\rx", b"f" * 17, b"1\na\rx"]
)
def test_what_are_no_chunks(data: bytes) -> None:
    with pytest.raises(RefusedError):
        Body(None).skip(bytearray(data))


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_whatever_comes_as_chunks_is_thrown_away_or_refused(pieces: list[bytes]) -> None:
    body, data = Body(None), bytearray()
    try:
        for piece in pieces:
            data += piece
            if body.skip(data):
                return
            assert not data
    except RefusedError:
        pass
