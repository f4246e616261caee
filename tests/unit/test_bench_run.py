"""The figures, and how a run goes on when something fails."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from phantom_tun.lab.bench import growth, load_server, measuring, merge, options, run
from phantom_tun.lab.bench.hosts import Inside
from phantom_tun.lab.bench.load_udp import Tallies
from phantom_tun.lab.bench.load_wire import Job, Outcome, Target
from phantom_tun.lab.bench.measuring import LoadFailed, Subject, Usage
from phantom_tun.lab.bench.model import (
    Condition,
    ConditionResult,
    GrowthResult,
    Settings,
    SystemResult,
)
from phantom_tun.lab.bench.scenarios import Choice, Scenario
from phantom_tun.lab.bench.systems import Place, Running
from phantom_tun.lab.errors import LabFailed

SETTINGS = Settings(2, 0.05, 0.1, 3, 0.05, 5, 12, 3)
PLAIN = Condition("plain", "No delay")
ECHO = Scenario("plain", ("ours",), ("echo_idle",), measures_start=True)


def quiet(_line: str) -> None:
    """Nobody watches."""


class FakeSystem:
    """Answers at ``target`` in no namespace, or doesn't start."""

    programs: Mapping[str, str] = {}

    def __init__(self, key: str, target: Target | None = None, lacks: str | None = None) -> None:
        self.key = self.title = key
        self.target = target
        self.ended = False
        if lacks:
            self.programs = {"no-such-program": lacks}

    def version(self) -> str:
        return "1"

    def start(self, place: Place) -> Running:
        place.undo.callback(self._end)
        if self.target is None:
            raise LabFailed("out of order")
        return Running(Inside((), dict(os.environ)), self.target, {"relay": (os.getpid(),)}, 0.0, 1)

    def _end(self) -> None:
        self.ended = True


def subject(system: FakeSystem) -> Subject:
    running = Running(
        Inside((), dict(os.environ)), system.target or Target("x", 1), {"relay": (1,)}, 0.0, 6
    )
    return Subject(system, running, SystemResult(system.key, system.title, "1"))


