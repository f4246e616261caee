"""Commands for paths, tunnels and probing, against a node without a network."""

from __future__ import annotations

import re

import pytest
from cli_helpers import Shell, pinged

from phantom_tun.cli.exits import ExitCode
from phantom_tun.control.model import PingReply
from phantom_tun.testing.fake_backend import FAR4, NODE_IDS, FakeBackend

FAR = str(FAR4)


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
