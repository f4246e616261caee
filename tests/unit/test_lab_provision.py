"""What the nodes of a lab find on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from phantom_tun import config, profile
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.errors import ConfigError
from phantom_tun.lab.errors import BadLabOption
from phantom_tun.lab.plan import LabPlan, plan_lab
from phantom_tun.lab.provision import (
    Users,
    check_settings,
    daemon_command,
    daemon_environment,
    node_files,
    provision,
)
from phantom_tun.node_keys import create_node_keys

AS_WE_ARE = Users(None)
NOBODY = Users(65534, ("make", "readable"))


def plan(*settings: str, nodes: int = 12, relay_only: int = 0) -> LabPlan:
    return plan_lab(name="t", nodes=nodes, settings=settings, relay_only=relay_only)


def configured(lab: LabPlan, directory: Path, index: int) -> config.Config:
    return config.load(node_files(directory, lab.nodes[index]).config)


def test_nodes_find_their_own_files_and_the_profile(tmp_path: Path) -> None:
    lab = plan(relay_only=1)
    provision(lab, tmp_path, AS_WE_ARE)
    first, last = configured(lab, tmp_path, 0), configured(lab, tmp_path, 11)
    assert first.node.state_dir == tmp_path / "nodes/n1/state"
    assert first.control.socket == tmp_path / "nodes/n1/control.sock"
    assert first.node.advertise == ("10.1.0.1", "fd50:1::1")
    assert first.node.port == 443
    assert first.interface.name == "phantom0"
    assert (first.paths.exit_hops, first.paths.entry_hops) == (3, 3)
    assert first.node.user == ""
    assert (first.node.relay_only, last.node.relay_only) == (False, True)
    assert profile.load(first.network.profile).name == "lab-t"


def test_the_lab_has_an_override_key_of_its_own(tmp_path: Path) -> None:
    provision(plan(), tmp_path, AS_WE_ARE)
    key = tmp_path / "override.key"
    assert key.stat().st_mode & 0o777 == 0o600
    public = SigningKey(bytes.fromhex(key.read_text())).public
    assert profile.load(tmp_path / "network.toml").override_keys == (public,)


def test_bootstrap_nodes_are_in_the_profile_with_the_keys_they_have(tmp_path: Path) -> None:
    lab = plan()
    provision(lab, tmp_path, AS_WE_ARE)
    network = profile.load(tmp_path / "network.toml")
    assert [str(node.address) for node in network.bootstrap] == ["10.1.0.1", "10.2.0.1", "10.3.0.1"]
    for node, line in zip(lab.nodes, network.bootstrap, strict=False):
        keys = create_node_keys(node_files(tmp_path, node).state)
        assert (line.node_id, line.certificate_hash) == (keys.node_id, keys.cert_hash)


def test_every_lab_is_another_network(tmp_path: Path) -> None:
    ids = set()
    for place in (tmp_path / "a", tmp_path / "b"):
        place.mkdir()
        provision(plan(nodes=2), place, AS_WE_ARE)
        ids.add(profile.load(place / "network.toml").network_id)
    assert len(ids) == 2


def test_overrides_win(tmp_path: Path) -> None:
    lab = plan("log.level=debug", "n2:paths.exit_hops=0", "n2:node.port=8443", "guards.trusted=[]")
    provision(lab, tmp_path, AS_WE_ARE)
    assert configured(lab, tmp_path, 0).log.level == "debug"
    assert configured(lab, tmp_path, 0).paths.exit_hops == 3
    assert configured(lab, tmp_path, 1).paths.exit_hops == 0
    assert configured(lab, tmp_path, 1).node.port == 8443


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("paths.exit_hosp=1", "exit_hops"),
        ("pahts.exit_hops=1", "paths"),
        ("n2:paths.exit_hops=9", "exit_hops"),
        ("log.level=loud", "log.level"),
    ],
)
def test_settings_are_checked_beforehand(setting: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^--set, at n[12]: .*{complaint}"):
        check_settings(plan(setting), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_paths_too_long_for_sockets(tmp_path: Path) -> None:
    with pytest.raises(BadLabOption, match="shorter --dir"):
        check_settings(plan(), Path("/" + "d" * 90))


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_ordinary_nodes_become_nobody_themselves(tmp_path: Path) -> None:
    lab = plan(nodes=2)
    provision(lab, tmp_path, NOBODY)
    files = node_files(tmp_path, lab.nodes[0])
    assert config.load(files.config).node.user == "65534"
    assert {path.stat().st_uid for path in files.directory.rglob("*")} == {65534}
    command = daemon_command(lab.nodes[0], Path("/ns"), files, NOBODY, ("daemon", "--config"))
    assert command[:4] == ("nsenter", "--net=/ns", "--wd=/", "--")
    assert command[4:] == ("make", "readable", "daemon", "--config", str(files.config))


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_relay_only_nodes_are_nobody_from_the_start(tmp_path: Path) -> None:
    lab = plan(nodes=2, relay_only=1)
    provision(lab, tmp_path, NOBODY)
    files = node_files(tmp_path, lab.nodes[1])
    assert config.load(files.config).node.user == ""
    command = daemon_command(lab.nodes[1], Path("/ns"), files, NOBODY, ("daemon", "--config"))
    assert command[4:8] == ("make", "readable", "setpriv", "--reuid=65534")
    assert command[-3:] == ("daemon", "--config", str(files.config))


def test_daemons_are_not_led_astray(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PHANTOM_TUN_SOCKET", "NOTIFY_SOCKET", "STATE_DIRECTORY", "LISTEN_FDS"):
        monkeypatch.setenv(name, "elsewhere")
    assert "elsewhere" not in daemon_environment().values()
