"""What the commands tell and do at nodes of a real network: five nodes, one hop, one relay."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from labs import Lab, Node, lab_of, wait_until

from phantom_tun.cli.exits import ExitCode
from phantom_tun.control.schema import ListPaths, ListTunnels
from phantom_tun.lab.provision import daemon_environment

pytestmark = [pytest.mark.netns, pytest.mark.timeout(600)]

PORT, SILENT_PORT, HIDDEN_PORT = 8000, 8001, 8002
NOBODY4, OUTSIDE4 = "250.1.2.3", "10.9.9.9"
STRANGER = 12345


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    options = ("--nodes", "5", "--exit-hops", "1", "--entry-hops", "1", "--relay-only", "1")
    with lab_of(*options) as found:
        yield found


@pytest.fixture(scope="module")
def client(lab: Lab) -> Node:
    return lab["n1"]


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[Node]:
    """Serves pages at :data:`PORT`; nothing listens at :data:`SILENT_PORT`."""
    node = lab["n2"]
    node.expose(PORT)
    node.expose(SILENT_PORT)
    with node.serving(PORT, sys.executable, "-m", "http.server", str(PORT), "--bind", "::"):
        yield node


@pytest.fixture(scope="module")
def relay(lab: Lab) -> Node:
    return lab["n5"]


def steps_of(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {step["name"]: step for step in json.loads(done.stdout)["steps"]}


def fetch(node: Node, url: str, *options: str) -> str:
    """``curl``'s exit code, the status of the answer and the source address."""
    command = ("curl", "-s", "-o", "/dev/null", "-m", "60", "-w", "%{http_code} %{local_ip}")
    done = node.run(*command, *options, url)
    return f"{done.returncode} {done.stdout}"


# --- why and ping ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_why_a_service_can_be_reached(client: Node, server: Node, version: int) -> None:
    done = client.phantom_tun("why", server.ap(version), str(PORT))
    assert done.returncode == 0, done.stdout
    assert [line.split()[1] for line in done.stdout.splitlines()[:6]] == ["ok"] * 6
    assert done.stdout.endswith("It works.\n")


@pytest.mark.parametrize(
    ("port", "said"), [(SILENT_PORT, "nothing listens there"), (HIDDEN_PORT, "isn't exposed")]
)
def test_why_a_service_cant_be_reached(client: Node, server: Node, port: int, said: str) -> None:
    done = client.phantom_tun("why", server.ap(6), str(port), "--json")
    assert done.returncode == ExitCode.FAILED
    steps = steps_of(done)
    assert (steps["handshake"]["outcome"], steps["service"]["outcome"]) == ("ok", "failed")
    assert said in steps["service"]["detail"]


def test_nobody_has_the_address(client: Node) -> None:
    steps = steps_of(client.phantom_tun("why", NOBODY4, "--json"))
    assert "nobody has published" in steps["record"]["detail"]
    for command in (("ping", "-c", "1"), ("netdb", "get")):
        done = client.phantom_tun(*command, NOBODY4)
        assert done.returncode == ExitCode.NOT_FOUND
        assert "nobody has published" in done.stderr
        done = client.phantom_tun(*command, OUTSIDE4)
        assert done.returncode == ExitCode.NOT_FOUND
        assert "can't belong to anybody" in done.stderr


def test_a_node_of_a_lab_knows_its_own_files(lab: Lab, client: Node) -> None:
    done = client.phantom_tun("network", "invite")
    assert f'name = "lab-{lab.name}"' in done.stdout
    assert client.node_id in done.stdout
    assert str(client.state_dir) in client.phantom_tun("config", "show").stdout


def test_own_addresses(client: Node) -> None:
    done = client.phantom_tun("why", client.ap(4))
    assert (done.returncode, "others can reach it" in done.stdout) == (0, True)
    done = client.phantom_tun("why", client.ap(6), str(PORT))
    assert f"phantom-tun expose {PORT}" in done.stdout
    assert client.phantom_tun("ping", "-c", "1", client.ap(4)).returncode == ExitCode.USAGE


def test_ping_for_programs(client: Node, server: Node) -> None:
    done = client.phantom_tun("ping", "-c", "2", "-i", "0.1", "--json", server.ap(4))
    answer = json.loads(done.stdout)
    assert (answer["summary"]["sent"], answer["summary"]["received"]) == (2, 2)


