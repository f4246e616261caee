"""``up``, ``down`` and ``run`` with real processes, whose node has no network."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_helpers import Outcome, Shell, answering
from free_ports import free_ports

import phantom_tun
from phantom_tun import profile
from phantom_tun.cli import background
from phantom_tun.cli.exits import ExitCode
from phantom_tun.cli.running import Changes
from phantom_tun.config import Config, ControlConfig, NetworkConfig, NodeConfig
from phantom_tun.config import render as render_config
from phantom_tun.control.client import ControlClient
from phantom_tun.control.schema import ControlError
from phantom_tun.testing.fake_backend import FakeBackend


class Machine(Shell):
    """A configured machine on which commands are typed."""

    @property
    def directory(self) -> Path:
        return self.socket.parent

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def config(self) -> Path:
        return self.directory / "config.toml"

    def command(self, name: str, *arguments: str) -> Outcome:
        return self.bare("--config", str(self.config), name, *arguments)

    def pid(self) -> int:
        return ControlClient(self.socket).daemon_pid()

    def configure(self, port: int) -> None:
        made = Config(
            node=NodeConfig(
                state_dir=self.state, listen=("127.0.0.1",), port=port, relay_only=True, user=""
            ),
            network=NetworkConfig(profile=self.directory / "network.toml"),
            control=ControlConfig(socket=self.socket),
        )
        self.config.write_text(render_config(made))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machine]:
    for variable in ("PHANTOM_TUN_CONFIG", "PHANTOM_TUN_SOCKET", "NOTIFY_SOCKET"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(phantom_tun.__file__).parents[1]))
    script = Path(__file__).with_name("fake_daemon.py")
    monkeypatch.setattr(background, "DAEMON", (sys.executable, str(script)))
    made = Machine(capsys, tmp_path / "control.sock")
    made.configure(free_ports())
    (tmp_path / "network.toml").write_text(profile.dump(profile.new("test", bytes(32))))
    yield made
    try:
        left = made.pid()
    except ControlError:
        return
    assert left not in {0, os.getpid()}
    os.kill(left, signal.SIGKILL)


def test_up_waits_until_ready_and_down_until_gone(machine: Machine) -> None:
    up = machine.command("up")
    assert up.code == 0, up.err
    assert up.out.splitlines()[-2:] == ["ready", "default: 241.0.0.1  2001:2f:1::1"]
    pid = machine.pid()
    assert os.getsid(pid) == pid
    log = machine.state / "daemon.log"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert "ready" in log.read_text()
    down = machine.command("down")
    assert (down.code, down.out) == (0, "stopped\n")
    assert not machine.socket.exists()


def test_up_twice_is_no_mistake(machine: Machine) -> None:
    machine.command("up")
    first = machine.pid()
    again = machine.command("up")
    assert (again.code, again.out.splitlines()[0]) == (0, "the daemon runs already")
    assert machine.pid() == first
    assert again.err == ""
    again = machine.command("up", "--port", "443", "--relay-only")
    assert again.code == 0
    assert "note: --port 443 --relay-only changes nothing now" in again.err
    assert machine.pid() == first


def test_down_when_nothing_runs_says_just_that(machine: Machine) -> None:
    down = machine.command("down")
    assert down.code == ExitCode.NO_DAEMON
    assert f"nothing to stop: no daemon answers at {machine.socket}" in down.err
    assert "phantom-tun up" not in down.err


def test_up_hands_its_options_on(machine: Machine) -> None:
    port = free_ports()
    other = machine.directory / "other.sock"
    up = machine.bare(
        "--socket", str(other), "up", "--config", str(machine.config), "--port", str(port)
    )
    assert up.code == 0, up.err
    socket.create_connection(("127.0.0.1", port)).close()
    assert machine.bare("--socket", str(other), "down").code == 0


def test_a_daemon_that_ends_while_it_starts_is_explained(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        machine.configure(other.getsockname()[1])
        up = machine.command("up")
    assert up.code == ExitCode.CONFIG
    log = machine.state / "daemon.log"
    assert f"the daemon ended while it started; its log ({log}) says:" in up.err
    assert "in use on 127.0.0.1" in up.err
    assert "Traceback" not in up.err


def test_only_the_last_start_is_quoted(machine: Machine) -> None:
    machine.state.mkdir(mode=0o700)
    (machine.state / "daemon.log").write_text("an old complaint\n")
    (machine.directory / "network.toml").unlink()
    up = machine.command("up")
    assert up.code == ExitCode.CONFIG
    assert "network join FILE" in up.err
    assert "old complaint" not in up.err


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user becomes nobody else")
@pytest.mark.parametrize("has_profile", [False, True])
def test_up_says_all_that_is_missing_at_once(machine: Machine, *, has_profile: bool) -> None:
    text = machine.config.read_text()
    machine.config.write_text(text.replace('user = ""', 'user = "no-such-user"'))
    (machine.directory / "network.toml").unlink()
    if has_profile:
        made = profile.new("home", bytes(32))
        (machine.directory / "network.toml").write_text(profile.dump(made))
    done = machine.command("up")
    assert done.code == ExitCode.CONFIG
    assert "there is no user 'no-such-user'" in done.err
    assert ("there is no network profile" in done.err) is not has_profile


def test_up_gives_up_waiting_but_the_daemon_goes_on(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_NODE", "never")
    with subprocess.Popen([*background.DAEMON, "run", "--config", str(machine.config)]) as daemon:
        wait_until(lambda: machine.command("status").code == 0)
        up = machine.command("up", "--timeout", "1")
        assert up.code == ExitCode.TIMEOUT
        assert "joining the network example (12 nodes known)" in up.out
        assert "not ready after 1 s (joining the network example" in up.err
        assert "it goes on trying" in up.err
        assert machine.command("status").out.startswith("phantom-tun 0.1.0 is joining")
        assert machine.command("down").code == 0
        assert daemon.wait(10) == 0


def test_up_does_not_wait_for_a_network_that_is_too_small(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "SHORTAGE_S", 0.0)
    with answering(machine.socket, FakeBackend(state="building", shortage="3 hops need 8 members")):
        up = machine.command("up")
    assert up.code == ExitCode.UNAVAILABLE
    assert "waiting for more nodes: 3 hops need 8 members" in up.out.splitlines()
    assert "the daemon runs, but can't build paths yet: 3 hops need 8 members." in up.err


def test_an_interrupted_up_says_that_the_daemon_goes_on(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(background.Waiting, "wait_ready", interrupt)
    up = machine.command("up")
    assert (up.code, "the daemon goes on" in up.err) == (ExitCode.INTERRUPTED, True)
    wait_until(lambda: machine.command("status").code == 0)
    assert machine.command("down").code == 0


def test_up_refuses_an_open_state_directory(machine: Machine) -> None:
    machine.state.mkdir(mode=0o755)
    machine.state.chmod(0o755)
    up = machine.command("up")
    assert up.code == ExitCode.CONFIG
    assert "chmod 700" in up.err


@pytest.mark.parametrize("kind", ["symlink", "hard link", "directory"])
def test_the_log_is_never_written_through_a_trap(machine: Machine, kind: str) -> None:
    machine.state.mkdir(mode=0o700)
    precious = machine.directory / "precious"
    precious.write_text("precious")
    log = machine.state / "daemon.log"
    match kind:
        case "symlink":
            log.symlink_to(precious)
        case "hard link":
            log.hardlink_to(precious)
        case _:
            log.mkdir()
    assert machine.command("up").code == ExitCode.CONFIG
    assert precious.read_text() == "precious"


def test_a_large_log_is_put_aside(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_MAX_LOG_BYTES", 10)
    machine.state.mkdir(mode=0o700)
    (machine.state / "daemon.log").write_text("a long old log")
    assert machine.command("up").code == 0
    assert (machine.state / "daemon.log.1").read_text() == "a long old log"
    assert "a long old log" not in (machine.state / "daemon.log").read_text()


def test_a_daemon_that_hangs_is_named(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "STOP_TIMEOUT_S", 0.2)
    with answering(machine.socket, FakeBackend()) as asked_to_stop:
        down = machine.command("down")
        assert asked_to_stop.is_set()
    assert down.code == ExitCode.TIMEOUT
    assert f"kill -KILL {os.getpid()}" in down.err


def test_without_a_process_id_down_waits_for_silence(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.command("up")
    pid = machine.pid()
    with monkeypatch.context() as patch:
        patch.setattr(ControlClient, "daemon_pid", lambda _client: 0)
        assert machine.command("down").code == 0
    wait_until(lambda: not Path(f"/proc/{pid}/exe").exists())


def test_run_reports_a_wrong_configuration(machine: Machine) -> None:
    machine.config.write_text("[node]\nprot = 443\n")
    run = machine.bare("run", "--config", str(machine.config))
    assert run.code == ExitCode.CONFIG
    assert run.err == (
        f"phantom-tun: {machine.config}: 'prot' is not known in [node]; did you mean 'port'? "
        "'phantom-tun config default' shows all settings\n"
    )


# --- systemd -----------------------------------------------------------------------------------


class Systemd:
    """A systemctl and a journalctl that remember how they were called."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self.active = directory / "active"
        self.calls = directory / "calls"
        self.write("journalctl", 'echo "phantom-tun: no profile"')
        self.start_does("exit 1")

    def start_does(self, script: str) -> None:
        self.write(
            "systemctl",
            f"""
echo "$@" >> {self.calls}
case "$1" in
  list-unit-files) echo phantom-tun.service enabled ;;
  is-active) cat {self.active} 2>/dev/null || echo inactive ;;
  stop) rm -f {self.active} ;;
  start) {script} ;;
esac""",
        )

    def write(self, name: str, script: str) -> None:
        tool = self.directory / name
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)


