"""Commands for addresses, what is exposed, and pins, against a node without a network."""

from __future__ import annotations

import io
import json
import re

import pytest
from cli_helpers import Shell, pinged

from phantom_tun.cli.exits import ExitCode
from phantom_tun.cli.session import print_json
from phantom_tun.testing.fake_backend import FAR4, FAR6, FakeBackend

FAR = str(FAR4)


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
    assert (done.code, done.err) == (
        1,
        "phantom-tun: nothing was deleted; --yes doesn't ask\n",
    )
    assert len(shell.run("address", "list", "--json").json) == 2
    monkeypatch.setattr("typer.confirm", lambda _question, **_options: True)
    assert shell.run("address", "remove", "2001:2f:1::2").out == "web is deleted\n"


def test_no_answer_to_a_question_is_no(
    shell: Shell, node: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    done = shell.run("address", "remove", "default")
    assert (done.code, done.out.strip()) == (ExitCode.FAILED, "")
    assert done.err.splitlines()[-1] == "phantom-tun: nothing was deleted; --yes doesn't ask"
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
