"""The web server that strangers meet, without any I/O."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_tun.errors import PeerError, ProtocolViolation
from phantom_tun.net.web import MAX_HEAD_LEN, Site, Visitor

NOW = 1_800_000_000.0
PAGE = b"<html>hello</html>"
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
        b"Content-Type: text/html\r\nContent-Length: 18\r\nConnection: keep-alive\r\n\r\n" + PAGE
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
        (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", b"405 Not Allowed"),
        (b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n", b"405 Not Allowed"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\nHost: h\r\nbad header\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/3.0\r\n", b"400 Bad Request"),
        (b"get / HTTP/1.1\r\n", b"400 Bad Request"),
        (b"\x16\x03\x01\x02\x00", b"400 Bad Request"),
        (b"hello", b"400 Bad Request"),
        (b"\r\n\r\n", b"400 Bad Request"),
        (b"HELLO\r\n", b"400 Bad Request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"a" * MAX_HEAD_LEN, b"400 Bad Request"),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: x\r\n\r\n", b"501 Not Implemented"),
    ],
)
def test_answers(request_: bytes, status: bytes) -> None:
    answer = ask(request_)
    assert answer.startswith(b"HTTP/1.1 " + status + b"\r\nServer: nginx\r\nDate: ")
    if not status.startswith(b"200"):
        assert b"<h1>" + status + b"</h1>" in body(answer)


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


def test_an_upgrade_with_another_method_is_not_allowed() -> None:
    assert ask(UPGRADE.replace(b"GET", b"PUT")).startswith(b"HTTP/1.1 405")


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
    assert answers == b"" or answers.startswith(b"HTTP/1.1 ")


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
    assert answers == b"" or answers.startswith(b"HTTP/1.1 ")


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
