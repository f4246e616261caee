"""Who runs a lab, and as whom its daemons run: ordinary users with a user namespace of their own,
where ``/run`` belongs to others, and root, whose home keeps nobody out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from shlex import join

import pytest
from conftest import StubLab, cli_with_stubs, two_nodes

from phantom_tun.lab import nodes as lab_nodes
from phantom_tun.lab import provision

pytestmark = pytest.mark.netns

USER_NAMESPACE = ["unshare", "--user", "--map-root-user", "--net", "--mount"]


@pytest.mark.parametrize("delay", [[], ["--delay-ms", "1"]])
def test_whole_life_in_a_user_namespace(lab_name: str, delay: list[str]) -> None:
    lab = join(cli_with_stubs("ready"))
    script = f"""
        set -e
        mount -t tmpfs -o ro tmpfs /run
        {lab} {join([*two_nodes(lab_name), *delay])}
        {lab} status --name {lab_name} --json
        {lab} exec --name {lab_name} n1 -- ping -c 1 -W 2 10.2.0.1
        {lab} down --name {lab_name}
        ls /tmp | grep phantom-tun-lab && exit 9
        ls /proc/[0-9]*/exe -l 2>/dev/null | grep {lab_name} && exit 9
        echo all gone
    """
    done = subprocess.run(
        [*USER_NAMESPACE, "--pid", "--fork", "--mount-proc", "sh", "-c", script],
        env={**provision.daemon_environment(), "XDG_RUNTIME_DIR": "", "TMPDIR": "/tmp"},  # noqa: S108
        text=True,
        capture_output=True,
        check=False,
    )
    if "unshare: " in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert '"namespace": "/tmp/phantom-tun-lab-0/' in done.stdout
    assert " 0% packet loss" in done.stdout
    assert done.stdout.endswith("all gone\n")


def test_relay_only_nodes_need_an_ordinary_user(lab_name: str) -> None:
    command = [*cli_with_stubs("ready"), *two_nodes(lab_name), "--relay-only", "1"]
    done = subprocess.run(
        [*USER_NAMESPACE, *command],
        env=provision.daemon_environment(),
        text=True,
        capture_output=True,
        check=False,
    )
    if "unshare: " in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    assert done.returncode == 47
    assert "relay-only nodes run as uid 65534" in done.stderr


def test_daemons_are_nobody_even_from_behind_a_barrier(stub_lab: StubLab, tmp_path: Path) -> None:
    """``tmp_path`` stands for root's home: only its owner may pass."""
    tmp_path.chmod(0o700)
    (tmp_path / "lab").mkdir()
    store = stub_lab(nodes=3, relay_only=1, directory=tmp_path / "lab")
    relay = lab_nodes.status(store)[2]
    assert relay.state == "ready"
    assert Path(relay.log).read_text() == "stub of n3, uid 65534\n"
    assert tmp_path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("user", [0, 65534])
def test_who_has_only_a_user_namespace_leaves_labs_of_root_alone(
    stub_lab: StubLab, user: int
) -> None:
    store = stub_lab(nodes=2)
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    program = [sys.executable, "-P", "-m", "phantom_tun", "lab"]
    for command in (["down"], ["exec", "n1", "--", "true"]):
        verb, *rest = command
        done = subprocess.run(
            [*become, *USER_NAMESPACE, *program, verb, "--name", store.name, *rest],
            env={**provision.daemon_environment(), "XDG_RUNTIME_DIR": ""},
            text=True,
            capture_output=True,
            check=False,
        )
        if "unshare: " in done.stderr or "No module named" in done.stderr:
            pytest.skip(f"not to be tried here: {done.stderr.strip()}")
        if user and verb != "down":  # who isn't root has labs of his own, elsewhere
            assert done.returncode == 43
            continue
        assert done.returncode == 45, (verb, done.stderr)
        assert f"lab {store.name!r} is root's" in done.stderr
    assert [node.state for node in lab_nodes.status(store)] == ["ready", "ready"]
