"""Expose rules: what they let in, what can't be a rule, what is on disk."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_tun.errors import ConfigError, UsageError
from phantom_tun.net.sessions import expose as module
from phantom_tun.net.sessions.expose import ExposeRules

AP4, AP6 = ipaddress.ip_network("240.0.0.0/4"), ipaddress.ip_network("2001:2f::/32")
ONE, TWO = ipaddress.ip_address("241.0.0.1"), ipaddress.ip_address("2001:2f:1::1")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "expose.json"


def opened(file: Path) -> ExposeRules:
    rules = ExposeRules(file, (AP4, AP6))  # type: ignore[arg-type]
    rules.load()
    return rules


def test_nothing_is_exposed_at_first(file: Path) -> None:
    rules = opened(file)
    assert rules.rules() == []
    assert rules.find("default", "tcp", 80) is None


def test_a_rule_is_for_one_identity_protocol_and_port(file: Path) -> None:
    rules = opened(file)
    rule = rules.expose("default", "tcp", 80)
    assert rule.target_port == 80
    assert rules.find("default", "tcp", 80) is rule
    for other in (("other", "tcp", 80), ("default", "udp", 80), ("default", "tcp", 81)):
        assert rules.find(*other) is None  # type: ignore[arg-type]


def test_without_names_everybody_may() -> None:
    rule = ExposeRules(None).expose("default", "tcp", 80)
    assert rule.admits(frozenset())
    assert rule.admits(frozenset({ONE}))
    assert not rule.names_ap4


def test_with_names_only_those_may() -> None:
    rule = ExposeRules(None).expose("default", "tcp", 80, to=(str(ONE), str(TWO)))
    assert rule.admits(frozenset({ONE}))
    assert rule.admits(frozenset({TWO, ipaddress.ip_address("241.0.0.2")}))
    assert not rule.admits(frozenset())
    assert not rule.admits(frozenset({ipaddress.ip_address("241.0.0.2")}))
    assert rule.names_ap4


def test_rules_survive_a_restart(file: Path) -> None:
    rules = opened(file)
    rules.expose("default", "tcp", 80)
    rules.expose("default", "udp", 53, to=(str(TWO), str(ONE)), target_port=5353)
    rules.expose("a", "tcp", 1)
    rules.expose("b", "tcp", 65_535)
    rules.unexpose("a", "tcp", 1)
    assert opened(file).rules() == rules.rules()
    assert file.stat().st_mode & 0o777 == 0o600
    json.loads(file.read_text())


@pytest.mark.parametrize("port", [0, -1, 65_536, 10**9])
def test_a_port_that_does_not_exist_is_refused(file: Path, port: int) -> None:
    rules = opened(file)
    with pytest.raises(UsageError, match=f"port {port} doesn't exist; ports are 1 to 65535"):
        rules.expose("default", "tcp", port)
    with pytest.raises(UsageError, match="target port"):
        rules.expose("default", "tcp", 80, target_port=port)
    assert not file.exists()


def test_a_port_is_exposed_only_once(file: Path) -> None:
    rules = opened(file)
    first = rules.expose("default", "tcp", 80, to=(str(ONE),))
    with pytest.raises(UsageError, match="exposed already"):
        rules.expose("default", "tcp", 80)
    assert opened(file).rules() == [first]


def test_what_is_not_exposed_cant_be_unexposed(file: Path) -> None:
    rules = opened(file)
    rules.expose("default", "tcp", 80)
    with pytest.raises(UsageError, match="isn't exposed"):
        rules.unexpose("default", "udp", 80)
    assert len(rules.rules()) == 1


@pytest.mark.parametrize("to", ["", "name", "10.0.0.1", "2001:db8::1", "241.0.0.0/8"])
def test_only_ap_addresses_can_be_named(file: Path, to: str) -> None:
    with pytest.raises(UsageError, match="not an AP address"):
        opened(file).expose("default", "tcp", 80, to=(to,))


@pytest.mark.parametrize("protocol", ["icmp", "", "TCP"])
def test_only_tcp_and_udp_can_be_exposed(file: Path, protocol: str) -> None:
    with pytest.raises(UsageError, match="can't expose"):
        opened(file).expose("default", protocol, 80)  # type: ignore[arg-type]


def test_the_number_of_rules_and_names_is_bounded(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_RULES", 2)
    rules = opened(file)
    for port in (1, 2):
        rules.expose("default", "tcp", port)
    with pytest.raises(UsageError, match="2 rules already"):
        rules.expose("default", "tcp", 3)
    many = tuple(f"241.0.{n >> 8}.{n & 255}" for n in range(module.MAX_CALLERS + 1))
    with pytest.raises(UsageError, match="can't expose"):
        ExposeRules(None).expose("default", "tcp", 4, to=many)


GOOD = {"identity": "default", "protocol": "tcp", "port": 80, "to": [], "target_port": 80}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "\xff",
        json.dumps({"rules": [GOOD], "more": 1}),
        json.dumps({"rules": [{**GOOD, "port": 0}]}),
        json.dumps({"rules": [{**GOOD, "more": 1}]}),
        json.dumps({"rules": [{**GOOD, "to": ["nowhere"]}]}),
        json.dumps({"rules": [GOOD, {**GOOD, "target_port": 81}]}),
    ],
)
def test_a_damaged_file_exposes_nothing(file: Path, content: str) -> None:
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"expose\.json"):
        opened(file)


def test_an_unreadable_file_is_an_error(file: Path) -> None:
    file.mkdir()
    with pytest.raises(ConfigError, match="can't read"):
        opened(file)


def test_a_rule_that_cant_be_stored_does_not_hold(tmp_path: Path) -> None:
    rules = ExposeRules(tmp_path / "missing" / "expose.json")
    with pytest.raises(ConfigError):
        rules.expose("default", "tcp", 80)
    assert rules.rules() == []


@given(st.binary(max_size=300))
def test_noise_is_no_rule_file(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("rules") / "expose.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError):
        opened(file)
