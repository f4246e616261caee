"""A daemon in the background: started through systemd or by us, watched until it is ready."""

from __future__ import annotations

import os
import select
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from phantom_tun.cli.exits import CommandFailed, ExitCode
from phantom_tun.cli.text import counted
from phantom_tun.control.client import ControlClient
from phantom_tun.control.model import Status
from phantom_tun.control.schema import ControlError, GetStatus, Shutdown
from phantom_tun.daemon import slim
from phantom_tun.errors import ConfigError

UNIT = "phantom-tun.service"
SOCKET_UNIT = "phantom-tun.socket"
LOG_FILE = "daemon.log"
POLL_S = 0.2
STOP_TIMEOUT_S = 20.0
SHORTAGE_S = 15.0
"""How long to hope that more nodes turn up."""
_MAX_LOG_BYTES = 8 * 1024 * 1024
_TAIL_LINES = 8
_TAIL_BYTES = 8192
SYSTEMD = Path("/run/systemd/system")
"""Exists if systemd runs this machine."""
DAEMON = (sys.executable, *slim.flags(), "-P", "-m", "phantom_tun")
"""``-P``: never import from the directory somebody happens to stand in."""


class Starting(Protocol):
    """A daemon on its way."""

    def exit_code(self) -> int | None:
        """How it ended; ``None`` while it runs."""
        ...

    def log_tail(self) -> str:
        """The last lines of its log."""
        ...

    def log_place(self) -> str:
        """Where that log is, for people."""
        ...


class _Process:
    """A process that may outlive this one; without input, writing to the file ``output``."""

    def __init__(self, command: Sequence[str], output: int) -> None:
        self._code: int | None = None
        self._pid = os.posix_spawnp(
            command[0],
            list(command),
            os.environ,
            setsid=True,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
            ],
        )

    def exit_code(self) -> int | None:
        """How it ended; ``None`` while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code


class StartedProcess:
    """A daemon that this process starts, in a session of its own."""

    def __init__(self, arguments: Sequence[str], state_dir: Path) -> None:
        """:raises ConfigError: its log can't be written."""
        self._log_file = state_dir / LOG_FILE
        self._log = _open_log(self._log_file)
        self._log_start = os.fstat(self._log).st_size
        self._process = _Process([*DAEMON, *arguments], self._log)

    def exit_code(self) -> int | None:
        """See :class:`Starting`."""
        return self._process.exit_code()

    def log_tail(self) -> str:
        """What this daemon wrote last."""
        end = os.fstat(self._log).st_size
        start = max(self._log_start, end - _TAIL_BYTES)
        text = os.pread(self._log, end - start, start).decode(errors="replace")
        return "\n".join(text.splitlines()[-_TAIL_LINES:])

    def log_place(self) -> str:
        """See :class:`Starting`."""
        return str(self._log_file)


