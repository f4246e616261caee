"""Ordinary programs between two nodes of a network with three hops on each side."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from labs import Lab, Node
from services import GOODBYE, Echo, serving

pytestmark = [pytest.mark.netns, pytest.mark.timeout(600)]

WEB, SSH, IPERF, REDIS, ECHO = 80, 22, 5201, 6379, 7000
FILE_BYTES = 32 << 20

versions = pytest.mark.parametrize("version", [4, 6])


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(_found(program) is None, reason=f"{program} is not installed")


def _found(program: str) -> str | None:
    return shutil.which(program, path=os.environ["PATH"] + os.pathsep + "/usr/sbin")


UNPACKED = Path(os.environ.get("PHANTOM_TUN_VENV", sys.prefix)) / "unpacked"
"""Where ``scripts/setup --test`` puts the files of openssh-server if it isn't installed."""


def _sshd() -> list[str] | None:
    """What sshd is started with."""
    if (program := _found("sshd")) is not None:
        return [program]
    if not (UNPACKED / "usr/sbin/sshd").exists():
        return None
    # As if it were installed, for itself alone.
    mounts = "".join(
        f"mount -t overlay none -o lowerdir={UNPACKED}/{top}:/{top} /{top} && "
        for top in ("usr", "etc")
    )
    return ["unshare", "--mount", "sh", "-c", mounts + 'exec /usr/sbin/sshd "$@"', "sshd"]


needs_sshd = pytest.mark.skipif(_sshd() is None, reason="sshd is neither installed nor unpacked")


@pytest.fixture(scope="module")
def client(network: Lab) -> Node:
    return network["n9"]


@pytest.fixture(scope="module")
def server(network: Lab) -> Node:
    node = network["n10"]
    for port in (WEB, SSH, IPERF, REDIS, ECHO):
        node.expose(port)
    return node


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_random(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))


# --- HTTP -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(server: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory that a web server shows."""
    root = tmp_path_factory.mktemp("site")
    (root / "index.html").write_text("hello from behind six hops\n")
    write_random(root / "big", FILE_BYTES)
    command = (sys.executable, "-P", "-m", "http.server", str(WEB), "--bind", "::")
    with server.serving(WEB, *command, "--directory", str(root)):
        yield root


@versions
def test_curl(client: Node, server: Node, site: Path, version: int) -> None:
    page = client.check("curl", "-sS", "--noproxy", "*", server.url(version, WEB))
    assert page == (site / "index.html").read_text()


def test_a_large_file_arrives_unaltered(
    client: Node, server: Node, site: Path, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    got = tmp_path / "big"
    began = time.monotonic()
    client.check("curl", "-sS", "--noproxy", "*", "-o", str(got), server.url(4, WEB, "big"))
    took = time.monotonic() - began
    assert sha256(got) == sha256(site / "big")
    figures(f"curl, {FILE_BYTES >> 20} MiB through 3 + 3 hops: {FILE_BYTES / took / 1e6:.1f} MB/s")


@needs("git")
def test_git_clone_over_http(client: Node, server: Node, site: Path, tmp_path: Path) -> None:
    identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    origin, work = site / "project.git", tmp_path / "work"

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *identity, *arguments], check=True, text=True, capture_output=True
        ).stdout

    git("init", "-q", str(work))
    for number in range(20):
        (work / f"{number}.txt").write_text(f"file {number}\n" * 1000)
        git("-C", str(work), "add", ".")
        git("-C", str(work), "commit", "-q", "-m", f"number {number}")
    git("clone", "-q", "--bare", str(work), str(origin))
    git("-C", str(origin), "update-server-info")
    copy = tmp_path / "copy"
    client.check("git", "-c", "http.proxy=", "clone", "-q", server.url(4, WEB, "project.git"),
                 str(copy), timeout=300)  # fmt: skip
    assert git("-C", str(copy), "rev-parse", "HEAD") == git("-C", str(work), "rev-parse", "HEAD")
    assert len(list(copy.glob("*.txt"))) == 20


# --- ssh ------------------------------------------------------------------------------------------


class Ssh:
    """An ssh server at one node, and how to use it from another."""

    def __init__(self, client: Node, server: Node, options: list[str]) -> None:
        self._client = client
        self._server = server
        self.options = options

    def run(self, version: int, command: str) -> str:
        return self._client.check("ssh", *self.options, f"root@{self._server.ap(version)}", command)

    def copy(self, program: str, *arguments: str) -> None:
        self._client.check(program, *arguments, timeout=300)

    def place(self, path: Path) -> str:
        return f"root@[{self._server.ap(6)}]:{path}"


