"""Starting and stopping: ``up``, ``down`` and ``run``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from phantom_tun.cli import background, running
from phantom_tun.cli.exits import CommandFailed, ExitCode
from phantom_tun.cli.running import Changes
from phantom_tun.cli.session import Session, session_of
from phantom_tun.cli.text import fitted
from phantom_tun.config import Config
from phantom_tun.control.client import ControlClient
from phantom_tun.control.schema import ControlError, GetStatus
from phantom_tun.daemon.account import Account, resolve_account
from phantom_tun.errors import ConfigError
from phantom_tun.files import ensure_private_directory

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", readable=False, help="The configuration file."),
]
PortOption = Annotated[
    int | None,
    typer.Option("--port", metavar="P", min=1, max=65535, help="Listen on this port instead."),
]
RelayOption = Annotated[
    bool, typer.Option("--relay-only", help="Only relay for others: no interface, no root.")
]
OverridesOption = Annotated[
    bool,
    typer.Option(
        "--no-overrides", help="Obey no override commands of the network, only pass them on."
    ),
]


def run(
    context: typer.Context,
    config_path: ConfigOption = None,
    port: PortOption = None,
    relay_only: RelayOption = False,
    no_overrides: OverridesOption = False,
) -> None:
    """Be the daemon, in the foreground; logs go to standard error."""
    changes = Changes(port, relay_only=relay_only, no_overrides=no_overrides)
    running.run(_options(_session(context, config_path), changes))


def up(
    context: typer.Context,
    *,
    config_path: ConfigOption = None,
    port: PortOption = None,
    relay_only: RelayOption = False,
    no_overrides: OverridesOption = False,
    timeout: Annotated[
        float,
        typer.Option("--timeout", metavar="SECONDS", min=1, help="Seconds until it must be ready."),
    ] = 120.0,
) -> None:
    """Start the daemon in the background and wait until it is ready."""
    session = _session(context, config_path)
    changes = Changes(port, relay_only=relay_only, no_overrides=no_overrides)
    settings = _options(session, changes).settings()
    client = ControlClient(settings.control.socket)
    starting: background.Starting | None = None
    if answers(client):
        typer.echo("the daemon runs already")
        if not changes.none:
            note = (
                f"phantom-tun: note: {' '.join(changes.arguments)} changes nothing now, only when "
                "the daemon starts: 'phantom-tun down' first"
            )
            typer.echo(fitted(note, hang=4, stream=sys.stderr), err=True)
    elif _wants_unit(session, changes):
        starting = background.StartedUnit()
    else:
        account = _account(settings)
        ensure_private_directory(settings.node.state_dir, uid=account.uid, gid=account.gid)
        arguments = _run_arguments(session, changes)
        starting = background.StartedProcess(arguments, settings.node.state_dir)
    waiting = background.Waiting(client, _say, timeout)
    try:
        status = waiting.wait_ready(starting)
    except KeyboardInterrupt:
        raise CommandFailed(
            ExitCode.INTERRUPTED,
            "interrupted; the daemon goes on: 'phantom-tun status' shows how far it is, "
            "'phantom-tun down' stops it",
        ) from None
    for identity in status.identities:
        typer.echo(f"{identity.name}: {identity.ap4 or '-'}  {identity.ap6}")


def _say(line: str) -> None:
    typer.echo(fitted(line, hang=4))


def down(context: typer.Context) -> None:
    """Stop the daemon and wait until it is gone."""
    session = session_of(context)
    if os.geteuid() == 0 and not _is_chosen(session) and background.unit_is_active():
        background.stop_unit()
    else:
        _stop(session.client())
    typer.echo("stopped")


def _stop(client: ControlClient) -> None:
    """:raises CommandFailed: nothing runs."""
    try:
        background.stop_daemon(client)
    except ControlError as error:
        if error.code != "no_daemon":
            raise
        raise CommandFailed(
            ExitCode.NO_DAEMON,
            f"nothing to stop: no daemon answers at {client.path} (another one's socket: --socket)",
        ) from error


def _account(settings: Config) -> Account:
    """Whom the daemon becomes.

    :raises ConfigError: there is no such user; says it too if there is no network profile either.
    """
    try:
        return resolve_account(settings.node.user)
    except ConfigError as error:
        missing = str(error)
    if not os.access(settings.network.profile, os.F_OK):
        from phantom_tun import profile  # noqa: PLC0415 - takes the cryptography package

        try:
            profile.load(settings.network.profile)
        except ConfigError as error:
            missing = f"{missing}. And {error}"
    raise ConfigError(missing)


def _session(context: typer.Context, config_path: Path | None) -> Session:
    session = session_of(context)
    if config_path is not None:
        session.config_path = config_path
    return session


def _options(session: Session, changes: Changes) -> running.RunOptions:
    return running.RunOptions(session.config_path, session.socket_path, changes)


def answers(client: ControlClient) -> bool:
    """Whether a daemon runs.

    :raises CommandFailed: it hangs.
    :raises ControlError: it doesn't let itself be asked.
    """
    try:
        client.call(GetStatus())
    except ControlError as error:
        if error.code == "no_daemon":
            return False
        if error.code == "timeout":
            raise CommandFailed(
                ExitCode.TIMEOUT, f"{error}; stop it with 'phantom-tun down' first"
            ) from error
        raise
    return True


def _is_chosen(session: Session) -> bool:
    """Whether a particular node is meant rather than the system's."""
    return session.said_socket() is not None or session.said_config() is not None


def _wants_unit(session: Session, changes: Changes) -> bool:
    ordinary = changes.none and not _is_chosen(session)
    return os.geteuid() == 0 and ordinary and background.unit_is_installed()


def _run_arguments(session: Session, changes: Changes) -> list[str]:
    arguments: list[str] = []
    if session.socket_path is not None:
        arguments += ["--socket", str(session.socket_path)]
    arguments.append("run")
    if session.config_path is not None:
        arguments += ["--config", str(session.config_path.absolute())]
    return arguments + changes.arguments
