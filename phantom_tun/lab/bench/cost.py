"""What processes cost: processor time and memory, from ``/proc``."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from phantom_tun.lab.bench.model import Machine

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def parse_stat(text: str) -> tuple[int, int]:
    """``/proc/PID/stat`` → the parent, and the clock ticks used by the process and by those of its
    children that it has waited for."""
    fields = text.rpartition(")")[2].split()  # from field 3, the state, on
    return int(fields[1]), sum(int(field) for field in fields[11:15])


def with_descendants(roots: Iterable[int], parents: Mapping[int, int]) -> set[int]:
    """The roots, their children, the children of those …; ``parents`` by process id."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found, todo = set(), list(roots)
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo += children.get(pid, [])
    return found


def parse_resident_kib(status: str) -> int:
    """``/proc/PID/status`` → resident memory; 0 for a process that has none left."""
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def cpu_seconds(roots: Iterable[int], proc: Path = PROC) -> float:
    """Processor time so far of these processes, of their living descendants, and of the dead ones
    that were waited for."""
    stats = _stats(proc)
    family = with_descendants(roots, {pid: parent for pid, (parent, _) in stats.items()})
    return sum(stats[pid][1] for pid in family if pid in stats) / TICKS_PER_S


def cpu_by_role(roles: Mapping[str, Iterable[int]], proc: Path = PROC) -> dict[str, float]:
    """:func:`cpu_seconds` of the processes of each role."""
    return {role: cpu_seconds(pids, proc) for role, pids in roles.items()}


def resident_mib(roots: Iterable[int], proc: Path = PROC) -> float:
    """Memory that these processes and their descendants have in use."""
    parents = {pid: parent for pid, (parent, _) in _stats(proc).items()}
    kib = 0
    for pid in with_descendants(roots, parents):
        try:
            kib += parse_resident_kib((proc / str(pid) / "status").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return kib / 1024


def parse_busy(stat: str) -> tuple[int, int]:
    """``/proc/stat`` → clock ticks that all processors were busy, and all of them."""
    fields = [int(field) for field in stat.splitlines()[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4], sum(fields)


def busy_share(seconds: float, proc: Path = PROC) -> float:
    """How busy this machine is, 0 to 1, watched for so long."""
    busy, total = parse_busy((proc / "stat").read_text())
    time.sleep(seconds)
    busy_then, total_then = parse_busy((proc / "stat").read_text())
    return (busy_then - busy) / max(1, total_then - total)


def machine() -> Machine:
    """This machine."""
    models = [
        line.partition(":")[2].strip()
        for line in (PROC / "cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return Machine(
        cpus=len(os.sched_getaffinity(0)),
        model=models[0] if models else platform.machine(),
        kernel=platform.release(),
        memory_gib=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30,
        python=platform.python_version(),
    )


def _stats(proc: Path) -> dict[int, tuple[int, int]]:
    found = {}
    for entry in os.scandir(proc):
        if entry.name.isdecimal():
            try:
                found[int(entry.name)] = parse_stat(Path(entry.path, "stat").read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found
