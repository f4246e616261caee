"""Fuzzes all targets one after the other and says what came of it; run by scripts/fuzz."""

from __future__ import annotations

import argparse
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from targets import TARGETS

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
FINDINGS = HERE / "findings"
"""Inputs on which a target failed. Not kept in the repository: they become tests."""


@dataclass(frozen=True)
class Outcome:
    """What one target gave."""

    runs: int
    edges: int
    megabytes: int
    found: list[Path]


def one(name: str, *options: str | Path) -> str:
    """The output of a run of fuzz_one.py."""
    command = [sys.executable, HERE / "fuzz_one.py", name, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE)
    return done.stderr + done.stdout


def fuzz(name: str, seconds: float, work: Path, *, keep: bool) -> Outcome:
    """Fuzz one target for a while."""
    kept, new, merged = CORPUS / name, work / "new", work / "merged"
    for directory in (new, merged, FINDINGS / name):
        directory.mkdir(parents=True)
    for data in TARGETS[name].seeds():
        write(new, data)
    known = [kept] if kept.is_dir() else []
    output = one(
        name,
        f"-max_total_time={max(1, round(seconds))}",
        "-print_final_stats=1",
        f"-artifact_prefix={FINDINGS / name}/",
        new,
        *known,
    )
    found = sorted((FINDINGS / name).iterdir())
    if "Done" not in output and not found:
        (FINDINGS / name / "output").write_text(output)
        found = [FINDINGS / name / "output"]
    for path in found:
        print(output[-4000:], file=sys.stderr)
        print(f"fuzz: {name} fails on {path}", file=sys.stderr)
    if keep:
        one(name, "-merge=1", merged, *known, new)
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for path in merged.iterdir():
            write(kept, path.read_bytes())
    return Outcome(
        runs=last(r"number_of_executed_units: (\d+)", output),
        edges=last(r"cov: (\d+)", output),
        megabytes=last(r"peak_rss_mb: +(\d+)", output),
        found=found,
    )


def write(directory: Path, data: bytes) -> None:
    """Keep an input under a name that follows from it."""
    (directory / sha256(data).hexdigest()[:16]).write_bytes(data)


def last(pattern: str, output: str) -> int:
    """The number that a pattern finds last."""
    return int(([*re.findall(pattern, output)] or ["0"])[-1])


def main() -> int:
    """Fuzz, and tell."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz")
    parser.add_argument("--seconds", type=float, default=60, help="in all")
    parser.add_argument("--keep", action="store_true", help="add to the corpus")
    parser.add_argument("--list", action="store_true", help="name the targets")
    parser.add_argument("names", nargs="*", metavar="NAME")
    wanted = parser.parse_args()
    if unknown := set(wanted.names) - TARGETS.keys():
        parser.error(f"there is no {min(unknown)}; --list names all targets")
    if wanted.list:
        print("\n".join(TARGETS))
        return 0
    names = wanted.names or list(TARGETS)
    shutil.rmtree(FINDINGS, ignore_errors=True)
    found: list[Path] = []
    runs = edges = 0
    print(f"{'target':<20}{'runs':>12}{'edges':>8}{'MB':>6}  findings")
    for name in names:
        with tempfile.TemporaryDirectory() as work:
            outcome = fuzz(name, wanted.seconds / len(names), Path(work), keep=wanted.keep)
        found += outcome.found
        runs += outcome.runs
        edges += outcome.edges
        print(
            f"{name:<20}{outcome.runs:>12,}{outcome.edges:>8,}{outcome.megabytes:>6}"
            f"  {len(outcome.found)}",
            flush=True,
        )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    minutes = (used.ru_utime + used.ru_stime) / 60
    print(f"{'all':<20}{runs:>12,}{edges:>8,}{'':>6}  {len(found)}   {minutes:.1f} CPU-minutes")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
