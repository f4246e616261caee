"""The systemd files agree with the program and with systemd."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from phantom_tun import places
from phantom_tun.cli import background
from phantom_tun.config import NodeConfig
from phantom_tun.daemon.service import STOP_DEADLINE_S

DIRECTORY = Path(__file__).parents[2] / "systemd"
GUARD_UNIT = "phantom-tun-guard.service"


def settings(name: str) -> dict[str, list[str]]:
    """Every ``Key=value`` of a unit; a key may come several times."""
    found: dict[str, list[str]] = {}
    for line in (DIRECTORY / name).read_text().splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_the_unit_is_the_one_that_up_looks_for() -> None:
    assert (DIRECTORY / background.UNIT).exists()
    assert (DIRECTORY / background.SOCKET_UNIT).exists()


def test_the_unit_makes_the_directories_the_program_uses() -> None:
    unit = settings("phantom-tun.service")
    assert Path("/etc", *unit["ConfigurationDirectory"]) == places.SYSTEM_CONFIG
    assert Path("/var/lib", *unit["StateDirectory"]) == places.SYSTEM_STATE
    assert places.SYSTEM_SOCKET.parent == Path("/run", *unit["RuntimeDirectory"])
    assert unit["StateDirectoryMode"] == ["0700"]


def test_the_unit_gives_the_daemon_time_to_stop_by_itself() -> None:
    assert int(settings("phantom-tun.service")["TimeoutStopSec"][0]) > STOP_DEADLINE_S


def test_the_unit_runs_as_the_user_that_is_made() -> None:
    (user,) = settings("phantom-tun.service")["User"]
    assert user == NodeConfig().user
    assert f"u {user} " in (DIRECTORY / "phantom-tun.sysusers").read_text()
    assert f" {user} {user} " in (DIRECTORY / "phantom-tun.tmpfiles").read_text()


def test_the_guard_comes_with_the_node_and_finds_the_same_files() -> None:
    unit, guard = settings("phantom-tun.service"), settings(GUARD_UNIT)
    assert unit["Also"] == [GUARD_UNIT]
    for key in ("User", "Group", "ConfigurationDirectory"):
        assert guard[key] == unit[key]
    assert guard["ExecStart"] == ["/usr/bin/phantom-tun guard set"]
    assert "CAP_NET_ADMIN" in guard["AmbientCapabilities"]
    assert "network-pre.target" in guard["Before"][0]


def test_the_socket_is_the_default_port() -> None:
    port = NodeConfig().port
    assert settings("phantom-tun.socket")["ListenStream"] == [f"0.0.0.0:{port}", f"[::]:{port}"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    names = (background.UNIT, background.SOCKET_UNIT, GUARD_UNIT)
    for name in names:
        text = (DIRECTORY / name).read_text()
        (tmp_path / name).write_text(text.replace("/usr/bin/phantom-tun", "/bin/true"))
    units = [str(tmp_path / name) for name in names]
    command = ["systemd-analyze", "verify", "--man=no", *units]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    complaints = [line for line in done.stderr.splitlines() if "phantom-tun" in line]
    assert (done.returncode, complaints) == (0, [])
