"""One run of the benchmark, from options to files (``scripts/bench``)."""

from __future__ import annotations

import argparse
import datetime
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from phantom_tun.control.schema import ControlError
from phantom_tun.errors import PhantomError
from phantom_tun.lab import lifecycle, signals
from phantom_tun.lab.bench import cost, measuring, plots, report
from phantom_tun.lab.bench.chain import TlsChain
from phantom_tun.lab.bench.measuring import Subject
from phantom_tun.lab.bench.model import Condition, ConditionResult, Report, Settings, SystemResult
from phantom_tun.lab.bench.ours import PhantomTun
from phantom_tun.lab.bench.systems import Place, System, missing_packages
from phantom_tun.lab.bench.tor import Tor
from phantom_tun.lab.bench.yggdrasil import YggdrasilLine
from phantom_tun.lab.errors import BadLabOption, LabFailed
from phantom_tun.lab.plan import MAX_DELAY_MS, MAX_HOPS, nodes_needed, parse_name, parse_rate

RESULTS = Path(__file__).resolve().parents[3] / "docs" / "benchmarks"
CONDITIONS = ("plain", "delayed", "limited", "both")
SYSTEMS = ("ours", "tor", "tor-vanilla", "yggdrasil", "tls-chain", "ours-0")
DIRECT_NODES = 4
"""Of the lab without hops."""