class StartedUnit:
    """The daemon of the systemd unit."""

    def __init__(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            # It returns when the unit is ready or has failed.
            self._start = _Process(["systemctl", "start", UNIT], nowhere)
        finally:
            os.close(nowhere)

    def exit_code(self) -> int | None:
        """See :class:`Starting`."""
        return int(ExitCode.FAILED) if self._start.exit_code() else None

    def log_tail(self) -> str:
        """The unit's last lines in the journal."""
        command = ["journalctl", "-u", UNIT, "-n", str(_TAIL_LINES), "-o", "cat", "--no-pager"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    def log_place(self) -> str:
        """See :class:`Starting`."""
        return f"journalctl -u {UNIT}"


def unit_is_installed() -> bool:
    """Whether systemd runs this machine and knows our unit."""
    return SYSTEMD.is_dir() and _systemctl("list-unit-files", "--no-legend", UNIT) != ""


def unit_is_active() -> bool:
    """Whether the daemon was started through the unit."""
    return SYSTEMD.is_dir() and _systemctl("is-active", UNIT) in {"active", "activating"}


def stop_unit() -> None:
    """Stop the unit, and its socket, which would start it again."""
    _systemctl("stop", SOCKET_UNIT, UNIT)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Waits for a daemon, telling people how far it is."""

    client: ControlClient
    say: Callable[[str], None]
    timeout_s: float

    def wait_ready(self, starting: Starting | None) -> Status:
        """Return once the daemon is ready. ``starting`` is ``None`` if somebody else started it.

        :raises CommandFailed: it ended, is not ready in time, or can't be as the network is.
        """
        deadline = time.monotonic() + self.timeout_s
        short_since: float | None = None
        shown = ""
        while True:
            status = self._status()
            if status is not None:
                now = _stage(status)
                if now != shown:
                    self.say(now)
                    shown = now
                if status.state == "ready":
                    return status
                if not status.builds.shortage:
                    short_since = None
                elif short_since is None:
                    short_since = time.monotonic()
                elif time.monotonic() - short_since > SHORTAGE_S:
                    raise _too_small(status)
            self._check_alive(starting)
            if time.monotonic() > deadline:
                raise CommandFailed(
                    ExitCode.TIMEOUT,
                    f"not ready after {self.timeout_s:.0f} s ({_why_not(status)}); "
                    "it goes on trying, 'phantom-tun status' shows how far it is",
                )
            time.sleep(POLL_S)

    def _status(self) -> Status | None:
        try:
            return self.client.call(GetStatus())
        except ControlError as error:
            if error.code in {"no_daemon", "timeout", "busy"}:
                return None
            raise

    @staticmethod
    def _check_alive(starting: Starting | None) -> None:
        code = None if starting is None else starting.exit_code()
        if starting is None or code is None:
            return
        known = {int(each) for each in ExitCode} - {int(ExitCode.OK)}
        lines = starting.log_tail()
        raise CommandFailed(
            ExitCode(code) if code in known else ExitCode.FAILED,
            f"the daemon ended while it started; its log ({starting.log_place()}) "
            + (f"says:\n{lines}" if lines else "is empty"),
        )


def stop_daemon(client: ControlClient) -> None:
    """Ask the daemon to stop and wait until its process is gone.

    :raises ControlError: there is none, or it refuses.
    :raises CommandFailed: it doesn't end in time.
    """
    pid = client.daemon_pid()
    try:
        process = os.pidfd_open(pid)
    except (ProcessLookupError, ValueError, OSError):
        # In another process namespace: all we can see is whether it answers.
        client.call(Shutdown())
        _wait_silent(client)
        return
    try:
        client.call(Shutdown())
        poller = select.poll()
        poller.register(process, select.POLLIN)
        if not poller.poll(STOP_TIMEOUT_S * 1000):
            raise _does_not_end(pid)
    finally:
        os.close(process)


def _wait_silent(client: ControlClient) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            client.call(GetStatus())
        except ControlError as error:
            if error.code == "no_daemon":
                return
        time.sleep(POLL_S)
    raise _does_not_end(0)


def _does_not_end(pid: int) -> CommandFailed:
    hint = f"; as a last resort: kill -KILL {pid}" if pid else ""
    return CommandFailed(
        ExitCode.TIMEOUT, f"the daemon did not end within {STOP_TIMEOUT_S:.0f} s{hint}"
    )


def _stage(status: Status) -> str:
    match status.state:
        case "joining":
            known = counted(status.netdb.known_nodes, "node")
            return f"joining the network {status.network.name} ({known} known)"
        case "building":
            if status.builds.shortage:
                return f"waiting for more nodes: {status.builds.shortage}"
            return f"building paths, {status.builds.succeeded} built"
        case state:
            return state


def _why_not(status: Status | None) -> str:
    if status is None:
        return "it does not answer"
    return status.warnings[0] if status.warnings else _stage(status)


def _too_small(status: Status) -> CommandFailed:
    return CommandFailed(
        ExitCode.UNAVAILABLE,
        f"the daemon runs, but can't build paths yet: {status.builds.shortage}. It does as soon as "
        "enough others have joined ('phantom-tun network invite'), or with fewer hops "
        "(paths.exit_hops, paths.entry_hops)",
    )


def _systemctl(*arguments: str) -> str:
    run = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    return run.stdout.strip()


def _open_log(path: Path) -> int:
    """Append to a log that is ours alone, readable by us; a large old one is put aside."""
    try:
        if path.exists() and path.lstat().st_size > _MAX_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(path, flags, 0o600)
    except OSError as error:
        raise ConfigError(f"can't write the log {path}: {error.strerror}") from error
    status = os.fstat(handle)
    # The directory belongs to the unprivileged daemon, and we may be root.
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(handle)
        raise ConfigError(f"{path} isn't a plain file of its own; move it away")
    return handle
