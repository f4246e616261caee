"""What all commands have in common: words for people, output for programs, help."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from cli_helpers import Shell

from phantom_tun.cli import main, text
from phantom_tun.cli.exits import ExitCode
from phantom_tun.lab import errors as lab_errors

DOCS = Path(__file__).parents[2] / "docs"


# --- words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "under 1 ms"),
        (0.0006, "1 ms"),
        (0.04, "40 ms"),
        (0.0994, "99 ms"),
        (0.1, "0.1 s"),
        (9.94, "9.9 s"),
        (42.4, "42 s"),
        (59.6, "1 min"),
        (3599.4, "59 min"),
        (11_400, "3 h 10 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert text.duration(seconds) == said


def test_tables_are_aligned_and_never_shortened() -> None:
    wide = "x" * 300
    assert list(text.columns(("a", "b", "c"), [("1", wide, ""), ("22", "y", "z")])) == [
        f"a   b{' ' * 299}  c",
        f"1   {wide}",
        f"22  y{' ' * 299}  z",
    ]
    assert list(text.columns(("a", "b"), [])) == ["a  b"]


def test_text_is_wrapped_at_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    long = f"name       \x1b[31mred\x1b[0m and {'x' * 30} and\nmore"
    monkeypatch.setenv("COLUMNS", "24")
    assert text.fitted(long, hang=11) == long
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert text.fitted(long, hang=11).splitlines() == [
        "name       \x1b[31mred\x1b[0m and",
        f"           {'x' * 30}",
        "           and",
        "more",
    ]
    assert text.fitted("") == ""


@pytest.mark.parametrize(
    ("room", "heads"),
    [(40, "one    two     three"), (18, "one    two"), (12, "one    two"), (3, "one    two")],
)
def test_a_narrow_terminal_gets_the_first_columns(
    monkeypatch: pytest.MonkeyPatch, room: int, heads: str
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(room))
    rows = [("first", "second", "third")]
    table = text.fitting_columns(("one", "two", "three"), rows, least=2)
    assert next(table) == heads
    dropped = "three" not in heads
    assert ("no room for three:" in " ".join("\n".join(table).split())) == dropped
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    assert "third" in list(text.fitting_columns(("one", "two", "three"), rows, least=2))[1]


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**50, "1024.0 TiB")]
)
def test_sizes(count: int, said: str) -> None:
    assert text.size(count) == said


def every_command(group: Any, *before: str) -> Iterator[tuple[str, Any]]:
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if hasattr(command, "list_commands"):
            yield from every_command(command, *before, name)
        else:
            yield " ".join((*before, name)), command


SILENT = {
    # They do something and say so,
    *("up", "down", "run", "address remove", "tunnels close", "pins remove"),
    *(
        "network new",
        "network join",
        "guard set",
        "guard remove",
        "lab up",
        "lab exec",
        "lab kill",
        "lab stop",
        "lab start",
    ),
    *("lab pause", "lab resume", "lab down"),
    # or print a file.
    *("network invite", "config default", "override sign"),
}


def test_every_command_that_shows_something_does_so_for_programs_too() -> None:
    without = {
        name
        for name, command in every_command(typer.main.get_command(main.app))
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert without == SILENT


def test_every_command_and_option_says_what_it_is_for() -> None:
    for name, command in every_command(typer.main.get_command(main.app)):
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, (name, parameter.name)


def every_group(group: Any, *before: str) -> Iterator[tuple[str, ...]]:
    yield before
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if hasattr(command, "list_commands"):
            yield from every_group(command, *before, name)


@pytest.mark.parametrize("words", [*every_group(typer.main.get_command(main.app))], ids=" ".join)
def test_lists_of_commands_fit_an_ordinary_terminal(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _usage, *lines = shell.bare(*words, "--help").out.splitlines()
    assert [line for line in lines if line.endswith("...")] == []


def test_exit_codes_stay_what_they_are() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0,
        "FAILED": 1,
        "USAGE": 2,
        "NO_DAEMON": 3,
        "NO_PERMISSION": 4,
        "NOT_FOUND": 5,
        "TIMEOUT": 6,
        "CONFIG": 7,
        "CONFLICT": 8,
        "UNAVAILABLE": 9,
        "INTERRUPTED": 130,
    }


@pytest.mark.parametrize("command", ["status", "down", "exec n1 true"])
def test_a_lab_of_root_is_only_root_s(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "labs" / "one").mkdir(parents=True)
    monkeypatch.setattr("phantom_tun.lab.record.SYSTEM_ROOT", tmp_path / "labs")
    monkeypatch.setattr("phantom_tun.lab.lifecycle.default_root", lambda: tmp_path / "mine")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    verb, *rest = command.split()
    done = shell.bare("lab", verb, "--name", "one", *rest)
    assert (done.code, done.out) == (lab_errors.NotPrivileged.exit_code, "")
    assert done.err == "phantom-tun: lab 'one' is root's: use sudo\n"


def test_exit_codes_of_labs_have_a_meaning_and_are_no_others() -> None:
    kinds: list[Any] = [lab_errors.LabFailed, lab_errors.LabUsageError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    own = {kind.exit_code for kind in kinds} - {ExitCode.USAGE}
    of_what_exec_runs = {126, 127}
    assert own == set(lab_errors.MEANINGS) - of_what_exec_runs
    assert not own & set(ExitCode)
    table = (DOCS / "lab.md").read_text()
    for code in own:
        assert f"\n| {code} | " in table


def test_the_manual_page_names_every_command() -> None:
    page = (DOCS / "man" / "phantom-tun.1").read_text()
    for name, _command in every_command(typer.main.get_command(main.app)):
        escaped = name.replace("-", "\\-")
        assert f"\n\\fB{escaped}\\fR" in page


def test_the_program_has_every_command() -> None:
    expected = (
        "up down run status address expose unexpose paths tunnels peers ping why netdb pins "
        "override network config guard lab exit-codes version"
    )
    group: Any = typer.main.get_command(main.app)
    assert group.list_commands(None) == expected.split()
