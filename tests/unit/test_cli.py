"""Commands against a node without a network: status, how every command ends, what it costs."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from cli_helpers import Shell

import phantom_tun
from phantom_tun.cli import exits
from phantom_tun.cli.exits import CommandFailed, ExitCode
from phantom_tun.control.client import ControlClient
from phantom_tun.control.model import OverrideInfo, PeerInfo, Statistics
from phantom_tun.control.schema import ControlError, ErrorCode
from phantom_tun.errors import (
    ConfigError,
    DeadlineExpired,
    LinkBroken,
    PathUnavailable,
    PhantomError,
    UsageError,
)
from phantom_tun.testing.fake_backend import FAR4, FakeBackend

FAR = str(FAR4)


# --- status and peers --------------------------------------------------------------------------


def test_status_says_which_known_nodes_are_of_no_use(shell: Shell, node: FakeBackend) -> None:
    assert "can be in paths" not in shell.run("status").out
    node.unusable = {"not dialable": 2, "not relaying": 1}
    lines = shell.run("status").out.splitlines()
    assert f"{'':10} 9 of them can be in paths; the others: 2 not dialable, 1 not relaying" in lines
    assert shell.run("status", "--json").json["netdb"]["unusable"] == node.unusable


def test_status_says_what_matters(shell: Shell, node: FakeBackend) -> None:
    node.warnings = ("no trusted guard is configured",)
    done = shell.run("status")
    assert done.code == 0
    for line in (
        "phantom-tun 0.1.0 is ready (process 4711, up 1 h 2 min)",
        "network    example (99999999): 12 other nodes known, records of 34 addresses kept",
        "node       aaaaaaaa, other nodes reach it",
        "interface  phantom0",
        "address    default  241.0.0.1  2001:2f:1::1",
        "  out      you ─●─●─●─▶  2 exit paths ready, 3 hops",
        "  in       you ◀─●─●─●─  2 entry paths ready, 3 hops",
        "links      5 for messages, 7 for data (3 in use)",
        "tunnels    8 waiting, 1 in use, 2 relayed for others",
        "builds     4 of 5 path builds succeeded, median 0.7 s",
        "dropped    of what nodes and programs sent: 2 answers that came too late",
        "warning: no trusted guard is configured",
    ):
        assert line in done.out.splitlines()


def test_status_shows_what_paths_do_not_hide(shell: Shell, node: FakeBackend) -> None:
    node.hops = 0
    assert "  out      you ─▶  2 exit paths ready, no hops: hides nothing" in (
        shell.run("status").out.splitlines()
    )


def test_status_shows_missing_paths(shell: Shell, node: FakeBackend) -> None:
    node.paths_ready = 0
    assert "  in       no path yet" in shell.run("status").out.splitlines()


def test_status_for_programs(shell: Shell, node: FakeBackend) -> None:
    status = shell.run("status", "--json").json
    assert status["state"] == "ready"
    assert status["identities"][0]["ap4"] == "241.0.0.1"
    assert status["builds"] == {"tried": 5, "succeeded": 4, "median_s": 0.71, "shortage": ""}


def test_counters(shell: Shell, node: FakeBackend) -> None:
    assert "tun.dropped 6" in shell.run("status", "--counters").out.splitlines()
    answer = shell.run("status", "--counters", "--json").json
    assert answer["groups"]["tun"]["dropped"] == 6


def test_counters_for_people_have_no_zeros(
    shell: Shell, node: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = {"idle": {"opened": 0}, "tun": {"packets": 345, "none": 0, "dropped_by_kernel": 6}}

    async def statistics(_node: FakeBackend) -> Statistics:
        return Statistics(groups)

    monkeypatch.setattr(FakeBackend, "statistics", statistics)
    assert "idle.opened 0" in shell.run("status", "--counters").out.splitlines()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert unstyled(shell.run("status", "--counters").out).splitlines() == [
        "tun",
        "  packets            345",
        "  dropped_by_kernel    6",
    ]


def unstyled(written: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", written)


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("status", "--counters"),
        ("address", "list"),
        ("address", "show", "default"),
        ("expose", "80"),
        ("paths", "list"),
        ("pins", "list"),
        ("why", "250.9.9.9", "80"),
        ("override", "send", "-"),
        ("override", "list"),
    ],
    ids=" ".join,
)
def test_what_people_see_fits_an_ordinary_terminal(
    shell: Shell, node: FakeBackend, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    node.warnings = ("this machine's connection is bad, or nodes come and go, " * 5,)
    node.missing = ("an exit path", "an entry path", "its IPv4 address 250.1.2.3 to be claimed")
    command = OverrideInfo(1, "cd" * 32, "ban node", "ab" * 32, 1e9, 2e9, "over_budget")
    node.given = {"AAAA": command}
    node.sent = ["AAAA"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"AAAA\n")))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    lines = unstyled(shell.run(*words).out).splitlines()
    assert lines
    assert [line for line in lines if len(line) > 80] == []


def test_errors_fit_a_terminal_and_stay_one_line_elsewhere(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    whole = shell.run("status").err
    assert whole.count("\n") == 1
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    first, *others = shell.run("status").err.splitlines()
    assert first.startswith("phantom-tun: ")
    assert others
    assert all(line.startswith("    ") for line in others)
    assert " ".join([first, *map(str.strip, others)]) == whole.strip()


def test_peers(shell: Shell, node: FakeBackend) -> None:
    out = shell.run("peers").out
    assert re.search(r"01010101 +3 +yes +192\.0\.2\.1:443 +signalling, path member", out)
    assert [peer["guard"] for peer in shell.run("peers", "--json").json] == [True, False]
    assert shell.run("peers", "list").out == out
    assert shell.run("peers", "list", "--json").json == shell.run("peers", "--json").json


@pytest.mark.usefixtures("node")
def test_who_has_no_peers_is_told_so(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody(_node: FakeBackend) -> tuple[PeerInfo, ...]:
        return ()

    monkeypatch.setattr(FakeBackend, "peers", nobody)
    done = shell.run("peers")
    assert (done.code, done.out.startswith("this node has no link to any other")) == (0, True)
    assert shell.run("peers", "--json").json == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("lab", "up", "--nodes", "x"), "'--nodes': must be a whole number"),
        (("lab", "up", "--nodes", "3.5"), "'--nodes': must be a whole number"),
        (("up", "--timeout", "x"), "'--timeout': must be a number"),
        (("up", "--timeout", "0"), "'--timeout': must be 1 or more"),
        (("up", "--port", "65536"), "'--port': must be 65535 or less"),
        (("ping", "-c", "0", FAR), "must be 1 or more"),
    ],
)
def test_a_value_that_makes_no_sense_is_explained_in_words(
    shell: Shell, arguments: tuple[str, ...], said: str
) -> None:
    done = shell.run(*arguments)
    assert done.code == ExitCode.USAGE
    assert said in done.err
    assert "Input should" not in done.err


# --- exit codes and errors ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("peers",),
        ("address", "list"),
        ("expose", "80"),
        ("unexpose", "80"),
        ("expose", "--list"),
        ("paths", "list"),
        ("paths", "rebuild"),
        ("tunnels", "list"),
        ("ping", FAR),
        ("why", FAR),
        ("netdb", "get", FAR),
        ("pins", "list"),
        ("pins", "accept", FAR),
        ("pins", "remove", FAR),
    ],
)
def test_without_daemon_every_command_says_the_same(
    shell: Shell, arguments: tuple[str, ...]
) -> None:
    done = shell.run(*arguments)
    assert done.code == ExitCode.NO_DAEMON
    assert done.err.startswith("phantom-tun: no phantom-tun daemon answers at ")
    assert "phantom-tun up" in done.err
    assert done.err.count("\n") == 1


def test_no_permission_is_one_sentence(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("socket.socket.connect", refuse)
    done = shell.run("status")
    assert done.code == ExitCode.NO_PERMISSION
    assert "use sudo" in done.err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_another_user_is_denied(shell: Shell, node: FakeBackend) -> None:
    shell.socket.chmod(0o666)
    Path(shell.socket.parent).chmod(0o755)
    code = f"""
