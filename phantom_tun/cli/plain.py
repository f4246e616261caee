"""Whether a command line plainly is a correct ``phantom-tun run``. Imports little: this is asked
before it is settled which interpreter the process becomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_MAX_PORT = 65_535
_SWITCHES = frozenset({"--relay-only", "--no-overrides"})


class PlainRun(NamedTuple):
    """The words of one."""

    values: dict[str, str]
    """What follows which option."""
    switches: frozenset[str]


def plain_run(arguments: Sequence[str]) -> PlainRun | None:
    """The words of ``[--config F] [--socket P] run [--config F] [--port N] [--relay-only]
    [--no-overrides]``; ``None`` for everything else."""
    values: dict[str, str] = {}
    switches: set[str] = set()
    words = iter(arguments)
    for word in words:
        is_run = "run" in switches
        if (word == "run" and not is_run) or (word in _SWITCHES and is_run):
            switches.add(word)
        elif word in {"--config", "--port" if is_run else "--socket"}:
            values[word] = next(words, "")
        else:
            return None
    port = values.get("--port", "1")
    plain = all(value and not value.startswith("-") for value in values.values())
    if "run" not in switches or not plain or not _is_port(port):
        return None
    return PlainRun(values, frozenset(switches))


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 0 < int(text) <= _MAX_PORT
