"""Daemons in an interpreter that keeps less."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import phantom_tun
from phantom_tun.cli.plain import plain_run
from phantom_tun.daemon import slim

ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith("PHANTOM_TUN")},
    "PYTHONPATH": str(Path(phantom_tun.__file__).parents[1]),
}
PROGRAM = """
import os, sys
from pathlib import Path
from phantom_tun.daemon import slim
slim.bytecode = lambda: {bytecode!r}
slim.become_slim({arguments})
print(os.getpid(), sys.flags.optimize, sys.pycache_prefix, sys.argv[1:], os.environ.get("OTHER"),
      "PHANTOM_TUN_SLIM" in os.environ, os.read(int(sys.argv[1]), 5), slim.__doc__ is None)
"""


def started(tmp_path: Path, bytecode: Path, arguments: str = "sys.argv[1:]") -> list[str]:
    """What a program said that becomes slim, without its process id, which stayed."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(bytecode=str(bytecode), arguments=arguments))
    reading, writing = os.pipe()
    os.write(writing, b"inherited"[:5])
    process = subprocess.Popen(
        [sys.executable, "-P", str(program), str(reading), "two words"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {"OTHER": "kept"},
        pass_fds=[reading],
    )
    os.close(reading)
    os.close(writing)
    said, errors = process.communicate(timeout=60)
    pid, rest = said.split(" ", maxsplit=1)
    assert int(pid) == process.pid, errors
    return rest.replace(f"'{reading}'", "HANDLE").split()


def test_the_process_stays_and_so_does_what_it_was_given(tmp_path: Path) -> None:
    said = started(tmp_path, tmp_path)
    given = ["[HANDLE,", "'two", "words']", "kept", "False", "b'inher'"]
    assert said == ["2", str(tmp_path), *given, "True"]


def test_where_nothing_is_compiled_it_runs_as_it_is(tmp_path: Path) -> None:
    assert started(tmp_path, tmp_path / "none")[:2] == ["0", "None"]


@pytest.mark.parametrize("arguments", ["[]", "['run']", "sys.argv[1:] + ['more']"])
def test_a_command_line_of_somebody_else_is_not_repeated(tmp_path: Path, arguments: str) -> None:
    assert started(tmp_path, tmp_path, arguments)[0] == "0"


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands that this process would have become."""
    found: list[list[str]] = []

    def execve(_path: str, command: list[str], _environment: dict[str, str]) -> None:
        found.append(command)
        raise OSError

    monkeypatch.setattr(slim.os, "execve", execve)
    monkeypatch.setattr(slim, "bytecode", lambda: str(tmp_path))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-P", "/usr/bin/phantom-tun", "run"])
    return found


def test_what_cannot_be_executed_is_no_error(executed: list[list[str]]) -> None:
    slim.become_slim(["run"])
    assert executed == [[sys.executable, *slim.flags(), "-P", "/usr/bin/phantom-tun", "run"]]


def test_an_interpreter_that_ignores_what_it_is_told_is_asked_once(
    executed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHANTOM_TUN_SLIM", "1")
    slim.become_slim(["run"])
    assert executed == []
    assert "PHANTOM_TUN_SLIM" not in os.environ


def test_an_unknown_interpreter_stays(
    executed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", None)
    slim.become_slim(["run"])
    assert executed == []


def test_only_the_daemon_becomes_slim() -> None:
    """Help is made of docstrings."""
    assert plain_run(["run", "--help"]) is None
    assert plain_run(["status"]) is None
    assert plain_run(["run"]) is not None


def test_everything_a_daemon_imports_is_compiled(tmp_path: Path) -> None:
    """Also for those who can't write there."""
    flags = ["-OO", "-X", f"pycache_prefix={tmp_path}"]
    writing = {key: value for key, value in ENVIRONMENT.items() if key != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(
        [sys.executable, *flags, "-m", "phantom_tun.daemon.compiling"], env=writing, check=True
    )
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "import phantom_tun.__main__\n"
        "from phantom_tun.daemon import lean\n"
        "lean.import_decoder_alone()\n"
        "lean.import_logs_alone()\n"
        "from phantom_tun.daemon import start\n"
        "start.load_node()\n"
        "import phantom_tun.owner, phantom_tun.view.why, phantom_tun.daemon.worker_process\n"
        "cached = {m.__file__: m.__spec__.cached for m in sys.modules.values()\n"
        "          if getattr(m, '__file__', None) and m.__spec__ and m.__spec__.cached}\n"
        "print([f for f, pyc in cached.items() if f.endswith('.py') and not Path(pyc).exists()])\n"
    )
    done = subprocess.run(
        [sys.executable, *flags, "-B", "-c", program],
        env=ENVIRONMENT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "[]\n"
