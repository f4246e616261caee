"""Paths as pictures, drawn from this node outward. Arrows say which way connections are made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import typer

from phantom_tun.cli.text import counted, duration, fitted, short_id
from phantom_tun.control.model import Kind, PathInfo, PathState

_COLOURS: dict[PathState, str] = {
    "ready": typer.colors.GREEN,
    "building": typer.colors.YELLOW,
    "retired": typer.colors.BRIGHT_BLACK,
}
_TITLES: dict[Kind, str] = {
    "exit": "out, to others (exit paths)",
    "entry": "in, from others (entry paths)",
}
_ARROWS: dict[Kind, str] = {"exit": " ──▶ ", "entry": " ◀── "}
_ENDS: dict[Kind, str] = {"exit": " exit node", "entry": " entry node"}


def path_pictures(paths: Iterable[PathInfo]) -> Iterator[str]:
    """All paths, by identity and direction: each one's way, and below it what it is like."""
    groups: dict[tuple[str, Kind], list[PathInfo]] = {}
    for path in paths:
        groups.setdefault((path.identity, path.kind), []).append(path)
    for (identity, kind), group in groups.items():
        yield typer.style(f"{identity} · {_TITLES[kind]}", bold=True)
        width = max(len(path.id) for path in group)
        for path in group:
            for line in (f"{path.id:>{width}}  {_way(path)}", f"{'':>{width}}  {_facts(path)}"):
                yield fitted(f"  {line}", hang=width + 4)


def small_picture(hops: int, kind: Kind) -> str:
    """A path of ``hops`` without names: ``you ─●─●─●─▶``."""
    line = "─●" * hops + "─"
    return f"you {line}▶" if kind == "exit" else f"you ◀{line}"


def _way(path: PathInfo) -> str:
    colour = _COLOURS[path.state]
    if not path.nodes:
        return f"you{typer.style(f' are the {path.kind} node yourself', fg=colour)}"
    arrow = typer.style(_ARROWS[path.kind], fg=typer.colors.BRIGHT_BLACK)
    dot = typer.style("●", fg=colour)
    members = "".join(f"{arrow}{dot} {short_id(node)}" for node in path.nodes)
    return f"you{members}{typer.style(_ENDS[path.kind], fg=colour)}"


def _facts(path: PathInfo) -> str:
    facts = [
        path.state,
        f"{duration(path.age_s)} old, {duration(max(0.0, path.expires_in_s))} left",
        f"{counted(path.tunnels_ready + path.tunnels_active, 'tunnel')}, "
        f"{path.tunnels_active} in use",
    ]
    if path.build_s is not None and path.nodes:
        facts.insert(2, f"built in {duration(path.build_s)}")
    return typer.style(" · ".join(facts), fg=typer.colors.BRIGHT_BLACK)
