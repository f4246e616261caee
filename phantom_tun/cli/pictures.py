"""Paths as pictures."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

from phantom_tun.cli.text import counted, duration, short_id
from phantom_tun.control.model import PathInfo

_DOT = "●"
_LINK = " ── "
_COLOURS = {"ready": "green", "building": "yellow", "retired": "bright_black"}


def console() -> Console:
    """Where pictures go: standard output, without colours unless it is a terminal."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=True)


def path_picture(path: PathInfo) -> Text:
    """One path in two lines: what it is, and the way from the owner outward."""
    colour = _COLOURS[path.state]
    tunnels = f"{counted(path.tunnels_ready, 'tunnel')} ready, {path.tunnels_active} active"
    facts = [
        f"{path.kind} path of {path.identity}",
        path.state,
        f"{duration(path.age_s)} old",
        f"{duration(path.expires_in_s)} left",
        tunnels,
    ]
    if path.build_s is not None:
        facts.insert(4, f"built in {duration(path.build_s)}")
    picture = Text.assemble((path.id, "bold"), "  ", " · ".join(facts), "\n    ")
    picture.append("you", "bold")
    for node in path.nodes:
        picture.append(_LINK, "bright_black")
        picture.append(f"{_DOT} ", colour)
        picture.append(short_id(node))
    end = path.kind if path.nodes else f"are the {path.kind} yourself"
    picture.append(f" {end}", colour)
    return picture
