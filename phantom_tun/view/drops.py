"""Which counters count something that was refused or dropped (docs/spec/control.md, "Drops")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

_BEGINNINGS = {
    "drop_": "",
    "dropped_": "interface ",
    "further_dropped_": "further connection ",
    "refused_": "refused ",
    "request_dropped_": "request ",
    "resume_dropped_": "resumption ",
}
"""Of a counter's name, and what stands for it in the reason."""

_WHOLE = frozenset(
    {
        "calls_of_banned_nodes",
        "calls_over_limit",
        "calls_over_network_limit",
        "entry_busy",
        "entry_puzzle",
        "entry_requests_broken",
        "entry_unknown_entry",
        "fetches_refused",
        "overrides_refused",
        "resume_refused",
        "strangers_dropped",
        "surveys_dropped",
    }
)
"""Counters that begin otherwise."""


def reason(name: str) -> str | None:
    """Why the things were dropped that the counter ``name`` counts; ``None`` if it counts none."""
    for beginning, said in _BEGINNINGS.items():
        if name.startswith(beginning):
            return said + name.removeprefix(beginning).replace("_", " ")
    return name.replace("_", " ") if name in _WHOLE else None


def drops(groups: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """What all counters say was dropped, by reason; without what never was."""
    found: Counter[str] = Counter()
    for group in groups:
        for name, count in group.items():
            why = reason(name)
            if why is not None and count:
                found[why] += int(count)
    return dict(found)
