"""Processes that outlive the command that started them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from phantom_tun.lab.processes import (
    ProcessRef,
    is_alive,
    is_paused,
    kill,
    reference,
    send_signal,
    spawn,
    started_as,
    wait_gone,
    wait_paused,
)

PATIENCE = 20.0


def python(program: str, log: Path) -> ProcessRef:
    return spawn([sys.executable, "-S", "-c", program], os.environ, log)


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[ProcessRef]:
    process = spawn(["sleep", "1000"], os.environ, tmp_path / "log")
    yield process
    kill([process])


def test_output_goes_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    process = python("import sys; print('out'); sys.stderr.write('err' + sys.stdin.read())", log)
    assert wait_gone([process], PATIENCE) == []
    assert sorted(log.read_text().split()) == ["before", "err", "out"]


def test_it_lives_in_a_session_of_its_own(sleeper: ProcessRef) -> None:
    assert os.getsid(sleeper.pid) == sleeper.pid


def test_missing_program(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        spawn(["no-such-program"], os.environ, tmp_path / "log")


def test_a_live_process_is_found_again(sleeper: ProcessRef) -> None:
    assert reference(sleeper.pid) == sleeper
    assert is_alive(sleeper)


def test_another_start_time_is_another_process(sleeper: ProcessRef) -> None:
    stranger = ProcessRef(sleeper.pid, sleeper.started + 1)
    assert not is_alive(stranger)
    assert not send_signal(stranger, signal.SIGKILL)
    assert kill([stranger]) == []
    assert is_alive(sleeper)


def test_found_by_what_started_it(sleeper: ProcessRef) -> None:
    assert sleeper.pid in started_as([("true",), ("sleep", "1000")])
    assert sleeper.pid not in started_as([("sleep",), ("sleep", "10001"), ("sleep", "1000", "")])
    assert started_as([]) == []


def test_nobody(tmp_path: Path) -> None:
    process = python("", tmp_path / "log")
    wait_gone([process], PATIENCE)
    assert reference(process.pid) is None
    assert not is_alive(process)
    assert not send_signal(process, signal.SIGTERM)


def test_pause_and_go_on(sleeper: ProcessRef) -> None:
    assert not is_paused(sleeper)
    assert send_signal(sleeper, signal.SIGSTOP)
    assert wait_paused(sleeper, PATIENCE)
    assert is_alive(sleeper)
    assert send_signal(sleeper, signal.SIGCONT)
    os.waitpid(sleeper.pid, os.WCONTINUED)
    assert not is_paused(sleeper)


def test_waiting_has_an_end(sleeper: ProcessRef) -> None:
    assert wait_gone([sleeper], 0.01) == [sleeper]
    assert not wait_paused(sleeper, 0.01)


def test_the_dead_can_not_be_paused(sleeper: ProcessRef) -> None:
    kill([sleeper])
    assert not wait_paused(sleeper, PATIENCE)


def test_kill_leaves_no_zombie(sleeper: ProcessRef) -> None:
    assert kill([sleeper]) == []
    assert reference(sleeper.pid) is None


def test_other_peoples_children_are_not_reaped(tmp_path: Path) -> None:
    pid = os.posix_spawnp("sleep", ["sleep", "1000"], os.environ)
    process = reference(pid)
    assert process is not None
    assert kill([process]) == []
    assert not is_alive(process)
    assert os.waitpid(pid, 0) == (pid, signal.SIGKILL)
