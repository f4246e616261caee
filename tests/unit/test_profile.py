"""The network profile: what the network id depends on, and every refusal."""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_tun import profile
from phantom_tun.errors import ConfigError
from phantom_tun.ids import CertHash, NodeId, PublicKey
from phantom_tun.profile import Bootstrap, Profile

NONCE = bytes(range(32))
SEED_NODE = Bootstrap(
    NodeId(b"\x01" * 32), ipaddress.IPv4Address("192.0.2.1"), 443, CertHash(b"\x02" * 32)
)


def example(**changes: object) -> Profile:
    return dataclasses.replace(profile.new("example", NONCE), **changes)  # type: ignore[arg-type]


def edited(old: str, new: str) -> bytes:
    text = profile.dump(example(bootstrap=(SEED_NODE,)))
    assert text.count(old) == 1
    return text.replace(old, new).encode()


def test_a_new_profile_has_the_default_prefixes() -> None:
    made = profile.new("example", NONCE, exit_hops=0, entry_hops=8)
    assert str(made.ap4) == "240.0.0.0/4"
    assert str(made.ap6) == "2001:2f::/32"
    assert (made.exit_hops, made.entry_hops) == (0, 8)


def test_reserved_blocks_are_the_edges_of_the_prefixes() -> None:
    made = example()
    assert [str(block) for block in made.reserved4] == ["240.0.0.0/16", "255.255.0.0/16"]
    assert str(made.reserved6) == "2001:2f::/64"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "other"),
        ("nonce", bytes(32)),
        ("ap4", ipaddress.IPv4Network("100.64.0.0/10")),
        ("ap6", ipaddress.IPv6Network("fd00:1::/32")),
        ("pow_bits", 1),
        ("array_slots", 25),
        ("package_size", 1537),
    ],
)
def test_the_network_id_depends_on_every_immutable_field(field: str, value: object) -> None:
    assert example(**{field: value}).network_id != example().network_id


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("update_number", 7),
        ("override_keys", (PublicKey(bytes(32)),)),
        ("bootstrap", (SEED_NODE,)),
        ("exit_hops", 1),
        ("entry_hops", 1),
    ],
)
def test_the_network_id_is_kept_by_updates(field: str, value: object) -> None:
    assert example(**{field: value}).network_id == example().network_id


def test_the_network_id_is_32_bytes() -> None:
    assert len(example().network_id) == 32


def test_only_a_later_edition_of_the_same_network_is_an_update() -> None:
    first = example()
    second = profile.with_bootstrap(first, (SEED_NODE,))
    assert first.accepts_update(second)
    assert not second.accepts_update(first)
    assert not second.accepts_update(second)
    assert not first.accepts_update(dataclasses.replace(second, nonce=bytes(32)))


addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
bootstraps = st.builds(
    Bootstrap,
    st.binary(min_size=32, max_size=32).map(NodeId),
    addresses,
    st.integers(1, 65535),
    st.binary(min_size=32, max_size=32).map(CertHash),
)


@given(
    nodes=st.lists(bootstraps, max_size=4),
    keys=st.lists(st.binary(min_size=32, max_size=32).map(PublicKey), max_size=3),
    number=st.integers(0, 2**53),
    hops=st.integers(0, 8),
)
def test_dump_and_parse_are_inverse(
    nodes: list[Bootstrap], keys: list[PublicKey], number: int, hops: int
) -> None:
    written = example(
        bootstrap=tuple(nodes), override_keys=tuple(keys), update_number=number, exit_hops=hops
    )
    assert profile.parse(profile.dump(written).encode(), source="test") == written


@given(bootstraps)
def test_a_bootstrap_line_reads_back(node: Bootstrap) -> None:
    assert Bootstrap.parse(f" {node}\n") == node


