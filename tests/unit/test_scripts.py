"""The scripts say what they do, outside the virtual environment too, and do nothing else then."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
COMMANDS = sorted(path for path in SCRIPTS.iterdir() if path.is_file() and not path.suffix)


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("script", COMMANDS, ids=lambda script: script.name)
def test_help_only_helps(script: Path, option: str, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    done = subprocess.run(
        [script, option],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PHANTOM_TUN_VENV": str(venv)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 3
    assert not venv.exists()


def test_what_the_tests_dont_know_is_an_error() -> None:
    done = subprocess.run(
        [SCRIPTS / "test", "--unknown"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "scripts/test --fast" in done.stderr
