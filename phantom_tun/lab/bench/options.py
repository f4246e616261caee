"""The options of ``scripts/bench``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from phantom_tun.lab.bench.apart import RELAYS
from phantom_tun.lab.bench.chain import TlsChain
from phantom_tun.lab.bench.i2pd import I2pd
from phantom_tun.lab.bench.model import Condition, Settings
from phantom_tun.lab.bench.ours import OWNERS, PhantomTun
from phantom_tun.lab.bench.scenarios import KEYS, SYSTEMS, Choice, choose, conditions
from phantom_tun.lab.bench.systems import System
from phantom_tun.lab.bench.tor import Tor
from phantom_tun.lab.bench.yggdrasil import YggdrasilLine
from phantom_tun.lab.errors import BadLabOption
from phantom_tun.lab.plan import MAX_DELAY_MS, MAX_HOPS, nodes_needed, parse_rate

RESULTS = Path(__file__).resolve().parents[3] / "docs" / "benchmarks"
DIRECT_NODES = 4
"""Of the lab without hops."""
QUICK = ("plain/ours", "plain/tor")


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is asked for, checked."""

    choice: Choice
    settings: Settings
    systems: dict[str, System]
    conditions: dict[str, Condition]
    install: bool
    merge: bool
    out: Path
    label: str


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The options.

    :raises BadLabOption: one makes no sense.
    """
    found = _parser().parse_args(arguments)
    quick = found.quick
    repetitions = (2 if quick else 3) if found.repetitions is None else found.repetitions
    seconds = (2.0 if quick else 2.5) if found.seconds is None else found.seconds
    delayed_seconds, far_seconds = (8.0, 20.0) if found.seconds is None else (seconds, seconds)
    only = [item for text in found.only for item in text.split(",")] or (QUICK if quick else ())
    _check(found, repetitions, seconds)
    settings = Settings(
        repetitions=repetitions,
        bulk_s=seconds,
        delayed_bulk_s=delayed_seconds,
        far_bulk_s=far_seconds,
        connections=20 if quick else 30,
        burst_s=min(seconds, 5.0),
        echoes=200 if quick else 400,
        nodes=found.nodes,
        hops=found.hops,
    )
    return Options(
        choice=choose(only),
        settings=settings,
        systems=_systems(found.nodes, found.hops),
        conditions=conditions(found.delay_ms, found.rate),
        install=found.install,
        merge=found.merge,
        out=found.out,
        label=found.label or ("quick" if quick else "full"),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure phantom-tun beside other systems, in namespaces of this machine.",
        epilog=f"Scenarios: {', '.join(KEYS)}. Systems: {', '.join(SYSTEMS)}.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="ours and Tor, no delay, 2 repetitions: < 3 minutes")
    add("--only", metavar="SCENARIO[/SYSTEM],…", action="append", default=[],
        help="not everything; may be repeated")  # fmt: skip
    add("--repetitions", type=int, metavar="N", help="3, with --quick 2")
    add("--seconds", type=float, metavar="S",
        help="of each transfer: 2.5, with delay 8, with a rate too 20, with --quick 2")  # fmt: skip
    add("--merge", action="store_true", help="add to the results that are there")
    add("--delay-ms", type=float, default=20.0, help="one way, of delayed and both (20)")
    add("--rate", default="100mbit", help="of every link, of limited and both (100mbit)")
    add("--nodes", type=int, default=12,
        help=f"of our lab (12; with a rate {RELAYS + OWNERS} at least)")  # fmt: skip
    add("--hops", type=int, default=3, help="on each side (3)")
    add("--install", action="store_true", help="apt-get install what is missing, unasked")
    add("--out", type=Path, default=RESULTS, help="directory for the results (docs/benchmarks)")
    add("--label", help="what the results are called: LABEL.json and so on (quick or full)")
    return parser


def _check(found: argparse.Namespace, repetitions: int, seconds: float) -> None:
    if not 1 <= repetitions <= 100:
        raise BadLabOption("--repetitions is 1 to 100")
    if not 0.5 <= seconds <= 60:
        raise BadLabOption("--seconds is 0.5 to 60")
    if not 1 <= found.hops <= MAX_HOPS:
        raise BadLabOption(f"--hops is 1 to {MAX_HOPS}; the system ours-0 has none")
    if found.nodes < nodes_needed(found.hops):
        raise BadLabOption(f"{found.hops} hops need --nodes {nodes_needed(found.hops)} or more")
    if not 0 < found.delay_ms <= MAX_DELAY_MS:
        raise BadLabOption(f"a delay of {found.delay_ms:g} ms is out of range")
    parse_rate(found.rate)


def _systems(nodes: int, hops: int) -> dict[str, System]:
    systems: list[System] = [
        PhantomTun(nodes, hops),
        Tor(),
        Tor("Vanilla"),
        YggdrasilLine(2 * hops + 2),
        I2pd(),
        TlsChain(2 * hops),
        PhantomTun(DIRECT_NODES, 0),
        PhantomTun(nodes, hops, keeps=False),
    ]
    return {system.key: system for system in systems}
