"""The web server that strangers meet, without any I/O."""

from __future__ import annotations

import zlib

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_tun.errors import PeerError, ProtocolViolation
from phantom_tun.net.links.web import ENOUGH, MAX_AGE, MAX_REQUESTS, Site, Visitor

NOW = 1_800_000_000.0
PAGE = b"<html>hello</html>"
VERSION = Site(PAGE).version
NONCE = b"n" * 16
UPGRADE = (
    b"GET /door HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: phantom\r\n"
    b"Phantom-Token: dG9rZW4=\r\n\r\n"
)
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


def check(path: str, token: bytes, now: float) -> bytes:
    if (path, token, now) != ("/door", b"token", NOW):
        raise ProtocolViolation("no")
    return NONCE


def visitor() -> Visitor:
    return Visitor(Site(PAGE), check)


def ask(request: bytes) -> bytes:
    return visitor().feed(request, NOW)


def body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def test_the_page_with_the_headers_of_an_ordinary_server() -> None:
    answer = ask(GET)
    assert answer == (
        b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Fri, 15 Jan 2027 08:00:00 GMT\r\n"
        b"Content-Type: text/html\r\nContent-Length: 18\r\nLast-Modified: %s\r\n"
        b"Connection: keep-alive\r\nETag: %s\r\nAccept-Ranges: bytes\r\n\r\n"
        % (VERSION.date.encode(), VERSION.tag)
        + PAGE
    )


