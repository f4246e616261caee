"""Machines that have only one of IPv4 and IPv6, in a network whose first node has both."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from labs import Lab, Node, lab_of, wait_until
from probing import connects
from services import Echo, serving

from phantom_tun import profile
from phantom_tun.control.schema import GetStatus
from phantom_tun.lab.provision import render
from phantom_tun.view.health import JOINED_WITHIN

pytestmark = [pytest.mark.netns, pytest.mark.timeout(600)]

ECHO = 7001


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_of("--nodes", "3", "--exit-hops", "0", "--entry-hops", "0") as lab:
        for name in ("n1", "n3"):
            lab[name].expose(ECHO)
        yield lab


def invitation(node: Node) -> profile.Profile:
    """What ``network invite`` prints there, without other nodes."""
    made = profile.parse(node.phantom_tun("network", "invite").stdout.encode(), source="n1")
    own = tuple(each for each in made.bootstrap if each.node_id.hex() == node.node_id)
    assert [each.address.version for each in own] == [4, 6]
    return replace(made, bootstrap=own)


def begin_anew(lab: Lab, node: Node, joined: profile.Profile, version: int) -> None:
    """Stop a node, and have it be a new one with one IP version, which knows nobody."""
    lab.command("stop", node.name)
    for each, address in ((4, f"{node.underlay}/8"), (6, f"{node.underlay6}/16")):
        verb = "replace" if each == version else "delete"
        node.run("ip", f"-{each}", "address", verb, address, "dev", "eth0")
    file = node.directory / "config.toml"
    settings = tomllib.loads(file.read_text())
    settings["node"]["advertise"] = [str(node.underlay if version == 4 else node.underlay6)]
    settings["network"]["profile"] = str(node.directory / "network.toml")
    settings["log"] = {"level": "debug"}
    file.write_text(render(settings))
    Path(settings["network"]["profile"]).write_text(profile.dump(joined))
    for known in node.state_dir.glob("*.cache"):
        known.unlink()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("turned", [False, True])
def test_a_machine_with_one_ip_version_joins(lab: Lab, version: int, *, turned: bool) -> None:
    first, second = lab["n1"], lab["n3"]
    joined = invitation(first)
    if turned:
        joined = replace(joined, bootstrap=joined.bootstrap[::-1])
    begin_anew(lab, second, joined, version)
    lab.command("start", second.name, timeout=300)
    lab.refresh()
    second = lab["n3"]
    with serving(first, ECHO, Echo), serving(second, ECHO, Echo):
        for ends in ((first, second), (second, first)):
            wait_until(lambda ends=ends: connects(*ends, ECHO, 10.0))


def test_who_reaches_nobody_is_told_which_addresses_were_tried(lab: Lab) -> None:
    node = lab["n3"]
    joined = invitation(lab["n1"])
    # Nothing listens at n2's port 444, and there is no IPv6 at all.
    closed, nowhere = joined.bootstrap
    closed = replace(closed, address=ip_address(lab["n2"].underlay), port=444)
    # Those who know it must not look for it.
    for other in ("n1", "n2"):
        lab.command("stop", other)
    begin_anew(lab, node, replace(joined, bootstrap=(closed, nowhere)), 4)
    lab.command("start", node.name, "--timeout", "0")
    wait_until(lambda: node.phantom_tun("status").returncode == 0)
    wait_until(lambda: node.ask(GetStatus()).uptime_s > JOINED_WITHIN)
    (warning,) = node.ask(GetStatus()).warnings
    assert f"{closed.address}:444: the node can't be reached (Connection refused)" in warning
    assert f"[{nowhere.address}]:443: the node can't be reached (Network is unr" in warning
    log = (node.directory / "log").read_text()
    told = [line for line in log.splitlines() if "a node of the profile can't be reached" in line]
    assert any(str(closed.address) in line and "Connection refused" in line for line in told)
    assert any(str(nowhere.address) in line for line in told)
