"""The layers of a tunnel against AES and the hash of GCM written out from their definitions (NIST
SP 800-38D): what another implementation has to arrive at."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import random
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from phantom_tun.crypto import streams
from phantom_tun.crypto.streams import (
    SLACK,
    ChainedStream,
    Keystream,
    ctr_keystream,
    gcm_keystream,
    use_fastest_keystream,
)

SECRET = bytes(range(64))
BOUNDARIES = (8_192, 4_096, 16_384)
DATA = random.Random(7).randbytes(sum(BOUNDARIES) + 1_000)


def aes(key: bytes, block: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)  # noqa: S305


def keystream(key: bytes, length: int) -> bytes:
    blocks = (aes(key, bytes(12) + (2 + n).to_bytes(4, "big")) for n in range(-(-length // 16)))
    return b"".join(blocks)[:length]


def gmac(key: bytes, data: bytes) -> bytes:
    """SP 800-38D, algorithm 4 with P empty and A = ``data``."""
    subkey = int.from_bytes(aes(key, bytes(16)), "big")
    digest = 0
    padded = data + bytes(-len(data) % 16) + (8 * len(data)).to_bytes(8, "big") + bytes(8)
    for start in range(0, len(padded), 16):
        digest = product(digest ^ int.from_bytes(padded[start : start + 16], "big"), subkey)
    mask = aes(key, bytes(12) + b"\0\0\0\1")
    return (digest ^ int.from_bytes(mask, "big")).to_bytes(16, "big")


def product(x: int, y: int) -> int:
    """Algorithm 1: in GF(2^128), bit 0 first."""
    z = 0
    for bit in range(127, -1, -1):
        if x >> bit & 1:
            z ^= y
        y = y >> 1 ^ (0xE1 << 120 if y & 1 else 0)
    return z


def by_hand(data: bytes) -> bytes:
    """What a relay passes on."""
    key, mac, done = SECRET[:32], SECRET[32:], b""
    for length in (*BOUNDARIES, len(data)):
        part = data[len(done) :][:length]
        if len(part) == length:
            material = hashlib.blake2b(gmac(mac, part), key=key, digest_size=64).digest()
        stream = keystream(key, len(part))
        done += bytes(a ^ b for a, b in zip(part, stream, strict=True))
        key, mac = material[:32], material[32:]
    return done


EXPECTED = by_hand(DATA)


def wrap_by_hand(data: bytes, renew: int) -> bytes:
    """The wrap around ``data`` if its key were renewed every so many bytes."""
    key, stream = SECRET[:32], b""
    while len(stream) < len(data):
        stream += keystream(key, renew)
        label = b"phantom-tun/1/wrap again"
        extracted = hmac.digest(bytes(32), key, "sha256")
        info = len(label).to_bytes(2, "big") + label + b"\1"
        key = hmac.digest(extracted, info, "sha256")
    return bytes(a ^ b for a, b in zip(data, stream, strict=False))


def passed(stream: ChainedStream | Keystream, data: bytes, cuts: list[int]) -> bytes:
    view = memoryview(bytearray(data) + bytes(SLACK))
    for start, end in itertools.pairwise([0, *cuts, len(data)]):
        stream.process(view, start, end)
    assert not any(view[len(data) :])
    return bytes(view[: len(data)])


@pytest.fixture(params=[ctr_keystream, gcm_keystream], ids=["ctr", "gcm"])
def _keystream(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_keystream", request.param)


@pytest.mark.usefixtures("_keystream")
@pytest.mark.parametrize("cuts", [[], [1, 8_191, 8_193, 20_000], list(range(100, 25_000, 1_449))])
def test_a_relay_passes_on_these_bytes(cuts: list[int]) -> None:
    assert passed(ChainedStream(SECRET, outer=False), DATA, cuts) == EXPECTED


@pytest.mark.usefixtures("_keystream")
def test_the_owner_undoes_it() -> None:
    assert passed(ChainedStream(SECRET, outer=True), EXPECTED, [777, 13_000]) == DATA


@pytest.mark.usefixtures("_keystream")
def test_a_changed_bit_garbles_all_after_the_next_boundary() -> None:
    altered = bytearray(EXPECTED)
    altered[5_000] ^= 1
    found = passed(ChainedStream(SECRET, outer=True), bytes(altered), [])
    assert [n for n in range(8_192) if found[n] != DATA[n]] == [5_000]
    later = [a == b for a, b in zip(found[8_192:], DATA[8_192:], strict=True)]
    assert sum(later) < len(later) / 100


@pytest.mark.usefixtures("_keystream")
@pytest.mark.parametrize("cuts", [[], [1, 999, 1_000, 2_500], list(range(7, 20_000, 1_237))])
def test_the_wrap_is_these_bytes(cuts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RENEW", 1_000)
    assert passed(Keystream(SECRET[:32]), DATA, cuts) == wrap_by_hand(DATA, 1_000)


def test_the_wrap_renews_its_key_before_a_counter_of_gcm_ends() -> None:
    assert 1 << 20 == streams.RENEW < 16 * (2**32 - 2)


@pytest.mark.usefixtures("_keystream")
@pytest.mark.parametrize("cut", [0, 1, 15, 16, 17, 999, 1_000, 1_001, 2_500])
def test_a_wrap_that_rested_goes_on_where_it_was(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RENEW", 1_000)
    wrap = Keystream(SECRET[:32])
    before = passed(wrap, DATA[:cut], [])
    wrap.rest()
    assert before + passed(wrap, DATA[cut:], []) == wrap_by_hand(DATA, 1_000)


@pytest.mark.parametrize("faster", [ctr_keystream, gcm_keystream])
def test_the_faster_keystream_is_used(
    faster: Callable[[bytes], streams.Update], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_keystream", None)
    # Both in turn, CTR first, and half of the time something else runs.
    pauses = [1.0, 2.0] if faster is ctr_keystream else [2.0, 1.0]
    pauses = [pause + 9.0 * (turn % 2) for turn in range(streams.TRIES) for pause in pauses]
    ticks = itertools.accumulate(x for pause in pauses for x in (0.0, pause))
    use_fastest_keystream(lambda: next(ticks))
    assert streams._keystream is faster