def test_an_ipv6_bootstrap_line_has_brackets() -> None:
    node = dataclasses.replace(SEED_NODE, address=ipaddress.IPv6Address("2001:db8::1"))
    assert str(node) == f"{'01' * 32}@[2001:db8::1]:443#{'02' * 32}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "form is"),
        ("nonsense", "form is"),
        (f"{'01' * 31}@192.0.2.1:443#{'02' * 32}", "form is"),
        (f"{'01' * 32}@192.0.2.1:443#{'02' * 33}", "form is"),
        (f"{'01' * 32}@2001:db8::1:443#{'02' * 32}", "form is"),
        (f"{'01' * 32}@192.0.2.256:443#{'02' * 32}", "no valid address"),
        (f"{'01' * 32}@host.example:443#{'02' * 32}", "no valid address"),
        (f"{'01' * 32}@[192.0.2.1]:443#{'02' * 32}", "no valid address"),
        (f"{'01' * 32}@192.0.2.1:0#{'02' * 32}", "port 0"),
        (f"{'01' * 32}@192.0.2.1:65536#{'02' * 32}", "port 65536"),
    ],
)
def test_a_wrong_bootstrap_line_is_refused(line: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Bootstrap.parse(line)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "example"', 'name = "Ex ample"', "name"),
        ('name = "example"', "name = 3", "name"),
        (f'nonce = "{NONCE.hex()}"', 'nonce = "00"', "nonce"),
        (f'nonce = "{NONCE.hex()}"', "", "nonce"),
        ('"240.0.0.0/4"', '"240.0.0.0/13"', "/4 to a /12"),
        ('"240.0.0.0/4"', '"0.0.0.0/0"', "/4 to a /12"),
        ('"240.0.0.0/4"', '"241.0.0.0/4"', "host bits"),
        ('"240.0.0.0/4"', '"224.0.0.0/4"', "no host can use"),
        ('"240.0.0.0/4"', '"112.0.0.0/4"', "no host can use"),
        ('"240.0.0.0/4"', '"0.0.0.0/8"', "no host can use"),
        ('"2001:2f::/32"', '"2001:2f::/33"', "must be a /32"),
        ('"2001:2f::/32"', '"2001:2f::1/32"', "host bits"),
        ('"2001:2f::/32"', '"ff02::/32"', "no host can use"),
        ('"2001:2f::/32"', '"fe80::/32"', "no host can use"),
        ("pow_bits = 12", "pow_bits = 33", "pow_bits"),
        ("pow_bits = 12", "pow_bits = true", "pow_bits"),
        ("array_slots = 24", "array_slots = 25", "speaks only 24 and 1536"),
        ("package_size = 1536", "package_size = 1535", "speaks only 24 and 1536"),
        ("number = 0", "number = -1", "number"),
        ("override_keys = []", 'override_keys = ["00"]', "override_keys"),
        ("exit_hops = 3", "exit_hops = 9", "exit_hops"),
        ("entry_hops = 3", "entry_hops = -1", "entry_hops"),
        ("exit_hops = 3", "exit_hop = 3", "exit_hop"),
        ("192.0.2.1:443", "192.0.2.1", "form is"),
        ("[update]", "[updates]", "updates"),
        ("[update]", "[update", "TOML"),
    ],
)
def test_a_wrong_profile_is_refused_with_file_and_key(old: str, new: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refusal:
        profile.parse(edited(old, new), source="net.toml")
    assert "net.toml" in str(refusal.value)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ConfigError, match="UTF-8"):
        profile.parse(b"\xff\xfe", source="net.toml")


def test_a_huge_profile_is_refused() -> None:
    with pytest.raises(ConfigError, match="larger"):
        profile.parse(b"#" * (256 * 1024 + 1), source="net.toml")


def test_load_reads_a_file_and_explains_a_missing_one(tmp_path: Path) -> None:
    path = tmp_path / "network.toml"
    path.write_text(profile.dump(example()))
    assert profile.load(path) == example()
    with pytest.raises(ConfigError, match="network join"):
        profile.load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="can't read"):
        profile.load(tmp_path)