@pytest.fixture
def target() -> Iterator[Target]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                load_server.serve(listener, None, Tallies())

        threading.Thread(target=serve, daemon=True).start()
        yield Target("127.0.0.1", listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


# --- what isn't installed -------------------------------------------------------------------------


def test_what_is_not_installed_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    here, missing = FakeSystem("here"), FakeSystem("missing", lacks="some-package")
    assert run.installed([here, missing], unasked=False) == [here]
    assert "apt-get install some-package" in capsys.readouterr().err


def test_what_is_missing_is_installed_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[Sequence[str]] = []

    def fake_run(command: Sequence[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", fake_run)
    run.installed([FakeSystem("missing", lacks="some-package")], unasked=True)
    assert [command[-1] for command in commands] == ["some-package"]


def test_a_failed_installation_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_run(command: Sequence[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(command, 100)

    monkeypatch.setattr(subprocess, "run", fake_run)
    with pytest.raises(LabFailed, match="some-package"):
        run.installed([FakeSystem("missing", lacks="some-package")], unasked=True)


# --- measuring ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "share", "found"),
    [([3, 1, 2], 0.5, 2), ([1], 0.95, 1), (list(range(1, 21)), 0.95, 19), ([1, 2], 0.95, 2)],
)
def test_percentiles(values: list[float], share: float, found: float) -> None:
    assert measuring.percentile(values, share) == found


def test_a_load_client_prepares_waits_and_reports(target: Target) -> None:
    running = Running(Inside((), dict(os.environ)), target, {"relay": (os.getpid(),)}, 0.0, 1)
    outcome, used = measuring.do(running, Job("echo", target, 5, 3))
    assert len(outcome.milliseconds) == 3
    assert used.total >= 0


def test_a_load_client_without_connection_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = Target("127.0.0.1", listener.getsockname()[1])
    running = Running(Inside((), dict(os.environ)), closed, {}, 0.0, 0)
    with pytest.raises(LoadFailed, match=r"no connection for echo: .*refused"):
        measuring.do(running, Job("echo", closed, 1, 1))


def use(monkeypatch: pytest.MonkeyPatch, *outcomes: Outcome) -> None:
    """Let jobs have these outcomes, in turn, and cost half a second each."""
    left = iter(outcomes)
    usage = Usage({"client": 0.2, "relay": 0.3})
    monkeypatch.setattr(measuring, "do", lambda _running, _job: (next(left), usage))


def test_throughput_and_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Outcome(transferred=250_000_000, seconds=2.0))
    found = measuring.bulk("down", 8)(subject(FakeSystem("a")).running, SETTINGS)
    assert found == {"down_8": pytest.approx(1000.0), "down_8_cpu": pytest.approx(2.0)}


def test_one_relay_is_its_share_of_those_a_byte_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Outcome(transferred=100_000_000, seconds=1.0))
    found = measuring.bulk("up", 1)(subject(FakeSystem("a")).running, SETTINGS)
    assert found["up_1_hop"] == pytest.approx(0.3 / 6 / 0.1)
    direct = Running(Inside((), {}), Target("x", 1), {"client": (1,)}, 0.0, relays_on_way=0)
    assert Usage({"client": 1.0}).of_one_relay(direct) is None


def test_datagrams_lost_and_late(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = Outcome(sent=1000, received=990, transferred=990 * 1200, seconds=1.0, jitter_ms=0.5)
    use(monkeypatch, outcome, Outcome(sent=9, errors=["refused"]))
    takes_them = Running(Inside((), {}), Target("x", 1), {}, 0.0, 6, datagrams=True)
    found = measuring.udp(takes_them, SETTINGS)
    assert found["udp"] == pytest.approx(9.504)
    assert found["udp_loss"] == pytest.approx(1.0)
    assert found["udp_jitter"] == 0.5
    with pytest.raises(LoadFailed, match="refused"):
        measuring.udp(takes_them, SETTINGS)


def test_systems_without_datagrams_are_not_asked_for_them() -> None:
    assert measuring.udp(subject(FakeSystem("a")).running, SETTINGS) == {}


def test_a_transfer_of_which_a_stream_failed_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, Outcome(transferred=1, seconds=1.0, failed=1, errors=["reset"]))
    with pytest.raises(LoadFailed, match="reset"):
        measuring.bulk("up", 8)(subject(FakeSystem("a")).running, SETTINGS)


def test_a_burst_may_lose_some_but_not_most(monkeypatch: pytest.MonkeyPatch) -> None:
    some = Outcome(milliseconds=[1.0] * 10, seconds=2.0, failed=2)
    most = Outcome(milliseconds=[1.0], seconds=2.0, failed=2, errors=["refused"])
    use(monkeypatch, some, most)
    running = subject(FakeSystem("a")).running
    assert measuring.burst(running, SETTINGS) == {"connects": 5.0, "connects_cpu": 50.0}
    with pytest.raises(LoadFailed, match="refused"):
        measuring.burst(running, SETTINGS)


def test_an_empty_outcome_is_no_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Outcome())
    with pytest.raises(LoadFailed, match="nothing"):
        measuring.echo_idle(subject(FakeSystem("a")).running, SETTINGS)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "idle", lambda _subjects, _seconds: {})
    monkeypatch.setattr(measuring, "SETTLE_SECONDS", 0.0)


@pytest.mark.parametrize(("busy_for", "looks"), [(0, 1), (3, 4), (1000, 0)])
def test_nothing_is_measured_beside_what_was_asked_for_before(
    monkeypatch: pytest.MonkeyPatch, busy_for: int, looks: int
) -> None:
    """But nobody is waited for for ever."""
    seen: list[float] = []

    def idle(_subjects: object, seconds: float) -> dict[str, float]:
        seen.append(seconds)
        return {"tor": 2.0, "ours": 95.0 if len(seen) <= busy_for else 1.0}

    monkeypatch.setattr(measuring, "idle", idle)
    monkeypatch.setattr(measuring, "CALM_WITHIN", 5.0 if looks else 0.0)
    measuring.wait_calm([])
    assert len(seen) == max(looks, 1)


@pytest.mark.usefixtures("unhurried")
def test_systems_take_turns_at_being_first_and_failures_are_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subjects = [subject(FakeSystem(key)) for key in ("a", "b", "c")]
    order: list[str] = []

    def measure(running: Running, _settings: Settings) -> Mapping[str, float]:
        key = next(each.system.key for each in subjects if each.running is running)
        order.append(key)
        if key == "b":
            raise LoadFailed("broke")
        return {"echo": 1.0}

    monkeypatch.setattr(measuring, "MEASUREMENTS", {"echo_idle": measure})
    for number in range(3):
        measuring.repetition(number, subjects, SETTINGS, ECHO, quiet)
    # What has failed twice isn't tried a third time.
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a"]
    assert subjects[0].result.samples == {"echo": [1.0, 1.0, 1.0]}
    assert subjects[1].result.errors == ["echo_idle: broke", "echo_idle: broke"]


def prepared(system: FakeSystem, prepare: Callable[[], str]) -> Subject:
    found = subject(system)
    return dataclasses.replace(found, running=dataclasses.replace(found.running, prepare=prepare))


