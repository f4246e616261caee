"""The whole daemon with a node that has no network, as a process: privileges, readiness, stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_ports

import phantom_tun
from phantom_tun import profile
from phantom_tun.config import Config, ControlConfig, InterfaceConfig, NetworkConfig, NodeConfig
from phantom_tun.config import render as render_config
from phantom_tun.control.client import ControlClient
from phantom_tun.control.schema import GetStatus, Shutdown

PROGRAM = Path(__file__).with_name("daemon_process.py")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(phantom_tun.__file__).parents[1])}
UID = 61234
CAP_NET_ADMIN = 1 << 12
UNSHARED = ("unshare", "--net", "--", "sh", "-c", 'ip link set lo up; exec "$@"', "sh")

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_tun = pytest.mark.skipif(
    os.geteuid() != 0
    or not Path("/dev/net/tun").exists()
    or shutil.which("unshare") is None
    or shutil.which("ip") is None,
    reason="needs root, /dev/net/tun, unshare and ip",
)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that other users may enter."""
    with tempfile.TemporaryDirectory(prefix="phantom-daemon-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def configure(place: Path, *, user: str = "", interface: bool = False, port: int = 0) -> Path:
    made = Config(
        node=NodeConfig(
            state_dir=place / "state",
            listen=("127.0.0.1",),
            port=port or free_ports(),
            relay_only=not interface,
            user=user,
        ),
        network=NetworkConfig(profile=place / "network.toml"),
        interface=InterfaceConfig(name="phtest0"),
        control=ControlConfig(socket=place / "run" / "control.sock"),
    )
    (place / "config.toml").write_text(render_config(made))
    (place / "network.toml").write_text(profile.dump(profile.new("test", bytes(32))))
    return place / "config.toml"


class Daemon:
    """The process, and its service manager: this test."""

    def __init__(self, place: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> None:
        self.place = place
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(place / "notify"))
        (place / "notify").chmod(0o777)
        self.manager.settimeout(0.2)
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(PROGRAM), str(place / "config.toml"), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT | {"NOTIFY_SOCKET": str(place / "notify")},
        )

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.manager.close()
        (self.place / "notify").unlink()

    @property
    def client(self) -> ControlClient:
        return ControlClient(self.place / "run" / "control.sock")

    def hear(self, line: str) -> None:
        """Wait until the service manager was told ``line``."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                if line in self.manager.recv(1000).decode().splitlines():
                    return
            except TimeoutError:
                if self.process.poll() is not None:
                    break
        pytest.fail(f"never heard {line}: {self.ended()}")

    def said(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else pytest.fail(f"it ended: {self.ended()}")

    def ended(self) -> tuple[int, str]:
        _output, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


def test_a_daemon_starts_says_ready_and_stops_in_order(place: Path) -> None:
    configure(place)
    with Daemon(place) as daemon:
        daemon.hear("READY=1")
        state = place / "state"
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        assert (state / "daemon.pid").read_text() == f"{daemon.process.pid}\n"
        assert daemon.client.call(GetStatus()).state == "ready"
        assert daemon.client.daemon_pid() == daemon.process.pid
        daemon.process.send_signal(signal.SIGTERM)
        daemon.hear("STOPPING=1")
        code, errors = daemon.ended()
        assert code == 0, errors
        assert "stopped" in errors
        assert list(state.iterdir()) == []
        assert not (place / "run" / "control.sock").exists()


def test_a_daemon_is_stopped_over_its_control_socket(place: Path) -> None:
    configure(place)
    with Daemon(place) as daemon:
        daemon.hear("READY=1")
        daemon.client.call(Shutdown())
        assert daemon.ended()[0] == 0


def test_a_daemon_can_be_stopped_before_it_is_ready(place: Path) -> None:
    configure(place)
    with Daemon(place, "sleep_forever") as daemon:
        daemon.hear("STATUS=starting")
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.ended()[0] == 0


def test_a_second_daemon_on_the_same_directory_is_refused(place: Path) -> None:
    configure(place)
    with Daemon(place) as daemon:
        daemon.hear("READY=1")
        command = [sys.executable, str(PROGRAM), str(place / "config.toml")]
        second = subprocess.run(
            command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=30
        )
        assert second.returncode == 1
        assert f"another daemon (process {daemon.process.pid}) already runs" in second.stderr
        assert daemon.client.call(GetStatus()).state == "ready"


def test_a_daemon_that_was_killed_leaves_nothing_in_the_way(place: Path) -> None:
    configure(place)
    with Daemon(place) as daemon:
        daemon.hear("READY=1")
        daemon.process.kill()
        daemon.process.wait()
    assert (place / "run" / "control.sock").exists()
    with Daemon(place) as daemon:
        daemon.hear("READY=1")
        assert daemon.client.call(GetStatus()).state == "ready"


def test_a_node_that_fails_ends_the_daemon_with_its_reason(place: Path) -> None:
    configure(place)
    with Daemon(place, "fail") as daemon:
        code, errors = daemon.ended()
        assert code == 1
        assert errors.splitlines()[-1] == "the network is gone"
        assert "Traceback" not in errors


def test_a_daemon_that_hangs_is_ended_by_the_kernel(place: Path) -> None:
    configure(place)
    with Daemon(place, "hang_when_stopped") as daemon:
        daemon.hear("READY=1")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.hear("STOPPING=1")
        started = time.monotonic()
        assert daemon.ended()[0] == -signal.SIGALRM
        assert time.monotonic() - started < 10


def test_a_taken_port_is_one_clear_error(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        configure(place, port=other.getsockname()[1])
        with Daemon(place) as daemon:
            code, errors = daemon.ended()
        assert code == 1
        assert "in use" in errors
        assert "Traceback" not in errors


@root_only
def test_a_relay_keeps_no_privilege_at_all(place: Path) -> None:
    configure(place, user=str(UID), port=443)
    with Daemon(place, "inspect_privileges") as daemon:
        found = daemon.said()
        check_dropped(found, capabilities=0)
        daemon.hear("READY=1")
        assert daemon.client.call(GetStatus()).state == "ready"
        assert (place / "state").stat().st_uid == UID
        assert (place / "run" / "control.sock").stat().st_uid == UID


@needs_tun
def test_a_node_with_an_interface_keeps_only_net_admin(place: Path) -> None:
    configure(place, user=str(UID), interface=True)
    with Daemon(place, "inspect_privileges", prefix=UNSHARED) as daemon:
        check_dropped(daemon.said(), capabilities=CAP_NET_ADMIN)


@needs_tun
def test_the_ip_tool_works_without_root(place: Path) -> None:
    configure(place, user=str(UID), interface=True)
    with Daemon(place, "use_interface", prefix=UNSHARED) as daemon:
        assert daemon.said() == {"code": 0, "error": ""}


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv"
)
def test_a_daemon_that_never_was_root_gives_up_what_it_was_given(place: Path) -> None:
    configure(place, port=443)
    place.chmod(0o777)
    # The last one is for a Python that is installed in root's home.
    given = "+net_admin,+net_bind_service,+dac_read_search"
    account = (f"--reuid={UID}", f"--regid={UID}", "--clear-groups")
    prefix = ("setpriv", *account, "--inh-caps", given, "--ambient-caps", given)
    with Daemon(place, "inspect_privileges", prefix=prefix) as daemon:
        found = daemon.said()
        for status in (found["own"], found["child"]):
            for name in ("CapPrm", "CapEff", "CapInh", "CapAmb"):
                assert int(status[name], 16) == 0, name
        assert found["regained"] == []
        assert found["memory_owner"] == 0


def check_dropped(found: Any, *, capabilities: int) -> None:
    for status in (found["own"], found["child"]):
        assert status["Uid"].split() == [str(UID)] * 4
        assert status["Gid"].split() == [str(UID)] * 4
        assert status["Groups"] == ""
        assert status["NoNewPrivs"] == "1"
        for name in ("CapPrm", "CapEff", "CapInh", "CapAmb", "CapBnd"):
            assert int(status[name], 16) == capabilities, name
    assert found["regained"] == []
    assert found["memory_owner"] == 0
    assert found["core"] == "0"
    assert not found["shadow"]


@root_only
def test_staying_root_still_gives_up_capabilities(place: Path) -> None:
    configure(place)
    with Daemon(place, "inspect_privileges") as daemon:
        found = daemon.said()
        assert found["own"]["Uid"].split() == ["0"] * 4
        for status in (found["own"], found["child"]):
            assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
