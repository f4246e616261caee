"""Groups of commands: in an order for people, and imported when somebody uses them."""

from __future__ import annotations

import importlib
import re
from typing import Any

import typer
import typer.main
from typer.core import TyperGroup

_ORDER = [
    *("up", "down", "run", "status"),
    *("address", "expose", "unexpose", "paths", "tunnels", "peers"),
    *("ping", "why", "netdb", "pins", "override"),
    *("network", "config", "guard", "lab", "exit-codes", "version"),
]


_WORDS: tuple[tuple[str, str], ...] = (
    (r"Input should be a valid integer\b.*", "must be a whole number"),
    (r".* is not a valid int(eger)?\b.*", "must be a whole number"),
    (r"Input should be a valid number\b.*|.* is not a valid float\b.*", "must be a number"),
    (r"Input should be greater than or equal to (\S+)", r"must be \1 or more"),
    (r"Input should be less than or equal to (\S+)", r"must be \1 or less"),
    (r".* is not in the range x>=(\S+?)\.?", r"must be \1 or more"),
    (r".* is not in the range (\S+?)<=x<=(\S+?)\.?", r"must be from \1 to \2"),
)
"""What the libraries that read command lines say, and what we do."""


def _in_words(message: str) -> str:
    for theirs, ours in _WORDS:
        if (found := re.fullmatch(theirs, message)) is not None:
            return found.expand(ours)
    return message


class OrderedGroup(TyperGroup):
    """The program's commands, those that one needs first at the top."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return sorted(super().list_commands(ctx), key=_ORDER.index)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that is meant; a value that is none is explained in the words of the rest
        of this program."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = _in_words(error.message)
            raise


class LabGroup(TyperGroup):
    """The commands of ``phantom_tun.cli.lab``, loaded at first use."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of its commands."""
        self._load()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of them."""
        self._load()
        return super().get_command(ctx, cmd_name)

    def _load(self) -> None:
        if not self.commands:
            app = importlib.import_module("phantom_tun.cli.lab").app
            loaded = typer.main.get_group(app)
            self.commands.update(loaded.commands)
