"""What the modules of this directory share.

Properties are tried with the same examples in every run and for as long as that takes: searching at
random is what ``scripts/fuzz`` does, and a busy machine is no failure.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_helpers import Shell, answering
from hypothesis import HealthCheck, settings

import phantom_tun.tun.tools as tools_module
from phantom_tun.testing.fake_backend import FakeBackend

settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Where commands for :func:`node` are typed."""
    return Shell(capsys, tmp_path / "control.sock")


@pytest.fixture
def node(shell: Shell) -> Iterator[FakeBackend]:
    """A node without a network."""
    backend = FakeBackend()
    with answering(shell.socket, backend):
        yield backend


Tools = Callable[..., Path]


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    """Shell scripts in place of the tools; returns the file in which they note their arguments."""
    log = tmp_path / "log"
    log.touch()

    def make(**scripts: str) -> Path:
        for name, body in scripts.items():
            path = tmp_path / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\n{body}\n')
            path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        # Or tests that run as root would change this machine.
        monkeypatch.setattr(tools_module, "_ADMIN_PATH", str(tmp_path / "sbin"))
        return log

    return make
