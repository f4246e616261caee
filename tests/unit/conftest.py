"""What the modules of this directory share.

Properties are tried with the same examples in every run and for as long as that takes: searching at
random is what ``scripts/fuzz`` does, and a busy machine is no failure.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_helpers import Shell, answering
from hypothesis import HealthCheck, settings

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
