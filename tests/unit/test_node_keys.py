"""A node's key files: made once, kept, and refused when anything about them is wrong."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from fresh_python import printed_by

from phantom_tun.clock import DAY
from phantom_tun.crypto.certificates import link_server_context, to_pem
from phantom_tun.crypto.signing import node_id_of
from phantom_tun.crypto.x509 import LIFETIME, from_pem, make_certificate
from phantom_tun.errors import ConfigError, CryptoError, RecordRefused
from phantom_tun.ids import NetworkId
from phantom_tun.netdb import proof
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.node_keys import (
    CERTIFICATE_FILE,
    KEY_FILE,
    PROOF_FILE,
    RENEW_BEFORE,
    create_node_keys,
)

NOW = 1_800_000_000.0
AP4, AP6 = ipaddress.IPv4Network("240.0.0.0/4"), ipaddress.IPv6Network("2001:2f::/32")
NETWORK = NetworkParams(NetworkId(b"n" * 32), 10, AP4, AP6)


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


def test_the_proof_of_work_is_found_and_kept(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert create_node_keys(state).pow_nonce is None
    keys = create_node_keys(state, NETWORK)
    assert keys.pow_nonce is not None
    proof.check(NETWORK.network_id, keys.signing.public, NETWORK.pow_bits, keys.pow_nonce)
    stored = (state / PROOF_FILE).read_bytes()
    assert create_node_keys(state, NETWORK).pow_nonce == keys.pow_nonce
    assert (state / PROOF_FILE).read_bytes() == stored


@pytest.mark.parametrize("shape", ["empty", "too little work", "other network"])
def test_a_proof_that_does_not_hold_is_replaced(tmp_path: Path, shape: str) -> None:
    state = tmp_path / "state"
    solved = create_node_keys(state, NETWORK).pow_nonce
    assert solved is not None
    worse = solved + 1
    while works(create_node_keys(state).signing.public, worse):
        worse += 1
    content = {
        "empty": b"",
        "too little work": NETWORK.network_id + worse.to_bytes(8, "big"),
        "other network": bytes(32) + solved.to_bytes(8, "big"),
    }[shape]
    (state / PROOF_FILE).write_bytes(content)
    assert create_node_keys(state, NETWORK).pow_nonce == solved
    assert (state / PROOF_FILE).read_bytes() == NETWORK.network_id + solved.to_bytes(8, "big")


def works(identity: bytes, nonce: int) -> bool:
    try:
        proof.check(NETWORK.network_id, identity, NETWORK.pow_bits, nonce)
    except RecordRefused:
        return False
    return True


def test_an_unreadable_proof_is_an_error(tmp_path: Path) -> None:
    state = tmp_path / "state"
    create_node_keys(state)
    (state / PROOF_FILE).mkdir()
    with pytest.raises(ConfigError, match="remove it"):
        create_node_keys(state, NETWORK)


def test_key_files_are_what_other_programs_expect() -> None:
    certificate = make_certificate("a", NOW)
    key = serialization.load_der_private_key(certificate.key_der, None)
    plain = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    assert to_pem(certificate) == ssl.DER_cert_to_PEM_cert(certificate.der).encode() + plain


def test_a_node_does_not_keep_what_looks_into_certificates(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from phantom_tun.node_keys import create_node_keys\n"
        f"made, known = (create_node_keys(Path({str(tmp_path)!r})) for _ in range(2))\n"
        "print(made.certificate == known.certificate, 'cryptography.x509' in sys.modules)\n"
    )
    tmp_path.chmod(0o700)
    assert printed_by(program) == "True False\n"