@pytest.fixture
def systemd(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    made = Systemd(machine.directory / "tools")
    monkeypatch.setenv("PATH", f"{made.directory}:{os.environ['PATH']}")
    monkeypatch.setattr(background, "SYSTEMD", machine.directory)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", str(machine.directory))
    return made


def test_up_goes_through_systemd_where_the_unit_is_installed(
    machine: Machine, systemd: Systemd
) -> None:
    daemon = shlex.join([*background.DAEMON, "run"])
    systemd.start_does(f"echo active > {systemd.active}; {daemon} 2>/dev/null &")
    up = machine.bare("up")
    assert (up.code, up.out.splitlines()[-2]) == (0, "ready"), up.err
    assert "start phantom-tun.service" in systemd.calls.read_text().splitlines()
    assert not (machine.state / "daemon.log").exists()


def test_a_unit_that_fails_is_explained_from_the_journal(
    machine: Machine, systemd: Systemd
) -> None:
    up = machine.bare("up")
    assert up.code == ExitCode.FAILED
    assert "its log (journalctl -u phantom-tun.service) says:\nphantom-tun: no profile" in up.err


def test_down_goes_through_systemd_where_it_started_the_daemon(
    machine: Machine, systemd: Systemd
) -> None:
    systemd.active.write_text("active\n")
    assert machine.bare("down").code == 0
    assert "stop phantom-tun.socket phantom-tun.service" in systemd.calls.read_text().splitlines()


def test_a_particular_node_is_none_of_systemds_business(machine: Machine, systemd: Systemd) -> None:
    assert machine.command("up").code == 0
    assert machine.command("down").code == 0
    assert not systemd.calls.exists()


def test_overrides_can_be_switched_off_for_one_start() -> None:
    changes = Changes(no_overrides=True)
    assert not changes.none
    assert changes.arguments == ["--no-overrides"]
    assert not changes.applied(Config()).network.overrides
    nothing = Changes()
    assert nothing.none
    assert nothing.arguments == []
    assert nothing.applied(Config()) == Config()
