"""What the demonstration concludes."""

from __future__ import annotations

from phantom_tun.control.model import PathInfo
from phantom_tun.lab.evidence import (
    Ends,
    Way,
    carriers,
    choose_ends,
    possible_ways,
    seeing_both,
    travelled,
)

NAMES = {f"id{i}": f"n{i}" for i in range(1, 10)}


def path(kind: str, *nodes: int, state: str = "ready") -> PathInfo:
    return PathInfo(
        id="p",
        identity="main",
        kind=kind,  # type: ignore[arg-type]
        hops=len(nodes),
        state=state,  # type: ignore[arg-type]
        age_s=0.0,
        expires_in_s=0.0,
        build_s=None,
        nodes=tuple(f"id{i}" for i in nodes),
        tunnels_ready=1,
        tunnels_active=0,
    )


def test_ends_are_those_with_the_fewest_common_members() -> None:
    paths = {
        "n1": (path("exit", 4, 5), path("entry", 6, 5)),
        "n2": (path("exit", 4, 5), path("entry", 6, 7)),
        "n3": (path("exit", 4, 7), path("entry", 6, 5)),
    }
    assert choose_ends(paths, NAMES) == Ends(client="n1", server="n2")


def test_ends_have_no_guard_in_common() -> None:
    paths = {
        "n1": (path("exit", 4, 5), path("entry", 4, 5)),
        "n2": (path("exit", 6, 5), path("entry", 4, 5)),
        "n3": (path("exit", 4, 5), path("entry", 4, 5)),
    }
    assert choose_ends(paths, NAMES) == Ends(client="n2", server="n1")
    del paths["n2"]
    assert choose_ends(paths, NAMES) is None


def test_ends_are_no_members_of_each_others_paths() -> None:
    paths = {
        "n1": (path("exit", 4, 2), path("entry", 5, 6)),
        "n2": (path("exit", 4, 1), path("entry", 5, 1)),
    }
    assert choose_ends(paths, NAMES) is None


def test_ends_need_ready_paths() -> None:
    paths = {
        "n1": (path("exit", 4), path("entry", 6, state="retired")),
        "n2": (path("exit", 4, state="building"), path("entry", 6)),
    }
    assert choose_ends(paths, NAMES) == Ends(client="n1", server="n2")
    paths["n2"] = ()
    assert choose_ends(paths, NAMES) is None


def test_ends_without_hops() -> None:
    paths = {"n1": (path("exit"), path("entry")), "n2": (path("exit"), path("entry"))}
    assert choose_ends(paths, NAMES) == Ends(client="n1", server="n2")


def test_the_way_goes_out_and_in() -> None:
    exits, entries = [path("exit", 1, 2, 3)], [path("entry", 4, 5, 6), path("entry", 77)]
    first, second = possible_ways(Ends("n8", "n9"), exits, entries, NAMES)
    assert first.nodes == ["n8", "n1", "n2", "n3", "n6", "n5", "n4", "n9"]
    assert second.into == ("id77",)


def test_a_node_that_is_exit_and_entry_is_one_node() -> None:
    (way,) = possible_ways(Ends("n8", "n9"), [path("exit", 1, 2)], [path("entry", 3, 2)], NAMES)
    assert way.nodes == ["n8", "n1", "n2", "n3", "n9"]


def test_the_way_that_was_travelled_is_the_one_whose_nodes_carried() -> None:
    ends = Ends("n8", "n9")
    wrong, right = Way(ends, ("n1",), ("n2",)), Way(ends, ("n1",), ("n3",))
    carried = {"n8": {"n1"}, "n1": {"n8", "n3"}, "n3": {"n1", "n9"}, "n9": {"n3"}}
    assert travelled([wrong, right], carried) == right
    assert travelled([wrong], carried) is None


def test_carriers_moved_at_least_half() -> None:
    traffic = {"n1": {"n2": 500, "n3": 499, "n4": 2000}, "n2": {"n1": 10}}
    assert carriers(traffic, 1000) == {"n1": {"n2", "n4"}}


def test_who_sees_both_ends() -> None:
    contacts = {"a": {"b", "x"}, "b": {"a", "y"}, "x": {"a", "y"}, "y": {"a", "b", "x"}}
    assert seeing_both(contacts, Ends("a", "b")) == ["y"]
