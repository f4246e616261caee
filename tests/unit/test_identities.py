"""AP identities on disk: made whole, kept private, keys that really go."""

from __future__ import annotations

import gc
import ipaddress
import itertools
from pathlib import Path

import pytest

from phantom_tun.clock import DAY, HOUR
from phantom_tun.crypto.sealing import SealingKey, seal
from phantom_tun.crypto.x509 import LIFETIME
from phantom_tun.errors import ConfigError, CryptoError, UsageError
from phantom_tun.files import atomic_write
from phantom_tun.ids import EntryId, NetworkId, NodeId
from phantom_tun.net.addresses import identities as module
from phantom_tun.net.addresses.identities import (
    DEFAULT_NAME,
    DIRECTORY,
    KEY_RECORD_LIFE,
    RENEW_CERTIFICATE_BEFORE,
    REQUEST_KEY_LIFE,
    REQUEST_KEY_OVERLAP,
    IdentityStore,
    Lease,
    LeaseState,
    next_candidate,
)
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.netdb.signing import verify_signature
from phantom_tun.wire.records import APRoute, decode

NETWORK = NetworkParams(
    NetworkId(b"n" * 32),
    0,
    ipaddress.IPv4Network("240.0.0.0/4"),
    ipaddress.IPv6Network("2001:2f::/32"),
)
NOW = 1_800_000_000.0
FILES = ("ap.key", "ap.crt", "request.keys", "state.json")


class SettableClock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.moment = NOW

    def now(self) -> float:
        return self.moment


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    return path


def load(state: Path, clock: SettableClock) -> IdentityStore:
    store = IdentityStore(state, NETWORK, clock)
    store.load()
    return store


# --- making, keeping, removing -------------------------------------------------------------------


def test_the_first_start_makes_a_default_identity(state: Path, clock: SettableClock) -> None:
    store = load(state, clock)
    (identity,) = store.all()
    assert identity.name == DEFAULT_NAME
    assert identity.ap6 == ap6_address(NETWORK, identity.public_key)
    assert identity.candidate == ap4_candidate(NETWORK, identity.public_key, 0)
    assert (identity.ap4, identity.ap4_state) == (None, LeaseState.NONE)
    for name in FILES:
        path = state / DIRECTORY / DEFAULT_NAME / name
        assert path.stat().st_mode & 0o777 == 0o600


def test_identities_survive_a_restart(state: Path, clock: SettableClock) -> None:
    store = load(state, clock)
    made = store.create("web")
    again = load(state, clock)
    assert [identity.name for identity in again.all()] == [DEFAULT_NAME, "web"]
    read = again.get("web")
    assert read.signing.seed == made.signing.seed
    assert read.certificate == made.certificate
    assert [key.public for key in read.request_keys] == [key.public for key in made.request_keys]
    assert read.created == NOW


def test_the_oldest_identity_is_the_first_one(state: Path, clock: SettableClock) -> None:
    store = load(state, clock)
    clock.moment += 1
    store.create("api")
    clock.moment += 1
    store.create("a-third")
    for known in (store, load(state, clock)):
        assert [identity.name for identity in known.all()] == [DEFAULT_NAME, "api", "a-third"]


def test_a_removed_identity_is_gone_and_does_not_come_back(
    state: Path, clock: SettableClock
) -> None:
    store = load(state, clock)
    seed = store.get(DEFAULT_NAME).signing.seed
    store.remove(DEFAULT_NAME)
    assert store.all() == []
    assert not [path for path in state.rglob("*") if path.is_file() and seed in path.read_bytes()]
    assert load(state, clock).all() == []
    with pytest.raises(UsageError, match="no address named 'default'"):
        store.remove(DEFAULT_NAME)


@pytest.mark.parametrize("name", ["", "Web", "-web", "a/b", "..", ".hidden", "x" * 33, "wéb"])
def test_bad_names_are_refused(state: Path, clock: SettableClock, name: str) -> None:
    with pytest.raises(UsageError, match="can't be the name"):
        load(state, clock).create(name)


def test_a_name_is_used_once(state: Path, clock: SettableClock) -> None:
    with pytest.raises(UsageError, match="already"):
        load(state, clock).create(DEFAULT_NAME)


