"""Private keys whose time is over are gone: from disk, and from every object that is still alive.

What Python can't promise, that no freed memory has them, is admitted in docs/threats.md.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from phantom_tun.clock import DAY
from phantom_tun.crypto.sealing import SEAL_OVERHEAD, SealingKey, seal
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.errors import CryptoError
from phantom_tun.net.addresses.identities import (
    DEFAULT_NAME,
    REQUEST_KEY_LIFE,
    REQUEST_KEY_OVERLAP,
    IdentityStore,
)
from phantom_tun.path.keys import OVERLAP, PURPOSE, ROTATE_EVERY, PathKeys
from phantom_tun.testing.record_factory import NETWORK, NOW


@dataclass
class SettableClock:
    moment: float = NOW

    def now(self) -> float:
        return self.moment


@dataclass(frozen=True)
class Secret:
    """What to look for, told so that the search doesn't find itself."""

    backwards: bytes

    @classmethod
    def of(cls, secret: bytes) -> Secret:
        return cls(bytes(reversed(secret)))

    def _whole(self) -> bytes:
        return bytes(reversed(self.backwards))

    def holders(self) -> list[object]:
        """Live objects that refer to bytes with the secret, or half of it, in them."""
        whole = self._whole()
        halves = (whole[:32], whole[-32:])
        return [
            holder
            for holder, data in _referred_bytes()
            if data is not whole and data not in halves and any(half in data for half in halves)
        ]

    def files(self, directory: Path) -> list[Path]:
        whole = self._whole()
        files = [path for path in directory.rglob("*") if path.is_file()]
        return [path for path in files if whole in path.read_bytes()]


def _referred_bytes() -> Iterator[tuple[object, bytes]]:
    gc.collect()
    for holder in gc.get_objects():
        for referred in gc.get_referents(holder):
            if isinstance(referred, bytes | bytearray):
                yield holder, bytes(referred)


def live(kind: type[SealingKey | SigningKey], public: bytes) -> int:
    """How many private keys with that public half there are."""
    gc.collect()
    return sum(type(found) is kind and found.public == public for found in gc.get_objects())


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir(mode=0o700)
    return tmp_path / "state"


@pytest.fixture
def store(state: Path, clock: SettableClock) -> IdentityStore:
    made = IdentityStore(state, NETWORK, clock)
    made.load()
    return made


def test_the_search_finds_what_is_there(state: Path) -> None:
    keeper = [b"before " + os.urandom(96) + b" behind"]
    secret = Secret.of(keeper[0][7:-7])
    assert keeper in secret.holders()
    (state / "file").write_bytes(keeper.pop())
    assert secret.holders() == []
    assert secret.files(state) == [state / "file"]


def test_a_path_building_key_is_destroyed_after_its_overlap() -> None:
    keys = PathKeys(NOW)
    old = keys.published.public
    secret = Secret.of(keys._held[0].key.seed)
    sealed = seal(b"package", old, PURPOSE, NETWORK.network_id)
    assert live(SealingKey, old) == 1
    assert keys.refresh(NOW + ROTATE_EVERY)
    overlap = NOW + ROTATE_EVERY + OVERLAP
    assert keys.open(sealed, NETWORK.network_id, overlap - 1) == b"package"
    with pytest.raises(CryptoError):
        keys.open(bytes(SEAL_OVERHEAD), NETWORK.network_id, overlap - 1)
    keys.refresh(overlap)
    assert live(SealingKey, old) == 0
    assert secret.holders() == []
    with pytest.raises(CryptoError):
        keys.open(sealed, NETWORK.network_id, overlap)


def test_path_building_keys_are_never_on_disk(store: IdentityStore, state: Path) -> None:
    keys = PathKeys(NOW)
    assert Secret.of(keys._held[0].key.seed).files(state) == []


def test_a_request_key_is_destroyed_after_its_overlap(
    store: IdentityStore, state: Path, clock: SettableClock
) -> None:
    identity = store.get(DEFAULT_NAME)
    old = identity.request_keys[0].public
    secret = Secret.of(identity.request_keys[0].seed)
    assert live(SealingKey, old) == 1
    assert secret.files(state)
    clock.moment += REQUEST_KEY_LIFE
    assert store.renew(identity)
    assert secret.files(state), "it has to open requests after a restart, too"
    clock.moment += REQUEST_KEY_OVERLAP
    store.renew(identity)
    assert live(SealingKey, old) == 0
    assert secret.holders() == []
    assert secret.files(state) == []


def test_keys_that_ended_while_the_node_was_off_are_destroyed_at_the_first_chance(
    store: IdentityStore, state: Path, clock: SettableClock
) -> None:
    secret = Secret.of(store.get(DEFAULT_NAME).request_keys[0].seed)
    clock.moment += 10 * DAY
    late = IdentityStore(state, NETWORK, clock)
    late.load()
    identity = late.get(DEFAULT_NAME)
    late.renew(identity)
    clock.moment += REQUEST_KEY_OVERLAP
    late.renew(identity)
    assert secret.files(state) == []


def test_a_removed_identity_leaves_nothing(store: IdentityStore, state: Path) -> None:
    identity = store.create("other")
    request, signing = identity.request_keys[0].public, identity.public_key
    secrets = [Secret.of(identity.request_keys[0].seed), Secret.of(identity.signing.seed)]
    assert live(SigningKey, signing) == 1
    assert all(secret.files(state) for secret in secrets)
    del identity
    store.remove("other")
    assert live(SealingKey, request) == live(SigningKey, signing) == 0
    for secret in secrets:
        assert secret.holders() == []
        assert secret.files(state) == []
