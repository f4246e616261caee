"""The door: tokens that work once, proofs that work nowhere else."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_tun.crypto.signing import SigningKey, node_id_of
from phantom_tun.errors import CryptoError, PeerError, ProtocolViolation, WireError
from phantom_tun.ids import CertHash, NodeId
from phantom_tun.wire.door import (
    FRESHNESS,
    TOKEN_LEN,
    WELCOME_LEN,
    Door,
    DoorKeeper,
    LinkKind,
    from_header,
    to_header,
)
from phantom_tun.wire.frames import AUTH_LEN

NOW = 1_800_000_000.0
SERVER = SigningKey(b"s" * 32)
DIALER = SigningKey(b"d" * 32)
DOOR = Door(b"n" * 32, node_id_of(SERVER.public), CertHash(b"c" * 32))
OTHER_DOORS = [
    dataclasses.replace(DOOR, network_id=b"m" * 32),
    dataclasses.replace(DOOR, server_id=NodeId(b"o" * 32)),
    dataclasses.replace(DOOR, cert_hash=CertHash(b"f" * 32)),
]
TOKEN_NONCE = b"t" * 16
SERVER_NONCE = b"v" * 32
TOKEN = DOOR.token(NOW, TOKEN_NONCE)
AUTH = DOOR.auth(DIALER, SERVER_NONCE, LinkKind.BULK)
WELCOME = DOOR.welcome(SERVER, TOKEN_NONCE, SERVER_NONCE)


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_input_changes_the_path() -> None:
    assert len({door.path for door in [DOOR, *OTHER_DOORS]}) == 4


def admit(keeper: DoorKeeper, path: str, token: bytes, now: float) -> bytes:
    nonce = keeper.check(path, token, now)
    keeper.use_up(nonce, now)
    return nonce


def test_a_token_works_once() -> None:
    keeper = DoorKeeper(DOOR)
    assert admit(keeper, DOOR.path, TOKEN, NOW) == TOKEN_NONCE
    for later in (0, 1, FRESHNESS):
        with pytest.raises(ProtocolViolation):
            admit(keeper, DOOR.path, TOKEN, NOW + later)


def test_a_token_is_remembered_for_as_long_as_it_would_be_fresh() -> None:
    ahead = DOOR.token(NOW + FRESHNESS, TOKEN_NONCE)
    keeper = DoorKeeper(DOOR)
    admit(keeper, DOOR.path, ahead, NOW)
    with pytest.raises(ProtocolViolation, match="before"):
        admit(keeper, DOOR.path, ahead, NOW + 2 * FRESHNESS - 1)


@pytest.mark.parametrize("skew", [-FRESHNESS - 1, FRESHNESS + 1])
def test_a_stale_token_is_refused(skew: float) -> None:
    with pytest.raises(ProtocolViolation):
        admit(DoorKeeper(DOOR), DOOR.path, TOKEN, NOW + skew)


@pytest.mark.parametrize("skew", [-FRESHNESS, FRESHNESS])
def test_clocks_may_differ_a_little(skew: float) -> None:
    assert admit(DoorKeeper(DOOR), DOOR.path, TOKEN, NOW + skew) == TOKEN_NONCE


def test_another_path_is_refused_even_with_a_good_token() -> None:
    keeper = DoorKeeper(DOOR)
    for path in ("/", DOOR.path + "x", OTHER_DOORS[0].path, "/é"):
        with pytest.raises(ProtocolViolation):
            admit(keeper, path, TOKEN, NOW)


@pytest.mark.parametrize("door", OTHER_DOORS)
def test_a_token_for_another_door_is_refused(door: Door) -> None:
    with pytest.raises(CryptoError):
        admit(DoorKeeper(DOOR), DOOR.path, door.token(NOW, TOKEN_NONCE), NOW)


@given(st.integers(0, TOKEN_LEN * 8 - 1))
def test_an_altered_token_is_refused(bit: int) -> None:
    with pytest.raises(CryptoError):
        admit(DoorKeeper(DOOR), DOOR.path, flip(TOKEN, bit), NOW)


@given(st.binary(max_size=200))
def test_anything_else_is_refused(token: bytes) -> None:
    with pytest.raises(CryptoError):
        admit(DoorKeeper(DOOR), DOOR.path, token, NOW)


def test_the_memory_of_tokens_is_bounded_and_empties() -> None:
    keeper = DoorKeeper(DOOR, capacity=3)
    tokens = [DOOR.token(NOW, bytes([number]) * 16) for number in range(5)]
    for token in tokens:
        admit(keeper, DOOR.path, token, NOW)
    for token in tokens[-2:]:
        with pytest.raises(ProtocolViolation):
            admit(keeper, DOOR.path, token, NOW)
    admit(keeper, DOOR.path, tokens[0], NOW)  # the price of a bound


def test_a_welcome_proves_the_server() -> None:
    assert DOOR.check_welcome(WELCOME, TOKEN_NONCE) == SERVER_NONCE


@pytest.mark.parametrize("door", OTHER_DOORS)
def test_a_welcome_of_another_door_is_refused(door: Door) -> None:
    with pytest.raises(CryptoError):
        DOOR.check_welcome(door.welcome(SERVER, TOKEN_NONCE, SERVER_NONCE), TOKEN_NONCE)


def test_a_welcome_of_another_node_is_refused() -> None:
    with pytest.raises(CryptoError, match="another node"):
        DOOR.check_welcome(DOOR.welcome(DIALER, TOKEN_NONCE, SERVER_NONCE), TOKEN_NONCE)


def test_a_welcome_for_another_token_is_refused() -> None:
    with pytest.raises(CryptoError):
        DOOR.check_welcome(WELCOME, b"u" * 16)


@given(st.integers(0, WELCOME_LEN * 8 - 1))
def test_an_altered_welcome_is_refused(bit: int) -> None:
    with pytest.raises(CryptoError):
        DOOR.check_welcome(flip(WELCOME, bit), TOKEN_NONCE)


@pytest.mark.parametrize("welcome", [b"", WELCOME[:-1], WELCOME + b"x"])
def test_a_welcome_has_one_length(welcome: bytes) -> None:
    with pytest.raises(CryptoError):
        DOOR.check_welcome(welcome, TOKEN_NONCE)


@pytest.mark.parametrize("kind", list(LinkKind))
def test_auth_proves_the_dialer_and_says_what_for(kind: LinkKind) -> None:
    auth = DOOR.auth(DIALER, SERVER_NONCE, kind)
    assert len(auth) == AUTH_LEN
    assert DOOR.check_auth(auth, SERVER_NONCE) == (kind, node_id_of(DIALER.public))


@pytest.mark.parametrize("door", OTHER_DOORS)
def test_auth_for_another_door_is_refused(door: Door) -> None:
    with pytest.raises(CryptoError):
        DOOR.check_auth(door.auth(DIALER, SERVER_NONCE, LinkKind.BULK), SERVER_NONCE)


def test_a_replayed_auth_is_refused() -> None:
    with pytest.raises(CryptoError):
        DOOR.check_auth(AUTH, b"w" * 32)


def test_a_servers_proof_is_no_dialers_proof() -> None:
    signature = WELCOME[-64:]
    with pytest.raises(CryptoError):
        DOOR.check_auth(bytes([LinkKind.BULK]) + SERVER.public + signature, SERVER_NONCE)


@given(st.integers(0, AUTH_LEN * 8 - 1))
def test_an_altered_auth_is_refused(bit: int) -> None:
    with pytest.raises((CryptoError, WireError)):
        DOOR.check_auth(flip(AUTH, bit), SERVER_NONCE)


@given(st.binary(max_size=AUTH_LEN + 3))
def test_anything_else_is_no_auth(auth: bytes) -> None:
    with pytest.raises(PeerError):
        DOOR.check_auth(auth, SERVER_NONCE)


@given(st.binary(max_size=200))
def test_header_values_round_trip(data: bytes) -> None:
    assert from_header(to_header(data).encode()) == data


@pytest.mark.parametrize("value", [b"=", b"a", b"ab!d", "é".encode()])
def test_header_values_that_are_not_base64_are_refused(value: bytes) -> None:
    with pytest.raises(WireError):
        from_header(value)


def test_nothing_secret_is_shown() -> None:
    assert DOOR.path not in repr(DOOR)