def test_there_is_a_limit(
    state: Path, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_IDENTITIES", 2)
    store = load(state, clock)
    store.create("one")
    with pytest.raises(UsageError, match="at most 2"):
        store.create("two")


def test_an_identity_left_half_made_is_cleaned_up(state: Path, clock: SettableClock) -> None:
    store = load(state, clock)
    half = state / DIRECTORY / ".web"
    half.mkdir(mode=0o700)
    atomic_write(half / "ap.key", b"k" * 32)
    again = load(state, clock)
    assert not half.exists()
    assert len(again.all()) == len(store.all())


def test_own_addresses_are_known(state: Path, clock: SettableClock) -> None:
    store = load(state, clock)
    identity = store.get(DEFAULT_NAME)
    assert store.owner_of(identity.ap6) is identity
    assert store.owner_of(identity.candidate) is None
    store.set_lease(identity, Lease(0, LeaseState.HELD, NOW + HOUR))
    assert store.owner_of(identity.candidate) is identity


# --- damaged files -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_files_open_to_others_are_refused(state: Path, clock: SettableClock, name: str) -> None:
    load(state, clock)
    (state / DIRECTORY / DEFAULT_NAME / name).chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        load(state, clock)


def test_a_missing_key_is_named(state: Path, clock: SettableClock) -> None:
    load(state, clock)
    path = state / DIRECTORY / DEFAULT_NAME / "ap.key"
    path.unlink()
    with pytest.raises(ConfigError, match="has lost its key") as caught:
        load(state, clock)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", sorted(set(FILES) - {"ap.key"}))
def test_other_missing_files_are_made_anew_and_the_addresses_stay(
    state: Path, clock: SettableClock, name: str
) -> None:
    before = load(state, clock)
    identity = before.get(DEFAULT_NAME)
    used = [before.next_sequence(identity) for _ in range(3)]
    (state / DIRECTORY / DEFAULT_NAME / name).unlink()
    clock.moment += HOUR
    after = load(state, clock)
    found = after.get(DEFAULT_NAME)
    assert (found.ap6, found.candidate) == (identity.ap6, identity.candidate)
    assert after.next_sequence(found) > max(used)
    assert load(state, clock).get(DEFAULT_NAME).certificate == found.certificate


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_named(state: Path, clock: SettableClock, name: str) -> None:
    load(state, clock)
    path = state / DIRECTORY / DEFAULT_NAME / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ConfigError, match="damaged") as caught:
        load(state, clock)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", b'{"created":0,"n":256,"held_until":0,"sequence_end":0}'),
        ("state.json", b'{"created":0,"n":1,"held_until":0,"sequence_end":0,"more":1}'),
        ("request.keys", b"\x90"),
        ("request.keys", b"\x91\x92\xc4\x01a\x00"),
    ],
)
def test_senseless_files_are_refused(
    state: Path, clock: SettableClock, name: str, content: bytes
) -> None:
    load(state, clock)
    (state / DIRECTORY / DEFAULT_NAME / name).write_bytes(content)
    with pytest.raises(ConfigError, match="damaged"):
        load(state, clock)


