"""What the systems under test are told, and what they need."""

from __future__ import annotations

import base64
import hashlib
import shutil
from pathlib import Path

import pytest

from phantom_tun.lab.bench import i2pd, scenarios, systems, tor
from phantom_tun.lab.bench.chain import TlsChain, proxy_command
from phantom_tun.lab.bench.i2pd import I2pd
from phantom_tun.lab.bench.ours import PhantomTun
from phantom_tun.lab.bench.tor import Keys, Tor
from phantom_tun.lab.bench.yggdrasil import YggdrasilLine

EVERY = [
    PhantomTun(12, 3),
    PhantomTun(4, 0),
    PhantomTun(12, 3, keeps=False),
    Tor(),
    Tor("Vanilla"),
    YggdrasilLine(8),
    I2pd(),
    TlsChain(6),
]


def test_options_know_every_system_by_the_key_it_has() -> None:
    assert {system.key for system in EVERY} == set(scenarios.SYSTEMS)


def test_titles_tell_systems_apart() -> None:
    assert len({system.title for system in EVERY}) == len(EVERY)


def test_a_package_is_missing_if_one_of_its_programs_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "tor-gencert" else name)
    assert systems.missing_packages(Tor()) == ["tor"]
    assert systems.missing_packages(TlsChain()) == []


def test_ours_needs_nothing_installed() -> None:
    assert systems.missing_packages(PhantomTun(12, 3)) == []


def test_all_relays_of_tor_are_equal() -> None:
    keys = {1: Keys("A" * 40, "B" * 40), 4: Keys("C" * 40, None)}
    assert tor.bandwidths(keys, 77) == (
        f"77\nnode_id=${'A' * 40} bw=10000 nick=n1\nnode_id=${'C' * 40} bw=10000 nick=n4\n"
    )


def test_tor_relays_relay_and_do_nothing_else() -> None:
    lines = tor.relay_lines("10.1.0.1")
    assert "ORPort 10.1.0.1:5000 IPv4Only" in lines
    assert "SocksPort 0" in lines
    assert "ExitRelay 0" in lines


def test_a_proxy_has_tls_on_both_sides() -> None:
    command = proxy_command("/c.pem", "10.3.0.1:7000")
    assert command[-2].startswith("openssl-listen:7000,")
    assert command[-1].startswith("openssl:10.3.0.1:7000,")


def test_an_identity_ends_where_its_certificate_says() -> None:
    identity = bytes(385) + (4).to_bytes(2, "big") + b"cert"
    assert i2pd.identity_hash(identity + b"more") == hashlib.sha256(identity).digest()


def test_a_destination_is_found_by_the_hash_of_its_identity() -> None:
    identity = bytes(387)
    name = i2pd.address_of(identity + b"keys").removesuffix(".b32.i2p")
    assert base64.b32decode(name.upper() + "====") == hashlib.sha256(identity).digest()


def test_routers_of_i2p_keep_to_their_own_network() -> None:
    lines = i2pd.configuration(Path("/n1"), "44.77.0.1", floodfill=True).splitlines()
    assert "netid = 77" in lines
    assert "floodfill = true" in lines
    assert lines[lines.index("[reseed]") + 1] == "urls ="
    assert "floodfill = false" in i2pd.configuration(Path("/n1"), "44.77.0.1", floodfill=False)


def test_both_tunnels_of_i2p_have_three_relays_each_way() -> None:
    for text in (i2pd.server_tunnel(), i2pd.client_tunnel("x.b32.i2p")):
        assert "inbound.length = 3\n" in text
        assert "outbound.length = 3\n" in text
    assert "destination = x.b32.i2p\n" in i2pd.client_tunnel("x.b32.i2p")