import os
from pathlib import Path
from phantom_tun.control.client import ControlClient
from phantom_tun.control.schema import ControlError, GetStatus
os.chdir({str(shell.socket.parent)!r})
os.setresuid(65534, 65534, 65534)
try:
    ControlClient(Path("control.sock")).call(GetStatus())
except ControlError as error:
    print(error.code, error)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.stdout.startswith("denied uid 65534 may not control this node"), done


def test_exit_codes_are_listed(shell: Shell) -> None:
    usual, of_labs = shell.bare("exit-codes").out.split("\n\n")
    assert [int(line.split()[0]) for line in usual.splitlines()] == [int(code) for code in ExitCode]
    head, *lines = of_labs.splitlines()
    assert head.startswith("lab commands")
    assert [int(line.split()[0]) for line in lines] == [*range(40, 49), 126, 127]
    told = shell.bare("exit-codes", "--json").json
    assert told["3"].startswith("no daemon")
    assert told["43"] == "there is no such lab"
    assert "see the verdict" in told["1"]


def test_every_error_code_has_an_exit_code() -> None:
    codes = {code: exits.exit_code(ControlError(code, "x")) for code in get_args(ErrorCode)}
    assert codes["not_found"] == 5
    assert ExitCode.OK not in codes.values()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), ExitCode.CONFIG),
        (UsageError("x"), ExitCode.USAGE),
        (DeadlineExpired("x"), ExitCode.TIMEOUT),
        (PathUnavailable("x"), ExitCode.UNAVAILABLE),
        (LinkBroken("x"), ExitCode.FAILED),
        (CommandFailed(ExitCode.CONFLICT, "x"), ExitCode.CONFLICT),
    ],
)
def test_every_error_has_an_exit_code(error: PhantomError, code: ExitCode) -> None:
    assert exits.exit_code(error) == code


