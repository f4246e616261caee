"""One run of the benchmark, from options to files (``scripts/bench``)."""

from __future__ import annotations

import datetime
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from phantom_tun.errors import PhantomError
from phantom_tun.lab import lifecycle, signals
from phantom_tun.lab.bench import cost, growth, measuring, merge, plots, report
from phantom_tun.lab.bench.measuring import Subject
from phantom_tun.lab.bench.model import (
    Condition,
    ConditionResult,
    GrowthResult,
    Report,
    Settings,
    SystemResult,
)
from phantom_tun.lab.bench.options import Options, parse
from phantom_tun.lab.bench.scenarios import Scenario, planned_seconds
from phantom_tun.lab.bench.systems import Place, System, missing_packages
from phantom_tun.lab.errors import LabFailed
from phantom_tun.lab.plan import parse_name

CALM_SECONDS = 1.0
"""What ran before has to end; then for how long is looked at what others do."""


def say(line: str) -> None:
    """One line for the person who watches."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def installed(wanted: Sequence[System], *, unasked: bool) -> list[System]:
    """Those that can be measured here; offers to install what others lack.

    :raises LabFailed: apt-get failed.
    """
    lacking = sorted({package for system in wanted for package in missing_packages(system)})
    if lacking and (unasked or _agreed(lacking)):
        say(f"apt-get install {' '.join(lacking)}")
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *lacking]
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        if subprocess.run(command, env=environment, stdout=2, check=False).returncode:
            raise LabFailed(f"apt-get could not install {', '.join(lacking)}")
    found = []
    for system in wanted:
        if packages := missing_packages(system):
            say(f"left out: {system.title} (apt-get install {' '.join(packages)}, or --install)")
        else:
            found.append(system)
    return found


@contextmanager
def scratch_space() -> Iterator[Path]:
    """A directory for a while, which daemons of other users can reach."""
    directory = Path(tempfile.mkdtemp(prefix="phantom-bench-"))
    try:
        directory.chmod(0o755)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def compare(
    scenario: Scenario,
    condition: Condition,
    wanted: Sequence[System],
    how: Settings,
    found: ConditionResult,
) -> None:
    """Bring all systems up, measure them in turns, end them."""
    say(f"== {condition.key}: {condition.title}")
    with ExitStack() as undo:
        subjects = start(scenario, condition, wanted, undo, found)
        for number in range(how.repetitions if subjects else 0):
            say(f"-- repetition {number + 1} of {how.repetitions}")
            measuring.repetition(number, subjects, how, scenario, say)


def start(
    scenario: Scenario,
    condition: Condition,
    wanted: Sequence[System],
    undo: ExitStack,
    found: ConditionResult,
) -> list[Subject]:
    """The systems that came up. Those that didn't are ended, and the reason is noted."""
    scratch = undo.enter_context(scratch_space())
    token = secrets.token_hex(3)
    started: list[tuple[Subject, ExitStack]] = []

    def wait_for(subject: Subject, begun: ExitStack) -> None:
        try:
            taken = measuring.reach(subject.running)
        except PhantomError as error:
            begun.close()
            leave_out(subject.system, subject.result, error)
            return
        say(f"{subject.system.title} answers after {taken:.1f} s")
        if scenario.measures_start:
            subject.result.add(0, "start", taken)
        subjects.append(subject)

    subjects: list[Subject] = []
    for system in wanted:
        result = SystemResult(system.key, system.title, system.version())
        found.systems.append(result)
        directory = scratch / system.key
        directory.mkdir()
        name = parse_name(f"bench-{token}-{system.key}")
        say(f"{system.title} starts")
        begun = undo.enter_context(ExitStack())
        try:
            running = system.start(Place(name, directory, condition, begun, say))
        except PhantomError as error:
            begun.close()
            leave_out(system, result, error)
            continue
        started.append((Subject(system, running, result), begun))
        if scenario.measures_start:
            wait_for(*started.pop())
    for each in started:
        wait_for(*each)
    return subjects


def leave_out(system: System, result: SystemResult, error: PhantomError) -> None:
    """A system that didn't come up."""
    say(f"{system.title} is left out: {error}")
    result.errors.append(str(error))