# --- the network database and pins ---------------------------------------------------------------


def test_every_exit_path_says_the_same(client: Node, server: Node) -> None:
    # The second one is built when the first is up, which a lab waits for.
    wait_until(lambda: sum(path.kind == "exit" for path in client.ask(ListPaths())) == 2)
    done = client.phantom_tun("netdb", "get", server.ap(4), "--votes", "--json")
    answer = json.loads(done.stdout)
    exits = [path for path in client.ask(ListPaths()) if path.kind == "exit"]
    assert {poll["path_id"] for poll in answer["polls"]} == {path.id for path in exits}
    assert {poll["answerer"] for poll in answer["polls"]} == {path.nodes[-1] for path in exits}
    assert all(poll["votes"][0]["storers"] > 1 for poll in answer["polls"])
    assert answer["warning"] == ""
    done = client.phantom_tun("netdb", "get", server.node_id, "--votes")
    assert "key" in done.stdout.splitlines()[-1]


def test_a_changed_owner_is_refused_until_it_is_accepted(
    lab: Lab, client: Node, server: Node
) -> None:
    address = server.ap(4)
    assert client.phantom_tun("ping", "-c", "1", address).returncode == 0
    lab.command("stop", client.name)
    pins = client.state_dir / "pins"
    pins.write_text(re.sub(rf"^({address} )\w{{8}}", r"\1deadbeef", pins.read_text(), flags=re.M))
    lab.command("start", client.name)
    lab.refresh()

    for command in (("ping", "-c", "1"), ("netdb", "get")):
        done = client.phantom_tun(*command, address)
        assert done.returncode == ExitCode.CONFLICT, done.stdout
        assert f"the owner of {address} has changed" in done.stderr
    assert f"pins accept {address}" in client.phantom_tun("why", address).stdout
    assert f"warning: the owner of {address}" in client.phantom_tun("status").stdout
    assert fetch(client, server.url(4, PORT)).startswith("7 ")  # couldn't connect
    listed = client.phantom_tun("pins", "list").stdout
    assert f"WARNING: THE OWNER OF {address} HAS CHANGED!" in listed

    assert client.phantom_tun("pins", "accept", address, "--yes").returncode == 0
    assert fetch(client, server.url(4, PORT)).startswith("0 200 ")
    assert "warning: the owner" not in client.phantom_tun("status").stdout
    assert client.phantom_tun("pins", "remove", address).returncode == 0
    assert client.phantom_tun("pins", "accept", address).returncode == ExitCode.NOT_FOUND


# --- addresses -----------------------------------------------------------------------------------