@pytest.fixture(scope="module")
def ssh(client: Node, server: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ssh]:
    keys = tmp_path_factory.mktemp("ssh")
    for name in ("host", "user"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)]
        subprocess.run(make, check=True)
    config = keys / "sshd_config"
    config.write_text(
        f"Port {SSH}\nHostKey {keys}/host\nAuthorizedKeysFile {keys}/user.pub\n"
        "StrictModes no\nPidFile none\nPermitRootLogin prohibit-password\n"
        f"UsePAM {'yes' if _root_is_locked() else 'no'}\n"
        "Subsystem sftp internal-sftp\n"
    )
    options = [
        *("-F", "none", "-i", str(keys / "user"), "-o", "BatchMode=yes"),
        *("-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={keys}/known"),
    ]
    with contextlib.ExitStack() as stack:
        if not Path("/run/sshd").exists():
            Path("/run/sshd").mkdir(mode=0o755)
            stack.callback(Path("/run/sshd").rmdir)
        stack.enter_context(server.serving(SSH, *(_sshd() or []), "-D", "-f", str(config)))
        yield Ssh(client, server, options)


def _root_is_locked() -> bool:
    """Then sshd lets it in only with PAM's word for it."""
    for line in Path("/etc/shadow").read_text().splitlines():
        user, password, *_ = line.split(":")
        if user == "root":
            return password.startswith("!")
    return False


@needs("ssh")
@needs_sshd
@versions
def test_ssh(ssh: Ssh, client: Node, version: int) -> None:
    # What the server knows of the connection is the caller's AP address.
    assert ssh.run(version, "echo $SSH_CONNECTION").split()[0] == client.ap(version)


@needs("scp")
@needs_sshd
def test_scp_both_ways(ssh: Ssh, site: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    ssh.copy("scp", "-q", *ssh.options, str(site / "big"), ssh.place(there))
    ssh.copy("scp", "-q", *ssh.options, ssh.place(there), str(back))
    assert sha256(back) == sha256(site / "big")


@needs("rsync")
@needs_sshd
def test_rsync(ssh: Ssh, site: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    ssh.copy("rsync", "-r", "-e", " ".join(["ssh", *ssh.options]), ssh.place(site), str(copy))
    assert sha256(copy / site.name / "big") == sha256(site / "big")


# --- others ---------------------------------------------------------------------------------------


@needs("iperf3")
@pytest.mark.parametrize("direction", ["up", "down"])
def test_iperf3(client: Node, server: Node, direction: str, figures: Callable[[str], None]) -> None:
    backwards = ["-R"] if direction == "down" else []
    with server.serving(IPERF, "iperf3", "-s", "-p", str(IPERF)):
        report = client.check(
            *("iperf3", "-c", server.ap(4), "-p", str(IPERF), "-t", "3", "-J"), *backwards
        )
    received = json.loads(report)["end"]["sum_received"]
    assert received["bytes"] > 1 << 20
    figures(f"iperf3 {direction}: {received['bits_per_second'] / 1e6:.0f} Mbit/s")


@needs("redis-cli")
@versions
def test_redis(client: Node, server: Node, tmp_path: Path, version: int) -> None:
    options = ("--port", str(REDIS), "--bind", "0.0.0.0", "::", "--protected-mode", "no")  # noqa: S104
    session = "".join(f"SET key{n} value{n}\nINCR counter\n" for n in range(100))
    session += "GET key99\nGET counter\nLRANGE nothing 0 -1\nPING\n"
    # The server's package would start one for everybody. This tool of Debian's is the same program.
    program = tmp_path / "redis-server"
    program.symlink_to(_found("redis-server") or _found("redis-check-rdb") or "redis-server")
    with server.serving(REDIS, str(program), *options, "--save", "", "--dir", str(tmp_path)):
        said = client.check("redis-cli", "-h", server.ap(version), input=session).splitlines()
    assert said[-4:] == ["value99", "100", "", "PONG"]


@needs("nc")
def test_nc_closes_its_half_and_hears_the_rest(client: Node, server: Node) -> None:
    with serving(server, ECHO, Echo):
        said = client.check("nc", "-N", server.ap(4), str(ECHO), input="hello\n")
    caller, hello = said.splitlines()[:2]
    assert (caller.split()[0], hello) == (client.ap(4), "hello")
    assert said.endswith(GOODBYE.decode())


@versions
def test_ping(client: Node, server: Node, version: int) -> None:
    said = client.check("ping", "-c", "3", "-i", "0.3", "-W", "30", server.ap(version))
    assert " 0% packet loss" in said
    said = client.check("ping", "-c", "1", "-s", "8000", "-W", "30", server.ap(version))
    assert "8008 bytes from" in said


@versions
def test_phantom_tun_ping_and_why(client: Node, server: Node, version: int) -> None:
    done = client.phantom_tun("ping", "-c", "2", server.ap(version))
    assert done.returncode == 0, done.stdout + done.stderr
    with serving(server, ECHO, Echo):
        done = client.phantom_tun("why", f"{server.ap(version)}", "--json")
    assert json.loads(done.stdout)["verdict"]["reachable"] is True
