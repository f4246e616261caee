"""One daemon for each state directory, and the file that names its process.

The lock is held on the directory itself: it needs no file, ends with the process however that
ends, and can't be tricked by what an unprivileged user puts into the directory. The pid file is
for people; nothing here trusts it.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from phantom_tun.errors import ConfigError
from phantom_tun.files import atomic_write, read_plain

PID_FILE = "daemon.pid"


class StateLock:
    """Held from construction until :meth:`release` or the end of the process."""

    def __init__(self, directory: Path) -> None:
        """:raises ConfigError: another daemon uses the directory, or it can't be opened."""
        self._pid_file = directory / PID_FILE
        try:
            self._handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"can't use the directory {directory}: {error.strerror}") from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._handle)
            raise ConfigError(
                f"another daemon{self._named()} already runs on {directory}: stop it with "
                "'phantom-tun down', or give this one its own node.state_dir"
            ) from error

    def write_pid(self) -> None:
        """Say in the directory which process this is.

        :raises ConfigError: it can't be written.
        """
        atomic_write(self._pid_file, f"{os.getpid()}\n".encode(), mode=0o644)

    def release(self) -> None:
        """Let another daemon have the directory. Idempotent."""
        if self._handle >= 0:
            self._pid_file.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = -1

    def _named(self) -> str:
        try:
            return f" (process {int(read_plain(self._pid_file, 20))})"
        except (OSError, ValueError):
            return ""


def is_locked(directory: Path) -> bool:
    """Whether a daemon runs on ``directory``."""
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
