"""Groups of commands: in an order for people, and imported when somebody uses them."""

from __future__ import annotations

import importlib
from typing import Any

import typer.main
from typer.core import TyperGroup

_ORDER = [
    *("up", "down", "run", "status"),
    *("address", "expose", "unexpose", "paths", "tunnels", "peers"),
    *("ping", "why", "netdb", "pins", "override"),
    *("network", "config", "lab", "exit-codes", "version"),
]


class OrderedGroup(TyperGroup):
    """The program's commands, those that one needs first at the top."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return sorted(super().list_commands(ctx), key=_ORDER.index)


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