def test_usage_errors_have_code_2(shell: Shell) -> None:
    for arguments in (("statsu",), ("status", "--no"), ("ping",), ("ping", FAR, "-c", "0")):
        done = shell.bare(*arguments)
        assert done.code == ExitCode.USAGE
        assert "Error: " in done.err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "/etc/x"), "/etc/x: No space left on device"),
        (OSError("something odd"), "something odd"),
    ],
)
def test_what_nobody_expected_of_the_machine_is_one_sentence(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, error: OSError, said: str
) -> None:
    def fail(*_arguments: Any) -> None:
        raise error

    monkeypatch.setattr(ControlClient, "call", fail)
    done = shell.run("status")
    assert (done.code, done.err) == (ExitCode.FAILED, f"phantom-tun: {said}\n")


def test_the_way_to_start_a_node_of_a_lab_is_named(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHANTOM_TUN_START", "phantom-tun lab start n5")
    assert "start one with 'phantom-tun lab start n5', or" in shell.run("status").err


def test_version(shell: Shell) -> None:
    assert shell.bare("--version").out == f"phantom-tun {phantom_tun.__version__}\n"
    assert shell.bare("version").out == f"phantom-tun {phantom_tun.__version__}\n"
    assert shell.bare("version", "--json").json == {"version": phantom_tun.__version__}


# --- what commands cost ------------------------------------------------------------------------


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(phantom_tun.__file__).parents[1])}


@pytest.mark.parametrize(
    ("arguments", "too_heavy"),
    [
        (["--help"], ("scapy", "cryptography", "nacl", "trio", "structlog", "rich", "ssl")),
        (["--version"], ("scapy", "cryptography", "nacl", "trio", "structlog", "rich", "ssl")),
        (["lab"], ()),
        (["status"], ("scapy", "cryptography", "nacl", "trio", "structlog", "rich", "ssl")),
        (["config", "default"], ("scapy", "cryptography", "trio", "structlog")),
        (["network", "show"], ("scapy", "trio", "structlog")),
    ],
)
def test_small_commands_import_little(arguments: list[str], too_heavy: tuple[str, ...]) -> None:
    code = f"""
import sys
sys.argv = ["phantom-tun", "--socket", "/nonexistent/control.sock", *{arguments!r}]
from phantom_tun.cli.main import main
try:
    main()
except SystemExit:
    print("LOADED", *[name for name in {too_heavy!r} if name in sys.modules])
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "LOADED", done
