"""Processes that outlive the command that started them, and are found again by a later one.

A process id alone may by then belong to someone else; with its start time it can't. Signals go
through a pidfd, so that nothing can change between the check and the signal.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

_PAUSE_POLL_SECONDS = 0.005

_children: set[int] = set()
"""What this very process started and has to reap. All others are somebody else's to reap."""


class ProcessRef(msgspec.Struct, frozen=True):
    """One process of this boot, for good."""

    pid: int
    started: int
    """Clock ticks since boot, field 22 of ``/proc/PID/stat``."""


def spawn(argv: Sequence[str], environment: Mapping[str, str], log: Path) -> ProcessRef:
    """Start a process in a session of its own; output is appended to ``log``, input is empty.

    :raises OSError: ``argv[0]`` is not to be found on ``PATH``.
    """
    pid = os.posix_spawnp(
        argv[0],
        list(argv),
        dict(environment),
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGPIPE,),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.fspath(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )
    _children.add(pid)
    found = reference(pid)
    # Not reaped yet, so even a process that died at once is still in /proc.
    assert found is not None  # noqa: S101 - says that to the type checker
    return found


def reference(pid: int) -> ProcessRef | None:
    """The process that has this id now; ``None`` if there is none."""
    fields = _stat(pid)
    return ProcessRef(pid, int(fields[19])) if fields else None


def started_as(commands: Collection[Sequence[str]]) -> list[int]:
    """The process ids of all that were started with one of these commands, and have not become
    something else since."""
    wanted = {b"".join(os.fsencode(word) + b"\0" for word in command) for command in commands}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it is gone
            if (process / "cmdline").read_bytes() in wanted:
                found.append(int(process.name))
    return found


def is_alive(process: ProcessRef) -> bool:
    """Does it run (or is it stopped), as opposed to gone or a zombie?"""
    return _state(process) not in ("", "Z", "X")


def is_paused(process: ProcessRef) -> bool:
    """Is it held by SIGSTOP?"""
    return _state(process) == "T"


def send_signal(process: ProcessRef, number: signal.Signals) -> bool:
    """Send a signal to exactly this process. ``False``: it is gone."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def wait_paused(process: ProcessRef, seconds: float) -> bool:
    """Wait until SIGSTOP has reached all its threads, ``seconds`` at most."""
    deadline = time.monotonic() + seconds
    while not is_paused(process):
        if time.monotonic() > deadline or not is_alive(process):
            return False
        time.sleep(_PAUSE_POLL_SECONDS)
    return True


def wait_gone(processes: Collection[ProcessRef], seconds: float) -> list[ProcessRef]:
    """Wait until all have ended, ``seconds`` at most; returns those that have not."""
    deadline = time.monotonic() + seconds
    for process in processes:
        _wait_one(process, deadline)
    return [process for process in processes if is_alive(process)]


def kill(processes: Collection[ProcessRef], seconds: float = 10.0) -> list[ProcessRef]:
    """SIGKILL to all, and wait; returns those that would not die."""
    hit = [process for process in processes if send_signal(process, signal.SIGKILL)]
    return wait_gone(hit, seconds)


def _wait_one(process: ProcessRef, deadline: float) -> None:
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if is_alive(process):
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
    finally:
        os.close(fd)
    if process.pid in _children and os.waitpid(process.pid, os.WNOHANG)[0]:
        _children.discard(process.pid)


def _state(process: ProcessRef) -> str:
    """The one-letter state; empty if the process is gone."""
    fields = _stat(process.pid)
    return fields[0] if fields and int(fields[19]) == process.started else ""


def _stat(pid: int) -> list[str]:
    """``/proc/PID/stat`` from field 3, the state, on; empty if there is no such process."""
    try:
        text = Path("/proc", str(pid), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()
