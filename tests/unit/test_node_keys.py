"""A node's key files: made once, kept, and refused when anything about them is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from phantom_tun.clock import DAY
from phantom_tun.crypto.certificates import (
    LIFETIME,
    from_pem,
    link_server_context,
    make_certificate,
    to_pem,
)
from phantom_tun.crypto.signing import node_id_of
from phantom_tun.errors import ConfigError, CryptoError
from phantom_tun.node_keys import CERTIFICATE_FILE, KEY_FILE, RENEW_BEFORE, create_node_keys

NOW = 1_800_000_000.0


class At:
    """A clock that stands still."""

    def __init__(self, moment: float) -> None:
        self.moment = moment

    def now(self) -> float:
        return self.moment


def test_keys_are_made_once_and_private(tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = create_node_keys(state)
    second = create_node_keys(state)
    assert first.signing.seed == second.signing.seed
    assert first.certificate == second.certificate
    assert first.node_id == node_id_of(first.signing.public)
    assert first.cert_hash == first.certificate.hash
    link_server_context(second.certificate)
    assert state.stat().st_mode & 0o777 == 0o700
    for name in (KEY_FILE, CERTIFICATE_FILE):
        assert (state / name).stat().st_mode & 0o777 == 0o600


def test_two_nodes_differ(tmp_path: Path) -> None:
    one, other = create_node_keys(tmp_path / "1"), create_node_keys(tmp_path / "2")
    assert one.node_id != other.node_id
    assert one.cert_hash != other.cert_hash


@pytest.mark.parametrize("name", [KEY_FILE, CERTIFICATE_FILE])
def test_keys_open_to_others_are_refused(tmp_path: Path, name: str) -> None:
    state = tmp_path / "state"
    create_node_keys(state)
    (state / name).chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        create_node_keys(state)


@pytest.mark.parametrize("name", [KEY_FILE, CERTIFICATE_FILE])
def test_damaged_keys_are_refused_and_stay(tmp_path: Path, name: str) -> None:
    state = tmp_path / "state"
    create_node_keys(state)
    path = state / name
    damaged = path.read_bytes()[:-30]
    path.write_bytes(damaged)
    with pytest.raises(ConfigError, match=r"damaged.*backup"):
        create_node_keys(state)
    assert path.read_bytes() == damaged


def test_a_directory_open_to_others_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        create_node_keys(state)


def test_a_certificate_near_its_end_is_renewed_and_the_identity_stays(tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = create_node_keys(state, clock=At(NOW))
    late = LIFETIME.total_seconds() - RENEW_BEFORE
    kept = create_node_keys(state, clock=At(NOW + late - DAY))
    renewed = create_node_keys(state, clock=At(NOW + late + DAY))
    assert kept.cert_hash == first.cert_hash
    assert renewed.cert_hash != first.cert_hash
    assert renewed.node_id == first.node_id
    assert create_node_keys(state, clock=At(NOW + late + DAY)).cert_hash == renewed.cert_hash


def test_a_certificate_with_a_foreign_key_is_refused() -> None:
    one, other = make_certificate("a", NOW), make_certificate("b", NOW)
    mixed = type(one)(one.der, other.key_der)
    with pytest.raises(CryptoError, match="another certificate"):
        from_pem(to_pem(mixed))
    assert from_pem(to_pem(one)) == one


@pytest.mark.parametrize("text", [b"", b"-----BEGIN CERTIFICATE-----\n", b"\0" * 40])
def test_no_pem_is_refused(text: bytes) -> None:
    with pytest.raises(CryptoError):
        from_pem(text)
