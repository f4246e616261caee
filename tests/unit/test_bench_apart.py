"""A chain of relays that are all different."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from phantom_tun.control.client import ControlClient
from phantom_tun.control.model import PathInfo
from phantom_tun.control.schema import ControlError, ListPaths, RebuildPaths
from phantom_tun.lab.bench import apart
from phantom_tun.lab.bench.apart import Chain, End
from phantom_tun.lab.plan import MAX_HOPS


def path(number: str, kind: str, nodes: str, state: str = "ready") -> PathInfo:
    """Through the nodes with these letters for names."""
    return PathInfo(
        number,
        "default",
        kind,
        len(nodes),
        state,
        1.0,
        900.0,
        0.5,
        tuple(nodes),
        2,
        0,  # type: ignore[arg-type]
    )


class FakeControl(ControlClient):
    """A daemon that has paths, and others when they are rebuilt."""

    def __init__(self, *paths: PathInfo, then: Callable[[str], str] = lambda _: "") -> None:
        super().__init__(Path("/nowhere"))
        self.paths = list(paths)
        self.rebuilt: list[str] = []
        self._then = then

    def call(self, request: object, on_event: object = None) -> object:  # type: ignore[override]
        if isinstance(request, ListPaths):
            return tuple(self.paths)
        assert isinstance(request, RebuildPaths)
        assert request.path_id is not None
        self.rebuilt.append(request.path_id)
        (old,) = (each for each in self.paths if each.id == request.path_id)
        nodes = self._then(request.path_id)
        if not nodes:
            raise ControlError("timeout", "not yet")
        at = self.paths.index(old)
        self.paths[at] = path(f"{old.id}+", old.kind, nodes)
        return tuple(self.paths)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "WAIT_SECONDS", -1.0)
    monkeypatch.setattr(apart, "POLL_SECONDS", 0.0)


def chain(client: FakeControl, service: FakeControl) -> Chain:
    return Chain(End("C", client), End("S", service), lambda _: None)


def exits(first: str = "abc", second: str = "def") -> tuple[PathInfo, PathInfo]:
    return path("1", "exit", first), path("2", "exit", second)


def entries(first: str = "ghi", second: str = "jkl") -> tuple[PathInfo, PathInfo]:
    return path("8", "entry", first), path("9", "entry", second)


def test_paths_with_nothing_in_common_are_left_alone() -> None:
    client, service = FakeControl(*exits()), FakeControl(*entries())
    assert chain(client, service).part() == ""
    assert client.rebuilt == service.rebuilt == []


def test_only_the_exit_path_in_which_a_relay_stands_twice_is_rebuilt() -> None:
    client = FakeControl(*exits("abj"), then=lambda _: "xyz")
    service = FakeControl(*entries())
    assert chain(client, service).part() == ""
    assert client.rebuilt == ["1"]
    assert service.rebuilt == []


def test_neither_end_is_a_relay_of_the_other() -> None:
    client = FakeControl(*exits("abS"), then=lambda _: "xyz")
    service = FakeControl(*entries("gCi"), then=lambda _: "uvw")
    assert chain(client, service).part() == ""
    assert client.rebuilt == ["1"]
    assert service.rebuilt == ["8"]


def test_paths_that_no_new_tunnel_takes_and_those_of_the_other_kind_do_not_matter() -> None:
    client = FakeControl(*exits(), path("3", "exit", "ghi", "retired"), path("4", "entry", "ghi"))
    service = FakeControl(*entries(), path("7", "exit", "abc"))
    assert chain(client, service).part() == ""
    assert client.rebuilt == []


def test_an_entry_path_that_was_replaced_may_still_be_used() -> None:
    client, service = FakeControl(*exits(), then=lambda _: "xyz"), FakeControl(*entries())
    found = chain(client, service)
    assert found.part() == ""
    service.paths[0] = path("10", "entry", "mno")
    client.paths[0] = path("5", "exit", "gpq")
    assert found.part() == ""
    assert client.rebuilt == ["5"]


def test_a_replaced_entry_path_through_the_client_that_it_may_still_use_is_told() -> None:
    client, service = FakeControl(*exits()), FakeControl(*entries())
    found = chain(client, service)
    found.learned["7"] = path("7", "entry", "mCo")
    assert "twice" in found.part()
    assert service.rebuilt == []


def test_tries_have_an_end_and_what_is_left_is_told() -> None:
    client = FakeControl(*exits("abj"), then=lambda _: "xyj")
    service = FakeControl(*entries())
    client.paths[0] = path("1", "exit", "abj")
    said = chain(client, service).part()
    assert len(client.rebuilt) == apart.TRIES
    assert f"{apart.TRIES} rebuilds" in said


def test_a_rebuild_that_takes_too_long_is_one_of_the_tries() -> None:
    client, service = FakeControl(*exits("abj")), FakeControl(*entries())
    assert "twice" in chain(client, service).part()
    assert client.rebuilt == ["1"] * apart.TRIES


def test_paths_that_do_not_stand_in_time_are_told() -> None:
    client, service = FakeControl(exits()[0]), FakeControl(*entries())
    assert "not all paths stood" in chain(client, service).part()


def test_there_are_relays_enough_for_two_paths_on_either_side() -> None:
    assert apart.relays_for(3) == apart.RELAYS
    assert all(apart.relays_for(hops) > 4 * hops for hops in range(1, MAX_HOPS + 1))


def test_a_node_is_kept_out_of_the_paths_of_one_kind() -> None:
    control = FakeControl(*exits("abS"), *entries("gSi"), then=lambda _: "xyz")
    apart.keep_out(control, "exit", "S", lambda _: None)
    assert control.rebuilt == ["1"]
    apart.keep_out(control, "entry", "S", lambda _: None)
    assert control.rebuilt == ["1", "8"]


def test_keeping_a_node_out_has_an_end() -> None:
    control = FakeControl(*exits("abS"), then=lambda _: "Sxy")
    apart.keep_out(control, "exit", "S", lambda _: None)
    assert len(control.rebuilt) == apart.TRIES
