"""The steps of a daemon's start, one by one."""

from __future__ import annotations

import errno
import io
import ipaddress
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from free_ports import free_ports
from fresh_python import ENVIRONMENT, printed_by

from phantom_tun.config import LogConfig, NodeConfig
from phantom_tun.daemon import account, listeners, logs, privileges, start, underlay
from phantom_tun.daemon.account import Account, resolve_account, resolve_group
from phantom_tun.daemon.lock import StateLock, is_locked
from phantom_tun.daemon.notify import READY, notify, status
from phantom_tun.errors import ConfigError, UsageError

LOOPBACK = ipaddress.ip_address("127.0.0.1")


# --- notify ------------------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_hears_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"@phantom-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0"))
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert notify(READY, status("ready"))
        assert manager.recv(1000) == b"READY=1\nSTATUS=ready"


@pytest.mark.parametrize("value", [None, "", "vsock:2:3", "/nonexistent/notify"])
def test_without_a_service_manager_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if value is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", value)
    assert not notify(READY)


# --- lock --------------------------------------------------------------------------------------


def test_two_daemons_on_one_directory_are_refused(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    first = StateLock(tmp_path)
    first.write_pid()
    assert is_locked(tmp_path)
    with pytest.raises(ConfigError, match=rf"another daemon \(process {os.getpid()}\)"):
        StateLock(tmp_path)
    first.release()
    first.release()
    assert not is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []
    StateLock(tmp_path).release()


def test_a_pid_file_of_nonsense_is_not_believed(tmp_path: Path) -> None:
    first = StateLock(tmp_path)
    (tmp_path / "daemon.pid").write_bytes(b"kill me")
    with pytest.raises(ConfigError, match="another daemon already runs"):
        StateLock(tmp_path)
    first.release()


def test_a_missing_directory_is_not_locked(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "none")
    with pytest.raises(ConfigError, match="can't use"):
        StateLock(tmp_path / "none")


# --- logs --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def logged(level: str, event: str, configured: str = "debug", **fields: Any) -> dict[str, Any]:
    output = io.StringIO()
    logs.configure(LogConfig(level=configured, json=True), output)  # type: ignore[arg-type]
    getattr(structlog.get_logger(), level)(event, **fields)
    text = output.getvalue()
    result: dict[str, Any] = json.loads(text) if text else {}
    return result


@pytest.mark.parametrize(
    "secret",
    [
        "192.0.2.1",
        "192.0.2.1:443",
        "[2001:db8::1]:443",
        "2001:2f:1234::1",
        "::1",
        "fe80::1%eth0",
        "00112233445566778899aabbccddeeff",
        "node=" + "ab" * 32,
        ipaddress.ip_address("240.1.2.3"),
        ipaddress.ip_address("2001:2f::9"),
        ["192.0.2.1"],
        ("x", {"peer": "192.0.2.1"}),
    ],
)
@pytest.mark.parametrize("level", ["info", "warning", "error"])
def test_addresses_and_ids_are_hidden_at_info_and_above(level: str, secret: Any) -> None:
    text = json.dumps(logged(level, f"lost {secret}", peer=secret))
    assert logs.HIDDEN in text
    for part in ("192.0.2", "2001:", "240.1", "::1", "aabbccdd", "abab"):
        assert part not in text


def test_debug_shows_them() -> None:
    assert logged("debug", "lost", peer="192.0.2.1")["peer"] == "192.0.2.1"


def test_our_own_are_shown() -> None:
    assert logged("info", "up", own_address="192.0.2.1")["own_address"] == "192.0.2.1"
    nested = logged("info", "up", state={"own_id": "ab" * 32, "peer": "192.0.2.1"})
    assert nested["state"] == {"own_id": "ab" * 32, "peer": logs.HIDDEN}


def test_ordinary_words_numbers_and_times_stay() -> None:
    text = "built 3 of 4 paths in 0.71 s at 12:34:56, version 0.1.0: no address known, face"
    line = logged("info", text, count=3, ratio=0.5, ok=True, none=None)
    assert line["event"] == text
    assert (line["count"], line["ratio"], line["ok"], line["none"]) == (3, 0.5, True, None)
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize("level", ["debug", "info"])
def test_raw_bytes_are_never_written(level: str) -> None:
    line = logged(level, "made a key", own_key=b"secret", other=[bytearray(b"secret")])
    assert (line["own_key"], line["other"]) == ("<6 bytes>", ["<6 bytes>"])


def test_the_level_is_obeyed() -> None:
    assert logged("info", "x", configured="warning") == {}
    assert logged("warning", "x", configured="warning")["event"] == "x"


def fail_with_a_local_secret() -> None:
    private_key = "".join(reversed("yrettab"))
    raise ValueError(len(private_key))


@pytest.mark.parametrize("as_json", [True, False])
def test_tracebacks_show_no_local_variables(as_json: bool) -> None:
    output = io.StringIO()
    logs.configure(LogConfig(json=as_json), output)
    try:
        fail_with_a_local_secret()
    except ValueError:
        structlog.get_logger().exception("broken")
    assert "ValueError" in output.getvalue()
    assert "battery" not in output.getvalue()


# --- accounts ----------------------------------------------------------------------------------


def test_only_root_changes_its_account(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_account("") == account.current_account()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert resolve_account("no-such-user").uid == 1000


def test_root_takes_names_and_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert resolve_account("nobody") == resolve_account("65534")
    assert resolve_account("54321", 7) == Account(54321, 54321, (7,))
    with pytest.raises(ConfigError, match="useradd"):
        resolve_account("no-such-user")
    with pytest.raises(ConfigError, match="no user id"):
        resolve_account("4294967295")


def test_the_control_group_must_exist() -> None:
    assert resolve_group("") is None
    assert resolve_group("root") == 0
    with pytest.raises(ConfigError, match="groupadd"):
        resolve_group("no-such-group")


# --- listeners ---------------------------------------------------------------------------------


def test_listening_on_both_families() -> None:
    port = free_ports()
    bound = listeners.bind_listeners([LOOPBACK, ipaddress.ip_address("::1")], port)
    assert [each.getsockname()[:2] for each in bound] == [("127.0.0.1", port), ("::1", port)]
    for each in bound:
        socket.create_connection(each.getsockname()[:2]).close()
        each.close()


def test_a_taken_port_is_explained_and_nothing_stays_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=r"in use.*--port"):
            listeners.bind_listeners([ipaddress.ip_address("127.0.0.2"), LOOPBACK], port)
        socket.create_server(("127.0.0.2", port)).close()


def test_a_foreign_address_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"node.listen: 192.0.2.1 is not an address"):
        listeners.bind_listeners([ipaddress.ip_address("192.0.2.1")], free_ports())


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, r"CAP_NET_BIND_SERVICE.*phantom-tun.socket.*--port"),
        (errno.EPERM, "CAP_NET_BIND_SERVICE"),
        (errno.ENOBUFS, "can't listen on 127.0.0.1 port 443"),
        (errno.EAFNOSUPPORT, "no IPv4"),
    ],
)
def test_other_refusals_are_explained(
    monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def refuse(_address: Any, _port: int) -> socket.socket:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(listeners, "_bind", refuse)
    with pytest.raises(ConfigError, match=said):
        listeners.bind_listeners([LOOPBACK], 443)


def test_a_missing_family_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    bind = listeners._bind

    def only_ipv4(address: Any, port: int) -> socket.socket:
        if address.version == 6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return bind(address, port)

    monkeypatch.setattr(listeners, "_bind", only_ipv4)
    (bound,) = listeners.bind_listeners([ipaddress.ip_address("::"), LOOPBACK], free_ports())
    assert bound.family == socket.AF_INET
    bound.close()


def passed(script: str) -> str:
    """Run ``script`` in a process whose handle 3 is a listening socket (unless it says else)."""
    code = f"""
import os, socket
keep = socket.create_server(("127.0.0.1", 0))
os.dup2(keep.fileno(), 3)
os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"] = str(os.getpid()), "1"
from phantom_tun.daemon.listeners import open_listeners, passed_listeners
from phantom_tun.errors import ConfigError
{script}
"""
    command = [sys.executable, "-c", code]
    run = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_sockets_of_the_service_manager_are_used_once() -> None:
    script = """
(received,) = open_listeners([], 1)
print(received.getsockname() == keep.getsockname(), os.get_inheritable(3), passed_listeners(),
      "LISTEN_FDS" in os.environ)
"""
    assert passed(script) == "True False [] False"


def test_sockets_for_another_process_are_not_ours() -> None:
    assert passed('os.environ["LISTEN_PID"] = "1"; print(passed_listeners())') == "[]"


@pytest.mark.parametrize(
    "replacement",
    [
        "socket.socket()",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
        "socket.socket(socket.AF_UNIX)",
        'open("/dev/null")',
    ],
)
def test_other_handles_of_the_service_manager_are_refused(replacement: str) -> None:
    script = f"""
other = {replacement}
os.dup2(other.fileno(), 3)
try:
    passed_listeners()
except ConfigError as error:
    print(error)
"""
    assert "passed handle 3" in passed(script)


# --- underlay ----------------------------------------------------------------------------------


def test_configured_addresses_are_advertised() -> None:
    config = NodeConfig(advertise=("203.0.113.5",))
    assert [str(each) for each in underlay.advertised_addresses(config)] == ["203.0.113.5"]


def test_specific_listen_addresses_are_advertised() -> None:
    config = NodeConfig(listen=("0.0.0.0", "203.0.113.6"))  # noqa: S104
    assert [str(each) for each in underlay.advertised_addresses(config)] == ["203.0.113.6"]


def test_addresses_of_the_default_routes_are_advertised(monkeypatch: pytest.MonkeyPatch) -> None:
    routed = (ipaddress.ip_address("203.0.113.7"), ipaddress.ip_address("2001:db8::7"))
    monkeypatch.setattr(underlay, "addresses_of_default_routes", lambda: routed)
    assert underlay.advertised_addresses(NodeConfig()) == routed
    only_ipv4 = NodeConfig(listen=("0.0.0.0",))  # noqa: S104
    assert underlay.advertised_addresses(only_ipv4) == routed[:1]


def test_a_node_that_cannot_be_found_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(underlay, "addresses_of_default_routes", lambda: ())
    with pytest.raises(ConfigError, match=r"node\.advertise"):
        underlay.advertised_addresses(NodeConfig())
    assert underlay.advertised_addresses(NodeConfig(dialable=False)) == ()


def test_detection_never_offers_loopback() -> None:
    assert not [each for each in underlay.addresses_of_default_routes() if each.is_loopback]


# --- limits ------------------------------------------------------------------------------------


def test_the_limit_of_open_files_is_raised() -> None:
    code = (
        "import resource\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))\n"
        "from phantom_tun.daemon.privileges import raise_open_files\n"
        "print(raise_open_files(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=60
    )
    said, real = map(int, run.stdout.split())
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert said == real >= min(hard, privileges.OPEN_FILES)


def test_dropping_refuses_a_second_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "iterdir", lambda _self: iter([Path("1"), Path("2")]))
    with pytest.raises(UsageError, match="second thread"):
        privileges.drop_privileges(account.current_account(), ())


