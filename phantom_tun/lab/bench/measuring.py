"""The figures: each is measured at one system after the other, with the same load."""

from __future__ import annotations

import math
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

import msgspec

from phantom_tun.decoding import UNREADABLE
from phantom_tun.errors import PhantomError
from phantom_tun.lab.bench import cost
from phantom_tun.lab.bench.load_wire import Job, Outcome
from phantom_tun.lab.bench.model import Settings, SystemResult
from phantom_tun.lab.bench.scenarios import Scenario
from phantom_tun.lab.bench.systems import Running, Say, System
from phantom_tun.lab.errors import LabFailed

READY_SECONDS = 45.0
SPARE_SECONDS = 30.0
"""How much longer than it should a job may take: slow systems hold much on the way."""
REACH_SECONDS = 180.0
SETTLE_SECONDS = 0.1
GIVE_UP_AFTER = 2
"""A measurement that failed so often at a system isn't tried there any more."""
CALM, CALM_SECONDS, CALM_WITHIN = 30.0, 0.2, 45.0
"""Per cent of a processor core that all systems use together when they have nothing to do, at most;
seconds over which that is looked at; seconds until what is measured next is measured anyway."""
MANY = 8
LEAD_SECONDS = 0.5
"""How long a load runs before what happens under it is measured."""
IDLE_SECONDS = 2.0
ECHO_SECONDS = 5.0
CONNECT_SECONDS = 6.0
UDP_SIZE = 1200
UDP_RATE = 50e6

Samples = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Subject:
    """A system that is up, and what was found out about it."""

    system: System
    running: Running
    result: SystemResult
    failures: dict[str, int] = field(default_factory=dict)
    """How often each measurement failed here."""


class LoadFailed(LabFailed):
    """A load client could not do its job; the message says why."""