def test_a_new_address_works_in_both_directions(client: Node, server: Node) -> None:
    done = server.phantom_tun("address", "new", "a-second", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["missing"] == []
    assert server.phantom_tun("expose", f"{PORT}", "--identity", "a-second").returncode == 0
    client.expose(PORT)
    with client.serving(PORT, sys.executable, "-m", "http.server", str(PORT), "--bind", "::"):
        for version, host in ((4, made["ap4"]), (6, f"[{made['ap6']}]")):
            source = made[f"ap{version}"]
            # As a target, as a source that is chosen, and not as one that isn't.
            wait_until(
                lambda host=host: fetch(client, f"http://{host}:{PORT}/").startswith("0 200")
            )
            there = client.url(version, PORT)
            assert fetch(server, there, "--interface", source) == f"0 200 {source}"
            assert fetch(server, there) == f"0 200 {server.ap(version)}"
    assert server.phantom_tun("address", "remove", "a-second", "--yes").returncode == 0
    assert made["ap4"] not in server.check("ip", "addr", "show", "phantom0")
    rules = json.loads(server.phantom_tun("expose", "--list", "--json").stdout)
    assert {rule["identity"] for rule in rules} == {"default"}
    assert server.phantom_tun("address", "show", "a-second").returncode == ExitCode.NOT_FOUND


# --- paths and tunnels ---------------------------------------------------------------------------


def test_tunnels_name_the_paths_that_carry_them(client: Node, server: Node) -> None:
    with client.joined(server, SILENT_PORT, 6) as (caller, called):
        for node, sock, kind in ((client, caller, "exit"), (server, called, "entry")):
            here = f":{sock.getpeername()[1]}"
            wait_until(lambda node=node: node.ask(ListTunnels()))
            (tunnel,) = (one for one in node.ask(ListTunnels()) if one.remote.endswith(here))
            (path,) = (one for one in node.ask(ListPaths()) if one.id == tunnel.path_id)
            assert (path.kind, path.identity) == (kind, tunnel.identity)
            assert path.tunnels_active > 0
        (tunnel,) = client.ask(ListTunnels())
        assert client.phantom_tun("tunnels", "close", tunnel.id).returncode == 0
        with pytest.raises(ConnectionResetError):
            caller.recv(1)


@pytest.mark.parametrize(
    "command", [("paths", "rebuild", "999"), ("tunnels", "close", "999"), ("unexpose", "9")]
)
def test_what_isnt_there_isnt_found(client: Node, command: tuple[str, ...]) -> None:
    done = client.phantom_tun(*command)
    assert done.returncode == ExitCode.NOT_FOUND
    assert re.fullmatch(r"phantom-tun: [^\n]+\n", done.stderr)


# --- nodes that can't, and users that mustn't ----------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("ping", NOBODY4), ExitCode.UNAVAILABLE),
        (("netdb", "get", NOBODY4), ExitCode.UNAVAILABLE),
        (("expose", "80"), ExitCode.UNAVAILABLE),
        (("address", "new", "web"), ExitCode.UNAVAILABLE),
        (("paths", "rebuild"), ExitCode.UNAVAILABLE),
        (("why", NOBODY4), ExitCode.FAILED),
    ],
)
def test_a_relay_says_that_it_only_relays(
    relay: Node, command: tuple[str, ...], code: ExitCode
) -> None:
    done = relay.phantom_tun(*command)
    assert done.returncode == code
    assert "only relays" in done.stdout + done.stderr


def test_other_users_are_turned_away(client: Node) -> None:
    done = subprocess.run(
        ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups",
         sys.executable, "-P", "-m", "phantom_tun",
         "--socket", str(client.control_socket), "status"],
        env=daemon_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "Permission denied" in done.stderr and "phantom_tun" not in done.stderr:
        pytest.skip("that user can't even read the program")
    assert done.returncode == ExitCode.NO_PERMISSION, done
    assert "use sudo" in done.stderr
    assert os.geteuid() == 0


def test_a_node_on_its_way_into_the_network_says_so(lab: Lab) -> None:
    others, node = [lab[name] for name in ("n1", "n2", "n3", "n5")], lab["n4"]
    lab.command("stop", node.name)
    try:
        for other in others:
            lab.command("pause", other.name)
        lab.command("start", node.name, "--timeout", "0")
        wait_until(lambda: "is joining" in node.phantom_tun("status").stdout)
        for command in (("ping", NOBODY4), ("netdb", "get", NOBODY4), ("address", "new", "web")):
            done = node.phantom_tun(*command)
            assert done.returncode == ExitCode.UNAVAILABLE
            assert "still joining the network" in done.stderr
        done = node.phantom_tun("why", NOBODY4, "--json")
        assert steps_of(done)["network"]["outcome"] == "failed"
        assert "waits for an exit path" in node.phantom_tun("address", "list").stdout
    finally:
        for other in others:
            lab.command("resume", other.name)
    wait_until(lambda: "is ready" in node.phantom_tun("status").stdout)
    lab.refresh()


def test_a_far_node_that_was_killed(lab: Lab, client: Node) -> None:
    victim = lab["n3"]
    wait_until(lambda: client.phantom_tun("ping", "-c", "1", victim.ap(6)).returncode == 0)
    lab.command("kill", victim.name)
    done = client.phantom_tun("why", victim.ap(6), "--json")
    assert done.returncode == ExitCode.FAILED
    steps = steps_of(done)
    assert (steps["record"]["outcome"], steps["handshake"]["outcome"]) == ("ok", "failed")
    assert "its node has probably stopped or died" in json.loads(done.stdout)["verdict"]["fix"]
    done = client.phantom_tun("ping", "-c", "1", "-W", "2", victim.ap(6))
    assert done.returncode == ExitCode.TIMEOUT
    assert f"phantom-tun why {victim.ap(6)}" in done.stderr
    done = victim.phantom_tun("status")
    assert done.returncode == ExitCode.NO_DAEMON