def grow(key: str, how: Settings, found: GrowthResult) -> None:
    """Measure ours at several sizes; what fails is noted."""
    say(f"== {key}: {found.title}")
    token = secrets.token_hex(3)
    with ExitStack() as undo:
        scratch = undo.enter_context(scratch_space())
        name = parse_name(f"bench-{token}-{key}")
        place = Place(name, scratch, Condition("plain", found.title), undo, say)
        with growth.noting(found, key, say):
            growth.GROWTHS[key].run(place, how, found)


def write(run: Report, directory: Path, label: str) -> None:
    """The results: JSON, tables, and pictures.

    :raises OSError: they can't be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    drawn = {
        each.condition.key: {f"{label}-{each.condition.key}.svg": plots.chart(each)}
        for each in run.conditions
    } | {
        each.key: {
            f"{label}-{each.key}-{figure}.svg": picture
            for figure, picture in plots.curves(each).items()
        }
        for each in run.growth
    }
    pictures = {name: text for files in drawn.values() for name, text in files.items()}
    for name, text in pictures.items():
        (directory / name).write_text(text)
    data = msgspec.json.format(msgspec.json.encode(run), indent=1)
    (directory / f"{label}.json").write_bytes(data + b"\n")
    names = {key: list(files) for key, files in drawn.items()}
    (directory / f"{label}.md").write_text(report.markdown(run, names))
    say(f"results are in {directory}: {label}.md, {label}.json and {len(pictures)} pictures")


def perform(options: Options, run: Report, earlier: Report | None) -> None:
    """All that was chosen; results are written after each scenario.

    :raises PhantomError: the machine can't do it.
    :raises OSError: the results can't be written.
    """
    keys = {key for _, systems in options.choice.scenarios for key in systems}
    wanted = [system for key, system in options.systems.items() if key in keys]
    here = {system.key: system for system in installed(wanted, unasked=options.install)}

    def keep() -> None:
        write(merge.merged(earlier, run) if earlier else run, options.out, options.label)

    for scenario, systems in options.choice.scenarios:
        condition = options.conditions[scenario.key]
        how = under(condition, options.settings)
        found = ConditionResult(condition, busy_before())
        run.conditions.append(found)
        try:
            compare(scenario, condition, [here[key] for key in systems if key in here], how, found)
        finally:
            # What was measured before an interruption is worth keeping.
            if any(system.samples for system in found.systems):
                keep()
    for key in options.choice.growth:
        kind = growth.GROWTHS[key]
        result = GrowthResult(key, kind.title, kind.x_title, busy_before())
        run.growth.append(result)
        try:
            grow(key, options.settings, result)
        finally:
            if result.points:
                keep()


def busy_before() -> float:
    """How busy the machine is when nothing of ours runs."""
    time.sleep(CALM_SECONDS)
    return cost.busy_share(CALM_SECONDS)


def under(condition: Condition, how: Settings) -> Settings:
    """With the transfers that these links need."""
    if not condition.delay_ms:
        return how
    longer = how.delayed_bulk_s if condition.rate is None else how.far_bulk_s
    return msgspec.structs.replace(how, bulk_s=longer)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code: 1 if ours could not be measured as a whole."""
    began = time.monotonic()
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    try:
        options = parse(arguments)
        lifecycle.check_machine()
        earlier = merge.read(options.out / f"{options.label}.json") if options.merge else None
        run = Report(now, cost.machine(), options.settings)
        minutes = planned_seconds(options.choice, options.settings) / 60
        say(f"this takes about {max(minutes, 1):.0f} minutes on an idle machine")
        with signals.ending_in_order():
            perform(options, run, earlier)
    except PhantomError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"bench: the results can't be written: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; nothing is left running", file=sys.stderr)
        return 130
    print(report.markdown(run))
    say(f"done in {time.monotonic() - began:.0f} s")
    mine = [s for r in run.conditions for s in r.systems if s.key.startswith("ours")]
    failed = any(system.errors for system in mine) or any(each.errors for each in run.growth)
    return 1 if failed else 0


def _agreed(packages: Sequence[str]) -> bool:
    """Ask, if there is somebody to answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"Install {', '.join(packages)} with apt-get? [y/N] ", end="", file=sys.stderr)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


if __name__ == "__main__":
    sys.exit(main())
