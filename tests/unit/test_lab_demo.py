"""The demonstration on a machine that can't record as fast as it moves bytes."""

from __future__ import annotations

from typing import Any, cast

import pytest

from phantom_tun.lab import demo
from phantom_tun.lab.capture import RecordingIncomplete
from phantom_tun.lab.demo_steps import RECORDED_RATES, Demonstration
from phantom_tun.lab.nodes import NodeStatus


class FakeDemonstration:
    """Notes at which rates a file was fetched while recordings ran."""

    def __init__(self) -> None:
        self.timings = [("from nothing to all paths", "8 s")]
        self.rates: list[str] = []
        self.said: list[str] = []
        self.recordings = 0

    def step(self, title: str) -> None: ...

    def say(self, text: str) -> None:
        self.said.append(text)

    def record(self, _nodes: object) -> list[Any]:
        self.recordings += 1
        return []

    def first_contact(self, _client: object, _server: object) -> None:
        self.timings.append(("curl AP4, first time", "40 ms"))

    def recorded_transfer(self, _client: object, _server: object, rate: str) -> None:
        self.rates.append(rate)


def recorded(monkeypatch: pytest.MonkeyPatch, failures: int) -> FakeDemonstration:
    found = FakeDemonstration()

    def stop(_captures: object) -> None:
        if found.recordings <= failures:
            raise RecordingIncomplete("tcpdump lost packets")

    monkeypatch.setattr(demo, "stop_captures", stop)
    monkeypatch.setattr(FakeDemonstration, "name", "n1", raising=False)
    node = cast("NodeStatus", found)
    demo._record(cast("Demonstration", found), [], node, node)
    return found


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_what_could_not_be_recorded_is_done_again_more_slowly(
    monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    found = recorded(monkeypatch, failures)
    assert found.rates == list(RECORDED_RATES[: failures + 1])
    assert len(found.said) == failures
    assert len(found.timings) == 2


def test_a_machine_that_never_keeps_up_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecordingIncomplete):
        recorded(monkeypatch, len(RECORDED_RATES))
