"""``phantom-tun run`` without the command-line library, which the daemon would keep in memory for
good: 12 MB, and a third of its time to start.

Whatever is not plainly a correct ``run`` is left to that library, which says what is wrong with it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import msgspec

from phantom_tun import config, places
from phantom_tun.cli.exits import PROGRAM, ExitCode, exit_code
from phantom_tun.cli.plain import plain_run
from phantom_tun.cli.text import fitted
from phantom_tun.config import Config
from phantom_tun.errors import PhantomError


@dataclass(frozen=True, slots=True)
class Changes:
    """What the command line says instead of the configuration."""

    port: int | None = None
    relay_only: bool = False
    no_overrides: bool = False

    @property
    def none(self) -> bool:
        """Whether it says nothing."""
        return self == Changes()

    @property
    def arguments(self) -> list[str]:
        """The options that say it."""
        arguments = [] if self.port is None else ["--port", str(self.port)]
        arguments += ["--relay-only"] if self.relay_only else []
        return arguments + (["--no-overrides"] if self.no_overrides else [])

    def applied(self, settings: Config) -> Config:
        """The configuration in force."""
        node = msgspec.structs.replace(
            settings.node,
            port=settings.node.port if self.port is None else self.port,
            relay_only=settings.node.relay_only or self.relay_only,
        )
        network = msgspec.structs.replace(
            settings.network, overrides=settings.network.overrides and not self.no_overrides
        )
        return msgspec.structs.replace(settings, node=node, network=network)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line says to ``run``."""

    config_path: Path | None = None
    socket_path: Path | None = None
    changes: Changes = Changes()

    def settings(self) -> Config:
        """The configuration with what the command line and the environment say instead.

        :raises ConfigError: it can't be read or is wrong.
        """
        settings = self.changes.applied(config.load(self.config_path))
        socket = self.socket_path or places.socket_from_environment() or settings.control.socket
        control = msgspec.structs.replace(settings.control, socket=socket)
        return msgspec.structs.replace(settings, control=control)


def parse_plainly(arguments: Sequence[str]) -> RunOptions | None:
    """The options of a plain ``run``; ``None`` for everything else."""
    words = plain_run(arguments)
    if words is None:
        return None
    values, switches = words
    changes = Changes(
        int(values["--port"]) if "--port" in values else None,
        relay_only="--relay-only" in switches,
        no_overrides="--no-overrides" in switches,
    )
    config_path, socket_path = (
        Path(values[name]) if name in values else None for name in ("--config", "--socket")
    )
    return RunOptions(config_path, socket_path and socket_path.absolute(), changes)


def run(options: RunOptions) -> None:
    """Be the daemon.

    :raises PhantomError: it can't start, or failed.
    """
    settings = options.settings()
    # Only the daemon pays for trio and the cryptography.
    from phantom_tun import profile  # noqa: PLC0415
    from phantom_tun.daemon.start import run_daemon  # noqa: PLC0415

    run_daemon(settings, profile.load(settings.network.profile))


def run_and_exit(work: Callable[[], object]) -> NoReturn:
    """Do ``work`` and exit; an error is one sentence on standard error."""
    try:
        work()
    except PhantomError as error:
        if text := str(error):
            sys.stdout.flush()
            _complain(text)
        sys.exit(exit_code(error))
    except OSError as error:
        # What no command expected: a full disk, a file nobody may read.
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"{where}{error.strerror or error}")
        sys.exit(ExitCode.FAILED)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    sys.exit(ExitCode.OK)


def _complain(text: str) -> None:
    sys.stderr.write(fitted(f"{PROGRAM}: {text}", hang=4, stream=sys.stderr) + "\n")