def test_head_has_the_headers_of_get_and_no_body() -> None:
    answer = ask(GET.replace(b"GET", b"HEAD"))
    assert answer + PAGE == ask(GET)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /index.html HTTP/1.1\r\nHost: h\r\n\r\n", b"200 OK"),
        (b"GET /?query HTTP/1.1\r\nHost: h\r\n\r\n", b"200 OK"),
        (b"GET /nothing HTTP/1.1\r\nHost: h\r\n\r\n", b"404 Not Found"),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab", b"405 Not Allowed"),
        (b"POST /x HTTP/1.1\r\nHost: h\r\n\r\n", b"404 Not Found"),
        (b"DELETE /x HTTP/1.1\r\nHost: h\r\n\r\n", b"404 Not Found"),
        (b"OPTIONS / HTTP/1.1\r\nHost: h\r\n\r\n", b"405 Not Allowed"),
        (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", b"400 Bad Request"),
        (b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n", b"400 Bad Request"),
        (b"CONNECT / HTTP/1.1\r\nHost: h\r\n\r\n", b"405 Not Allowed"),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\nHost: a..b\r\n\r\n", b"400 Bad Request"),
        (b"\r\n\n\rGET / HTTP/1.1\r\nHost: h\r\n\r\n", b"200 OK"),
        (b"GET  /  HTTP/1.1 \nHost: h\r\n\r\n", b"200 OK"),
        (b"GET / HTTP/1.15\r\nHost: h\r\n\r\n", b"200 OK"),
        (b"GET /\xe4 HTTP/1.1\r\nHost: h\r\n\r\n", b"404 Not Found"),
        (b"GET http://a/ HTTP/1.1\r\nHost: h\r\n\r\n", b"200 OK"),
        (b"GET http://[::1 HTTP/1.1\r\nHost: h\r\n\r\n", b"400 Bad Request"),
        (b"GET /../x HTTP/1.1\r\nHost: h\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/9.9", b"505 HTTP Version Not Supported"),
        (b"GET /" + b"a" * 8177 + b" HTTP/1.1\r\n", b"414 Request-URI Too Large"),
        (b"GET /" + b"a" * 8176 + b" HTTP/1.1\r\nHost: h\r\n\r\n", b"404 Not Found"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\nHost: h\r\nbad header\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/3.0\r\n", b"505 HTTP Version Not Supported"),
        (b"GET / HTTP/0.9\r\n", b"400 Bad Request"),
        (b"get / HTTP/1.1\r\n", b"400 Bad Request"),
        (b"\x16\x03\x01\x02\x00", b"400 Bad Request"),
        (b"hello", b"400 Bad Request"),
        (b"HELLO\r\n", b"400 Bad Request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400 Bad Request"),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: x\r\n\r\n", b"501 Not Implemented"),
    ],
)
def test_answers(request_: bytes, status: bytes) -> None:
    answer = ask(request_)
    assert answer.startswith(b"HTTP/1.1 " + status + b"\r\nServer: nginx\r\nDate: ")
    if not status.startswith(b"200"):
        assert b"<h1>" + status + b"</h1>" in body(answer)


def large_header(length: int) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * (length - 5) + b"\r\n\r\n"


def test_a_header_that_is_too_large_is_refused_with_a_reason() -> None:
    assert ask(large_header(8192)).startswith(b"HTTP/1.1 200 OK\r\n")
    for length in (8193, 20_000):
        answer = ask(large_header(length))
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"<title>400 Request Header Or Cookie Too Large</title>" in answer
        assert b"Connection: close\r\n" in answer


def test_empty_lines_before_a_request_mean_nothing() -> None:
    one = visitor()
    assert one.feed(b"\r\n\r\n", NOW) == one.feed(b"\n", NOW) == b""
    assert one.feed(GET + b"\r\n\r\n" + GET, NOW) == ask(GET) * 2
    assert not one.closing
    assert one.feed(b"\r\n", NOW) == one.feed(b"", NOW) == b""
    assert one.closing


def test_a_request_without_version_gets_only_a_body() -> None:
    one = visitor()
    assert one.feed(b"GET /\r\n", NOW) == PAGE
    assert one.closing
    assert ask(b"GET /x\n").startswith(b"<html>\r\n<head><title>404 Not Found</title>")
    for refused in (b"GET /%zz\n", b"POST /\n"):
        assert ask(refused).startswith(b"<html>\r\n<head><title>400 Bad Request</title>")


def test_tracing_is_refused_and_ends_the_connection() -> None:
    one = visitor()
    answer = one.feed(b"TRACE / HTTP/1.1\r\nHost: h\r\n\r\n", NOW)
    assert answer.startswith(b"HTTP/1.1 405 Not Allowed\r\n")
    assert one.closing


def test_who_waits_with_a_body_is_told_to_go_on() -> None:
    head = b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n"
    waiting = head.replace(b"POST", b"GET") + b"Content-Length: 2\r\n\r\n"
    assert ask(waiting) == b"HTTP/1.1 100 Continue\r\n\r\n" + ask(GET)
    assert ask(waiting.replace(b"/1.1", b"/1.0")).startswith(b"HTTP/1.1 200 OK\r\n")
    assert ask(head.replace(b"POST", b"GET") + b"\r\n") == ask(GET)
    assert ask(head + b"Content-Length: 2\r\n\r\n").startswith(b"HTTP/1.1 405 Not Allowed\r\n")


@pytest.mark.parametrize(
    ("browser", "padded"),
    [
        (b"Mozilla/5.0 (X11) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0 Safari/5", True),
        (b"Mozilla/4.0 (compatible; MSIE 6.0)", True),
        (b"MSIE 6", False),
        (b"MSIE 6.0 Opera 8", False),
        (b"Mozilla/5.0 (X11; rv:120.0) Gecko/20100101 Firefox/120.0", False),
        (b"curl/8", False),
    ],
)
def test_some_browsers_get_longer_error_pages(browser: bytes, padded: bool) -> None:
    rest = b" HTTP/1.1\r\nHost: h\r\nUser-Agent: " + browser + b"\r\n\r\n"
    answer = ask(b"GET /x" + rest)
    assert answer.count(b"<!-- a padding to disable") == 6 * padded
    assert f"Content-Length: {len(body(answer))}\r\n".encode() in answer
    assert ask(b"GET /" + rest) == ask(GET)


def clear() -> Visitor:
    return Visitor(Site(PAGE), check, in_clear=True)


def test_in_clear_every_request_gets_the_same_and_the_end() -> None:
    one = clear()
    assert one.feed(GET, NOW) == (
        b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\nDate: Fri, 15 Jan 2027 08:00:00 GMT\r\n"
        b"Content-Type: text/html\r\nContent-Length: 248\r\nConnection: close\r\n\r\n"
        b"<html>\r\n<head><title>400 The plain HTTP request was sent to HTTPS port</title></head>"
        b"\r\n<body>\r\n<center><h1>400 Bad Request</h1></center>\r\n"
        b"<center>The plain HTTP request was sent to HTTPS port</center>\r\n"
        b"<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
    )
    assert one.closing
    for other in (GET.replace(b"/ ", b"/x "), GET.replace(b"GET", b"POST"), GET + GET):
        assert clear().feed(other, NOW) == clear().feed(GET, NOW)
    head = clear().feed(GET.replace(b"GET", b"HEAD"), NOW)
    assert clear().feed(GET, NOW).startswith(head)
    assert body(head) == b""
    assert clear().feed(b"GET /\n", NOW) == body(clear().feed(GET, NOW))


def test_in_clear_there_is_no_door() -> None:
    one = clear()
    assert one.feed(UPGRADE, NOW) == clear().feed(GET, NOW)
    assert one.nonce is None


@pytest.mark.parametrize("garbage", [b"\0\1garbage\r\n\r\n", b"SSH-2.0-x", b"\x15\3\1\0\2\2\0"])
def test_in_clear_garbage_is_a_bad_request_as_it_is_inside_tls(garbage: bytes) -> None:
    assert clear().feed(garbage, NOW) == ask(b"garbage")


def test_garbage_is_answered_once_and_the_connection_closed() -> None:
    one = visitor()
    assert b"Connection: close" in one.feed(b"garbage", NOW)
    assert one.closing


def test_requests_follow_each_other_on_one_connection() -> None:
    one = visitor()
    assert one.feed(GET, NOW) == ask(GET)
    assert one.feed(GET + GET, NOW) == ask(GET) * 2
    assert one.feed(GET[:9], NOW) == b""
    assert one.feed(GET[9:], NOW) == ask(GET)
    assert not one.closing
    assert one.feed(b"", NOW) == b""
    assert one.closing


def test_bodies_are_read_past() -> None:
    one = visitor()
    head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n"
    assert one.feed(head + b"ab", NOW).startswith(b"HTTP/1.1 405")
    assert one.feed(b"cde" + GET, NOW) == ask(GET)


@pytest.mark.parametrize(
    "request_",
    [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"],
)
def test_who_wants_to_close_is_closed(request_: bytes) -> None:
    one = visitor()
    assert b"Connection: close" in one.feed(request_, NOW)
    assert one.closing


def with_headers(*headers: bytes, line: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join([line, b"Host: h", *headers, b"", b""])


@pytest.mark.parametrize("method", [b"GET /", b"POST /x"])
def test_who_announces_too_much_is_refused(method: bytes) -> None:
    one = visitor()
    request = with_headers(b"Content-Length: 1048577", line=method + b" HTTP/1.1")
    answer = one.feed(request, NOW)
    assert answer.startswith(b"HTTP/1.1 413 Request Entity Too Large\r\n")
    assert one.closing
    assert b"Connection: keep-alive" in ask(request.replace(b"577", b"576"))


CHUNKED = b"Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("method", "status"), [(b"GET /", b"400"), (b"POST /", b"405"), (b"POST /x", b"404")]
)
def test_what_are_no_chunks_ends_the_connection(method: bytes, status: bytes) -> None:
    one = visitor()
    answer = one.feed(with_headers(CHUNKED, line=method + b" HTTP/1.1") + b"ZZ", NOW)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"Connection: close" in answer
    assert one.closing


def test_no_chunks_after_the_answer_end_the_connection_without_another() -> None:
    one = visitor()
    assert one.feed(with_headers(CHUNKED), NOW) == ask(GET)
    assert one.feed(b"1\r\na\r\n", NOW) == b""
    assert not one.closing
    assert one.feed(b"ZZ" + GET, NOW) == b""
    assert one.closing


def test_chunks_are_read_past() -> None:
    body = b"5;x=y\r\nabcde\r\n0a\nabcdefghij\n0\r\nA: b\r\n\r\n"
    assert ask(with_headers(CHUNKED) + body + GET) == ask(GET) * 2


@pytest.mark.parametrize(
    ("headers", "version", "keeps"),
    [
        ([b"Connection: close", b"Connection: keep-alive"], b"1.1", True),
        ([b"Connection: keep-alive", b"Connection: close"], b"1.1", False),
        ([b"Connection: close", b"Connection: x"], b"1.1", False),
        ([b"Connection: keep-alive, close"], b"1.1", False),
        ([b"Connection: Keep-Alive"], b"1.0", True),
        ([], b"1.0", False),
    ],
)
def test_the_last_wish_for_the_connection_counts(
    headers: list[bytes], version: bytes, keeps: bool
) -> None:
    one = visitor()
    answer = one.feed(with_headers(*headers, line=b"GET / HTTP/" + version), NOW)
    assert (b"Connection: keep-alive" in answer) is keeps
    assert one.closing is not keeps


def test_no_more_is_answered_at_once_than_can_be_sent_soon() -> None:
    one = visitor()
    answers = [one.feed(GET * 200, NOW)]
    assert one.feed(b"", NOW)
    assert not one.is_idle
    while one.has_more:
        assert not one.closing
        answers.append(one.go_on(NOW))
    assert all(len(answer) < ENOUGH + len(ask(GET)) for answer in answers)
    assert one.closing


def test_a_connection_has_a_last_request() -> None:
    one = visitor()
    for _ in range(MAX_REQUESTS - 1):
        assert b"Connection: keep-alive" in one.feed(GET, NOW)
    assert b"Connection: close" in one.feed(GET, NOW)
    assert one.closing


def test_a_connection_grows_no_older_than_an_hour() -> None:
    one = visitor()
    one.feed(GET, NOW)
    assert b"Connection: keep-alive" in one.feed(GET, NOW + MAX_AGE)
    assert b"Connection: close" in one.feed(GET, NOW + MAX_AGE + 1)


def test_idle_is_who_got_an_answer_and_asks_for_nothing() -> None:
    one = visitor()

    def is_idle_after(data: bytes) -> bool:
        one.feed(data, NOW)
        return one.is_idle

    assert not one.is_idle
    assert is_idle_after(GET)
    assert not is_idle_after(GET[:1])
    assert not is_idle_after(GET[1:-2] + b"Content-Length: 1\r\n\r\n")
    assert is_idle_after(b"a")
    assert not is_idle_after(b"\n")


def test_a_part_of_the_page() -> None:
    answer = ask(with_headers(b"Range: bytes=1-4"))
    assert answer.startswith(b"HTTP/1.1 206 Partial Content\r\n")
    assert b"Content-Length: 4\r\n" in answer
    assert b"\r\nContent-Range: bytes 1-4/18\r\n\r\n" in answer
    assert body(answer) == PAGE[1:5]
    assert ask(with_headers(b"Range: bytes=1-4", b'If-Range: "x"')) == ask(GET)
    answer = ask(with_headers(b"Range: bytes=18-"))
    assert answer.startswith(b"HTTP/1.1 416 Requested Range Not Satisfiable\r\n")
    assert b"\r\nContent-Range: bytes */18\r\n\r\n" in answer


def test_who_understands_gzip_gets_it() -> None:
    page = PAGE * 2
    one = Visitor(Site(page), check)
    asked = with_headers(b"Accept-Encoding: gzip, br", b"Range: bytes=0-1")
    head, _, chunks = one.feed(asked, NOW).partition(b"\r\n\r\n")
    assert b"\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\nETag: W/" in head
    assert head.endswith(b"\r\nContent-Encoding: gzip")
    assert b"Content-Length" not in head
    length, _, rest = chunks.partition(b"\r\n")
    assert rest.endswith(b"\r\n0\r\n\r\n")
    assert zlib.decompress(rest[: int(length, 16)], 16 + zlib.MAX_WBITS) == page
    without = head.replace(b"Transfer-Encoding: chunked\r\n", b"")
    assert one.feed(asked.replace(b"GET", b"HEAD"), NOW) == without + b"\r\n\r\n"
    answer = one.feed(asked.replace(b"/1.1", b"/1.0"), NOW)
    assert answer.startswith(b"HTTP/1.1 206 ")


def test_only_pages_worth_it_are_compressed() -> None:
    gzip = b"Accept-Encoding: gzip"
    assert ask(with_headers(gzip)) == ask(GET)
    unknown = b"GET /x HTTP/1.1"
    assert b"Content-Encoding: gzip" in ask(with_headers(gzip, line=unknown))
    assert b"Content-Encoding" not in ask(with_headers(gzip, line=b"POST / HTTP/1.1"))


def test_another_page_than_there_is() -> None:
    one = visitor()
    answer = one.feed(with_headers(b'If-Match: "x"'), NOW)
    assert answer.startswith(b"HTTP/1.1 412 Precondition Failed\r\n")
    assert b"Connection: keep-alive" in answer
    assert one.closing


def test_a_page_that_is_known_is_not_sent_again() -> None:
    one = visitor()
    answer = one.feed(with_headers(b"If-None-Match: " + VERSION.tag) + GET, NOW)
    assert answer.startswith(b"HTTP/1.1 304 Not Modified\r\nServer: nginx\r\nDate: ")
    assert answer.endswith(b"ETag: " + VERSION.tag + b"\r\n\r\n" + ask(GET))


def test_a_good_upgrade_is_for_the_owner_to_answer() -> None:
    one = visitor()
    assert one.feed(UPGRADE, NOW) == b""
    assert one.nonce == NONCE
    answer = one.welcome(b"welcome")
    assert answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"Upgrade: phantom\r\nPhantom-Welcome: d2VsY29tZQ==\r\n\r\n" in answer


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"/door", b"/moor"),
        (b"dG9rZW4=", b"dG9rZW8A"),
        (b"dG9rZW4=", b"!"),
        (b"Phantom-Token", b"Other-Header"),
        (b"Upgrade: phantom", b"Upgrade: websocket"),
        (b"Host: h", b"Host: h\r\nContent-Length: 3"),
    ],
)
def test_every_other_upgrade_is_an_unknown_page(old: bytes, new: bytes) -> None:
    one = visitor()
    assert one.feed(UPGRADE.replace(old, new), NOW) == ask(
        b"GET /unknown HTTP/1.1\r\nHost: h\r\n\r\n"
    )
    assert one.nonce is None


