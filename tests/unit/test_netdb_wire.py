"""Calls and answers as bytes."""

from __future__ import annotations

import ipaddress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_tun.errors import WireError
from phantom_tun.wire.netdb import (
    MAX_ANSWER_LEN,
    MAX_CALL_LEN,
    MAX_COMMANDS_IN_ANSWER,
    MAX_NODES,
    MAX_ROUTES,
    MAX_VOTES,
    Answer,
    Call,
    CloserNodes,
    ClosestNodes,
    ExtendApLease,
    Held,
    KeyedNode,
    Method,
    MissedOverrides,
    Override,
    OverrideList,
    RandomNodes,
    Registered,
    RegisterNode,
    ReserveAp,
    Resolution,
    ResolveAp,
    Stored,
    UpdateApRoutes,
    Vote,
    WriteReport,
    decode_answer,
    decode_call,
    method_of,
)
from phantom_tun.wire.sizes import NETDB_BODY_LEN

KEY = bytes(1_216)
ID = b"i" * 32
CALLS: tuple[Call, ...] = (
    RegisterNode(b"r" * 512, KEY, ID),
    ReserveAp(b"r" * 2_560),
    ExtendApLease(b"r" * 2_560),
    UpdateApRoutes((b"r" * 300,) * MAX_ROUTES),
    RandomNodes(ID),
    ResolveAp(bytes(16), full=True),
    ClosestNodes(ID),
    Override(b"o" * 2_816),
    MissedOverrides(2**62 - 1, ID),
)
ANSWERS: tuple[Answer, ...] = (
    Registered(0, b"r" * 512, KEY, (b"n" * 512,) * MAX_NODES, ID),
    OverrideList((b"o" * 230,) * MAX_COMMANDS_IN_ANSWER),
    Stored(17, ID),
    KeyedNode(b"r" * 512, KEY),
    Held(ID, 2**62 - 1, ID, b"k" * 2_560, (b"r" * 300,) * MAX_ROUTES),
    CloserNodes((b"n" * 512,) * MAX_NODES),
    Resolution(b"k" * 2_560, (b"r" * 160,) * MAX_ROUTES, 60, 60, (Vote(ID, 9, ID, 9),) * MAX_VOTES),
    WriteReport(60, 60, 0, ID),
)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: type(call).__name__)
def test_the_largest_call_of_each_kind_survives_the_wire(call: Call) -> None:
    encoded = call.encode()
    assert len(encoded) <= MAX_CALL_LEN
    assert len(encoded) <= NETDB_BODY_LEN
    assert decode_call(encoded) == call


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: type(answer).__name__)
def test_the_largest_answer_of_each_kind_survives_the_wire(answer: Answer) -> None:
    encoded = answer.encode()
    assert len(encoded) <= MAX_ANSWER_LEN
    assert decode_answer(encoded) == answer


def test_answers_for_anonymized_nodes_fit_a_package() -> None:
    for answer in ANSWERS:
        if isinstance(answer, Resolution | WriteReport):
            assert len(answer.encode()) <= NETDB_BODY_LEN


def test_there_are_seven_calls_and_two_for_overrides() -> None:
    assert {method_of(call) for call in CALLS} == set(Method)
    for number in range(256):
        if number not in set(Method):
            with pytest.raises(WireError):
                decode_call(msgspec.msgpack.encode([number, ID]))


def test_digests_and_signers_have_32_bytes_or_none() -> None:
    for raw in ([9, 0, bytes(31)], [1, b"r", KEY, bytes(31)]):
        with pytest.raises(WireError):
            decode_call(msgspec.msgpack.encode(raw))
    with pytest.raises(WireError):
        decode_answer(msgspec.msgpack.encode([101, 0, b"r", KEY, (), bytes(31)]))


def test_an_answer_is_no_call_and_a_call_no_answer() -> None:
    for call in CALLS:
        with pytest.raises(WireError):
            decode_answer(call.encode())
    for answer in ANSWERS:
        with pytest.raises(WireError):
            decode_call(answer.encode())


