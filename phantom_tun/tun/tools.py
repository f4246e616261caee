"""Calls of the machine's own programs: where they are, how long they may take, what they say."""

from __future__ import annotations

import os
import shutil

import trio

from phantom_tun.errors import WorldError

_TIMEOUT = 10.0
_ADMIN_PATH = "/usr/sbin:/sbin"
"""Where the tools are on machines that leave it out of the path of those who became root."""


def find_tool(name: str) -> str | None:
    """Where a tool is, ``None`` if it isn't installed."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_ADMIN_PATH}")


async def run_tool(*command: str, stdin: str = "") -> bytes:
    """Run a tool and return what it prints.

    :param stdin: what it is given to read.
    :raises WorldError: it isn't there, failed or didn't end in time; the message has its own words.
    """
    program = find_tool(command[0])
    if program is None:
        raise WorldError(f"{' '.join(command)}: there is no such tool")
    with trio.move_on_after(_TIMEOUT):
        done = await trio.run_process(
            [program, *command[1:]],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            stdin=stdin.encode(),
        )
        if done.returncode == 0:
            return done.stdout
        words = done.stderr.decode(errors="replace").strip()
        raise WorldError(f"{' '.join(command)}: {words}")
    raise WorldError(f"{' '.join(command)}: no answer in {_TIMEOUT:.0f} s")
