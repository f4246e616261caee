"""When is a lab ready? Every daemon says so over its control socket; nothing is guessed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from phantom_tun.control.client import ControlClient
from phantom_tun.control.model import IdentityStatus, Status
from phantom_tun.control.schema import ControlError, GetStatus
from phantom_tun.lab.errors import NotReady
from phantom_tun.lab.processes import is_alive
from phantom_tun.lab.record import NodeRecord

POLL_SECONDS = 0.2
REPORT_SECONDS = 2.0

ASKED_AT_ONCE = 8
_NAMED = 8
_SILENT = "no control socket yet"
_LOG_LINES = 5
_LOG_TAIL_BYTES = 8192

Report = Callable[[str], None]
"""Takes one line for the person who waits."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A node that is not ready, and what it lacks or does."""

    node: NodeRecord
    stage: str


@dataclass(frozen=True, slots=True)
class Ready:
    """A node that has all it needs."""

    name: str
    node_id: str


def ask(node: NodeRecord) -> Status | None:
    """The daemon's own status; ``None``: it doesn't answer (yet)."""
    try:
        return ControlClient(Path(node.control_socket)).call(GetStatus())
    except ControlError:
        return None


def stage(status: Status | None, *, relay_only: bool) -> str | None:
    """What a node lacks or does; ``None``: it is ready and its paths stand."""
    if status is None:
        return _SILENT
    missing = None if relay_only else _missing(status.identities)
    # "building" says less than which path is missing.
    if status.state in ("building", "ready") and (missing or status.state == "ready"):
        return missing
    return status.state


def _missing(identities: tuple[IdentityStatus, ...]) -> str | None:
    if not identities:
        return "no AP address yet"
    for identity in identities:
        if not identity.exit_paths_ready:
            return "no exit path yet"
        if not identity.entry_paths_ready:
            return "no entry path yet"
        if identity.ap4_state != "held":
            return "no AP4 address yet"
    return None


def wait_ready(nodes: Collection[NodeRecord], seconds: float, report: Report) -> dict[str, str]:
    """Wait until all nodes are ready and their paths stand; returns their ids by name.

    :raises NotReady: a daemon died, or the time is up; names nodes and stages, quotes the log.
    """
    started = time.monotonic()
    reported = started
    left = list(nodes)
    ids: dict[str, str] = {}
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        while True:
            found = list(pool.map(_look, left))
            ids |= {item.name: item.node_id for item in found if isinstance(item, Ready)}
            waiting = [item for item in found if isinstance(item, Waiting)]
            if not waiting:
                return ids
            now = time.monotonic()
            if now - started > seconds:
                raise NotReady(
                    f"not ready after {seconds:.0f} s; {_summary(waiting)}{_quote(waiting[0].node)}"
                )
            if now - reported > REPORT_SECONDS:
                reported = now
                done = len(nodes) - len(waiting)
                report(f"{now - started:4.0f} s: {done} of {len(nodes)} ready; {_summary(waiting)}")
            left = [item.node for item in waiting]
            time.sleep(POLL_SECONDS)


def _look(node: NodeRecord) -> Waiting | Ready:
    """How far a node is.

    :raises NotReady: its daemon is dead.
    """
    # Asked first: a daemon that dies in between must not pass for one that is slow.
    status = ask(node) if Path(node.control_socket).exists() else None
    if node.process is None or not is_alive(node.process):
        raise NotReady(f"the daemon of {node.name} ended while it started{_quote(node)}")
    at = stage(status, relay_only=node.interface is None)
    if status is None or at is not None:
        return Waiting(node, at or _SILENT)
    return Ready(node.name, status.node_id)


def _summary(waiting: list[Waiting]) -> str:
    """``no exit path yet: n1, n2; joining: n3``."""
    by_stage: dict[str, list[str]] = {}
    for item in waiting:
        by_stage.setdefault(item.stage, []).append(item.node.name)
    return "; ".join(f"{stage}: {_some(names)}" for stage, names in by_stage.items())


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _quote(node: NodeRecord) -> str:
    """The end of a node's log, to be put behind a message."""
    try:
        with Path(node.log).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    lines = text.strip().splitlines()[-_LOG_LINES:]
    return "".join(f"\n  {node.name}: {line}" for line in lines)
