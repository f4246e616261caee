"""The comparison of one process with two: what the script says, and when it fails."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from phantom_tun.lab.bench import workers
from phantom_tun.lab.bench.measuring import LoadFailed
from phantom_tun.lab.bench.model import Condition, GrowthResult, Settings
from phantom_tun.lab.bench.systems import Place

SETTINGS = Settings(2, 2.0, 8.0, 5, 2.0, 9, 12, 3)
SAID = b'[{"workers":1,"rate":100,"relay":2.0,"cores":1},{"workers":2,"rate":150,"relay":2.1}]'


def answer(monkeypatch: pytest.MonkeyPatch, said: bytes | Exception) -> list[Sequence[str]]:
    """Let the script say this; the commands it was started with."""
    commands: list[Sequence[str]] = []

    def fake_run(command: Sequence[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        if isinstance(said, Exception):
            raise said
        return subprocess.CompletedProcess(command, 0, said)

    monkeypatch.setattr(subprocess, "run", fake_run)
    return commands


def test_the_script_is_where_it_is_looked_for() -> None:
    assert workers.SCRIPT.is_file()


def test_pairs_of_both_loads_are_one_repetition_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands = answer(monkeypatch, SAID)
    found = GrowthResult("workers", "Workers", "processes", 0.0)
    place = Place("x", tmp_path, Condition("plain", "Plain"), ExitStack(), lambda _: None)
    workers.workers(place, SETTINGS, found)
    one, two = found.points
    assert (one.x, two.x) == (1, 2)
    assert one.samples["tunnels"] == one.samples["tunnels_tls"] == [800.0, 800.0]
    assert two.samples["tunnels_relay"] == two.samples["tunnels_relay_tls"] == [2.1, 2.1]
    assert ["--full-load" in command for command in commands] == [False, False, True, True]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"nonsense", "nothing that can be read"),
        (subprocess.TimeoutExpired("x", 1), "no end"),
        (subprocess.CalledProcessError(1, "x", stderr=b"Traceback\nOSError: broke"), "broke"),
        (subprocess.CalledProcessError(1, "x", stderr=b""), "no reason given"),
    ],
)
def test_a_script_that_fails_says_why(
    monkeypatch: pytest.MonkeyPatch, said: bytes | Exception, why: str
) -> None:
    answer(monkeypatch, said)
    with pytest.raises(LoadFailed, match=why):
        workers.pair(())
