"""Sealed requests: who can open them, what alters them, how long they are good."""

from __future__ import annotations

import dataclasses
import ipaddress
import random

import pytest

from phantom_tun.crypto.sealing import SealingKey, seal
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.errors import CapacityExceeded, CryptoError, ProtocolViolation, WireError
from phantom_tun.ids import NetworkId
from phantom_tun.tunnel.answer import lock_answer, unlock_answer
from phantom_tun.tunnel.replay import ReplayCache
from phantom_tun.tunnel.request import (
    CLOCK_TOLERANCE,
    check_time,
    open_request,
    request_time,
    seal_request,
)
from phantom_tun.wire.session import (
    TIME_STEP,
    Answer,
    Outcome,
    Protocol,
    Request,
)
from phantom_tun.wire.sizes import ANSWER_LEN, SEALED_REQUEST_LEN

NETWORK = NetworkId(b"N" * 32)
CALLER = SigningKey(b"c" * 32)
CALLEE = SigningKey(b"t" * 32)
KEY = SealingKey(bytes(range(96)))
OLD_KEY = SealingKey(bytes(96))
NOW = 1_800_000_000.0

REQUEST = Request(
    protocol=Protocol.TCP,
    destination=ipaddress.IPv6Address("2001:2f:1:2:3:4:5:6"),
    port=443,
    caller=CALLER.public,
    certificate=b"certificate" * 30,
    client_hello=b"hello" * 50,
    time=request_time(NOW),
    nonce=b"n" * 32,
    secret=b"s" * 32,
    session_id=b"i" * 16,
    source_port=50_000,
)


def sealed(request: Request = REQUEST, signing: SigningKey = CALLER) -> bytes:
    return seal_request(request, signing, CALLEE.public, KEY.public, NETWORK)


def opened(data: bytes) -> Request:
    return open_request(data, [KEY], CALLEE.public, NETWORK)


def test_a_request_opens() -> None:
    assert opened(sealed()) == REQUEST


def test_the_previous_key_still_opens() -> None:
    data = seal_request(REQUEST, CALLER, CALLEE.public, OLD_KEY.public, NETWORK)
    assert open_request(data, [KEY, OLD_KEY], CALLEE.public, NETWORK) == REQUEST
    with pytest.raises(CryptoError, match="not sealed"):
        open_request(data, [KEY], CALLEE.public, NETWORK)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"certificate": b"", "client_hello": b""},
        {"certificate": bytes(1024), "client_hello": bytes(1700)},
        {"protocol": Protocol.ECHO, "port": 0, "source_port": 0},
        {"destination": ipaddress.IPv4Address("241.0.0.1"), "ephemeral": True},
    ],
)
def test_every_request_has_the_same_length(changes: dict[str, object]) -> None:
    request = dataclasses.replace(REQUEST, **changes)  # type: ignore[arg-type]
    assert len(sealed(request)) == SEALED_REQUEST_LEN


def test_two_seals_of_one_request_share_nothing() -> None:
    first, second = sealed(), sealed()
    assert not any(first[i : i + 16] == second[i : i + 16] for i in range(0, 4096, 16))


@pytest.mark.parametrize(
    "position",
    [0, 600, 1087, 1088, 1119, 1120, 1121, 1300, 2000, 3900, 4015, 4079, 4080, 4095],
)
def test_a_flipped_bit_anywhere_is_noticed(position: int) -> None:
    """Positions in the ML-KEM part, the X25519 part, every region of the body, signature, tag."""
    data = bytearray(sealed())
    data[position] ^= 1
    with pytest.raises(CryptoError):
        opened(bytes(data))


@pytest.mark.parametrize("offset", [0, 2, 8, 30, 40, 70, 100, 112, 120, 160, 600, 2800])
def test_what_is_signed_cant_be_altered_by_whoever_can_seal(offset: int) -> None:
    body = bytearray(REQUEST.pack())
    signature = CALLER.sign("request", NETWORK, CALLEE.public, bytes(body))
    body[offset] ^= 1
    data = seal(bytes(body) + signature, KEY.public, "request", NETWORK)
    with pytest.raises((CryptoError, WireError)):
        opened(data)


def test_a_signature_by_another_key_is_refused() -> None:
    with pytest.raises(CryptoError, match="signature"):
        opened(sealed(signing=SigningKey(b"x" * 32)))


def test_a_request_signed_for_another_target_is_refused() -> None:
    data = seal_request(REQUEST, CALLER, SigningKey(b"x" * 32).public, KEY.public, NETWORK)
    with pytest.raises(CryptoError, match="signature"):
        opened(data)


def test_a_request_of_another_network_is_refused() -> None:
    with pytest.raises(CryptoError, match="not sealed"):
        open_request(sealed(), [KEY], CALLEE.public, NetworkId(b"M" * 32))
    body = REQUEST.pack()
    signature = CALLER.sign("request", NetworkId(b"M" * 32), CALLEE.public, body)
    with pytest.raises(CryptoError, match="signature"):
        opened(seal(body + signature, KEY.public, "request", NETWORK))


