"""An interpreter that keeps less: no docstrings, no columns of tracebacks, no assertions. 2 MB.

Python reads modules that were compiled for that from a directory of their own, which
``scripts/setup`` fills (:mod:`phantom_tun.daemon.compiling`), those of Python itself too: nobody
but root could keep them where Python looks otherwise, and to compile them at every start takes
half a second. Where there is no such directory, daemons run like any other program.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

_BEEN_THERE = "PHANTOM_TUN_SLIM"
"""In the environment of a process that has become another interpreter, until it has noticed."""


def bytecode() -> str:
    """Where modules compiled for that are."""
    return os.path.join(sys.prefix, "phantom-tun", sys.implementation.cache_tag or "none")  # noqa: PTH118


def flags() -> tuple[str, ...]:
    """What tells an interpreter to be like that; nothing where it isn't prepared."""
    found = bytecode()
    if not os.path.isdir(found):  # noqa: PTH112 - without pathlib, which not every command needs
        return ()
    return ("-OO", "-X", "no_debug_ranges", "-X", f"pycache_prefix={found}")


def become_slim(arguments: Sequence[str]) -> None:
    """Have another interpreter do what this one was told to, in this process and from the start;
    return if it is one like that, or can't be.

    :param arguments: what the program was given.
    """
    been_there = os.environ.pop(_BEEN_THERE, None) is not None
    wanted = flags()
    command = sys.orig_argv[1:]
    if been_there or sys.flags.optimize > 1 or not wanted or not sys.executable:
        return
    # In a program that isn't Python's own, these are somebody else's.
    if not arguments or command[-len(arguments) :] != list(arguments):
        return
    environment = {**os.environ, _BEEN_THERE: "1"}
    with suppress(OSError):
        os.execve(sys.executable, [sys.executable, *wanted, *command], environment)  # noqa: S606