@pytest.mark.parametrize("message", [*CALLS, *ANSWERS], ids=lambda m: type(m).__name__)
def test_truncated_and_extended_messages_are_refused(message: Call | Answer) -> None:
    decode = decode_call if message in CALLS else decode_answer
    encoded = message.encode()
    for length in {0, 1, len(encoded) // 2, len(encoded) - 1}:
        with pytest.raises(WireError):
            decode(encoded[:length])
    with pytest.raises(WireError):
        decode(encoded + b"\0")


def test_messages_over_their_limit_are_refused_unparsed() -> None:
    with pytest.raises(WireError, match="at most"):
        decode_call(bytes(MAX_CALL_LEN + 1))
    with pytest.raises(WireError, match="at most"):
        decode_answer(bytes(MAX_ANSWER_LEN + 1))


@pytest.mark.parametrize(
    "message",
    [
        RegisterNode(b"r", bytes(1_215)),
        RegisterNode(b"", KEY),
        ReserveAp(b"r" * 2_561),
        UpdateApRoutes(()),
        UpdateApRoutes((b"r",) * (MAX_ROUTES + 1)),
        UpdateApRoutes((b"r" * 301,)),
        RandomNodes(bytes(31)),
        Override(b"o" * 2_817),
        Override(b""),
        MissedOverrides(-1, b""),
        ClosestNodes(bytes(33)),
    ],
)
def test_calls_out_of_range_are_refused(message: Call) -> None:
    with pytest.raises(WireError):
        decode_call(message.encode())


@pytest.mark.parametrize("length", [0, 3, 5, 15, 17])
def test_only_addresses_can_be_resolved(length: int) -> None:
    with pytest.raises(WireError):
        decode_call(msgspec.msgpack.encode([int(Method.RESOLVE_AP), bytes(length), True]))


@pytest.mark.parametrize(
    "raw",
    [
        [102, 0, bytes(31)],
        [102, 18, b""],
        [104, bytes(31), 1, ID, b"", []],
        [104, ID, 1, bytes(16), b"", []],
        [104, b"", 1, ID, b"", []],
        [104, b"", 0, b"", b"k", []],
        [104, b"", 0, b"", b"", [b"r"]],
        [104, ID, 1, b"", b"k", []],
        [105, [b"n"] * (MAX_NODES + 1)],
        [105, [b""]],
        [106, b"", [], 1, 65_536, []],
        [107, 1, 1, 0, bytes(33)],
    ],
)
def test_answers_out_of_range_are_refused(raw: list[object]) -> None:
    with pytest.raises(WireError):
        decode_answer(msgspec.msgpack.encode(raw))


def test_a_longer_form_of_the_same_call_is_refused() -> None:
    canonical = ClosestNodes(ID).encode()
    assert canonical[:1] == b"\x92"
    with pytest.raises(WireError, match="canonical"):
        decode_call(b"\xdc\x00\x02" + canonical[1:])


@given(st.binary(max_size=300))
def test_noise_raises_the_one_exception(noise: bytes) -> None:
    for decode in (decode_call, decode_answer):
        try:
            message = decode(noise)
        except WireError:
            continue
        assert message.encode() == noise


@given(
    st.sampled_from([*CALLS, *ANSWERS]),
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_mutations_raise_nothing_else(message: Call | Answer, edits: list[tuple[int, int]]) -> None:
    altered = bytearray(message.encode())
    for place, value in edits:
        altered[place % min(len(altered), 64)] = value
    for decode in (decode_call, decode_answer):
        try:
            again = decode(bytes(altered))
        except WireError:
            continue
        assert again.encode() == bytes(altered)


def test_an_address_makes_the_round_trip() -> None:
    for text in ("240.1.2.3", "2001:2f:1::5"):
        address = ipaddress.ip_address(text)
        call = decode_call(ResolveAp.of(address, full=False).encode())
        assert isinstance(call, ResolveAp)
        assert call.ip == address
        assert not call.full