def test_a_refused_upgrade_leaves_http_going() -> None:
    one = visitor()
    one.feed(UPGRADE.replace(b"/door", b"/moor"), NOW)
    assert one.feed(GET, NOW) == ask(GET)


def test_an_upgrade_that_is_declined_looks_like_a_refused_one() -> None:
    one = visitor()
    assert one.feed(UPGRADE + GET, NOW) == b""
    unknown = b"GET /unknown HTTP/1.1\r\nHost: h\r\n\r\n"
    assert one.decline(NOW) == ask(unknown) + ask(GET)
    assert one.nonce is None
    assert one.feed(GET, NOW) == ask(GET)
    one.feed(UPGRADE, NOW)
    assert one.nonce == NONCE


def test_an_upgrade_with_another_method_is_an_unknown_page() -> None:
    assert ask(UPGRADE.replace(b"GET", b"PUT")).startswith(b"HTTP/1.1 404")


def test_nothing_may_follow_an_upgrade() -> None:
    one = visitor()
    one.feed(UPGRADE + b"\1\0\0\0", NOW)
    with pytest.raises(PeerError):
        one.welcome(b"welcome")


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_whatever_comes_is_answered_with_http(pieces: list[bytes]) -> None:
    one = visitor()
    answers = b""
    for piece in pieces:
        if not one.closing:
            answers += one.feed(piece, NOW)
    assert answers == b"" or answers.startswith((b"HTTP/1.1 ", b"<html>"))


@given(st.integers(0, len(UPGRADE) - 1), st.integers(1, 255), st.integers(1, 40))
def test_altered_upgrades_are_answered_with_http(place: int, change: int, step: int) -> None:
    altered = bytearray(UPGRADE)
    altered[place] ^= change
    one = visitor()
    answers = b""
    for start in range(0, len(altered), step):
        if not one.closing and one.nonce is None:
            answers += one.feed(bytes(altered[start : start + step]), NOW)
    assert one.nonce in {None, NONCE}
    assert answers == b"" or answers.startswith((b"HTTP/1.1 ", b"<html>"))


def test_a_client_understands_it() -> None:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
    client.receive_data(ask(GET))
    response = client.next_event()
    assert isinstance(response, h11.Response)
    assert response.status_code == 200
    data = client.next_event()
    assert isinstance(data, h11.Data)
    assert data.data == PAGE
