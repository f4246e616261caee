"""A machine that gets another address while its node runs, as laptops do."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable, Iterator

import pytest
from labs import Lab, Node, lab_of, wait_until
from probing import connects
from services import Echo, serving

from phantom_tun.control.schema import GetStatus
from phantom_tun.lab.provision import render
from phantom_tun.profile import Bootstrap

pytestmark = [pytest.mark.netns, pytest.mark.timeout(600)]

ECHO = 7001
LONG = 36.0
"""Seconds that a move may take; once 31 were seen, about as long as a neighbour keeps a link on
which nothing comes. A node that doesn't look at its addresses needs 39, and stays published at the
old one."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_of("--nodes", "5", "--exit-hops", "1", "--entry-hops", "1") as lab:
        yield lab


def route(node: Node, address: str) -> None:
    """Give the node this address, and the way out of it."""
    node.check("ip", "address", "add", f"{address}/8", "dev", "eth0")
    node.check("ip", "route", "add", "default", "via", "10.1.0.1", "dev", "eth0")


@pytest.fixture
def laptop(lab: Lab) -> Node:
    """A node that finds out by itself which address it has, as most do."""
    node = lab["n5"]
    file = node.directory / "config.toml"
    settings = tomllib.loads(file.read_text())
    del settings["node"]["advertise"]
    lab.command("stop", node.name)
    node.check("ip", "route", "add", "default", "via", "10.1.0.1", "dev", "eth0")
    file.write_text(render(settings))
    lab.command("start", node.name, timeout=300)
    lab.refresh()
    return lab["n5"]


def test_a_node_whose_address_changes_goes_on_at_the_new_one(
    lab: Lab, laptop: Node, figures: Callable[[str], None]
) -> None:
    other = lab["n4"]
    laptop.expose(ECHO)
    other.expose(ECHO)
    with serving(laptop, ECHO, Echo), serving(other, ECHO, Echo):
        for ends in ((laptop, other), (other, laptop)):
            wait_until(lambda ends=ends: connects(*ends, ECHO, 30.0))
        assert at(laptop) == {"10.5.0.1"}
        # The default route goes with the address.
        laptop.check("ip", "address", "del", "10.5.0.1/8", "dev", "eth0")
        route(laptop, "10.5.0.99")
        since = time.monotonic()
        wait_until(lambda: at(laptop) == {"10.5.0.99"})
        for ends, way in (((laptop, other), "out"), ((other, laptop), "in")):
            wait_until(lambda ends=ends: connects(*ends, ECHO, 5.0))
            took = time.monotonic() - since
            figures(f"another address: connections {way} work after {took:.1f} s")
            assert took < LONG
        wait_until(lambda: laptop.ask(GetStatus()).state == "ready")


def at(node: Node) -> set[str]:
    """Where the node says that others dial it."""
    return {str(Bootstrap.parse(text).address) for text in node.ask(GetStatus()).bootstrap}