@pytest.mark.usefixtures("unhurried")
def test_what_is_amiss_before_a_measurement_is_noted_and_it_is_measured_anyway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def silent() -> str:
        raise LabFailed("no answer")

    monkeypatch.setattr(measuring, "MEASUREMENTS", {"echo_idle": lambda *_: {"echo": 1.0}})
    amiss = iter(["", "crooked"])
    subjects = [
        prepared(FakeSystem("a"), lambda: next(amiss)),
        prepared(FakeSystem("b"), silent),
        subject(FakeSystem("c")),
    ]
    for number in range(2):
        measuring.repetition(number, subjects, SETTINGS, ECHO, quiet)
    assert [each.result.remarks for each in subjects] == [
        ["echo_idle of repetition 2: crooked"],
        ["echo_idle of repetition 1: no answer", "echo_idle of repetition 2: no answer"],
        [],
    ]
    assert all(each.result.samples == {"echo": [1.0, 1.0]} for each in subjects)
    assert not any(each.result.errors for each in subjects)


# --- a whole condition ----------------------------------------------------------------------------


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("measures_start", [True, False])
def test_a_system_that_does_not_start_is_left_out(target: Target, measures_start: bool) -> None:
    broken, works = FakeSystem("broken"), FakeSystem("works", target)
    found = ConditionResult(PLAIN, 0.0)
    scenario = dataclasses.replace(ECHO, measures_start=measures_start)
    run.compare(scenario, PLAIN, [broken, works], SETTINGS, found)
    first, second = found.systems
    assert first.errors == ["out of order"]
    assert not first.samples
    assert len(second.samples["echo"]) == SETTINGS.repetitions
    assert ("start" in second.samples) is measures_start
    assert broken.ended
    assert works.ended


@pytest.mark.usefixtures("unhurried")
def test_a_system_that_cannot_be_reached_is_ended_at_once(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent, works = FakeSystem("silent", target), FakeSystem("works", target)
    asked: list[bool] = []

    def reach(_running: Running) -> float:
        asked.append(silent.ended)
        if len(asked) == 1:
            raise LoadFailed("not reachable")
        return 1.0

    monkeypatch.setattr(measuring, "reach", reach)
    found = ConditionResult(PLAIN, 0.0)
    run.compare(ECHO, PLAIN, [silent, works], SETTINGS, found)
    assert asked == [False, True]
    assert found.systems[0].errors == ["not reachable"]
    assert found.systems[1].samples["start"] == [1.0]


def test_everything_is_ended_when_it_is_interrupted(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "repetition", interrupt)
    works = FakeSystem("works", target)
    with pytest.raises(KeyboardInterrupt):
        run.compare(ECHO, PLAIN, [works], SETTINGS, ConditionResult(PLAIN, 0.0))
    assert works.ended


@pytest.fixture
def main_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """The whole program with one system, wherever the tests run."""
    monkeypatch.setattr(run.lifecycle, "check_machine", lambda: None)
    monkeypatch.setattr(run, "busy_before", lambda: 0.0)

    def main(system: FakeSystem, *arguments: str) -> int:
        found = options.parse(["--quick", "--out", str(tmp_path / "out"), *arguments])
        found = dataclasses.replace(
            found,
            choice=Choice(((ECHO, ("ours",)),), ()),
            systems={"ours": system},
            settings=SETTINGS,
        )
        monkeypatch.setattr(run, "parse", lambda _: found)
        return run.main([])

    return main


@pytest.mark.usefixtures("unhurried")
def test_results_are_written_and_added_to(
    target: Target, main_with: Callable[..., int], tmp_path: Path
) -> None:
    assert main_with(FakeSystem("ours", target)) == 0
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["quick-plain.svg", "quick.json", "quick.md"]
    assert main_with(FakeSystem("ours", target), "--merge") == 0
    found = merge.read(tmp_path / "out" / "quick.json")
    assert found is not None
    (condition,) = found.conditions
    assert len(condition.systems[0].samples["echo"]) == 2 * SETTINGS.repetitions


@pytest.mark.usefixtures("unhurried")
def test_without_ours_the_run_has_failed_and_writes_nothing(
    main_with: Callable[..., int], tmp_path: Path
) -> None:
    assert main_with(FakeSystem("ours")) == 1
    assert not (tmp_path / "out").exists()


def test_growth_that_fails_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LabFailed("no such luck")

    kind = dataclasses.replace(growth.GROWTHS["hops"], run=fail)
    monkeypatch.setattr(growth, "GROWTHS", {"hops": kind})
    found = GrowthResult("hops", "Hops", "hops", 0.0)
    run.grow("hops", SETTINGS, found)
    assert found.errors == ["hops: no such luck"]