def test_a_signature_for_another_purpose_is_refused() -> None:
    body = REQUEST.pack()
    signature = CALLER.sign("record", NETWORK, CALLEE.public, body)
    with pytest.raises(CryptoError, match="signature"):
        opened(seal(body + signature, KEY.public, "request", NETWORK))


@pytest.mark.parametrize("length", [0, SEALED_REQUEST_LEN - 1, SEALED_REQUEST_LEN + 1])
def test_a_request_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(WireError, match="fixed length"):
        opened(sealed()[:length].ljust(length, b"\0"))


# --- time ----------------------------------------------------------------------------------------


def test_a_new_request_is_remembered_as_long_as_it_is_new() -> None:
    until = check_time(REQUEST, NOW, NOW - 1000)
    assert check_time(REQUEST, until - 0.001, NOW - 1000) == until
    with pytest.raises(ProtocolViolation, match="too old"):
        check_time(REQUEST, until, NOW - 1000)


def test_clocks_may_differ_a_little() -> None:
    for difference in (-CLOCK_TOLERANCE + 1, CLOCK_TOLERANCE - 1):
        check_time(REQUEST, NOW + difference, NOW - 1000)


def test_a_request_from_the_future_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="future"):
        check_time(REQUEST, REQUEST.time - CLOCK_TOLERANCE - 0.001, 0.0)


def test_a_request_from_before_the_start_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="older than the memory"):
        check_time(REQUEST, NOW + 20, REQUEST.time + TIME_STEP)
    check_time(REQUEST, NOW + 20, REQUEST.time + TIME_STEP - 0.001)


def test_times_are_coarse() -> None:
    assert {request_time(NOW + i / 10) for i in range(150)} == {NOW}


# --- replays -------------------------------------------------------------------------------------


def test_a_nonce_is_refused_until_it_expires() -> None:
    cache = ReplayCache(10)
    cache.add(b"a", 100.0, 0.0)
    with pytest.raises(ProtocolViolation, match="before"):
        cache.add(b"a", 100.0, 99.9)
    cache.add(b"a", 200.0, 100.0)


def test_a_full_memory_forgets_nothing() -> None:
    cache = ReplayCache(3)
    for number, expires in enumerate((30.0, 10.0, 20.0)):
        cache.add(bytes([number]), expires, 0.0)
    with pytest.raises(CapacityExceeded):
        cache.add(b"new", 100.0, 9.9)
    for number in range(3):
        with pytest.raises(ProtocolViolation):
            cache.add(bytes([number]), 100.0, 9.9)
    cache.add(b"new", 100.0, 10.0)
    assert len(cache) == 3


def test_the_memory_agrees_with_a_simple_one() -> None:
    rng = random.Random(3)
    cache, simple = ReplayCache(50), dict[bytes, float]()
    for now in range(2000):
        simple = {nonce: expires for nonce, expires in simple.items() if expires > now}
        nonce, expires = rng.randbytes(1), now + rng.randrange(1, 90)
        if nonce in simple:
            with pytest.raises(ProtocolViolation):
                cache.add(nonce, expires, now)
        elif len(simple) == 50:
            with pytest.raises(CapacityExceeded):
                cache.add(nonce, expires, now)
        else:
            cache.add(nonce, expires, now)
            simple[nonce] = expires
        assert len(cache) == len(simple)


# --- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", Outcome)
def test_every_answer_has_the_same_length(outcome: Outcome) -> None:
    answer = Answer(outcome, b"r" * 32, b"flight" if outcome is Outcome.CONNECTED else b"")
    locked = lock_answer(answer, REQUEST)
    assert len(locked) == ANSWER_LEN
    assert unlock_answer(locked, REQUEST) == answer


@pytest.mark.parametrize("position", [0, 1, 33, 40, 3000, ANSWER_LEN - 17, ANSWER_LEN - 1])
def test_an_altered_answer_is_refused(position: int) -> None:
    locked = bytearray(lock_answer(Answer(Outcome.REFUSED, b"r" * 32), REQUEST))
    locked[position] ^= 0x80
    with pytest.raises(CryptoError):
        unlock_answer(bytes(locked), REQUEST)


@pytest.mark.parametrize("changes", [{"nonce": b"m" * 32}, {"secret": b"t" * 32}])
def test_the_answer_to_another_request_is_refused(changes: dict[str, bytes]) -> None:
    locked = lock_answer(Answer(Outcome.REFUSED, b"r" * 32), REQUEST)
    with pytest.raises(CryptoError):
        unlock_answer(locked, dataclasses.replace(REQUEST, **changes))  # type: ignore[arg-type]
