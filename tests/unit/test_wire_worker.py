"""Messages between a node and its workers: whole, cut, altered."""

from __future__ import annotations

import ipaddress

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phantom_tun.errors import WireError
from phantom_tun.ids import CertHash, NodeId
from phantom_tun.wire import worker
from phantom_tun.wire.frames import Frame, pack_frame
from phantom_tun.wire.nodes import NodeRef
from phantom_tun.wire.worker import JOIN_LEN, Join, LocalFrame, pack_local, parse_local

REF = NodeRef(NodeId(b"n" * 32), CertHash(b"c" * 32), ipaddress.IPv4Address("192.0.2.1"), 443)
JOIN = Join(REF, b"o" * 64, b"t" * 64, b"b" * 64)
TO_WORKER = [
    worker.Setup(b"n" * 32, b"i" * 32, b"der", b"private", b"<html>", {"dials": 3, "unsent": None}),
    worker.Greet(7, b"\x7f\0\0\1"),
    worker.Drop(7),
    worker.Proof(1, b"proof"),
    worker.Proof(2, None),
    worker.Forget(b"i" * 32),
]
FROM_WORKER = [
    worker.Ready(),
    worker.Left(3),
    worker.Arrived(3, b"i" * 32, 2),
    worker.Welcome(4, b"n" * 16),
    worker.Auth(5, b"i" * 32, b"c" * 32, b"n" * 32, 1),
    worker.Report({"bulk_opened": 5}, {b"i" * 32: 2}),
]


@pytest.mark.parametrize("message", TO_WORKER)
def test_what_the_node_says_arrives(message: worker.ToWorker) -> None:
    assert worker.unpack_to_worker(worker.pack(message)) == message
    with pytest.raises(WireError):
        worker.unpack_from_worker(worker.pack(message))


@pytest.mark.parametrize("message", FROM_WORKER)
def test_what_a_worker_says_arrives(message: worker.FromWorker) -> None:
    assert worker.unpack_from_worker(worker.pack(message)) == message
    with pytest.raises(WireError):
        worker.unpack_to_worker(worker.pack(message))


@pytest.mark.parametrize("message", [*TO_WORKER, *FROM_WORKER])
def test_cut_and_prolonged_messages_are_refused(message: worker.ToWorker) -> None:
    data = worker.pack(message)
    unpack = worker.unpack_to_worker if message in TO_WORKER else worker.unpack_from_worker
    for length in range(len(data)):
        with pytest.raises(WireError):
            unpack(data[:length])
    with pytest.raises(WireError):
        unpack(data + b"\0")
    with pytest.raises(WireError):
        unpack(msgspec.msgpack.encode([*msgspec.msgpack.decode(data), 1]))


@given(st.binary(max_size=100))
@example(b"\x91\xa5\0\0\0\0\x80")  # a tag that is not UTF-8
def test_anything_else_is_refused_or_a_message(data: bytes) -> None:
    for unpack in (worker.unpack_to_worker, worker.unpack_from_worker):
        try:
            found = unpack(data)
        except WireError:
            continue
        assert isinstance(found, msgspec.Struct)


def test_a_join_arrives() -> None:
    assert len(JOIN.pack()) == JOIN_LEN
    assert Join.unpack(JOIN.pack()) == JOIN


@pytest.mark.parametrize("length", [0, JOIN_LEN - 1, JOIN_LEN + 1])
def test_a_join_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(WireError):
        Join.unpack(bytes(length))


def test_frames_of_local_links() -> None:
    for frame in (LocalFrame.TAKE, LocalFrame.JOINED, LocalFrame.REFUSED, LocalFrame.DONE):
        assert parse_local(pack_local(frame)) is frame
    assert parse_local(pack_local(LocalFrame.JOIN, JOIN.pack())[:4]) is LocalFrame.JOIN
    assert parse_local(pack_frame(Frame.RESET)) is None


@pytest.mark.parametrize(
    "header",
    [
        pack_frame(Frame.FIN),
        pack_frame(Frame.DATA, b"x")[:4],
        b"\x05\0\0\1",
        b"\x40\0\0\1",
        b"\x41\0\0\0",
        b"\x45\0\0\0",
        b"\0\0\0\0",
    ],
)
def test_other_frames_are_refused(header: bytes) -> None:
    with pytest.raises(WireError):
        parse_local(header)


def test_secrets_are_not_shown() -> None:
    for shown in (repr(JOIN), repr(TO_WORKER[0])):
        assert "tttt" not in shown
        assert "private" not in shown
