"""The command as a whole: its commands, and how its errors reach people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from phantom_tun import __version__, places
from phantom_tun.cli import (
    addresses,
    guarding,
    lifecycle,
    overrides,
    overview,
    pins,
    probing,
    routing,
    settings,
)
from phantom_tun.cli.exits import MEANINGS, PROGRAM
from phantom_tun.cli.lazy import LabGroup, OrderedGroup
from phantom_tun.cli.running import run_and_exit
from phantom_tun.cli.session import JsonOption, Session, print_json
from phantom_tun.lab.errors import MEANINGS as LAB_MEANINGS

app = typer.Typer(
    name=PROGRAM,
    cls=OrderedGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Reach and offer services anonymously: every program can use AP addresses as it is.",
    epilog="Begin with 'network join FILE' or, on the first machine of a small network, 'network "
    "new NAME --hops 0', then 'up' and 'status'; or play with a whole network on this machine: "
    "'lab up --nodes 12'. 'exit-codes' lists what exit codes mean.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    config_path: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", readable=False, help="The configuration file."),
    ] = None,
    socket_path: Annotated[
        Path | None,
        typer.Option(
            "--socket", metavar="PATH", readable=False, help="The daemon's control socket."
        ),
    ] = None,
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    if not places.wants_colours():
        context.color = False  # of the commands below it too
    context.obj = Session(config_path, socket_path and socket_path.absolute())


app.command()(lifecycle.up)
app.command()(lifecycle.down)
app.command()(lifecycle.run)
app.command()(overview.status)
app.add_typer(addresses.app, name="address")
app.command()(addresses.expose)
app.command()(addresses.unexpose)
app.add_typer(routing.paths_app, name="paths")
app.add_typer(routing.tunnels_app, name="tunnels")
app.add_typer(overview.peers_app, name="peers")
app.command()(probing.ping)
app.command()(probing.why)
app.add_typer(probing.netdb_app, name="netdb")
app.add_typer(pins.app, name="pins")
app.add_typer(overrides.app, name="override")
app.add_typer(settings.network_app, name="network")
app.add_typer(settings.config_app, name="config")
app.add_typer(guarding.app, name="guard")
app.add_typer(
    typer.Typer(
        cls=LabGroup,
        no_args_is_help=True,
        help="Whole anonymous networks in namespaces on this machine.",
    ),
    name="lab",
)


@app.command("exit-codes")
def exit_codes(as_json: JsonOption = False) -> None:
    """List the exit codes and what they mean."""
    usual = {int(code): text for code, text in MEANINGS.items()}
    if as_json:
        print_json({str(code): text for code, text in (usual | LAB_MEANINGS).items()})
        return
    for code, text in usual.items():
        typer.echo(f"{code:>3}  {text}")
    typer.echo("\nlab commands end with 2, 7 or 130 as all do, and with:")
    for code, text in LAB_MEANINGS.items():
        typer.echo(f"{code:>3}  {text}")


@app.command()
def version(as_json: JsonOption = False) -> None:
    """Print the version."""
    if as_json:
        print_json({"version": __version__})
    else:
        typer.echo(f"{PROGRAM} {__version__}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; an error is one sentence on standard error, after the
    usage if the command line makes no sense."""
    run_and_exit(
        lambda: app(args=None if arguments is None else list(arguments), prog_name=PROGRAM)
    )