def test_a_program_that_its_user_cannot_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    start.check_program()
    monkeypatch.setattr(os, "access", lambda path, _mode: "phantom_tun" not in str(path))
    with pytest.raises(ConfigError, match=r"phantom_tun/__init__.py.*where every user can read"):
        start.check_program()


# --- what a daemon imports ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "loaded"),
    [
        ("import asyncio\n", "['fake_logs']"),
        # It needs more than the name, and gets it.
        ("import asyncio\nasyncio.Queue\n", "['asyncio', 'fake_logs']"),
        ("from asyncio import Queue\n", "['asyncio', 'fake_logs']"),
    ],
)
def test_the_log_library_is_imported_alone_if_that_works(
    tmp_path: Path, library: str, loaded: str
) -> None:
    (tmp_path / "fake_logs.py").write_text(library)
    code = (
        "import sys\n"
        "from phantom_tun.daemon import lean\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "lean.LIBRARY = 'fake_logs'\n"
        "lean.import_logs_alone()\n"
        "import fake_logs\n"
        "print(sorted({'asyncio', 'fake_logs'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == loaded, done.stderr


def test_a_daemon_imports_only_what_a_node_that_relays_needs() -> None:
    program = (
        "import sys\n"
        "from phantom_tun.daemon import lean\n"
        "lean.import_decoder_alone()\n"
        "lean.import_logs_alone()\n"
        "from phantom_tun.daemon import start\n"
        "start.load_node()\n"
        "unwanted = {'scapy', 'typer', 'rich', 'pytun', 'dns', 'asyncio', 'pygments', 'unittest'}\n"
        "unwanted |= {'typing_extensions', 'email', 'statistics', 'zipfile', 'difflib'}\n"
        "loaded = {name for name, module in sys.modules.items() if module is not None}\n"
        "print(sorted({name.split('.')[0] for name in loaded} & unwanted))\n"
        "ours = ('owner', 'tun', 'net.sessions.service', 'net.addresses.directory', 'view.why',\n"
        "        'crypto.x509')\n"
        "print([name for name in ours if f'phantom_tun.{name}' in sys.modules])\n"
    )
    assert printed_by(program) == "[]\n[]\n"


def test_garbage_is_hardly_looked_for_until_everything_is_imported() -> None:
    program = (
        "import gc, sys\n"
        "import phantom_tun.__main__ as command, phantom_tun.cli.running\n"
        "from phantom_tun.daemon.interpreter import GC_EVERY, spare_what_stays\n"
        "def run(options):\n"
        "    print(gc.get_threshold()[0] > 10 * GC_EVERY)\n"
        "    spare_what_stays()\n"
        "    print(gc.get_threshold()[0] == GC_EVERY, gc.get_freeze_count() > 1000)\n"
        "phantom_tun.cli.running.run = run\n"
        "sys.argv = ['phantom-tun', 'run']\n"
        "command.main()\n"
    )
    assert printed_by(program) == "True\nTrue True\n"
