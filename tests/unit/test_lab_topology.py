"""What nodes of a lab are told about each other."""

from __future__ import annotations

from phantom_tun.lab import topology
from phantom_tun.lab.plan import plan_lab


def test_a_node_knows_where_all_others_are_and_nothing_about_itself() -> None:
    plan = plan_lab(name="x", nodes=3)
    lines = topology.neighbours(plan, plan.nodes[1])
    told = {(words[2], words[4]) for words in (line.split() for line in lines)}
    assert told == {
        ("10.1.0.1", "02:50:54:00:00:01"),
        ("fd50:1::1", "02:50:54:00:00:01"),
        ("10.3.0.1", "02:50:54:00:00:03"),
        ("fd50:3::1", "02:50:54:00:00:03"),
    }
    assert all(line.endswith(" dev eth0 nud permanent") for line in lines)
