"""What every command starts with: which configuration, which daemon, which form of output."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from phantom_tun import config, places
from phantom_tun.cli.exits import CommandFailed, ExitCode
from phantom_tun.control.client import ControlClient
from phantom_tun.control.schema import Request

EventT = TypeVar("EventT")
ResultT = TypeVar("ResultT")

_DIGITS = 6
_DIGITS_MS = 3

JsonOption = Annotated[bool, typer.Option("--json", help="Answer in JSON, for programs.")]


@dataclass(slots=True)
class Session:
    """The options before the command's name."""

    config_path: Path | None = None
    socket_path: Path | None = None

    def load_config(self) -> config.Config:
        """The node's configuration.

        :raises ConfigError: it can't be read or is wrong.
        """
        return config.load(self.config_path)

    def said_config(self) -> Path | None:
        """The configuration file that the command line or the environment names."""
        return self.config_path or places.config_from_environment()

    def said_socket(self) -> Path | None:
        """The control socket that the command line or the environment names."""
        return self.socket_path or places.socket_from_environment()

    def socket(self) -> Path:
        """Where the daemon listens: as said, as configured, or where one usually does.

        :raises ConfigError: as :meth:`load_config`.
        """
        if said := self.said_socket():
            return said
        configured = self.load_config().control.socket
        if self.said_config() is None and not configured.exists() and places.SYSTEM_SOCKET.exists():
            return places.SYSTEM_SOCKET
        return configured

    def client(self) -> ControlClient:
        """A client of that daemon.

        :raises ConfigError: as :meth:`socket`.
        """
        return ControlClient(self.socket())

    def ask(
        self,
        request: Request[EventT, ResultT],
        on_event: Callable[[EventT], None] | None = None,
    ) -> ResultT:
        """Ask the daemon.

        :raises ControlError: it doesn't answer, or refuses.
        """
        return self.client().call(request, on_event)


def session_of(context: typer.Context) -> Session:
    """The session that the root command made."""
    session = context.find_object(Session)
    return Session() if session is None else session


def confirm(question: str, otherwise: str) -> None:
    """Go on only if somebody says yes.

    :raises CommandFailed: nobody does; says ``otherwise``.
    """
    try:
        if typer.confirm(question, err=True):
            return
    except typer.Abort:  # the end of the input, or Ctrl-C
        typer.echo(err=True)
    raise CommandFailed(ExitCode.FAILED, otherwise)


def _rounded(value: Any, digits: int = _DIGITS) -> Any:
    """The same with times, and all other fractions, to a microsecond: the rest is noise."""
    match value:
        case float():
            return round(value, digits)
        case dict():
            return {
                key: _rounded(each, _DIGITS_MS if key.endswith("_ms") else _DIGITS)
                for key, each in value.items()
            }
        case list() | tuple():
            return [_rounded(each, digits) for each in value]
    return value


def print_json(value: object) -> None:
    """Write ``value`` for programs: JSON, indented, one document."""
    rounded = _rounded(msgspec.to_builtins(value, str_keys=True))
    text = msgspec.json.format(msgspec.json.encode(rounded), indent=2)
    sys.stdout.write(text.decode() + "\n")
