"""Options, and how a run goes on when something fails."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from phantom_tun.lab.bench import load, measuring, run
from phantom_tun.lab.bench.hosts import Inside
from phantom_tun.lab.bench.load import Job, Outcome, Target
from phantom_tun.lab.bench.measuring import LoadFailed, Subject
from phantom_tun.lab.bench.model import Condition, ConditionResult, Settings, SystemResult
from phantom_tun.lab.bench.systems import Place, Running
from phantom_tun.lab.errors import BadLabOption, LabFailed

SETTINGS = Settings(2, 0.05, 3, 0.05, 5, 12, 3)
PLAIN = Condition("plain", "No delay")


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
        return Running(Inside((), dict(os.environ)), self.target, {"relay": (os.getpid(),)}, 0.0)

    def _end(self) -> None:
        self.ended = True


def subject(system: FakeSystem) -> Subject:
    running = Running(
        Inside((), dict(os.environ)), system.target or Target("x", 1), {"relay": (1,)}, 0.0
    )
    return Subject(system, running, SystemResult(system.key, system.title, "1"))


@pytest.fixture
def target() -> Iterator[Target]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                load.serve(listener, None)

        threading.Thread(target=serve, daemon=True).start()
        yield Target("127.0.0.1", listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


# --- options --------------------------------------------------------------------------------------


def test_quick_is_ours_and_tor_without_delay() -> None:
    options = run.parse(["--quick"])
    assert [system.key for system in run.systems(options)] == ["ours", "tor"]
    assert [condition.key for condition in run.conditions(options)] == ["plain"]
    assert run.settings(options).repetitions == 2


def test_without_options_it_is_everything_three_times() -> None:
    options = run.parse([])
    assert tuple(system.key for system in run.systems(options)) == run.SYSTEMS
    assert tuple(condition.key for condition in run.conditions(options)) == run.CONDITIONS
    assert run.settings(options).repetitions == 3


def test_conditions_have_the_delay_and_the_rate_asked_for() -> None:
    options = run.parse(["--conditions", "both,plain", "--delay-ms", "50", "--rate", "1gbit"])
    plain, both = run.conditions(options)
    assert (plain.delay_ms, plain.rate) == (0, None)
    assert (both.delay_ms, both.rate) == (50, "1gbit")


def test_peers_have_as_many_relays_as_our_paths() -> None:
    options = run.parse(["--hops", "2", "--systems", "yggdrasil,tls-chain"])
    titles = [system.title for system in run.systems(options)]
    assert titles == ["Yggdrasil line of 6", "TLS chain of 4"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--systems", "freenet"],
        ["--conditions", "windy"],
        ["--rate", "fast"],
        ["--delay-ms", "0"],
        ["--repetitions", "101"],
        ["--seconds", "0.1"],
        ["--hops", "9"],
        ["--hops", "0"],
        ["--nodes", "9"],
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: list[str]) -> None:
    options = run.parse(arguments)
    with pytest.raises(BadLabOption):
        _ = run.settings(options), run.conditions(options), run.systems(options)


def test_bad_options_end_with_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--systems", "freenet"]) == 1
    assert "there is no system freenet" in capsys.readouterr().err


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
    running = Running(Inside((), dict(os.environ)), target, {"relay": (os.getpid(),)}, 0.0)
    outcome, used = measuring.do(running, Job("echo", target, 5, 3))
    assert len(outcome.milliseconds) == 3
    assert used >= 0


def test_a_load_client_without_connection_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = Target("127.0.0.1", listener.getsockname()[1])
    running = Running(Inside((), dict(os.environ)), closed, {}, 0.0)
    with pytest.raises(LoadFailed, match=r"no connection for echo: .*refused"):
        measuring.do(running, Job("echo", closed, 1, 1))


def use(monkeypatch: pytest.MonkeyPatch, *outcomes: Outcome) -> None:
    """Let jobs have these outcomes, in turn, and cost half a second each."""
    left = iter(outcomes)
    monkeypatch.setattr(measuring, "do", lambda _running, _job: (next(left), 0.5))


def test_throughput_and_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Outcome(transferred=250_000_000, seconds=2.0))
    found = measuring.bulk("down", 8)(subject(FakeSystem("a")).running, SETTINGS)
    assert found == {"down_8": pytest.approx(1000.0), "down_8_cpu": pytest.approx(2.0)}


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

    monkeypatch.setattr(measuring, "MEASUREMENTS", (measure,))
    monkeypatch.setattr(measuring, "idle", lambda _: {})
    monkeypatch.setattr(measuring, "SETTLE_SECONDS", 0.0)
    measuring.repetition(0, subjects, SETTINGS, quiet)
    measuring.repetition(1, subjects, SETTINGS, quiet)
    assert order == ["a", "b", "c", "b", "c", "a"]
    assert subjects[0].result.samples == {"echo": [1.0, 1.0]}
    assert subjects[1].result.errors == ["repetition 1: broke", "repetition 2: broke"]


# --- a whole condition ----------------------------------------------------------------------------


@pytest.fixture
def one_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "MEASUREMENTS", (measuring.echo_idle,))
    monkeypatch.setattr(measuring, "idle", lambda _: {})
    monkeypatch.setattr(measuring, "SETTLE_SECONDS", 0.0)


@pytest.mark.usefixtures("one_measurement")
def test_a_system_that_does_not_start_is_left_out(target: Target) -> None:
    broken, works = FakeSystem("broken"), FakeSystem("works", target)
    found = ConditionResult(PLAIN, (0.0, 0.0, 0.0))
    run.measure(PLAIN, [broken, works], SETTINGS, found)
    first, second = found.systems
    assert first.errors == ["out of order"]
    assert not first.samples
    assert len(second.samples["echo"]) == SETTINGS.repetitions
    assert broken.ended
    assert works.ended


@pytest.mark.usefixtures("one_measurement")
def test_everything_is_ended_when_it_is_interrupted(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "repetition", interrupt)
    works = FakeSystem("works", target)
    with pytest.raises(KeyboardInterrupt):
        run.measure(PLAIN, [works], SETTINGS, ConditionResult(PLAIN, (0.0, 0.0, 0.0)))
    assert works.ended


@pytest.fixture
def main_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[FakeSystem], int]:
    """The whole program with one system, wherever the tests run."""
    monkeypatch.setattr(run.lifecycle, "check_machine", lambda: None)

    def main(system: FakeSystem) -> int:
        monkeypatch.setattr(run, "systems", lambda _: [system])
        return run.main(["--quick", "--out", str(tmp_path / "out")])

    return main


@pytest.mark.usefixtures("one_measurement")
def test_results_are_written(
    target: Target, main_with: Callable[[FakeSystem], int], tmp_path: Path
) -> None:
    assert main_with(FakeSystem("ours", target)) == 0
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["quick-plain.svg", "quick.json", "quick.md"]


@pytest.mark.usefixtures("one_measurement")
def test_without_ours_the_run_has_failed_and_writes_nothing(
    main_with: Callable[[FakeSystem], int], tmp_path: Path
) -> None:
    assert main_with(FakeSystem("ours")) == 1
    assert not (tmp_path / "out").exists()