def test_an_identity_open_to_others_is_refused(state: Path, clock: SettableClock) -> None:
    load(state, clock)
    (state / DIRECTORY / DEFAULT_NAME).chmod(0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        load(state, clock)


# --- request keys and certificates ---------------------------------------------------------------


def live_keys(public: bytes) -> list[SealingKey]:
    gc.collect()
    return [o for o in gc.get_objects() if type(o) is SealingKey and o.public == public]


def test_request_keys_rotate_daily_with_overlap(state: Path, clock: SettableClock) -> None:
    store = load(state, clock)
    identity = store.get(DEFAULT_NAME)
    old = identity.request_keys[0].public
    sealed = seal(b"hello", old, "request", NETWORK.network_id)
    clock.moment += REQUEST_KEY_LIFE - 1
    assert not store.renew(identity)
    clock.moment += 1
    assert store.renew(identity)
    assert not store.renew(identity)
    assert len(identity.request_keys) == 2
    assert store.make_key_record(identity, None).request_key == identity.request_keys[0].public
    assert identity.request_keys[1].open(sealed, "request", NETWORK.network_id) == b"hello"
    clock.moment += REQUEST_KEY_OVERLAP - 1
    store.renew(identity)
    assert old in {key.public for key in identity.request_keys}


def test_the_overlap_outlives_every_record_that_names_the_old_key() -> None:
    assert REQUEST_KEY_OVERLAP > KEY_RECORD_LIFE


def test_old_request_keys_are_gone_from_disk_and_memory(state: Path, clock: SettableClock) -> None:
    store = load(state, clock)
    identity = store.get(DEFAULT_NAME)
    old, seed = identity.request_keys[0].public, identity.request_keys[0].seed
    assert len(live_keys(old)) == 1
    clock.moment += REQUEST_KEY_LIFE
    store.renew(identity)
    clock.moment += REQUEST_KEY_OVERLAP
    assert not store.renew(identity)
    assert live_keys(old) == []
    assert not [path for path in state.rglob("*") if path.is_file() and seed in path.read_bytes()]
    assert len(load(state, clock).get(DEFAULT_NAME).request_keys) == 1


def test_after_a_long_pause_the_key_rotates_at_once(state: Path, clock: SettableClock) -> None:
    load(state, clock)
    clock.moment += 30 * DAY
    store = load(state, clock)
    identity = store.get(DEFAULT_NAME)
    first = identity.request_keys[0].public
    assert store.renew(identity)
    assert identity.request_keys[0].public != first
    assert len(identity.request_keys) == 2


def test_certificates_are_renewed_before_they_expire(state: Path, clock: SettableClock) -> None:
    store = load(state, clock)
    identity = store.get(DEFAULT_NAME)
    store.renew(identity)
    first = identity.certificate
    clock.moment += LIFETIME.total_seconds() - RENEW_CERTIFICATE_BEFORE - DAY
    store.renew(identity)
    assert identity.certificate == first
    clock.moment += 2 * DAY
    assert store.renew(identity)
    assert identity.certificate != first
    assert load(state, clock).get(DEFAULT_NAME).certificate == identity.certificate
    assert store.make_key_record(identity, None).certificate == identity.certificate.der


# --- leases and sequence numbers -----------------------------------------------------------------


def test_a_held_lease_survives_a_restart_until_it_ends(state: Path, clock: SettableClock) -> None:
    store = load(state, clock)
    identity = store.get(DEFAULT_NAME)
    store.set_lease(identity, Lease(3, LeaseState.HELD, NOW + HOUR))
    read = load(state, clock).get(DEFAULT_NAME)
    assert read.ap4 == ap4_candidate(NETWORK, identity.public_key, 3)
    assert read.ap4_state is LeaseState.HELD
    clock.moment += HOUR
    late = load(state, clock).get(DEFAULT_NAME)
    assert (late.ap4, late.ap4_state, late.lease.n) == (None, LeaseState.NONE, 3)


def test_a_lost_lease_moves_to_the_next_candidate() -> None:
    lost = Lease(255, LeaseState.LOST)
    assert next_candidate(lost) == Lease(0, LeaseState.RESERVING)
    assert next_candidate(Lease(4, LeaseState.HELD, NOW)) == Lease(5, LeaseState.RESERVING)


def test_sequences_rise_strictly_across_crashes_and_clock_steps(
    state: Path, clock: SettableClock
) -> None:
    seen = [0]
    for step in (0.0, 5.0, -3_600.0, 0.0, 7_200.0, -DAY):
        clock.moment += step
        store = load(state, clock)
        identity = store.get(DEFAULT_NAME)
        seen += [store.next_sequence(identity) for _ in range(3)]
    assert all(low < high for low, high in itertools.pairwise(seen))


def test_many_sequences_between_two_writes_of_the_state(state: Path, clock: SettableClock) -> None:
    store = load(state, clock)
    identity = store.get(DEFAULT_NAME)
    last = [store.next_sequence(identity) for _ in range(2_000)][-1]
    assert load(state, clock).next_sequence(load(state, clock).get(DEFAULT_NAME)) > last


def test_an_identity_restored_from_an_old_backup_is_not_behind(
    state: Path, clock: SettableClock
) -> None:
    store = load(state, clock)
    path = state / DIRECTORY / DEFAULT_NAME / "state.json"
    backup = path.read_bytes()
    clock.moment += 90 * DAY
    used = store.next_sequence(store.get(DEFAULT_NAME))
    atomic_write(path, backup)
    clock.moment += 10
    again = load(state, clock)
    assert again.next_sequence(again.get(DEFAULT_NAME)) > used


# --- what is signed ------------------------------------------------------------------------------


def test_records_and_routes_are_signed_for_this_network(state: Path, clock: SettableClock) -> None:
    store = load(state, clock)
    identity = store.get(DEFAULT_NAME)
    record = store.make_key_record(identity, 7)
    verify_signature(record, NETWORK.network_id)
    assert (record.public_key, record.ap4_n) == (identity.public_key, 7)
    assert (record.created, record.expires) == (NOW, NOW + KEY_RECORD_LIFE)
    encoded = store.make_route(identity, NodeId(b"e" * 32), EntryId(b"i" * 16), NOW + HOUR)
    route = decode(APRoute, encoded)
    verify_signature(route, NETWORK.network_id)
    assert (route.public_key, route.entry_node) == (identity.public_key, b"e" * 32)
    assert (route.entry_id, route.expires) == (b"i" * 16, NOW + HOUR)
    assert route.sequence > record.sequence
    with pytest.raises(CryptoError):
        verify_signature(route, NetworkId(b"o" * 32))


def test_secrets_are_not_in_representations(state: Path, clock: SettableClock) -> None:
    identity = load(state, clock).get(DEFAULT_NAME)
    text = repr(identity)
    assert identity.signing.seed.hex() not in text
    assert repr(identity.request_keys[0].seed)[2:-1] not in text
    assert repr(identity.certificate.key_der)[2:-1] not in text