class LoadClient:
    """One job at a client's host, in a process of its own; ended with the block."""

    def __init__(self, running: Running, job: Job) -> None:
        self._job = job
        program = [sys.executable, "-m", "phantom_tun.lab.bench.load"]
        self._process = subprocess.Popen(
            [*running.client.prefix, *program, "client", msgspec.json.encode(job).decode()],
            env=dict(running.client.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until its connections stand.

        :raises LoadFailed: they don't.
        """
        out = self._process.stdout
        if out is None or not select.select([out], (), (), seconds)[0]:
            raise LoadFailed(f"no connections for {self._job.kind} in {seconds:.0f} s")
        if out.readline() != b"ready\n":
            raise LoadFailed(self._complaint())

    def go(self) -> None:
        """Let it begin.

        :raises LoadFailed: it has died.
        """
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(b"\n")
        except BrokenPipeError:
            raise LoadFailed(f"{self._job.kind} died before it began") from None

    def outcome(self) -> Outcome:
        """Wait for what came of it.

        :raises LoadFailed: it took too long or died.
        """
        try:
            out, _ = self._process.communicate(timeout=self._job.seconds + SPARE_SECONDS)
        except subprocess.TimeoutExpired:
            raise LoadFailed(f"{self._job.kind} came to no end") from None
        try:
            return msgspec.json.decode(out, type=Outcome)
        except UNREADABLE:
            raise LoadFailed(f"{self._job.kind} died") from None

    def _complaint(self) -> str:
        """The last line of what it wrote before it died."""
        self._process.kill()
        _, errors = self._process.communicate()
        lines = errors.decode(errors="replace").strip().splitlines()
        return f"no connection for {self._job.kind}: {lines[-1] if lines else 'no reason given'}"


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor seconds that a system used meanwhile."""

    by_role: Mapping[str, float]

    @property
    def total(self) -> float:
        """Of all its processes."""
        return sum(self.by_role.values())

    def of_one_relay(self, running: Running) -> float | None:
        """What one of the relays that a byte passes used, if there are any."""
        if not running.relays_on_way:
            return None
        return self.by_role.get("relay", 0.0) / running.relays_on_way


def do(running: Running, job: Job) -> tuple[Outcome, Usage]:
    """Do a job; what came of it, and what the system used for it.

    :raises LoadFailed: it couldn't be done.
    """
    with LoadClient(running, job) as client:
        client.wait_ready()
        before = cost.cpu_by_role(running.roles)
        client.go()
        outcome = client.outcome()
        # Processes that end with their connection are waited for a moment later.
        after = cost.cpu_by_role(running.roles)
        return outcome, Usage({role: after[role] - used for role, used in before.items()})


# --- figures --------------------------------------------------------------------------------------


def reach(running: Running) -> float:
    """Seconds from the start of the first daemon to the first answer through all of it.

    :raises LoadFailed: none came.
    """
    outcome, _ = do(running, Job("reach", running.target, REACH_SECONDS))
    if not outcome.milliseconds:
        raise LoadFailed(f"not reachable in {REACH_SECONDS:.0f} s: {'; '.join(outcome.errors)}")
    return time.monotonic() - running.began


def idle(subjects: Sequence[Subject], seconds: float) -> dict[str, float]:
    """Of every system by key, while nothing is asked of it for so many seconds: per cent of a
    processor core."""
    before = {each.system.key: cost.cpu_seconds(each.running.pids) for each in subjects}
    began = time.monotonic()
    time.sleep(seconds)
    after = {each.system.key: cost.cpu_seconds(each.running.pids) for each in subjects}
    elapsed = time.monotonic() - began
    return {key: 100 * (after[key] - used) / elapsed for key, used in before.items()}


def bulk(kind: Literal["down", "up"], streams: int) -> Callable[[Running, Settings], Samples]:
    """The measurement of transfers ``down`` or ``up``."""

    def measure(running: Running, settings: Settings) -> Samples:
        job = Job(kind, running.target, settings.bulk_s, streams)
        outcome, used = do(running, job)
        _demand(outcome)
        key = f"{kind}_{streams}"
        gigabytes = outcome.transferred / 1e9
        found = {
            key: outcome.transferred * 8e-6 / outcome.seconds,
            f"{key}_cpu": used.total / gigabytes,
        }
        relay = used.of_one_relay(running)
        if streams == 1 and relay is not None:
            found[f"{key}_hop"] = relay / gigabytes
        return found

    return measure


def connections(running: Running, settings: Settings) -> Samples:
    """New connections to a service already used, one after the other."""
    job = Job("connect", running.target, CONNECT_SECONDS, settings.connections)
    outcome, _ = do(running, job)
    found = dict(_latencies("connect", outcome))
    found["established"] = statistics.median(outcome.established)
    return found


def burst(running: Running, settings: Settings) -> Samples:
    """As many connections as can be had, eight at a time."""
    outcome, used = do(running, Job("burst", running.target, settings.burst_s))
    done = len(outcome.milliseconds)
    if not done or outcome.failed > done:
        raise LoadFailed(f"{outcome.failed} of a burst failed: {'; '.join(outcome.errors)}")
    return {"connects": done / outcome.seconds, "connects_cpu": 1e3 * used.total / done}


def echo_idle(running: Running, settings: Settings) -> Samples:
    """One byte there and back on a connection that stands, nothing else going on."""
    outcome, _ = do(running, Job("echo", running.target, ECHO_SECONDS, settings.echoes))
    return _latencies("echo", outcome)


def echo_loaded(running: Running, settings: Settings) -> Samples:
    """The same while eight streams are downloading as fast as they can."""
    seconds = max(settings.bulk_s, 2 * LEAD_SECONDS)
    load = Job("down", running.target, seconds + 2 * LEAD_SECONDS, MANY)
    job = Job("echo", running.target, seconds, 100_000)
    with ExitStack() as stack:
        loading = stack.enter_context(LoadClient(running, load))
        echoing = stack.enter_context(LoadClient(running, job))
        loading.wait_ready()
        echoing.wait_ready()
        loading.go()
        time.sleep(LEAD_SECONDS)
        echoing.go()
        outcome = echoing.outcome()
        _demand(loading.outcome())
        return _latencies("echo_loaded", outcome)


def memory(running: Running, _settings: Settings) -> Samples:
    """Resident memory of each role."""
    return {
        f"memory_{role}": statistics.median(cost.resident_mib([pid]) for pid in pids)
        for role, pids in running.roles.items()
    }


def udp(running: Running, settings: Settings) -> Samples:
    """Datagrams at a steady rate, from the client to the service."""
    if not running.datagrams:
        return {}
    job = Job("udp", running.target, settings.bulk_s, size=UDP_SIZE, rate=UDP_RATE)
    outcome, used = do(running, job)
    if not outcome.received:
        raise LoadFailed(f"no datagram arrived: {'; '.join(outcome.errors)}")
    return {
        "udp": outcome.transferred * 8e-6 / outcome.seconds,
        "udp_loss": 100 * (1 - outcome.received / outcome.sent),
        "udp_jitter": outcome.jitter_ms,
        "udp_cpu": used.total / (outcome.transferred / 1e9),
    }


Measurement = Callable[[Running, Settings], Samples]

MEASUREMENTS: Mapping[str, Measurement] = {
    "connections": connections,
    "burst": burst,
    "echo_idle": echo_idle,
    "down_1": bulk("down", 1),
    "up_1": bulk("up", 1),
    "down_8": bulk("down", MANY),
    "up_8": bulk("up", MANY),
    "echo_loaded": echo_loaded,
    "udp": udp,
    "memory": memory,
}


def repetition(
    number: int, subjects: Sequence[Subject], settings: Settings, scenario: Scenario, say: Say
) -> None:
    """Measure everything once at every system; failures are noted and the rest goes on."""
    # Whoever comes first isn't always the same.
    turns = [*subjects[number % len(subjects) :], *subjects[: number % len(subjects)]]
    for key, percent in idle(subjects, IDLE_SECONDS).items():
        result = next(each.result for each in subjects if each.system.key == key)
        result.add(number, "idle_cpu", percent)
    for name in scenario.measurements:
        for subject in turns:
            if name in scenario.measurements_of(subject.system.key):
                wait_calm(subjects)
                measure_once(number, name, subject, settings, say)


def wait_calm(subjects: Sequence[Subject]) -> None:
    """Wait, not for ever, until no system works on what it was asked before: a transfer that was
    given up can go on inside one for half a minute."""
    end = time.monotonic() + CALM_WITHIN
    while sum(idle(subjects, CALM_SECONDS).values()) > CALM and time.monotonic() < end:
        pass


def put_in_order(number: int, name: str, subject: Subject, say: Say) -> None:
    """What a system does before each measurement; what is amiss is noted."""
    if subject.running.prepare is None:
        return
    try:
        amiss = subject.running.prepare()
    except PhantomError as error:
        amiss = str(error)
    if amiss:
        subject.result.remarks.append(f"{name} of repetition {number + 1}: {amiss}")
        say(f"   {subject.system.title}: {amiss}")


def measure_once(number: int, name: str, subject: Subject, settings: Settings, say: Say) -> None:
    """One measurement of one system, unless it has failed there too often."""
    if subject.failures.get(name, 0) >= GIVE_UP_AFTER:
        return
    put_in_order(number, name, subject, say)
    try:
        found = MEASUREMENTS[name](subject.running, settings)
    except LoadFailed as error:
        subject.failures[name] = subject.failures.get(name, 0) + 1
        subject.result.errors.append(f"{name}: {error}")
        say(f"   {subject.system.title}: {name}: {error}")
        return
    for key, value in found.items():
        subject.result.add(number, key, value)
    if found:
        shown = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
        say(f"   {subject.system.title:<22} {shown}")
        time.sleep(SETTLE_SECONDS)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not below ``share`` (0 to 1) of all."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _latencies(key: str, outcome: Outcome) -> Samples:
    _demand(outcome)
    return {
        key: statistics.median(outcome.milliseconds),
        f"{key}_p95": percentile(outcome.milliseconds, 0.95),
    }


def _demand(outcome: Outcome) -> None:
    """Anything but a burst has to succeed as a whole.

    :raises LoadFailed: it did not.
    """
    if outcome.failed:
        raise LoadFailed(f"{outcome.failed} failed: {'; '.join(outcome.errors)}")
    if not outcome.milliseconds and not outcome.transferred:
        raise LoadFailed("nothing was done in time")
