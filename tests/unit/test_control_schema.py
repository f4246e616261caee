"""Requests and replies on the line: round trips and refusals."""

from __future__ import annotations

import inspect
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_tun.control import schema
from phantom_tun.control.model import Done, PingReply, Progress, Status
from phantom_tun.control.schema import ControlError

EXAMPLES: list[schema.AnyRequest] = [
    schema.GetStatus(),
    schema.GetStatistics(),
    schema.ListAddresses(),
    schema.NewAddress("web-1"),
    schema.RemoveAddress("web-1"),
    schema.Expose(80),
    schema.Expose(53, "udp", ("250.1.2.3", "2001:2f::5"), 5353, "web-1"),
    schema.Unexpose(53, "udp", "web-1"),
    schema.ListExposed(),
    schema.ListPaths(),
    schema.RebuildPaths("p1"),
    schema.ListTunnels(),
    schema.CloseTunnel("t1"),
    schema.ListPeers(),
    schema.Ping("250.1.2.3", 3, 0.5, 2.0, 1000),
    schema.GetNetdb("250.1.2.3", votes=True),
    schema.ListPins(),
    schema.AcceptPin("250.1.2.3"),
    schema.RemovePin("250.1.2.3"),
    schema.SendOverride("AAAA"),
    schema.ListOverrides(),
    schema.Why("250.1.2.3", 80),
    schema.Shutdown(),
]


def envelope(request: str, version: int = 1) -> bytes:
    return f'{{"version": {version}, "request": {request}}}'.encode()


@pytest.mark.parametrize("request_", EXAMPLES, ids=lambda item: type(item).__name__)
def test_a_request_reads_back(request_: schema.AnyRequest) -> None:
    line = schema.encode_request(request_)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert schema.decode_request(line) == request_


def test_every_request_class_is_in_the_union_and_in_the_examples() -> None:
    classes = {
        item
        for _name, item in inspect.getmembers(schema, inspect.isclass)
        if issubclass(item, schema.Request) and item is not schema.Request
    }
    assert classes == set(get_args(schema.AnyRequest))
    assert classes == {type(item) for item in EXAMPLES}


@pytest.mark.parametrize(
    "request_",
    [
        '{"type": "no such"}',
        '{"type": "status", "extra": 1}',
        "{}",
        "3",
        '{"type": "expose", "port": 0}',
        '{"type": "expose", "port": 65536}',
        '{"type": "expose", "port": "80"}',
        '{"type": "expose", "port": 80, "protocol": "sctp"}',
        '{"type": "expose", "port": 80, "to": []}',
        '{"type": "expose", "port": 80, "to": "some"}',
        '{"type": "expose", "port": 80, "target_port": 0}',
        '{"type": "expose", "port": 80, "identity": "../x"}',
        '{"type": "unexpose", "port": 0}',
        '{"type": "address_new", "name": ""}',
        '{"type": "address_new", "name": "A"}',
        '{"type": "address_new", "name": "%s"}' % ("a" * 33),
        '{"type": "ping", "address": "250.1.2.3", "count": 0}',
        '{"type": "ping", "address": "250.1.2.3", "interval_s": 0}',
        '{"type": "ping", "address": "250.1.2.3", "timeout_s": 0}',
        '{"type": "ping", "address": "250.1.2.3", "size": 8193}',
        '{"type": "ping", "address": "%s"}' % ("1" * 65),
        '{"type": "why", "address": "250.1.2.3", "port": 65536}',
        '{"type": "tunnel_close", "tunnel_id": "%s"}' % ("t" * 65),
    ],
)
def test_a_wrong_request_is_invalid(request_: str) -> None:
    with pytest.raises(ControlError) as refusal:
        schema.decode_request(envelope(request_))
    assert refusal.value.code == "invalid"


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"\xff", b'{"version": 1}', b'{"request": {}}'])
def test_a_line_that_is_no_request_is_invalid(line: bytes) -> None:
    with pytest.raises(ControlError) as refusal:
        schema.decode_request(line)
    assert refusal.value.code == "invalid"


def test_another_version_is_refused_whatever_it_asks() -> None:
    with pytest.raises(ControlError, match="version 1") as refusal:
        schema.decode_request(envelope('{"type": "from the future"}', version=2))
    assert refusal.value.code == "unsupported"


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_else(line: bytes) -> None:
    with pytest.raises(ControlError):
        schema.decode_request(line)


def test_each_request_names_its_event_and_result() -> None:
    assert schema.GetStatus.result_type() is Status
    assert schema.Ping.event_type() is PingReply
    assert schema.RebuildPaths.event_type() is Progress


def test_replies_read_back() -> None:
    event = schema.decode_reply(schema.encode_event(PingReply(1, 64, 2.5)))
    assert isinstance(event, schema.Event)
    assert schema.decode_value(event.value, PingReply) == PingReply(1, 64, 2.5)
    result = schema.decode_reply(schema.encode_result((Done(), Done())))
    assert isinstance(result, schema.Result)
    assert schema.decode_value(result.value, tuple[Done, ...]) == (Done(), Done())
    failure = schema.decode_reply(schema.encode_failure(ControlError("conflict", "no")))
    assert failure == schema.Failure("conflict", "no")


@pytest.mark.parametrize("line", [b"", b"{}", b'{"type": "else"}', b'{"type": "error"}'])
def test_a_line_that_is_no_reply_fails(line: bytes) -> None:
    with pytest.raises(ControlError) as failure:
        schema.decode_reply(line)
    assert failure.value.code == "failed"


def test_a_value_of_another_type_fails() -> None:
    with pytest.raises(ControlError) as failure:
        schema.decode_value(msgspec.Raw(b'{"sequence": "x"}'), PingReply)
    assert failure.value.code == "failed"


def test_answers_of_a_newer_node_are_understood() -> None:
    newer: Any = b'{"sequence": 1, "size": 2, "rtt_ms": null, "colour": "blue"}'
    assert schema.decode_value(msgspec.Raw(newer), PingReply) == PingReply(1, 2, None)
