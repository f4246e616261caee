"""Who knocks at a node without knowing better meets a web server; who asks a node for something
impossible gets one clear sentence and an exit code that says what kind of trouble it is."""

from __future__ import annotations

import os
import ssl
import time
from pathlib import Path

import pytest
from labs import Lab, Node, run_phantom_tun

import phantom_tun.net.links
from phantom_tun import profile
from phantom_tun.cli.exits import ExitCode
from phantom_tun.node_keys import KEY_FILE, create_node_keys
from phantom_tun.wire.door import NONCE_LEN, Door, to_header

pytestmark = [pytest.mark.netns, pytest.mark.timeout(600)]

PORT = 443
NOT_FOUND = b"GET /nothing HTTP/1.1\r\nHost: h\r\n\r\n"

versions = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def prober(network: Lab) -> Node:
    """Anybody: it uses nothing of its own node."""
    return network["n9"]


@pytest.fixture(scope="module")
def target(network: Lab) -> Node:
    return network["n2"]


@pytest.fixture(scope="module")
def door(target: Node) -> Door:
    """What whoever knows the node's record knows."""
    found = profile.load(target.directory.parent.parent / "network.toml")
    node = next(node for node in found.bootstrap if str(node.address) == target.underlay)
    return Door(found.network_id, node.node_id, node.certificate_hash)


def ask(prober: Node, target: Node, request: bytes) -> bytes:
    """What a web client gets, without the date."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        prober.dial(4, target.underlay, PORT) as tcp,
        context.wrap_socket(tcp, server_hostname="example.org") as sock,
    ):
        sock.sendall(request)
        lines = sock.recv(1 << 16).split(b"\r\n")
    return b"\r\n".join(line for line in lines if not line.startswith(b"Date: "))


def upgrade(path: str, token: str) -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: phantom\r\n"
        f"Phantom-Token: {token}\r\n\r\n"
    ).encode()


@versions
def test_a_prober_sees_a_web_site(prober: Node, target: Node, version: int) -> None:
    host = target.underlay if version == 4 else f"[{target.underlay6}]"
    page = Path(phantom_tun.net.links.__file__).with_name("page.html").read_text()
    curl = ("curl", "-sS", "-k", "--noproxy", "*", "-w", "%{http_code} %{ssl_verify_result}")
    assert prober.check(*curl, f"https://{host}/").removeprefix(page).startswith("200 ")
    assert "404 Not Found" in prober.check(*curl, f"https://{host}/admin")


def test_what_is_not_quite_an_upgrade_is_a_page_that_does_not_exist(
    prober: Node, target: Node, door: Door
) -> None:
    now, nonce = time.time(), os.urandom(NONCE_LEN)
    genuine = door.token(now, nonce)
    nothing = ask(prober, target, NOT_FOUND)
    assert nothing.startswith(b"HTTP/1.1 404 Not Found\r\n")
    for path, token in [
        (door.path, "not even base64"),
        (door.path, to_header(genuine[:-1])),
        (door.path, to_header(genuine[:-1] + bytes([genuine[-1] ^ 1]))),
        (door.path, to_header(door.token(now - 3600, nonce))),
        (door.path + "0", to_header(genuine)),
    ]:
        assert ask(prober, target, upgrade(path, token)) == nothing


def test_a_replayed_upgrade_is_a_page_that_does_not_exist(
    prober: Node, target: Node, door: Door
) -> None:
    request = upgrade(door.path, to_header(door.token(time.time(), os.urandom(NONCE_LEN))))
    assert ask(prober, target, request).startswith(b"HTTP/1.1 101 ")
    assert ask(prober, target, request) == ask(prober, target, NOT_FOUND)


def in_clear(prober: Node, target: Node, data: bytes) -> bytes:
    """All that is answered to ``data`` without TLS."""
    answer = b""
    with prober.dial(4, target.underlay, PORT) as sock:
        sock.sendall(data)
        while part := sock.recv(1 << 16):
            answer += part
    return answer


def test_garbage_gets_what_a_web_server_answers(prober: Node, target: Node) -> None:
    garbage = b"\x00\x01garbage\xff\r\n\r\n"
    assert ask(prober, target, garbage).startswith(b"HTTP/1.1 400 Bad Req")
    assert in_clear(prober, target, garbage).startswith(b"HTTP/1.1 400 Bad Req")
    answer = in_clear(prober, target, b"GET / HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 Bad Req")
    assert b"The plain HTTP request was sent to HTTPS port" in answer
    assert ask(prober, target, NOT_FOUND).startswith(b"HTTP/1.1 404 ")


# --- requests that make no sense ------------------------------------------------------------------


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http"])
def test_a_port_that_is_none_is_not_exposed(prober: Node, port: str) -> None:
    done = prober.phantom_tun("expose", "--", port)
    assert done.returncode == ExitCode.USAGE
    assert port in done.stderr


def test_a_port_is_exposed_once(prober: Node) -> None:
    assert prober.phantom_tun("expose", "9999").returncode == ExitCode.OK
    done = prober.phantom_tun("expose", "9999")
    assert done.returncode == ExitCode.CONFLICT
    assert "exposed already" in done.stderr
    assert prober.phantom_tun("unexpose", "9999").returncode == ExitCode.OK
    assert prober.phantom_tun("unexpose", "9999").returncode == ExitCode.NOT_FOUND


@pytest.fixture
def config(target: Node, tmp_path: Path) -> Path:
    """Configuration of a node that isn't part of a lab and is never meant to start."""
    tmp_path.chmod(0o755)
    create_node_keys(tmp_path / "state")
    file = tmp_path / "config.toml"
    file.write_text(
        f'[node]\nstate_dir = "{tmp_path}/state"\nrelay_only = true\nlisten = ["127.0.0.1"]\n'
        f'port = 44344\nuser = ""\n'
        f'[network]\nprofile = "{target.directory.parent.parent}/network.toml"\n'
        f'[control]\nsocket = "{tmp_path}/socket"\n'
    )
    return file


def complaint(config: Path) -> str:
    """What the daemon says when it refuses to start."""
    done = run_phantom_tun("run", "--config", str(config))
    assert done.returncode == ExitCode.CONFIG, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_an_unknown_setting(config: Path) -> None:
    config.write_text(config.read_text() + "[paths]\nexit_hop = 3\n")
    said = complaint(config)
    assert str(config) in said
    assert "'exit_hop' is not known in [paths]; did you mean 'exit_hops'?" in said


def test_a_key_that_others_can_read(config: Path) -> None:
    key = config.parent / "state" / KEY_FILE
    key.chmod(0o644)
    said = complaint(config)
    assert f"chmod 600 {key}" in said


def test_a_key_that_can_not_be_read(config: Path) -> None:
    key = config.parent / "state" / KEY_FILE
    key.unlink()
    key.mkdir()
    assert str(key) in complaint(config)
