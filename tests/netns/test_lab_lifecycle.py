"""Labs come, are worked with, and go without a trace."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from conftest import StubLab, cli_with_stubs, run_lab, two_nodes

from phantom_tun.cli.exits import ExitCode
from phantom_tun.errors import ConfigError
from phantom_tun.lab import lifecycle, namespaces, provision
from phantom_tun.lab import nodes as lab_nodes
from phantom_tun.lab.errors import (
    BadLabOption,
    DuplicateLab,
    LabFailed,
    NodeStateError,
    NotPrivileged,
    NotReady,
    UnknownLab,
    UnknownNode,
)
from phantom_tun.lab.plan import namespace_prefix, plan_lab
from phantom_tun.lab.processes import is_alive
from phantom_tun.lab.record import LabStore, default_root

pytestmark = pytest.mark.netns


def traces(name: str) -> list[str]:
    """What there is of a lab: files, namespaces, processes."""
    found = [str(path) for path in default_root().glob(f"{name}*")]
    found += [path.name for path in namespaces.SYSTEM_DIRECTORY.glob(f"{namespace_prefix(name)}*")]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes()
        except OSError:
            continue
        if f"/{name}/".encode() in command or f".{name}.".encode() in command:
            found.append(command.decode(errors="replace"))
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def pid_of(store: LabStore, node: str) -> int | None:
    return next(n.pid for n in lab_nodes.status(store) if n.name == node)


def state_of(store: LabStore, node: str) -> str:
    return next(n.state for n in lab_nodes.status(store) if n.name == node)


# --- up and status ------------------------------------------------------------------------------


def test_status_is_what_scripts_rely_on(stub_lab: StubLab, lab_name: str) -> None:
    stub_lab(nodes=4, relay_only=1)
    done = run_lab("status", "--json", "--name", lab_name)
    assert done.returncode == 0, done.stderr
    first, *_, last = json.loads(done.stdout)
    assert first["name"] == "n1"
    assert first["namespace"] == f"phantom.{lab_name}.n1"
    assert first["interface"] == "phantom0"
    assert (first["ap4"], first["ap6"]) == ("240.1.2.3", "2001:2f::1:2")
    assert (first["underlay"], first["underlay6"]) == ("10.1.0.1", "fd50:1::1")
    assert Path(first["control_socket"]).is_socket()
    assert Path(first["state_dir"], "node.key").stat().st_mode & 0o777 == 0o600
    assert first["state"] == "ready"
    assert first["roles"] == ["bootstrap", "owner"]
    assert first["node_id"] == "00" * 32
    assert Path(f"/proc/{first['pid']}/ns/net").samefile(f"/run/netns/{first['namespace']}")
    assert (last["interface"], last["ap4"], last["ap6"]) == (None, None, None)
    assert last["roles"] == ["relay-only"]


def test_the_table_names_every_node(stub_lab: StubLab, lab_name: str) -> None:
    stub_lab(nodes=3)
    done = run_lab("status", "--name", lab_name)
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["n1", "n2", "n3"]
    assert done.stdout.splitlines()[1].split()[4] == "00000000"


def test_relay_only_nodes_are_not_root(stub_lab: StubLab) -> None:
    store = stub_lab(nodes=3, relay_only=1)
    text = Path(f"/proc/{pid_of(store, 'n3')}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in text.splitlines())
    assert fields["Uid"].split() == ["65534"] * 4
    assert fields["Groups"].split() == []
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
    assert fields["NoNewPrivs"] == "1"


def test_settings_reach_the_nodes_they_are_for(stub_lab: StubLab) -> None:
    store = stub_lab(settings=("log.level=debug", "n2:paths.exit_paths=3"))
    one, two = (
        Path(node.state_dir).parent.joinpath("config.toml").read_text()
        for node in lab_nodes.status(store)
    )
    assert 'level = "debug"' in one
    assert 'level = "debug"' in two
    assert "exit_paths = 3" in two
    assert "exit_paths" not in one


def test_files_go_where_they_are_wanted(stub_lab: StubLab, lab_name: str, tmp_path: Path) -> None:
    place = tmp_path / "lab"
    stub_lab(directory=place)
    assert (place / "nodes" / "n2" / "state").is_dir()
    (place / "mine").touch()
    lifecycle.down(lab_name)
    assert [path.name for path in place.iterdir()] == ["mine"]


def test_an_own_empty_directory_stays(stub_lab: StubLab, lab_name: str, tmp_path: Path) -> None:
    stub_lab(directory=tmp_path)
    lifecycle.down(lab_name)
    assert list(tmp_path.iterdir()) == []


# --- refusals leave nothing behind ----------------------------------------------------------------


def test_a_name_can_be_used_once(stub_lab: StubLab, lab_name: str) -> None:
    store = stub_lab()
    before = pid_of(store, "n1")
    with pytest.raises(DuplicateLab, match=f"--name {lab_name}"):
        stub_lab()
    assert pid_of(store, "n1") == before


def test_full_directory(stub_lab: StubLab, lab_name: str, tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(BadLabOption, match="not an empty directory"):
        stub_lab(directory=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert traces(lab_name) == []


def test_directory_in_nowhere(stub_lab: StubLab, lab_name: str, tmp_path: Path) -> None:
    with pytest.raises(BadLabOption, match="there is no directory"):
        stub_lab(directory=tmp_path / "a" / "b")
    assert traces(lab_name) == []


def test_directory_too_deep_for_sockets(stub_lab: StubLab, lab_name: str, tmp_path: Path) -> None:
    with pytest.raises(BadLabOption, match="too long"):
        stub_lab(directory=tmp_path / ("d" * 90))
    assert traces(lab_name) == []


def test_unknown_setting(stub_lab: StubLab, lab_name: str) -> None:
    with pytest.raises(ConfigError, match="exit_hops"):
        stub_lab(settings=("paths.exit_hosp=3",))
    assert traces(lab_name) == []


def test_a_daemon_that_dies(stub_lab: StubLab, lab_name: str) -> None:
    with pytest.raises(NotReady, match=r"daemon of n2 ended(.|\n)*told to die"):
        stub_lab(nodes=3, behaviour="die:n2")
    assert traces(lab_name) == []


def test_a_daemon_that_can_not_be_run(lab_name: str) -> None:
    plan = plan_lab(name=lab_name, nodes=2)
    wishes = lifecycle.Wishes(daemon=("/no/such/daemon", "--config"))
    with pytest.raises(NotReady, match=r"n1 ended(.|\n)*No such file"):
        lifecycle.up(plan, wishes, lambda _line: None)
    assert traces(lab_name) == []


def test_time_runs_out(stub_lab: StubLab, lab_name: str) -> None:
    with pytest.raises(NotReady, match="not ready after 1 s; no entry path yet: n1, n2"):
        stub_lab(behaviour="pathless", timeout=1.0)
    assert traces(lab_name) == []


def test_left_over_namespaces(stub_lab: StubLab, lab_name: str) -> None:
    namespaces.choose_directory(Path())
    namespaces.create([namespaces.SYSTEM_DIRECTORY / f"phantom.{lab_name}.n1"])
    with pytest.raises(DuplicateLab, match=f"left over.*down --name {lab_name}"):
        stub_lab()
    assert lifecycle.down(lab_name)
    assert traces(lab_name) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_up_cleans_up(lab_name: str, number: signal.Signals) -> None:
    up = start_up(lab_name, "pathless", subprocess.PIPE)
    wait_until(lambda: any("stub_daemon" in trace for trace in traces(lab_name)))
    up.send_signal(number)
    _, told = up.communicate(timeout=30)
    assert up.returncode == 130
    assert told.splitlines()[-1] == "interrupted: nothing is left of the lab"
    assert traces(lab_name) == []


def test_after_a_crash_of_up_down_cleans_up(lab_name: str) -> None:
    up = start_up(lab_name, "pathless")
    wait_until(lambda: any("stub_daemon" in trace for trace in traces(lab_name)))
    up.kill()
    up.wait(10)
    assert run_lab("down", "--name", lab_name).returncode == 0
    assert traces(lab_name) == []


def test_after_a_crash_while_a_daemon_was_being_started_down_cleans_up(
    stub_lab: StubLab, lab_name: str
) -> None:
    store = stub_lab()
    record = store.read()
    # What is on its way into its namespace is known by its command alone.
    command = ("sleep", f"1000.{lab_name.removeprefix('t').replace('-', '')}")
    nodes = (*record.nodes[:-1], msgspec.structs.replace(record.nodes[-1], command=command))
    store.write(msgspec.structs.replace(record, nodes=nodes))
    (store.place / ".lab.json.half").write_text("{")
    with subprocess.Popen(command) as late:
        assert lifecycle.down(lab_name)
        assert late.wait(10) == -signal.SIGKILL
    assert traces(lab_name) == []


def test_after_a_crash_with_a_damaged_record_down_cleans_up(
    stub_lab: StubLab, lab_name: str
) -> None:
    store = stub_lab(delay_ms=1.0)
    (store.place / "lab.json").write_text("{")
    with pytest.raises(UnknownLab, match="damaged"):
        store.read()
    assert lifecycle.down(lab_name)
    assert traces(lab_name) == []


def start_up(name: str, behaviour: str, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """``lab up`` with stubs, in a process that can be signalled."""
    return subprocess.Popen(
        [*cli_with_stubs(behaviour), *two_nodes(name)],
        stderr=stderr,
        text=True,
        env=provision.daemon_environment(),
    )


# --- down -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay_ms", [0.0, 1.0])
def test_down_leaves_nothing(stub_lab: StubLab, lab_name: str, delay_ms: float) -> None:
    store = stub_lab(nodes=3, delay_ms=delay_ms)
    prefix, environment = lab_nodes.inside(store, "n1")
    with subprocess.Popen([*prefix, "sleep", "1000"], env=environment) as visitor:
        lab_nodes.pause_node(store, "n2")
        assert traces(lab_name)
        assert lifecycle.down(lab_name)
        assert visitor.wait(10) == -signal.SIGKILL
    assert traces(lab_name) == []


def test_down_wins_against_programs_that_keep_writing(stub_lab: StubLab, lab_name: str) -> None:
    store = stub_lab()
    prefix, environment = lab_nodes.inside(store, "n1")
    files = lab_nodes.status(store)[0].state_dir
    restless = 'while :; do (: > "$0/$(date +%N)"; sleep 0.05) & sleep 0.002; done'
    with subprocess.Popen([*prefix, "sh", "-c", restless, files], env=environment) as writer:
        wait_until(lambda: len(list(Path(files).iterdir())) > 20)
        assert lifecycle.down(lab_name)
        assert writer.wait(10) == -signal.SIGKILL
    assert traces(lab_name) == []


def test_down_without_a_lab_is_no_error(lab_name: str) -> None:
    done = run_lab("down", "--name", lab_name)
    assert done.returncode == 0
    assert "nothing to do" in done.stderr


def test_down_spares_whoever_has_the_process_id_now(stub_lab: StubLab, lab_name: str) -> None:
    store = stub_lab()
    lab_nodes.kill_node(store, "n1")
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        record = store.read()
        process = record.node("n1").process
        assert process is not None
        reused = type(process)(stranger.pid, process.started)
        store.write(record.with_process("n1", reused))
        assert not is_alive(reused)
        assert pid_of(store, "n1") is None
        assert lifecycle.down(lab_name)
        assert stranger.poll() is None
        stranger.kill()


# --- work with nodes ------------------------------------------------------------------------------


def test_exec_passes_everything_through(stub_lab: StubLab, lab_name: str) -> None:
    stub_lab()
    socket_path = json.loads(run_lab("status", "--json", "--name", lab_name).stdout)[1][
        "control_socket"
    ]
    script = (
        "cat; echo to-stderr >&2; echo $PHANTOM_TUN_SOCKET; grep -c profile $PHANTOM_TUN_CONFIG; "
        "ip -br addr show eth0; exit 7"
    )
    done = run_lab(
        "exec", "--name", lab_name, "n2", "--", "sh", "-c", script, stdin="through stdin\n"
    )
    assert done.returncode == 7
    lines = done.stdout.splitlines()
    assert lines[:3] == ["through stdin", socket_path, "1"]
    assert "10.2.0.1/8" in lines[3]
    assert done.stderr == "to-stderr\n"


def test_exec_lets_no_lookup_of_a_name_take_long(stub_lab: StubLab, lab_name: str) -> None:
    stub_lab()
    done = run_lab("exec", "n1", "--name", lab_name, "--", "printenv", "RES_OPTIONS")
    assert done.stdout == "timeout:1 attempts:1\n"


@pytest.mark.parametrize("command", [("down",), ("exec", "n1", "--", "true")])
def test_a_lab_of_another_mount_namespace_is_left_alone(
    stub_lab: StubLab, lab_name: str, command: tuple[str, ...]
) -> None:
    store = stub_lab()
    unmount = " ".join(("umount", *map(str, store.read().holders)))
    words = " ".join((command[0], "--name", lab_name, *command[1:]))
    program = "from phantom_tun.cli.lab import app; app(prog_name='phantom-tun lab')"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec",
         f'{unmount}; exec "$0" -P -c "$1" {words}', sys.executable, program],
        capture_output=True, text=True, check=False, env=provision.daemon_environment(),
    )  # fmt: skip
    assert done.returncode == NotPrivileged.exit_code
    assert "another mount namespace" in done.stderr
    assert state_of(store, "n1") == "ready"


def test_exec_takes_options_of_the_command_for_its_own(stub_lab: StubLab, lab_name: str) -> None:
    stub_lab()
    done = run_lab("exec", "n1", "--name", lab_name, "--", "echo", "--name", "x", "-n")
    assert done.stdout == "--name x -n\n"


def test_exec_finds_the_programs_beside_its_python(stub_lab: StubLab, lab_name: str) -> None:
    stub_lab()
    done = run_lab("exec", "--name", lab_name, "n1", "--", "sh", "-c", "echo $PATH")
    assert done.stdout.startswith(str(Path(sys.executable).parent) + ":")


def test_exec_of_what_does_not_exist(stub_lab: StubLab, lab_name: str) -> None:
    stub_lab()
    assert run_lab("exec", "--name", lab_name, "n1", "--", "no-such-command").returncode == 127


def test_kill_and_start_again_with_the_same_keys(stub_lab: StubLab) -> None:
    store = stub_lab()
    node = lab_nodes.status(store)[0]
    key = Path(node.state_dir, "node.key").read_bytes()
    lab_nodes.kill_node(store, "n1")
    assert (pid_of(store, "n1"), state_of(store, "n1")) == (None, "down")
    with pytest.raises(NodeStateError, match="n1 is down"):
        lab_nodes.kill_node(store, "n1")
    lab_nodes.start_node(store, "n1", 30.0, lambda _line: None)
    assert pid_of(store, "n1") not in (None, node.pid)
    assert Path(node.state_dir, "node.key").read_bytes() == key
    with pytest.raises(NodeStateError, match="up already"):
        lab_nodes.start_node(store, "n1", 0.0, lambda _line: None)


def test_stop_waits_for_the_end(stub_lab: StubLab) -> None:
    store = stub_lab()
    lab_nodes.stop_node(store, "n2")
    assert state_of(store, "n2") == "down"
    with pytest.raises(NodeStateError):
        lab_nodes.stop_node(store, "n2")


def test_stop_says_when_a_node_will_not(stub_lab: StubLab) -> None:
    store = stub_lab(behaviour="stubborn")
    with pytest.raises(LabFailed, match=f"'phantom-tun lab kill n2 --name {store.name}' ends it"):
        lab_nodes.stop_node(store, "n2", seconds=0.2)
    assert state_of(store, "n2") == "ready"
    lab_nodes.kill_node(store, "n2")


def test_pause_and_resume(stub_lab: StubLab) -> None:
    store = stub_lab()
    assert lab_nodes.pause_node(store, "n2")
    assert state_of(store, "n2") == "paused"
    assert not lab_nodes.pause_node(store, "n2")
    assert lab_nodes.resume_node(store, "n2")
    wait_until(lambda: state_of(store, "n2") == "ready")
    assert not lab_nodes.resume_node(store, "n2")


def test_every_change_is_told(stub_lab: StubLab, lab_name: str) -> None:
    stub_lab()
    told = [
        ("pause", "n1 is paused"),
        ("pause", "n1 is paused already"),
        ("resume", "n1 goes on"),
        ("resume", "n1 wasn't paused"),
        ("kill", "n1 is killed"),
        ("start", "n1 is ready"),
        ("stop", "n1 has stopped"),
    ]
    for command, said in told:
        done = run_lab(command, "n1", "--name", lab_name)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", f"{said}\n")
    done = run_lab("down", "--name", lab_name)
    assert (done.returncode, done.stderr) == (0, f"lab '{lab_name}' is gone\n")


def test_a_node_that_is_down_keeps_its_id_and_says_how_to_start_it(
    stub_lab: StubLab, lab_name: str
) -> None:
    store = stub_lab()
    lab_nodes.kill_node(store, "n1")
    assert lab_nodes.status(store)[0].node_id == "00" * 32
    start = f"phantom-tun lab start n1 --name {lab_name}"
    assert f"'{start}' starts it" in run_lab("stop", "n1", "--name", lab_name).stderr
    command = [sys.executable, "-P", "-m", "phantom_tun", "status"]
    done = run_lab("exec", "n1", "--name", lab_name, "--", *command)
    assert done.returncode == ExitCode.NO_DAEMON
    assert f"start one with '{start}'" in done.stderr


def test_a_daemon_that_somebody_else_started_is_the_nodes_daemon(
    stub_lab: StubLab, lab_name: str
) -> None:
    store = stub_lab()
    lab_nodes.kill_node(store, "n1")
    node = store.read().node("n1")
    with subprocess.Popen(node.command, stderr=subprocess.DEVNULL) as daemon:
        wait_until(lambda: state_of(store, "n1") == "ready")
        assert pid_of(store, "n1") == daemon.pid
        with pytest.raises(NodeStateError, match="up already"):
            lab_nodes.start_node(store, "n1", 0.0, lambda _line: None)
        lab_nodes.stop_node(store, "n1")
        assert daemon.wait(10) == -signal.SIGTERM


@pytest.mark.parametrize("command", ["kill", "stop", "start", "pause", "resume", "exec"])
def test_every_command_knows_its_nodes(stub_lab: StubLab, lab_name: str, command: str) -> None:
    stub_lab()
    rest = ["true"] if command == "exec" else []
    done = run_lab(command, "--name", lab_name, "n3", *rest)
    assert done.returncode == UnknownNode.exit_code
    assert "n1 to n2" in done.stderr


@pytest.mark.parametrize("command", ["status", "kill", "stop", "start", "pause", "resume", "exec"])
def test_every_command_knows_its_labs(lab_name: str, command: str) -> None:
    rest = {"status": [], "exec": ["n1", "true"]}.get(command, ["n1"])
    done = run_lab(command, "--name", lab_name, *rest)
    assert done.returncode == UnknownLab.exit_code
    assert f"no lab '{lab_name}'" in done.stderr


def test_a_lab_in_change_is_not_changed_by_another(stub_lab: StubLab) -> None:
    store = stub_lab()
    with store.lock(), pytest.raises(LabFailed, match="another command"), store.lock(0.1):
        pass


def test_without_privileges_one_is_told_what_to_do(lab_name: str) -> None:
    done = run_lab("up", "--nodes", "2", "--name", lab_name, privileged=False)
    assert done.returncode == NotPrivileged.exit_code
    assert "needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN)" in done.stderr
    assert traces(lab_name) == []


def test_exit_codes_differ(lab_name: str) -> None:
    def up(*options: str) -> int:
        return run_lab("up", "--name", lab_name, *options).returncode

    codes = [
        up("--nodes", "40", "--exit-hops", "9"),
        up("--nodes", "24", "--exit-hops", "8"),
        up("--nodes", "4", "--rate", "fast"),
    ]
    assert codes == [40, 41, 2]
    assert traces(lab_name) == []
