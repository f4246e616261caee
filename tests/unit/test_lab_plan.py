"""What is asked for and what follows from it."""

from __future__ import annotations

import ipaddress

import pytest

from phantom_tun.lab.errors import BadHops, BadLabOption, TooFewNodes, UnknownNode
from phantom_tun.lab.plan import (
    LabPlan,
    Override,
    default_hops,
    namespace_prefix,
    nodes_needed,
    parse_name,
    parse_override,
    parse_rate,
    plan_lab,
)


def plan(**wishes: object) -> LabPlan:
    return plan_lab(**{"name": "t", "nodes": 12, **wishes})  # type: ignore[arg-type]


def test_nodes_are_named_from_one() -> None:
    assert [node.name for node in plan(nodes=4).nodes] == ["n1", "n2", "n3", "n4"]


def test_every_underlay_address_is_alone_in_its_block() -> None:
    nodes = plan(nodes=250).nodes
    sixteens = {ipaddress.ip_network((int(n.underlay) & ~0xFFFF, 16)) for n in nodes}
    thirty_twos = {int(n.underlay6) >> 96 for n in nodes}
    macs = {n.mac for n in nodes}
    assert len(sixteens) == len(thirty_twos) == len(macs) == 250


def test_underlay_addresses_are_outside_the_overlay() -> None:
    for node in plan(nodes=250).nodes:
        assert node.underlay not in ipaddress.ip_network("240.0.0.0/4")
        assert node.underlay6 not in ipaddress.ip_network("2001:2f::/32")


def test_all_underlay_addresses_are_on_link() -> None:
    nodes = plan(nodes=250).nodes
    assert {ipaddress.ip_interface(f"{n.underlay}/8").network for n in nodes} == {
        ipaddress.ip_network("10.0.0.0/8")
    }
    assert {ipaddress.ip_interface(f"{n.underlay6}/16").network for n in nodes} == {
        ipaddress.ip_network("fd50::/16")
    }


@pytest.mark.parametrize(("hops", "nodes"), [(0, 2), (1, 4), (3, 10), (8, 25)])
def test_smallest_labs(hops: int, nodes: int) -> None:
    assert nodes_needed(hops) == nodes
    assert plan(nodes=nodes, exit_hops=hops, entry_hops=0).exit_hops == hops
    with pytest.raises(TooFewNodes, match=f"at least {nodes} nodes"):
        plan(nodes=nodes - 1, exit_hops=0, entry_hops=hops)


@pytest.mark.parametrize(("nodes", "hops"), [(2, 0), (3, 0), (4, 1), (7, 2), (9, 2), (10, 3)])
def test_default_hops_are_three_or_what_fits(nodes: int, hops: int) -> None:
    assert default_hops(nodes) == hops
    assert plan(nodes=nodes).entry_hops == hops


@pytest.mark.parametrize("hops", [-1, 9])
def test_bad_hops(hops: int) -> None:
    with pytest.raises(BadHops, match="0 to 8"):
        plan(nodes=40, entry_hops=hops)


def test_hops_are_judged_before_the_number_of_nodes() -> None:
    with pytest.raises(BadHops):
        plan(nodes=1, exit_hops=9)


def test_too_many_nodes() -> None:
    with pytest.raises(BadLabOption, match="at most 250"):
        plan(nodes=251)


def test_relay_only_nodes_are_the_last() -> None:
    nodes = plan(relay_only=2).nodes
    assert [n.relay_only for n in nodes] == [False] * 10 + [True] * 2
    assert nodes[0].roles == ("bootstrap", "owner")
    assert nodes[3].roles == ("owner",)
    assert nodes[11].roles == ("relay-only",)


@pytest.mark.parametrize("relay_only", [-1, 12])
def test_somebody_must_own_an_address(relay_only: int) -> None:
    with pytest.raises(BadLabOption, match="at least one must own"):
        plan(relay_only=relay_only)


@pytest.mark.parametrize("delay", [-1.0, 10_001.0, float("nan")])
def test_bad_delay(delay: float) -> None:
    with pytest.raises(BadLabOption, match="delay"):
        plan(delay_ms=delay)


@pytest.mark.parametrize(
    ("text", "rate"), [("100mbit", 1e8), ("1gbit", 1e9), ("512kbit", 512e3), ("1.5Mbit", 1.5e6)]
)
def test_rates(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "100", "100mb", "-1mbit", "1kbit", "200gbit", "fast"])
def test_bad_rates(text: str) -> None:
    with pytest.raises(BadLabOption):
        parse_rate(text)


@pytest.mark.parametrize("text", ["a", "lab", "my-lab-2", "a" * 32])
def test_names(text: str) -> None:
    assert parse_name(text) == text


@pytest.mark.parametrize("text", ["", "A", "a.b", "a/b", "-a", "a-", "..", "a" * 33, "a\n"])
def test_bad_names(text: str) -> None:
    with pytest.raises(BadLabOption, match="lab's name"):
        parse_name(text)


def test_no_lab_takes_the_namespaces_of_another() -> None:
    one, other = plan(name="a"), plan(name="a-n1")
    assert not other.namespace(other.nodes[0]).startswith(namespace_prefix("a"))
    assert one.namespace(one.nodes[0]).startswith(namespace_prefix("a"))
    assert one.switch_namespace not in {one.namespace(n) for n in one.nodes}


@pytest.mark.parametrize(
    ("text", "override"),
    [
        ("log.level=debug", Override(None, "log", "level", "debug")),
        ("n3:paths.exit_hops=0", Override("n3", "paths", "exit_hops", 0)),
        ("node.dialable=false", Override(None, "node", "dialable", False)),
        ('node.families=["ab"]', Override(None, "node", "families", ["ab"])),
        ("node.web_page=", Override(None, "node", "web_page", "")),
        ("node.web_page=a=b", Override(None, "node", "web_page", "a=b")),
    ],
)
def test_overrides(text: str, override: Override) -> None:
    assert parse_override(text) == override


@pytest.mark.parametrize("text", ["", "level=debug", "log.level", "m3:log.level=debug", ".a=1"])
def test_bad_overrides(text: str) -> None:
    with pytest.raises(BadLabOption, match="no setting"):
        parse_override(text)


@pytest.mark.parametrize("value", ["{a = 1}", "[[1]]", "2020-01-01"])
def test_overrides_are_scalars_or_lists_of_them(value: str) -> None:
    with pytest.raises(BadLabOption, match="a setting is"):
        parse_override(f"a.b={value}")


def test_override_for_a_node_that_is_not_there() -> None:
    with pytest.raises(UnknownNode, match="n1 to n12"):
        plan(settings=("n13:log.level=debug",))
