"""What commands make of files that are somebody else's, and of the terminal's wishes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_helpers import Shell

import phantom_tun
from phantom_tun.cli.exits import ExitCode


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
@pytest.mark.usefixtures("node")
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("--socket control.sock status", ExitCode.NO_PERMISSION),
        ("--config theirs status", ExitCode.CONFIG),
        ("up --config theirs", ExitCode.CONFIG),
        ("override sign ban 203.0.113.0/24 --network network.toml --key theirs", ExitCode.CONFIG),
        ("override sign ban 203.0.113.0/24 --network theirs --key other", ExitCode.CONFIG),
        ("override verify command --network theirs", ExitCode.CONFIG),
        ("override keygen theirs", ExitCode.CONFLICT),
        ("network new other --output theirs", ExitCode.CONFLICT),
    ],
)
def test_files_that_only_another_user_may_read_have_our_own_codes(
    shell: Shell, command: str, code: ExitCode
) -> None:
    directory = shell.socket.parent
    for parent in (directory, directory.parent, directory.parent.parent):
        parent.chmod(parent.stat().st_mode | 0o055)
    shell.bare("network", "new", "one", "--output", str(directory / "network.toml"))
    (directory / "theirs").touch(mode=0o600)
    program = f"""
import os
import nacl.signing, phantom_tun.cli.lifecycle, phantom_tun.netdb.signing, phantom_tun.profile
import phantom_tun.netdb.overrides
from phantom_tun.cli.main import main
os.chdir({str(directory)!r})
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
main({command.split()!r})
"""
    environment = os.environ | {"PYTHONPATH": str(Path(phantom_tun.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("phantom-tun: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize(
    ("surroundings", "colours"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_colours_only_where_they_are_wanted(
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    surroundings: dict[str, str],
    *,
    colours: bool,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert ("\x1b" in shell.run("status").out) is colours
