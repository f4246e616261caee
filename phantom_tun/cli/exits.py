"""Exit codes: the same failure always ends with the same number."""

from __future__ import annotations

from enum import IntEnum

from phantom_tun.control.schema import ControlError, ErrorCode
from phantom_tun.errors import (
    ConfigError,
    DeadlineExpired,
    PathUnavailable,
    PhantomError,
    UsageError,
)

PROGRAM = "phantom-tun"


class ExitCode(IntEnum):
    """How a command ended."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_DAEMON = 3
    NO_PERMISSION = 4
    NOT_FOUND = 5
    TIMEOUT = 6
    CONFIG = 7
    CONFLICT = 8
    UNAVAILABLE = 9
    INTERRUPTED = 130


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "it worked",
    ExitCode.FAILED: "it failed, with no code of its own; why: it doesn't work, see the verdict",
    ExitCode.USAGE: "the command line makes no sense, or a value is out of range",
    ExitCode.NO_DAEMON: "no daemon answers at the control socket",
    ExitCode.NO_PERMISSION: "this user may not control the daemon",
    ExitCode.NOT_FOUND: "there is no such address, node, path, tunnel, rule or pin",
    ExitCode.TIMEOUT: "it took too long, or nothing answered",
    ExitCode.CONFIG: "configuration, network profile, key file or port can't be used",
    ExitCode.CONFLICT: "it exists already, or what was asked contradicts what is there",
    ExitCode.UNAVAILABLE: "the node can't do it now: no path, or too busy",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C",
}

_CONTROL: dict[ErrorCode, ExitCode] = {
    "invalid": ExitCode.USAGE,
    "not_found": ExitCode.NOT_FOUND,
    "conflict": ExitCode.CONFLICT,
    "unavailable": ExitCode.UNAVAILABLE,
    "timeout": ExitCode.TIMEOUT,
    "denied": ExitCode.NO_PERMISSION,
    "busy": ExitCode.UNAVAILABLE,
    "unsupported": ExitCode.FAILED,
    "failed": ExitCode.FAILED,
    "no_daemon": ExitCode.NO_DAEMON,
}

_ERRORS: tuple[tuple[type[PhantomError], ExitCode], ...] = (
    (ConfigError, ExitCode.CONFIG),
    (UsageError, ExitCode.USAGE),
    (DeadlineExpired, ExitCode.TIMEOUT),
    (PathUnavailable, ExitCode.UNAVAILABLE),
    (PhantomError, ExitCode.FAILED),
)


class CommandFailed(PhantomError):  # noqa: N818 - reads as what happened
    """A command ends with ``code`` and, unless it is empty, says ``message``."""

    def __init__(self, code: ExitCode, message: str = "") -> None:
        super().__init__(message)
        self.code = code


def exit_code(error: PhantomError) -> ExitCode:
    """The code for an error."""
    if isinstance(error, CommandFailed):
        return error.code
    if isinstance(error, ControlError):
        return _CONTROL[error.code]
    return next(code for kind, code in _ERRORS if isinstance(error, kind))
