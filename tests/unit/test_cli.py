"""Every command against a node without a network: what it prints, how it ends."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import typer.main
from cli_helpers import Shell, answering

import phantom_tun
from phantom_tun.cli import completing, exits, main, text
from phantom_tun.cli.exits import CommandFailed, ExitCode
from phantom_tun.cli.session import print_json
from phantom_tun.control.client import ControlClient
from phantom_tun.control.model import OverrideInfo, PingReply, PingSummary, Statistics
from phantom_tun.control.schema import ControlError, ErrorCode
from phantom_tun.errors import (
    ConfigError,
    DeadlineExpired,
    LinkBroken,
    PathUnavailable,
    PhantomError,
    UsageError,
)
from phantom_tun.lab import errors as lab_errors
from phantom_tun.lab.record import LabRecord, LabStore, NodeRecord
from phantom_tun.testing.fake_backend import FAR4, FAR6, NODE_IDS, FakeBackend

FAR = str(FAR4)
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys, tmp_path / "control.sock")


@pytest.fixture
def node(shell: Shell) -> Iterator[FakeBackend]:
    backend = FakeBackend()
    with answering(shell.socket, backend):
        yield backend


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


# --- addresses and exposure --------------------------------------------------------------------


def test_the_life_of_an_address(shell: Shell, node: FakeBackend) -> None:
    done = shell.run("address", "new", "web")
    assert done.out == "web  241.0.0.2  2001:2f:1::2\n"
    assert done.err.splitlines() == [
        "waiting for an exit path and an entry path",
        "waiting for an entry path",
    ]
    done = shell.run("address", "new", "api", "--json")
    assert (done.json["ap4"], done.err) == ("241.0.0.3", "")
    node.missing = ("an exit path",)
    listed = shell.run("address", "list").out
    assert re.search(r"web +241\.0\.0\.2 +2001:2f:1::2 +0 +waits\n", listed)
    assert "web waits for an exit path" in listed
    assert "waits    for an exit path" in shell.run("address", "show", "web").out
    node.missing = ()
    listed = shell.run("address", "list").out
    assert re.search(r"web +241\.0\.0\.2 +2001:2f:1::2 +0 +ready", listed)
    names = [info["name"] for info in shell.run("address", "list", "--json").json]
    assert names == ["default", "web", "api"]
    shell.run("expose", "80", "--identity", "web")
    for selector in ("web", "241.0.0.2", "2001:2f:1::2"):
        shown = shell.run("address", "show", selector).out
        assert "IPv4     241.0.0.2 (held)" in shown
        assert "exposed  80/tcp of web to anybody" in shown
    assert shell.run("address", "show", "web", "--json").json["name"] == "web"
    assert shell.run("address", "remove", "web", "--yes").out == "web is deleted\n"
    assert shell.run("address", "show", "web").code == ExitCode.NOT_FOUND


def test_a_node_without_addresses_says_so(shell: Shell, node: FakeBackend) -> None:
    node.has_addresses = False
    assert "no AP addresses" in shell.run("address", "list").out
    assert shell.run("address", "list", "--json").json == []
    assert shell.run("address", "show", "default").err.endswith("there are: none\n")


def test_deleting_an_address_asks_first(
    shell: Shell, node: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.run("address", "new", "web")
    monkeypatch.setattr("typer.confirm", lambda _question, **_options: False)
    done = shell.run("address", "remove", "web")
    assert (done.code, done.err) == (1, "phantom-tun: nothing was deleted\n")
    assert len(shell.run("address", "list", "--json").json) == 2
    monkeypatch.setattr("typer.confirm", lambda _question, **_options: True)
    assert shell.run("address", "remove", "2001:2f:1::2").out == "web is deleted\n"


def test_no_answer_to_a_question_is_no(
    shell: Shell, node: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    done = shell.run("address", "remove", "default")
    assert (done.code, done.out.strip()) == (ExitCode.FAILED, "")
    assert done.err.splitlines()[-1] == "phantom-tun: nothing was deleted"
    assert "default" in shell.run("address", "list").out


def test_nothing_is_asked_about_an_address_that_is_not_there(
    shell: Shell, node: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typer.confirm", lambda *_arguments, **_options: pytest.fail("asked"))
    done = shell.run("address", "remove", "nope")
    assert (done.code, "no address of yours is 'nope'" in done.err) == (ExitCode.NOT_FOUND, True)


def test_an_interrupted_new_address_says_how_to_look(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinged(monkeypatch, interrupt=True)
    done = shell.run("address", "new", "web")
    assert (done.code, "phantom-tun address show web" in done.err) == (ExitCode.INTERRUPTED, True)


def test_a_service_that_is_not_there_is_a_note_and_no_error(
    shell: Shell, node: FakeBackend
) -> None:
    node.hint = "nothing listens on local port 80/tcp at the moment"
    done = shell.run("expose", "80")
    assert (done.code, done.out) == (0, "exposed: 80/tcp of default to anybody\n")
    assert done.err == f"phantom-tun: note: {node.hint}\n"
    done = shell.run("expose", "81", "--json")
    assert (done.json["hint"], done.err) == (node.hint, "")


def test_fractions_in_json_end_at_a_microsecond(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"rtt_ms": 1 / 3, "age_s": 2 / 3, "of": [{"min_ms": 2 / 3}, 1 / 3], "count": 3})
    assert json.loads(capsys.readouterr().out) == {
        "rtt_ms": 0.333,
        "age_s": 0.666667,
        "of": [{"min_ms": 0.667}, 0.333333],
        "count": 3,
    }


def test_exposing_and_taking_back(shell: Shell, node: FakeBackend) -> None:
    assert "nothing is exposed" in shell.run("expose", "--list").out
    assert shell.run("expose", "80").out == "exposed: 80/tcp of default to anybody\n"
    limited = shell.run("expose", "53/udp", "--to", FAR, "--to", str(FAR6), "--target-port", "5353")
    assert limited.out == (f"exposed: 53/udp of default (local port 5353) to {FAR}, {FAR6}\n")
    assert len(shell.run("expose", "--list").out.splitlines()) == 2
    listed = shell.run("expose", "--list", "--json").json
    assert [rule["to"] for rule in listed] == [["any"], [FAR, str(FAR6)]]
    assert shell.run("unexpose", "80/TCP").out == (
        "no longer exposed: 80/tcp of default to anybody\n"
    )
    assert shell.run("unexpose", "53/udp", "--json").json["target_port"] == 5353
    assert shell.run("expose", "80", "--json").json["port"] == 80


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("expose", "0"), ExitCode.USAGE, "port 0 doesn't exist: ports are 1 to 65535"),
        (("expose", "65536"), ExitCode.USAGE, "port 65536 doesn't exist"),
        (("expose", "http"), ExitCode.USAGE, "'http' is no port; write 80, 80/tcp or 53/udp"),
        (("expose", "8000-8010"), ExitCode.USAGE, "ranges of ports aren't supported"),
        (("expose", "8000:8010/udp"), ExitCode.USAGE, "name one port at a time"),
        (("expose", "-1"), ExitCode.USAGE, "-1"),
        (("expose", "80/sctp"), ExitCode.USAGE, "after the port comes /tcp or /udp"),
        (("expose", "80/"), ExitCode.USAGE, "after the port comes /tcp or /udp"),
        (("expose",), ExitCode.USAGE, "which port?"),
        (("expose", "80", "--list"), ExitCode.USAGE, "--list takes no port"),
        (("expose", "80", "--target-port", "0"), ExitCode.USAGE, "target port 0 doesn't exist"),
        (("expose", "80", "--to", "home"), ExitCode.USAGE, "'home' is not an IPv4 or IPv6"),
        (("expose", "80", "--identity", "no"), ExitCode.NOT_FOUND, "no address named 'no'"),
        (("unexpose", "80"), ExitCode.NOT_FOUND, "isn't exposed"),
        (("unexpose", "0"), ExitCode.USAGE, "port 0 doesn't exist"),
        (("address", "new", "default"), ExitCode.CONFLICT, "named 'default' already"),
        (("address", "new", "No Good"), ExitCode.USAGE, "'No Good' can't be a name: 1 to 32"),
        (("address", "new", "a" * 33), ExitCode.USAGE, "can't be a name"),
        (("address", "show", "no"), ExitCode.NOT_FOUND, "there are: default"),
        (("address", "remove", "no", "--yes"), ExitCode.NOT_FOUND, "no address of yours is 'no'"),
        (("address", "remove", "default", "--yes"), ExitCode.CONFLICT, "only address"),
        (("tunnels", "close", "t9"), ExitCode.NOT_FOUND, "no tunnel 't9'"),
        (("paths", "rebuild", "p9"), ExitCode.NOT_FOUND, "no path 'p9'"),
        (("ping", "home"), ExitCode.USAGE, "'home' is not an IPv4 or IPv6"),
        (("ping", "250.9.9.9", "-c", "1"), ExitCode.NOT_FOUND, "250.9.9.9"),
        (("why", "home"), ExitCode.USAGE, "'home' is not an IPv4 or IPv6"),
        (("why", FAR, "0"), ExitCode.USAGE, "port 0 doesn't exist"),
        (("why", FAR, "70000"), ExitCode.USAGE, "port 70000 doesn't exist: ports are 1 to 65535"),
        (("why", FAR, "53/udp"), ExitCode.USAGE, "only TCP ports can be tried"),
        (("why", FAR, "http"), ExitCode.USAGE, "'http' is no port; write 80 or 80/tcp\n"),
        (("why", FAR, "80-90"), ExitCode.USAGE, "ranges of ports aren't supported"),
        (("pins", "accept", "home"), ExitCode.USAGE, "'home' is not an IPv4 or IPv6"),
        (("pins", "accept", str(FAR6)), ExitCode.USAGE, "needs no pin"),
        (("pins", "remove", str(FAR6)), ExitCode.USAGE, "needs no pin"),
        (("pins", "accept", FAR, "--yes"), ExitCode.NOT_FOUND, "no other key"),
        (
            ("netdb", "get", "home"),
            ExitCode.USAGE,
            "nor a node id: all 64 hex digits, or at least 4",
        ),
        (
            ("netdb", "get", "abcd"),
            ExitCode.NOT_FOUND,
            "no node here has an id that begins with 'abcd'",
        ),
        (("netdb", "get", "0"), ExitCode.USAGE, "'0' is neither an AP address nor a node id"),
        (("netdb", "get", "250.9.9.9"), ExitCode.NOT_FOUND, "250.9.9.9"),
    ],
)
def test_mistakes_end_with_their_code_and_one_sentence(
    shell: Shell, node: FakeBackend, arguments: tuple[str, ...], code: ExitCode, said: str
) -> None:
    done = shell.run(*arguments)
    assert done.code == code
    assert said in done.err
    assert "Traceback" not in done.err


def test_exposing_twice_is_a_conflict(shell: Shell, node: FakeBackend) -> None:
    shell.run("expose", "80")
    done = shell.run("expose", "80")
    assert done.code == ExitCode.CONFLICT
    assert done.err.startswith("phantom-tun: port 80/tcp of 'default' is exposed already")
    assert done.err.count("\n") == 1


# --- completion --------------------------------------------------------------------------------


class Completing(Shell):
    """Where Tab is pressed."""

    def offered(self, line: str) -> list[str]:
        """What bash offers after ``phantom-tun`` and this."""
        words = f"phantom-tun --socket {self.socket} {line}"
        place = str(len(words.split(" ")) - 1)
        asked = {"COMP_WORDS": words, "COMP_CWORD": place, "_PHANTOM_TUN_COMPLETE": "complete_bash"}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in asked.items():
                patch.setenv(name, value)
            return self.bare().out.split()


@pytest.fixture
def tab(shell: Shell) -> Completing:
    return Completing(shell.capture, shell.socket)


def test_names_of_addresses_are_completed(
    tab: Completing, node: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab.run("address", "new", "web")
    monkeypatch.setattr(completing, "WITHIN_S", 10.0)
    assert tab.offered("address show ") == ["default", "web"]
    assert tab.offered("expose 80 --identity w") == ["web"]


def test_who_does_not_answer_at_once_completes_nothing(
    tab: Completing, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tab.offered("address show ") == []
    over = threading.Event()
    monkeypatch.setattr(ControlClient, "call", lambda *_arguments: over.wait() and ())
    monkeypatch.setattr(completing, "WITHIN_S", 0.0)
    assert tab.offered("address show ") == []
    over.set()


def test_what_can_be_signed_is_completed(tab: Completing) -> None:
    assert tab.offered("override sign ") == ["ban", "delete", "pin", "unban"]


def test_labs_and_their_nodes_are_completed(
    tab: Completing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "labs"
    root.mkdir()
    monkeypatch.setattr("phantom_tun.lab.record.default_root", lambda: root)
    monkeypatch.setattr("phantom_tun.lab.lifecycle.default_root", lambda: root)
    assert tab.offered("lab kill ") == []
    node = NodeRecord("n1", (), "", "", "", "", None, "", "", "", ())
    nodes = (node, msgspec.structs.replace(node, name="m2"))
    record = LabRecord("lab", "", False, 0, 0, "", "", nodes)
    store = LabStore(root, "lab")
    store.create()
    store.write(record)
    assert tab.offered("lab kill n") == ["n1"]
    assert tab.offered("lab status --name ") == ["lab"]
    assert tab.offered("lab kill --name other ") == []


# --- paths and tunnels -------------------------------------------------------------------------


def test_paths_are_drawn(shell: Shell, node: FakeBackend) -> None:
    out = shell.run("paths", "list").out
    assert "      ready · 12 min old, 47 min left · built in 0.7 s · 5 tunnels, 1 in use" in out
    assert "  p0  you ──▶ ● 01010101 ──▶ ● 02020202 ──▶ ● 03030303 exit node" in out
    assert "you ◀── ● 01010101 ◀── ● 02020202 ◀── ● 03030303 entry node" in out
    assert out.index("default · out, to others") < out.index("default · in, from others")
    assert "2 paths of 3 hops" in out
    assert "\x1b" not in out


def test_paths_without_hops_are_drawn(shell: Shell, node: FakeBackend) -> None:
    node.hops = 0
    assert "you are the exit node yourself" in shell.run("paths", "list").out


@pytest.mark.parametrize(
    ("relay_only", "said"),
    [
        (True, "this node has no AP addresses, so it has no paths of its own: it relays 2 tunnels"),
        (False, "there are no paths yet, the node is joining; 'phantom-tun status' shows"),
    ],
)
def test_no_paths_are_explained(
    shell: Shell, node: FakeBackend, relay_only: bool, said: str
) -> None:
    node.has_addresses, node.relay_only, node.state = False, relay_only, "joining"
    assert shell.run("paths", "list").out.startswith(said)
    assert shell.run("paths", "list", "--json").json == []


def test_paths_for_programs_have_ordered_node_ids(shell: Shell, node: FakeBackend) -> None:
    paths = shell.run("paths", "list", "--json").json
    assert paths[0]["nodes"] == list(NODE_IDS[:3])
    assert [path["kind"] for path in paths] == ["exit", "entry"]


def test_rebuilding_shows_progress_and_the_new_paths(shell: Shell, node: FakeBackend) -> None:
    lines = shell.run("paths", "rebuild").out.splitlines()
    assert lines[:2] == ["1 of 2: built a path for default", "2 of 2: built a path for default"]
    assert lines[3].startswith("  p10  you ──▶ ")
    assert [path["id"] for path in shell.run("paths", "rebuild", "p0", "--json").json] == ["p10"]


def test_a_rebuild_without_success_is_unavailable(shell: Shell, node: FakeBackend) -> None:
    node.fail_builds = True
    done = shell.run("paths", "rebuild")
    assert (done.code, "none of 3 builds" in done.err) == (ExitCode.UNAVAILABLE, True)


def test_tunnels(shell: Shell, node: FakeBackend) -> None:
    out = shell.run("tunnels", "list").out
    assert re.search(r"t1 +p0 +default +to +250\.1\.2\.3:80 +tcp +12 s +120\.6 KiB", out)
    assert shell.run("tunnels", "list", "--json").json[0]["bytes_out"] == 7890
    assert shell.run("tunnels", "close", "t1").out == "t1 is closed\n"
    assert shell.run("tunnels", "list", "--json").json == []


# --- probing -----------------------------------------------------------------------------------


def test_ping_looks_like_ping(shell: Shell, node: FakeBackend) -> None:
    done = shell.run("ping", FAR, "-c", "3", "-i", "0.01", "-W", "2")
    assert done.code == 0
    assert done.out.splitlines() == [
        "PING 250.1.2.3: 56 data bytes",
        "64 bytes from 250.1.2.3: seq=1 time=12.5 ms",
        "64 bytes from 250.1.2.3: seq=2 time=12.5 ms",
        "seq=3: no answer within 2.0 s",
        "--- 250.1.2.3 ping statistics ---",
        "3 sent, 2 received, 33 % lost",
        "round trip min/mean/max = 12.5/12.5/12.5 ms",
    ]


def test_a_ping_that_is_refused_leaves_standard_output_alone(
    shell: Shell, node: FakeBackend
) -> None:
    done = shell.run("ping", "250.9.9.9", "-c", "1")
    assert (done.code != 0, done.out) == (True, "")
    assert "250.9.9.9" in done.err


def test_ping_for_programs(shell: Shell, node: FakeBackend) -> None:
    answer = shell.run("ping", FAR, "-c", "2", "-i", "0.01", "-s", "100", "--json").json
    assert [reply["size"] for reply in answer["replies"]] == [108, 108]
    assert answer["summary"]["received"] == 2


def pinged(monkeypatch: pytest.MonkeyPatch, *replies: PingReply, interrupt: bool = False) -> None:
    def call(_client: Any, _request: Any, on_event: Any) -> PingSummary:
        for reply in replies:
            on_event(reply)
        if interrupt:
            raise KeyboardInterrupt
        return PingSummary.of([])

    monkeypatch.setattr(ControlClient, "call", call)


def test_ping_without_any_answer_is_a_timeout(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinged(monkeypatch, PingReply(1, 0, None), PingReply(2, 0, None, "port unreachable"))
    done = shell.run("ping", FAR, "-c", "2")
    assert done.code == ExitCode.TIMEOUT
    assert "2 sent, 0 received, 100 % lost" in done.out
    assert "seq=2: port unreachable" in done.out
    assert "phantom-tun why 250.1.2.3" in done.err


def test_an_interrupted_ping_still_sums_up(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    pinged(monkeypatch, PingReply(1, 64, 2.0), PingReply(2, 64, 4.0), interrupt=True)
    done = shell.run("ping", FAR)
    assert done.code == 0
    assert "2 sent, 2 received, 0 % lost" in done.out
    assert "2.0/3.0/4.0 ms" in done.out


def test_a_ping_interrupted_before_any_answer_claims_nothing(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinged(monkeypatch, interrupt=True)
    done = shell.run("ping", FAR)
    assert (done.code, done.err) == (ExitCode.INTERRUPTED, "")
    assert "0 sent, 0 received" in done.out


def test_other_commands_end_at_once_when_interrupted(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinged(monkeypatch, interrupt=True)
    assert shell.run("paths", "rebuild").code == ExitCode.INTERRUPTED


def test_why_names_each_step_and_the_verdict(shell: Shell, node: FakeBackend) -> None:
    done = shell.run("why", FAR, "80")
    assert done.code == 0
    assert done.out.splitlines() == [
        "interface  ok          0 ms  phantom0 is up",
        "record     ok         40 ms  found, port 80",
        "It works.",
    ]
    done = shell.run("why", "250.9.9.9")
    assert done.code == ExitCode.FAILED
    assert done.out.splitlines()[1:] == [
        "record     FAILED     40 ms  no record",
        "path       -",
        "Nobody owns this address.",
        "What to do: Ask its owner for the right one.",
    ]
    assert done.err == ""
    answer = shell.run("why", FAR, "--json").json
    assert (answer["verdict"]["reachable"], len(answer["steps"])) == (True, 2)


def test_why_says_on_a_terminal_what_it_is_trying(
    shell: Shell, node: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "…" not in shell.run("why", FAR).out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert "interface  …\rinterface  ok" in shell.run("why", FAR).out
    assert "…" not in shell.run("why", FAR, "--json").out


def test_netdb_get_shows_votes_and_dissent(shell: Shell, node: FakeBackend) -> None:
    out = shell.run("netdb", "get", FAR).out.splitlines()
    assert out[0] == "250.1.2.3: 4 nodes answered"
    assert out[1] == "  ap_key: 3 votes, 1 gave another one, expires in 23 h 53 min"
    assert "    sequence = 3" in out
    for key in (NODE_IDS[0], "0101", "01010101"):
        answer = shell.run("netdb", "get", key, "--json").json
        assert (answer["key"], answer["records"][0]["table"]) == (NODE_IDS[0], "node")


def test_netdb_get_shows_what_every_path_says(shell: Shell, node: FakeBackend) -> None:
    lines = shell.run("netdb", "get", FAR, "--votes").out.splitlines()
    heads, *rows = lines[lines.index("") + 1 :]
    assert heads.split() == ["path", "exit", "node", "says", "storers", "routes", "dissent"]
    assert [" ".join(row.split()) for row in rows] == [
        "1 04040404 key 66666666, edition 3 3 of 4 1 1 say key 55555555, edition 9",
        "2 05050505 nothing",
        "5 06060606 no answer: no answer in time",
    ]
    polls = shell.run("netdb", "get", FAR, "--votes", "--json").json["polls"]
    assert [poll["outcome"] for poll in polls] == ["found", "nothing", "failed"]
    assert shell.run("netdb", "get", FAR, "--json").json["polls"] == []
    for asked in (False, True):
        words = ("netdb", "get", FAR, "--json", *(["--encoded"] if asked else []))
        for record in shell.run(*words).json["records"]:
            assert ("encoded" in record) is asked


def test_netdb_get_shows_what_every_node_says(shell: Shell, node: FakeBackend) -> None:
    lines = shell.run("netdb", "get", NODE_IDS[0], "--votes").out.splitlines()
    assert [" ".join(line.split()) for line in lines[-3:]] == [
        "node says",
        "02020202 key 77777777, edition 1800000000",
        "03030303 nothing",
    ]


def test_netdb_get_ends_with_a_conflict_when_the_owner_has_changed(
    shell: Shell, node: FakeBackend
) -> None:
    node.netdb_warning = "the owner of 250.1.2.3 has changed"
    done = shell.run("netdb", "get", FAR)
    assert done.code == ExitCode.CONFLICT
    assert done.err == "phantom-tun: the owner of 250.1.2.3 has changed\n"
    assert "sequence = 3" in done.out
    assert shell.run("netdb", "get", FAR, "--json").json["warning"] == node.netdb_warning


# --- pins --------------------------------------------------------------------------------------


def test_changed_owners_are_listed_first_and_loudly(shell: Shell, node: FakeBackend) -> None:
    out = shell.run("pins", "list").out
    assert out.index("WARNING: THE OWNER OF 250.6.6.6 HAS CHANGED!") < out.index(FAR)
    for word in ("pinned", "offered", "11111111:", "22222222:", "over 3 paths"):
        assert word in out
    assert "phantom-tun pins accept 250.6.6.6" in out
    assert out.count("WARNING") == 1
    listed = shell.run("pins", "list", "--json").json
    assert [pin["change"] is None for pin in listed] == [False, True]


def test_without_pins_the_list_says_so(shell: Shell, node: FakeBackend) -> None:
    node.pinned.clear()
    assert shell.run("pins", "list").out.startswith("no address is pinned")
    assert shell.run("pins", "list", "--json").json == []


def test_accepting_a_key_asks_first(
    shell: Shell, node: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[str] = []
    answers = iter((False, True))

    def confirm(question: str, *, err: bool) -> bool:
        assert err
        questions.append(question)
        return next(answers)

    monkeypatch.setattr("typer.confirm", confirm)
    done = shell.run("pins", "accept", "250.6.6.6")
    assert (done.code, node.pinned["250.6.6.6"].change is None) == (1, False)
    assert "new key  22222222:" in done.err
    assert "nothing was changed" in done.err
    done = shell.run("pins", "accept", "250.6.6.6", "--json")
    assert done.json["fingerprint"].startswith("22222222:")
    assert len(questions) == 2
    done = shell.run("pins", "accept", "250.6.6.6")
    assert (done.code, len(questions)) == (ExitCode.NOT_FOUND, 2)


def test_accepting_without_a_question(shell: Shell, node: FakeBackend) -> None:
    done = shell.run("pins", "accept", "250.6.6.6", "--yes")
    assert done.out.startswith("250.6.6.6 belongs to 22222222:")


def test_forgetting_a_pin(shell: Shell, node: FakeBackend) -> None:
    assert shell.run("pins", "remove", FAR).out == f"{FAR} is no longer pinned\n"
    assert shell.run("pins", "remove", FAR).code == ExitCode.NOT_FOUND


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
        ("down",),
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


# --- words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
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
    *("network new", "network join", "lab up", "lab exec", "lab kill", "lab stop", "lab start"),
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
        "override network config lab exit-codes version"
    )
    group: Any = typer.main.get_command(main.app)
    assert group.list_commands(None) == expected.split()
