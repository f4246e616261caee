"""What worker processes bring a relay: ``scripts/bench_workers``, as a scenario."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from phantom_tun.decoding import UNREADABLE
from phantom_tun.lab.bench.measuring import LoadFailed
from phantom_tun.lab.bench.model import GrowthResult, Settings
from phantom_tun.lab.bench.systems import Place

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "bench_workers"
SECONDS_PER_PAIR = 300.0
"""Longer than two runs take even on a busy machine; on an idle one it is 20."""
_APART = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
"""A network that has only ``lo``; and whatever was started ends with the command."""


class Run(msgspec.Struct, frozen=True):
    """What the script says of one run."""

    workers: int
    """Processes that carry tunnels."""
    rate: float
    """MB/s, of all tunnels together."""
    relay: float
    """CPU-s/GB, of all processes of the relay."""


def workers(place: Place, how: Settings, result: GrowthResult) -> None:
    """Pairs of runs, with one process and with two: once with a load that is encrypted beforehand,
    once with one whose ends do all of TLS meanwhile.

    :raises LoadFailed: the script failed.
    """
    for suffix, options in (("", ()), ("_tls", ("--full-load",))):
        for _ in range(how.repetitions):
            for run in pair(options):
                found = {
                    f"tunnels{suffix}": run.rate * 8,
                    f"tunnels_relay{suffix}": run.relay,
                }
                result.at(run.workers).add(found)
                shown = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
                place.say(f"   {run.workers} processes: {shown}")


def pair(options: Sequence[str]) -> list[Run]:
    """One run with one process and one with two, in namespaces of their own.

    :raises LoadFailed: the script failed.
    """
    script = [sys.executable, str(SCRIPT), "--pairs", "1", "--json", *options]
    command = [*_APART, "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *script]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=SECONDS_PER_PAIR)
        return msgspec.json.decode(done.stdout, type=list[Run])
    except subprocess.TimeoutExpired:
        raise LoadFailed(f"{SCRIPT.name} came to no end") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        raise LoadFailed(
            f"{SCRIPT.name} failed: {lines[-1] if lines else 'no reason given'}"
        ) from (error)
    except UNREADABLE as error:
        raise LoadFailed(f"{SCRIPT.name} said nothing that can be read") from error
