"""``guard``: the leak guard without the node, with tools that only keep notes.

``tests/netns/test_guard.py`` has what becomes of packets.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from cli_helpers import Shell, answering
from conftest import Tools

from phantom_tun import places
from phantom_tun.cli.exits import ExitCode
from phantom_tun.testing.fake_backend import FakeBackend

IP = """
routes=${0%/*}/routes
case "$*" in
    *"route replace"*) echo "$@" >> "$routes" ;;
    *"-4 route show"*) /bin/grep -s -e "^-4.*240.0.0.0/4" "$routes" ; exit 0 ;;
    *"-6 route show"*) /bin/grep -s -e "^-6.*2001:2f::/32" "$routes" ; exit 0 ;;
    *"route del"*) : > "$routes" ;;
esac"""
"""An ip whose routes are a file; to delete one of them deletes all."""

NFT = """
rules=${0%/*}/rules
case "$*" in
    *list*) exec /bin/cat "$rules" ;;
    *) /bin/cat > "$rules"; /bin/grep -q chain "$rules" || /bin/rm "$rules" ;;
esac"""
"""An nft whose rules are a file."""


@pytest.fixture
def machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shell]:
    monkeypatch.delenv("PHANTOM_TUN_SOCKET", raising=False)
    monkeypatch.delenv("PHANTOM_TUN_CONFIG", raising=False)
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(places, "is_relay_only", lambda: False)
    shell = Shell(capsys, tmp_path / "control.sock")
    assert shell.bare("network", "new", "home").code == 0
    yield shell
    structlog.reset_defaults()


def test_it_is_set_shown_and_removed(machine: Shell, tools: Tools) -> None:
    log = tools(ip=IP, nft=NFT)
    nothing = {"needed": True, "routes": False, "filter": False}
    assert machine.run("guard", "show", "--json").json == nothing
    assert "'phantom-tun guard set' sets it" in machine.run("guard", "show").out

    done = machine.run("guard", "set")
    assert (done.code, done.out) == (0, "AP addresses stay off other networks\n")
    shown = machine.run("guard", "show")
    assert shown.out == "routes  there\nfilter  there\n"

    assert machine.run("guard", "remove").code == 0
    assert machine.run("guard", "show", "--json").json == nothing
    deleted = [line for line in log.read_text().splitlines() if "route del" in line]
    assert deleted[0] == "ip -4 route del unreachable 240.0.0.0/4 metric 4294967295"


def test_what_is_not_there_can_be_removed(machine: Shell, tools: Tools) -> None:
    log = tools(ip=IP, nft=NFT)
    assert machine.run("guard", "remove").code == 0
    assert "route del" not in log.read_text()


def test_a_running_node_keeps_it(machine: Shell, tools: Tools) -> None:
    log = tools(ip=IP, nft=NFT)
    with answering(machine.socket, FakeBackend()):
        done = machine.run("guard", "remove")
    assert done.code == ExitCode.CONFLICT
    assert "'phantom-tun down' first" in done.err
    assert log.read_text() == ""


@pytest.mark.parametrize("command", ["set", "remove", "show"])
def test_a_node_without_an_interface_needs_none(
    machine: Shell, tools: Tools, tmp_path: Path, command: str
) -> None:
    (tmp_path / "config.toml").write_text("[node]\nrelay_only = true\n")
    log = tools(ip=IP, nft=NFT)
    done = machine.run("guard", command)
    assert (done.code, "no interface" in done.out) == (0, True)
    assert log.read_text() == ""


@pytest.mark.parametrize("command", ["set", "remove", "show"])
def test_it_takes_privilege(
    machine: Shell, tools: Tools, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(places, "is_relay_only", lambda: True)
    log = tools(ip=IP, nft=NFT)
    done = machine.run("guard", command)
    assert (done.code, "as root" in done.err) == (ExitCode.NO_PERMISSION, True)
    assert log.read_text() == ""


def test_without_a_network_there_is_nothing_to_guard(
    machine: Shell, tools: Tools, tmp_path: Path
) -> None:
    tools(ip=IP, nft=NFT)
    (tmp_path / "network.toml").unlink()
    done = machine.run("guard", "set")
    assert done.code == ExitCode.CONFIG
    assert "network join" in done.err


def test_a_filter_that_fails_is_an_error_unless_it_is_optional(
    machine: Shell, tools: Tools, tmp_path: Path
) -> None:
    tools(ip=IP, nft="echo 'Error: Operation not supported' >&2; exit 1")
    done = machine.run("guard", "set")
    assert done.code == ExitCode.USAGE
    assert "can't be kept off other networks" in done.err
    (tmp_path / "config.toml").write_text("[interface]\nrequire_filter = false\n")
    done = machine.run("guard", "set")
    assert done.code == 0
    assert "whoever is on a network with this machine can find out" in done.out
