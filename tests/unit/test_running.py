"""The daemon's way past the command-line library."""

import subprocess
import sys
from pathlib import Path

import pytest

from phantom_tun.cli.running import Changes, RunOptions, parse_plainly


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("run", RunOptions()),
        ("run --config a.toml", RunOptions(Path("a.toml"))),
        ("--config a.toml run --port 8443", RunOptions(Path("a.toml"), None, Changes(8443))),
        ("--socket /s run --relay-only", RunOptions(None, Path("/s"), Changes(relay_only=True))),
        ("run --no-overrides", RunOptions(changes=Changes(no_overrides=True))),
        ("run --port 65535", RunOptions(changes=Changes(65535))),
    ],
)
def test_a_plain_run_is_understood(line: str, options: RunOptions) -> None:
    assert parse_plainly(line.split()) == options


@pytest.mark.parametrize(
    "line",
    [
        "",
        "status",
        "run run",
        "run --help",
        "run --config",
        "run --config --relay-only",
        "run --config=a.toml",
        "run --port 0",
        "run --port 65536",
        "run --port -1",
        "run --port ²",
        "--relay-only run",
        "--port 1 run",
        "run --socket /s",
        "run more",
        "lab up run",
    ],
)
def test_everything_else_is_left_to_the_command_line_library(line: str) -> None:
    assert parse_plainly(line.split()) is None


def test_the_daemon_imports_nothing_it_does_not_need(tmp_path: Path) -> None:
    """Neither the command-line library nor what draws on terminals, and scapy not before there is
    an interface; an error still is one sentence and its own exit code."""
    code = (
        "import sys\n"
        f"sys.argv = ['phantom-tun', 'run', '--config', {str(tmp_path / 'none.toml')!r}]\n"
        "from phantom_tun.__main__ import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    import phantom_tun.daemon.start, phantom_tun.node\n"
        "    heavy = {'typer', 'pydantic', 'rich.console', 'pygments', 'scapy', 'asyncio'}\n"
        "    heavy |= {'phantom_tun.tun.interface', 'pytun'}\n"
        "    print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n"
    assert done.stderr.startswith("phantom-tun: there is no configuration file")
    assert done.returncode == 7
