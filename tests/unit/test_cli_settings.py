"""``config``, ``network`` and the manual page."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_helpers import Outcome, Shell, answering

from phantom_tun import config, profile
from phantom_tun.cli import manpage, settings
from phantom_tun.cli.exits import ExitCode
from phantom_tun.testing.fake_backend import OWN_ID, FakeBackend

LINE = f"{'01' * 32}@192.0.2.1:443#{'02' * 32}"


class Machine(Shell):
    """A machine whose node has its files in a directory of the test."""

    @property
    def directory(self) -> Path:
        return self.socket.parent

    @property
    def profile(self) -> Path:
        return self.directory / "network.toml"

    def write(self, text: str, name: str = "config.toml") -> Path:
        path = self.directory / name
        path.write_text(text)
        return path

    def new(self, *arguments: str) -> Outcome:
        return self.bare("network", "new", *arguments)


@pytest.fixture
def machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machine]:
    monkeypatch.delenv("PHANTOM_TUN_SOCKET", raising=False)
    monkeypatch.delenv("PHANTOM_TUN_CONFIG", raising=False)
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    return Machine(capsys, tmp_path / "control.sock")


# --- config ------------------------------------------------------------------------------------


def test_the_default_configuration_is_a_file_to_start_from(machine: Machine) -> None:
    done = machine.bare("config", "default")
    assert done.code == 0
    assert config.parse(done.out.encode(), source=Path("/c.toml")) == config.Config()
    assert "# The port; anything but 443 is easier to block.\nport = 443\n" in done.out


def test_the_configuration_in_force_is_shown(machine: Machine) -> None:
    machine.write("[node]\nport = 8443\n")
    assert "port = 8443\n" in machine.bare("config", "show").out
    answer = machine.bare("config", "show", "--json").json
    assert answer["node"]["port"] == 8443
    assert answer["network"]["profile"] == str(machine.profile)


def test_a_wrong_configuration_is_one_sentence_for_every_command(machine: Machine) -> None:
    path = machine.write("[node]\nport = 0\n")
    for command in (("config", "show"), ("status",), ("network", "show"), ("run",), ("up",)):
        done = machine.bare(*command)
        assert done.code == ExitCode.CONFIG
        assert (
            done.err == f"phantom-tun: {path}: node.port: must be a whole number from 1 to 65535\n"
        )


def test_a_named_configuration_must_exist(machine: Machine) -> None:
    done = machine.bare("--config", "/nonexistent/c.toml", "config", "show")
    assert done.code == ExitCode.CONFIG
    assert "'mkdir -p /nonexistent; phantom-tun config default > /nonexistent/c.toml'" in done.err
    done = machine.bare("--config", "/nonexistent.toml", "config", "show")
    assert "'phantom-tun config default > /nonexistent.toml'" in done.err


def test_comments_fit_an_ordinary_terminal(machine: Machine) -> None:
    lines = machine.bare("config", "default").out.splitlines()
    assert max(len(line) for line in lines if line.startswith("#")) <= 80


def test_what_would_stop_a_daemon_is_found_before(machine: Machine) -> None:
    machine.new("home")
    machine.write('[node]\nadvertise = ["192.0.2.1"]\nuser = ""\n')
    done = machine.bare("config", "check")
    assert (done.code, done.out) == (0, "nothing is wrong with it\n")
    assert machine.bare("config", "check", "--json").json == {"problems": []}
    machine.profile.unlink()
    machine.write(
        '[node]\nadvertise = ["192.0.2.1"]\nuser = ""\nweb_page = "no.html"\n'
        '[control]\ngroup = "nobody-is-in-this"\n'
    )
    done = machine.bare("config", "check")
    assert done.code == ExitCode.CONFIG
    assert done.out == ""
    page = machine.directory / "no.html"
    for said in ("no network profile at", f"web_page: can't read {page}: No such", "no group"):
        assert said in done.err
    answer = machine.bare("config", "check", "--json")
    assert answer.code == ExitCode.CONFIG
    assert len(answer.json["problems"]) == 3


def test_all_wrong_keys_are_found_at_once(machine: Machine) -> None:
    assert machine.new("home").code == 0
    machine.write('[node]\nport = 0\n[log]\nlevel = "loud"\n')
    done = machine.bare("config", "check")
    assert (done.code, done.out) == (ExitCode.CONFIG, "")
    assert "node.port: must be" in done.err
    assert "log.level: must be" in done.err
    answer = machine.bare("config", "check", "--json")
    assert answer.code == ExitCode.CONFIG
    assert len(answer.json["problems"]) == 2


# --- network -----------------------------------------------------------------------------------


def test_a_new_network_is_written_for_this_node(machine: Machine) -> None:
    done = machine.new("home")
    assert done.code == 0
    made = profile.load(machine.profile)
    assert made.name == "home"
    assert made.network_id.hex() in done.out
    assert "network invite" in done.out
    assert machine.profile.stat().st_mode & 0o777 == 0o644
    shown = machine.bare("network", "show")
    assert f"id         {made.network_id.hex()}" in shown.out
    assert machine.bare("network", "show", "--json").json["network_id"] == made.network_id.hex()


def test_two_new_networks_of_one_name_differ(machine: Machine) -> None:
    paths = [machine.directory / name for name in ("a", "b")]
    for path in paths:
        machine.new("home", "--output", str(path))
    first, second = (profile.load(path) for path in paths)
    assert first.network_id != second.network_id


def test_a_new_network_takes_its_options(machine: Machine) -> None:
    target = machine.directory / "deep" / "net.toml"
    done = machine.new(
        "home", "-o", str(target), "--hops", "2", "--pow-bits", "0", "--bootstrap", LINE
    )
    made = profile.load(target)
    assert (made.exit_hops, made.entry_hops, made.pow_bits) == (2, 2, 0)
    assert [str(node) for node in made.bootstrap] == [LINE]
    assert "invite" not in done.out
    assert not machine.profile.exists()
    shown = machine.bare("network", "join", str(target))
    assert shown.code == 0
    assert f"bootstrap  {LINE}" in machine.bare("network", "show").out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("No Name",), ExitCode.USAGE, "can't be a network's name"),
        (("home", "--hops", "9"), ExitCode.USAGE, "'--hops'"),
        (("home", "--bootstrap", "nonsense"), ExitCode.USAGE, "isn't a bootstrap node"),
        (("home", "-o", "/proc/none/net.toml"), ExitCode.CONFIG, "can't make /proc/none"),
    ],
)
def test_a_wrong_network_is_not_written(
    machine: Machine, arguments: tuple[str, ...], code: ExitCode, said: str
) -> None:
    done = machine.new(*arguments)
    assert done.code == code
    assert said in done.err
    assert not machine.profile.exists()


def test_a_profile_is_never_overwritten_by_a_new_network(machine: Machine) -> None:
    machine.new("home")
    before = machine.profile.read_bytes()
    done = machine.new("home")
    assert (done.code, "move or delete it" in done.err) == (ExitCode.CONFLICT, True)
    assert machine.profile.read_bytes() == before


def test_without_a_profile_the_way_to_one_is_shown(machine: Machine) -> None:
    done = machine.bare("network", "show")
    assert done.code == ExitCode.CONFIG
    assert "network join FILE" in done.err


def joined(machine: Machine, text: str) -> Outcome:
    return machine.bare("network", "join", str(machine.write(text, "given.toml")))


def test_joining_and_updating(machine: Machine) -> None:
    first = profile.new("home", bytes(32))
    second = profile.with_bootstrap(first, (profile.Bootstrap.parse(LINE),))
    done = joined(machine, profile.dump(first))
    assert done.out.endswith("\nStart the node: phantom-tun up\n")
    assert joined(machine, profile.dump(first)).out == "this node is in 'home' already\n"
    with answering(machine.socket, FakeBackend()):
        done = joined(machine, profile.dump(second))
    assert "Restart the node to use it: phantom-tun down; phantom-tun up\n" in done.out
    assert profile.load(machine.profile) == second
    old = joined(machine, profile.dump(first))
    assert (old.code, "has update 0 of 'home', this node has 1" in old.err) == (8, True)
    assert profile.load(machine.profile) == second


def test_another_network_is_joined_only_on_demand(machine: Machine) -> None:
    joined(machine, profile.dump(profile.new("home", bytes(32))))
    other = machine.write(profile.dump(profile.new("work", bytes(32))), "given.toml")
    done = machine.bare("network", "join", str(other))
    assert (done.code, "--leave" in done.err) == (ExitCode.CONFLICT, True)
    assert profile.load(machine.profile).name == "home"
    assert machine.bare("network", "join", str(other), "--leave").code == 0
    assert profile.load(machine.profile).name == "work"


def test_the_profile_of_a_network_that_is_left_is_kept(machine: Machine) -> None:
    texts = {name: profile.dump(profile.new(name, bytes(32))) for name in ("one", "two", "three")}
    joined(machine, texts["one"])
    kept = machine.directory / "network.toml.old"
    for name, before, where in (
        ("two", "one", kept),
        ("three", "two", kept.with_name("network.toml.old2")),
        ("one", "three", kept.with_name("network.toml.old3")),
        ("two", "one", kept),  # it is kept there already
    ):
        given = str(machine.write(texts[name], "given.toml"))
        assert not where.exists() or where.read_text() == texts[before]
        done = machine.bare("network", "join", given, "--leave")
        assert where.read_text() == texts[before]
        assert f"kept the profile of {before!r} as {where}\n" in done.out
        assert profile.load(machine.profile).name == name


def test_joining_by_pasting(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    pasted = profile.dump(profile.new("home", bytes(32))).encode()
    monkeypatch.setattr(settings.sys, "stdin", io.TextIOWrapper(io.BytesIO(pasted)))
    assert machine.bare("network", "join", "-").code == 0
    assert profile.load(machine.profile).name == "home"


def test_nothing_pasted_is_no_profile(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    done = machine.bare("network", "join", "-")
    assert done.code == ExitCode.CONFIG
    assert done.err == ("phantom-tun: standard input is no network profile: it has no [network]\n")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("pow_bits = ", "pow_bits = 3", "network.pow_bits: must be a whole number from 0 to 32"),
        ("exit_hops = ", 'exit_hops = "a" #', "update.exit_hops: must be a whole number from 0 to"),
        ("pow_bits = ", "#", "[network] has no pow_bits"),
        ("pow_bits = ", "pow = ", "unknown field `pow`"),
    ],
)
def test_what_is_wrong_with_a_profile_is_said(
    machine: Machine, old: str, new: str, said: str
) -> None:
    text = profile.dump(profile.new("home", bytes(32), pow_bits=12)).replace(old, new)
    done = joined(machine, text)
    assert done.code == ExitCode.CONFIG
    assert said in done.err


def test_a_file_that_is_no_profile_is_not_joined(machine: Machine) -> None:
    done = joined(machine, "nonsense")
    assert (done.code, "isn't valid TOML" in done.err) == (ExitCode.CONFIG, True)
    done = machine.bare("network", "join", "/nonexistent")
    assert (done.code, "can't read /nonexistent" in done.err) == (ExitCode.CONFIG, True)
    assert not machine.profile.exists()


def test_an_invitation_names_this_node_first(machine: Machine) -> None:
    machine.new("home", "--bootstrap", LINE)
    backend = FakeBackend()
    with answering(machine.socket, backend):
        done = machine.bare("network", "invite")
        invited = profile.parse(done.out.encode(), source="invitation")
        assert invited.network_id == profile.load(machine.profile).network_id
        assert [node.node_id.hex() for node in invited.bootstrap] == [OWN_ID, "01" * 32]
        backend.bootstrap = (LINE,)
        again = profile.parse(machine.bare("network", "invite").out.encode(), source="invitation")
        assert [str(node) for node in again.bootstrap] == [LINE]
        backend.bootstrap = ()
        assert machine.bare("network", "invite").code == ExitCode.UNAVAILABLE


# --- the manual page ---------------------------------------------------------------------------


def test_the_manual_page_is_what_the_commands_say() -> None:
    page = Path(__file__).parents[2] / "docs" / "man" / "phantom-tun.1"
    assert page.read_text() == manpage.render(), (
        "python -m phantom_tun.cli.manpage > docs/man/phantom-tun.1"
    )


def test_the_manual_page_escapes_what_troff_would_take() -> None:
    assert manpage._escaped(".x") == "\\&.x"
    assert manpage._escaped("'x'") == "\\&'x'"
    assert manpage._escaped("a-b\\c") == "a\\-b\\ec"
    assert all(line.isascii() for line in manpage.render().splitlines())