def say(line: str) -> None:
    """One line for the person who watches."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure phantom-tun beside other systems, in namespaces of this machine.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="ours and Tor, no delay, 2 repetitions: < 3 minutes")
    add("--systems", metavar="A,B", help=f"of {','.join(SYSTEMS)} (all that are installed)")
    add("--conditions", metavar="A,B", help=f"of {','.join(CONDITIONS)} (all)")
    add("--delay-ms", type=float, default=20.0, help="one way, of delayed and both (20)")
    add("--rate", default="100mbit", help="of every link, of limited and both (100mbit)")
    add("--repetitions", type=int, metavar="N", help="3, with --quick 2")
    add("--seconds", type=float, metavar="S", help="of each transfer: 5, with --quick 2")
    add("--nodes", type=int, default=12, help="of our lab (12)")
    add("--hops", type=int, default=3, help="on each side (3)")
    add("--install", action="store_true", help="apt-get install what is missing, unasked")
    add("--out", type=Path, default=RESULTS, help="directory for the results (docs/benchmarks)")
    add("--label", help="what the results are called: LABEL.json and so on (quick or full)")
    options = parser.parse_args(arguments)
    options.repetitions = options.repetitions or (2 if options.quick else 3)
    options.seconds = options.seconds or (2.0 if options.quick else 5.0)
    options.label = options.label or ("quick" if options.quick else "full")
    options.systems = options.systems or ("ours,tor" if options.quick else ",".join(SYSTEMS))
    options.conditions = options.conditions or ("plain" if options.quick else ",".join(CONDITIONS))
    return options


def conditions(options: argparse.Namespace) -> list[Condition]:
    """What ``--conditions`` asks for.

    :raises BadLabOption: one makes no sense.
    """
    delay, rate = options.delay_ms, options.rate
    parse_rate(rate)
    if not 0 < delay <= MAX_DELAY_MS:
        raise BadLabOption(f"a delay of {delay:g} ms is out of range")
    known = {
        "plain": Condition("plain", "No delay, links as fast as the machine"),
        "delayed": Condition("delayed", f"{delay:g} ms one way between any two hosts", delay),
        "limited": Condition("limited", f"Links of {rate}", rate=rate),
        "both": Condition("both", f"Links of {rate}, {delay:g} ms one way", delay, rate),
    }
    return [known[key] for key in _chosen(options.conditions, CONDITIONS, "condition")]


def systems(options: argparse.Namespace) -> list[System]:
    """What ``--systems`` asks for; ours first.

    :raises BadLabOption: one is unknown, or our lab would be too small.
    """
    if not 1 <= options.hops <= MAX_HOPS:
        raise BadLabOption(f"--hops is 1 to {MAX_HOPS}; the system ours-0 has none")
    if options.nodes < nodes_needed(options.hops):
        raise BadLabOption(f"{options.hops} hops need --nodes {nodes_needed(options.hops)} or more")
    known: dict[str, System] = {
        "ours": PhantomTun(options.nodes, options.hops),
        "tor": Tor(),
        "tor-vanilla": Tor("Vanilla"),
        "yggdrasil": YggdrasilLine(2 * options.hops + 2),
        "tls-chain": TlsChain(2 * options.hops),
        "ours-0": PhantomTun(DIRECT_NODES, 0),
    }
    return [known[key] for key in _chosen(options.systems, SYSTEMS, "system")]


def settings(options: argparse.Namespace) -> Settings:
    """How much is measured.

    :raises BadLabOption: a number makes no sense.
    """
    if not 1 <= options.repetitions <= 100:
        raise BadLabOption("--repetitions is 1 to 100")
    if not 0.5 <= options.seconds <= 60:
        raise BadLabOption("--seconds is 0.5 to 60")
    return Settings(
        repetitions=options.repetitions,
        bulk_s=options.seconds,
        connections=15 if options.quick else 40,
        burst_s=min(options.seconds, 5.0),
        echoes=150 if options.quick else 500,
        nodes=options.nodes,
        hops=options.hops,
    )


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


def measure(
    condition: Condition, wanted: Sequence[System], how: Settings, found: ConditionResult
) -> None:
    """Bring all systems up, measure them in turns, end them."""
    say(f"== {condition.title}")
    with ExitStack() as undo:
        scratch = Path(tempfile.mkdtemp(prefix="phantom-bench-"))
        undo.callback(shutil.rmtree, scratch, ignore_errors=True)
        # Daemons of the lab are other users.
        scratch.chmod(0o755)
        token = secrets.token_hex(3)
        subjects = []
        for system in wanted:
            result = SystemResult(system.key, system.title, system.version())
            found.systems.append(result)
            directory = scratch / system.key
            directory.mkdir()
            name = parse_name(f"bench-{token}-{system.key}")
            say(f"{system.title} starts")
            try:
                with ExitStack() as begun:
                    running = system.start(Place(name, directory, condition, begun, say))
                    taken = measuring.reach(running)
                    undo.push(begun.pop_all())
            except (PhantomError, ControlError) as error:
                say(f"{system.title} is left out: {error}")
                result.errors.append(str(error))
                continue
            say(f"{system.title} answers after {taken:.1f} s")
            result.add(0, "start", taken)
            subjects.append(Subject(system, running, result))
        for number in range(how.repetitions if subjects else 0):
            say(f"-- repetition {number + 1} of {how.repetitions}")
            measuring.repetition(number, subjects, how, say)
        found.load_after = os.getloadavg()


def write(run: Report, directory: Path, label: str) -> None:
    """The results: JSON, tables, and a picture for each condition.

    :raises OSError: they can't be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    pictures = []
    for result in run.conditions:
        picture = f"{label}-{result.condition.key}.svg"
        (directory / picture).write_text(plots.chart(result))
        pictures.append(picture)
    data = msgspec.json.format(msgspec.json.encode(run), indent=1)
    (directory / f"{label}.json").write_bytes(data + b"\n")
    (directory / f"{label}.md").write_text(report.markdown(run, pictures))
    say(f"results are in {directory}: {label}.md, {label}.json, {', '.join(pictures)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code: 1 if ours could not be measured as a whole."""
    options = parse(arguments)
    began = time.monotonic()
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    try:
        how, links, wanted = settings(options), conditions(options), systems(options)
        lifecycle.check_machine()
        wanted = installed(wanted, unasked=options.install)
        run = Report(now, cost.machine(), how)
        with signals.ending_in_order():
            for condition in links:
                found = ConditionResult(condition, os.getloadavg())
                run.conditions.append(found)
                try:
                    measure(condition, wanted, how, found)
                finally:
                    # What was measured before an interruption is worth keeping.
                    if any(system.samples for system in found.systems):
                        write(run, options.out, options.label)
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
    return 1 if any(system.errors for system in mine) else 0


def _chosen(text: str, known: Sequence[str], what: str) -> list[str]:
    """The parts of ``text`` in the order of ``known``."""
    asked = {part.strip() for part in text.split(",")}
    if unknown := sorted(asked - set(known)):
        raise BadLabOption(f"there is no {what} {', '.join(unknown)}: use {', '.join(known)}")
    return [key for key in known if key in asked]


def _agreed(packages: Sequence[str]) -> bool:
    """Ask, if there is somebody to answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"Install {', '.join(packages)} with apt-get? [y/N] ", end="", file=sys.stderr)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


if __name__ == "__main__":
    sys.exit(main())
