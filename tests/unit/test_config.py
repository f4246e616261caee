"""The configuration file: defaults, what is refused and what the refusal says."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_tun import config, places
from phantom_tun.config import Config
from phantom_tun.errors import ConfigError

SOURCE = Path("/etc/phantom-tun/config.toml")
VARIABLES = [
    "PHANTOM_TUN_CONFIG",
    "PHANTOM_TUN_SOCKET",
    "XDG_CONFIG_HOME",
    "XDG_STATE_HOME",
    "XDG_RUNTIME_DIR",
    "CONFIGURATION_DIRECTORY",
    "STATE_DIRECTORY",
    "RUNTIME_DIRECTORY",
]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def as_user(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    if uid:
        monkeypatch.setattr(places, "_effective_capabilities", lambda: 0)
    monkeypatch.setenv("HOME", "/home/user")


def parsed(text: str) -> Config:
    return config.parse(text.encode(), source=SOURCE)


def test_root_has_the_system_places(monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 0)
    made = Config()
    assert made.node.state_dir == Path("/var/lib/phantom-tun")
    assert made.network.profile == Path("/etc/phantom-tun/network.toml")
    assert made.control.socket == Path("/run/phantom-tun/control.sock")
    assert places.config_file() == Path("/etc/phantom-tun/config.toml")
    assert made.wants_interface


def test_a_user_has_places_at_home_and_only_relays(monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 1000)
    made = Config()
    assert made.node.state_dir == Path("/home/user/.local/state/phantom-tun")
    assert made.network.profile == Path("/home/user/.config/phantom-tun/network.toml")
    assert made.control.socket == made.node.state_dir / "control.sock"
    assert made.node.relay_only
    assert not made.wants_interface


def test_xdg_directories_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/s")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/c")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert places.state_dir() == Path("/s/phantom-tun")
    assert places.config_file() == Path("/c/phantom-tun/config.toml")
    assert places.control_socket() == Path("/run/user/1000/phantom-tun/control.sock")


def test_a_service_manager_names_the_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 990)
    monkeypatch.setattr(places, "_effective_capabilities", lambda: 1 << places.CAP_NET_ADMIN)
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", "/etc/phantom-tun")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/phantom-tun")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/phantom-tun")
    made = Config()
    assert made.node.state_dir == Path("/var/lib/phantom-tun")
    assert made.network.profile == Path("/etc/phantom-tun/network.toml")
    assert made.control.socket == Path("/run/phantom-tun/control.sock")
    assert made.wants_interface


def test_an_empty_file_means_all_defaults() -> None:
    assert parsed("") == Config()


def test_the_rendered_defaults_read_back_and_explain_every_key() -> None:
    text = config.render(Config())
    assert parsed(text) == Config()
    for section in Config.__struct_fields__:
        for key in getattr(Config(), section).__struct_fields__:
            line = next(
                index
                for index, line in enumerate(text.splitlines())
                if line.removeprefix("# ").startswith(f"{key} =")
            )
            assert text.splitlines()[line - 1].startswith("# "), key


def test_rendering_without_comments_leaves_only_what_is_unset() -> None:
    lines = config.render(Config(), comments=False).splitlines()
    unset = ["# exit_hops = 3", "# entry_hops = 3"]
    assert [line for line in lines if line.startswith("#")] == unset


@given(
    user=st.text(max_size=20),
    hops=st.one_of(st.none(), st.integers(0, 8)),
    mtu=st.integers(1280, 65535),
    trusted=st.lists(st.binary(min_size=32, max_size=32).map(bytes.hex), max_size=3),
)
def test_rendering_and_parsing_are_inverse(
    user: str, hops: int | None, mtu: int, trusted: list[str]
) -> None:
    made = msgspec.structs.replace(
        Config(),
        node=config.NodeConfig(user=user),
        paths=config.PathsConfig(exit_hops=hops),
        interface=config.InterfaceConfig(mtu=mtu),
        guards=config.GuardsConfig(trusted=tuple(trusted)),
    )
    text = config.render(made)
    tomllib.loads(text)
    assert parsed(text) == made


def test_relative_paths_are_relative_to_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    made = parsed('[network]\nprofile = "net.toml"\n[node]\nweb_page = "page.html"')
    assert made.network.profile == SOURCE.parent / "net.toml"
    assert made.node.web_page == str(SOURCE.parent / "page.html")
    assert parsed('[node]\nstate_dir = "~/s"').node.state_dir == Path("/home/user/s")


def test_ids_and_addresses_have_typed_views() -> None:
    made = parsed(
        f'[node]\nlisten = ["192.0.2.1", "2001:db8::1"]\nadvertise = ["192.0.2.1"]\n'
        f'families = ["{"AB" * 32}"]\n[guards]\ntrusted = ["{"01" * 32}"]'
    )
    assert [address.version for address in made.node.listen_addresses] == [4, 6]
    assert [str(address) for address in made.node.advertised_addresses] == ["192.0.2.1"]
    assert made.node.family_ids == {b"\xab" * 32}
    assert made.guards.trusted_ids == {b"\x01" * 32}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[nodes]", r"'nodes' is not known as a section; did you mean 'node'\?"),
        ("[node]\nprot = 443", r"'prot' is not known in \[node\]; did you mean 'port'\?"),
        ("[node]\nxyzzy = 1", r"known are state_dir"),
        ("node = 3", "node: must be a section$"),
        ("[node]\nport = 0", "node.port: must be a whole number from 1 to 65535$"),
        ("[node]\nport = 65536", "node.port: must be a whole number from 1 to 65535$"),
        ('[node]\nport = "443"', "node.port: must be a whole number"),
        ("[node]\nport = 443.0", "node.port: must be a whole number from"),
        ("[node]\nstate_dir = 3", "node.state_dir: must be a path in quotes"),
        ('[node]\nstate_dir = ""', "node.state_dir: must be a path in quotes"),
        ("[node]\nlisten = []", "node.listen: must be a list .from 1 to 16. of texts in quotes"),
        ('[node]\nlisten = ["host"]', "node.listen: 'host' is not an IPv4"),
        ('[node]\nadvertise = ["0.0.0.0"]', "node.advertise: 0.0.0.0 is no address"),
        ('[node]\nfamilies = ["12"]', "node.families: '12' is not a node id"),
        ('[node]\nfamily_names = ["A b"]', "node.family_names: must be "),
        (f"[node]\nfamily_names = {['a'] * 5}", "node.family_names: must be a list .from 0 to 4."),
        ('[guards]\ntrusted = ["zz"]', "guards.trusted: 'zz' is not a node id"),
        ('[interface]\nname = "a/b"', "interface.name: must be text in quotes that matches"),
        (
            '[interface]\nname = "sixteen-letters-"',
            "interface.name: must be text in quotes that matches",
        ),
        ('[interface]\nephemeral_callers = ["A"]', "interface.ephemeral_callers"),
        ("[interface]\nmtu = 1279", "interface.mtu: must be"),
        ("[interface]\nudp_idle_s = 4", "interface.udp_idle_s: must be"),
        ("[paths]\nexit_hops = 9", "paths.exit_hops: must be a whole number from 0 to 8$"),
        ('[paths]\nexit_hops = "abc"', "paths.exit_hops: must be a whole number from 0 to 8$"),
        ("[node]\nlisten = [3]", "node.listen: must be a list .from 1 to 16. of texts in quotes$"),
        ("[node]\nlisten = 3", "node.listen: must be a list"),
        ("[paths]\nentry_hops = -1", "paths.entry_hops: must be a whole number from 0 to 8$"),
        ("[paths]\nexit_paths = 0", "paths.exit_paths: must be"),
        ("[paths]\nentry_paths = 17", "paths.entry_paths: must be"),
        ("[paths]\nlifetime_minutes = 9", "paths.lifetime_minutes: must be"),
        ("[tunnels]\nready_min = 17", "tunnels.ready_min: 17 is more than ready_max"),
        ("[tunnels]\nready_max = 257", "tunnels.ready_max: must be"),
        ("[limits]\nlinks = 15", "limits.links: must be"),
        ("[limits]\nrelayed_paths = -1", "limits.relayed_paths: must be"),
        ("[limits]\nrelayed_tunnels = 65536", "limits.relayed_tunnels: must be"),
        ("[relay]\nworkers = 0", "relay.workers: must be"),
        ("[relay]\nworkers = 65", "relay.workers: must be"),
        ('[log]\nlevel = "loud"', "log.level: must be one of 'debug', 'info', 'warning', 'error'$"),
        ("[log]\njson = 1", "log.json: must be true or false$"),
        ('[node]\nstate_dir = "~nobody here"', "node.state_dir: nobody's home"),
        ('[node]\nweb_page = "~nobody here"', "node.web_page: nobody's home"),
        ("[node", "isn't valid TOML"),
    ],
)
def test_a_wrong_configuration_names_file_and_key(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refusal:
        parsed(text)
    assert str(SOURCE) in str(refusal.value)


def test_every_wrong_key_is_named_in_a_line_of_its_own() -> None:
    text = (
        'nod = 1\nlog = "loud"\n[node]\nport = 0\nlisten = [1]\nprot = 2\n'
        "[limits]\nlinks = 15\nrelayed_paths = 3\n[interface]\nmtu = 12\n"
    )
    with pytest.raises(ConfigError) as refusal:
        parsed(text)
    lines = str(refusal.value).splitlines()
    assert all(line.startswith(f"{SOURCE}: ") for line in lines)
    named = sorted(line.removeprefix(f"{SOURCE}: ").split()[0].rstrip(":") for line in lines)
    assert named == [
        "'nod'", "'prot'", "interface.mtu", "limits.links", "log", "node.listen", "node.port",
    ]  # fmt: skip


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ConfigError, match="UTF-8"):
        config.parse(b"\xff", source=SOURCE)


def test_a_huge_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="larger"):
        config.parse(b"#" * (256 * 1024 + 1), source=SOURCE)


def test_a_missing_default_file_means_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", str(tmp_path))
    assert config.load() == Config()


def test_a_missing_named_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "none.toml"
    with pytest.raises(ConfigError, match="config default"):
        config.load(missing)
    monkeypatch.setenv("PHANTOM_TUN_CONFIG", str(missing))
    with pytest.raises(ConfigError, match="config default"):
        config.load()


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't read the configuration"):
        config.load(tmp_path)


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.toml").write_text("[node]\nport = 8443")
    monkeypatch.setenv("PHANTOM_TUN_CONFIG", str(tmp_path / "c.toml"))
    assert config.load().node.port == 8443
