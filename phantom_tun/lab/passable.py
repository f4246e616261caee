"""Run a command so that every user can reach some directories, wherever they are.

An installation below root's home can't be read by nodes that run as nobody: ``/root`` lets nobody
pass. As ``python -m phantom_tun.lab.passable DIRECTORY … -- COMMAND …`` the command gets a mount
namespace of its own, in which each such barrier is covered by an empty directory that lets
everybody pass, with nothing in it but what was named. Permissions further inside stay.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from phantom_tun.lab.namespaces import bind, leave_mounts, mount_passable


def barriers(directories: Iterable[Path]) -> dict[Path, list[Path]]:
    """The outermost directories that don't let others pass, each with those named behind it."""
    found: dict[Path, list[Path]] = {}
    for directory in dict.fromkeys(path.resolve() for path in directories):
        for parent in reversed(directory.parents):
            if not parent.stat().st_mode & stat.S_IXOTH:
                found.setdefault(parent, []).append(directory)
                break
    return found


def make_passable(directories: Iterable[Path]) -> None:
    """Cover the barriers in front of ``directories``, for this process and its children only.

    :raises OSError: no permission to mount.
    """
    leave_mounts()
    for barrier, behind in barriers(directories).items():
        held = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in behind}
        mount_passable(barrier)
        for path, fd in held.items():
            path.mkdir(parents=True, exist_ok=True)
            bind(f"/proc/self/fd/{fd}", path)


def main(arguments: list[str]) -> None:
    """Become the command behind ``--``."""
    end = arguments.index("--")
    make_passable(map(Path, arguments[:end]))
    command = arguments[end + 1 :]
    os.execvp(command[0], command)  # noqa: S606 - that is its purpose


if __name__ == "__main__":
    main(sys.argv[1:])
