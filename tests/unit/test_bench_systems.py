"""What the systems under test are told, and what they need."""

from __future__ import annotations

import shutil

import pytest

from phantom_tun.lab.bench import run, systems, tor
from phantom_tun.lab.bench.chain import TlsChain, proxy_command
from phantom_tun.lab.bench.ours import PhantomTun
from phantom_tun.lab.bench.tor import Keys, Tor
from phantom_tun.lab.bench.yggdrasil import YggdrasilLine

EVERY = [PhantomTun(12, 3), PhantomTun(4, 0), Tor(), Tor("Vanilla"), YggdrasilLine(8), TlsChain(6)]


def test_options_know_every_system_by_the_key_it_has() -> None:
    assert {system.key for system in EVERY} == set(run.SYSTEMS)


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
