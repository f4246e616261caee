"""What can go wrong with a lab. Each kind has its own exit code, listed in ``docs/lab.md``."""

from __future__ import annotations

from typing import ClassVar

from phantom_tun.errors import UsageError, WorldError


class LabUsageError(UsageError):
    """Base of what was asked for wrongly."""

    exit_code: ClassVar[int] = 2


class BadLabOption(LabUsageError):  # noqa: N818 - reads as what happened
    """An option's value makes no sense: a rate, a delay, a name, a number of nodes."""


class BadHops(LabUsageError):  # noqa: N818
    """Hops outside 0-8."""

    exit_code = 40


class TooFewNodes(LabUsageError):  # noqa: N818
    """The lab is too small for paths of the length asked for."""

    exit_code = 41


class UnknownNode(LabUsageError):  # noqa: N818
    """The lab has no node of that name."""

    exit_code = 42


class UnknownLab(LabUsageError):  # noqa: N818
    """There is no lab of that name."""

    exit_code = 43


class DuplicateLab(LabUsageError):  # noqa: N818
    """A lab of that name exists already, or its directory is in use."""

    exit_code = 44


class NotPrivileged(LabUsageError):  # noqa: N818
    """Namespaces and interfaces need root, or root in a user namespace of one's own."""

    exit_code = 45


class NodeStateError(LabUsageError):
    """The node is down and should be up, or the other way round."""

    exit_code = 46


class LabFailed(WorldError):  # noqa: N818
    """The machine refused something: a tool is missing, a command failed, a lock is held."""

    exit_code: ClassVar[int] = 47


class NotReady(LabFailed):
    """Nodes did not become ready: one died, or the time was up. The message names them."""

    exit_code = 48


MEANINGS: dict[int, str] = {
    40: "hops outside 0 to 8",
    41: "too few nodes for that many hops",
    42: "the lab has no such node",
    43: "there is no such lab",
    44: "a lab of that name exists, or is left over",
    45: "not root, or no /dev/net/tun; or the lab is root's, or of another user namespace",
    46: "the node is down and should be up, or the other way round",
    47: "a tool is missing, a command failed, or another one is working on the lab",
    48: "not ready: a daemon died or the time was up",
    126: "exec: the command is there, but can't be run",
    127: "exec: there is no such command",
}
"""Exit codes of their own that ``lab`` commands have; the last two are those of a shell."""
