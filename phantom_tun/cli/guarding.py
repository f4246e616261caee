"""The leak guard without the node: ``guard``, for before it starts and after it is gone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import typer

from phantom_tun import places
from phantom_tun.cli.exits import CommandFailed, ExitCode
from phantom_tun.cli.lifecycle import answers
from phantom_tun.cli.session import JsonOption, Session, print_json, session_of

if TYPE_CHECKING:
    from phantom_tun.tun.host import LinuxHost

_T = TypeVar("_T")

app = typer.Typer(
    no_args_is_help=True,
    help="What keeps AP addresses off other networks, node or not.",
    rich_markup_mode=None,
)


@app.command("set")
def set_guard(context: typer.Context) -> None:
    """Set the leak guard, as the node does when it starts.

    It is gone after a boot; phantom-tun-guard.service sets it before there is any network.
    """
    _check_permission()
    host = _host(session_of(context))
    if host is None:
        typer.echo("this node has no interface: nothing is needed")
        return
    _run(host.guard)
    typer.echo("; ".join(host.warnings()) or "AP addresses stay off other networks")


@app.command("remove")
def remove_guard(context: typer.Context) -> None:
    """Take the leak guard away, until the node starts.

    From then on, what programs send to AP addresses follows the default route.
    """
    _check_permission()
    session = session_of(context)
    if answers(session.client()):
        raise CommandFailed(
            ExitCode.CONFLICT, "the daemon runs and needs it: 'phantom-tun down' first"
        )
    host = _host(session)
    if host is None:
        typer.echo("this node has no interface, and no leak guard")
        return
    _run(host.unguard)
    typer.echo("removed")


@app.command("show")
def show_guard(context: typer.Context, as_json: JsonOption = False) -> None:
    """Say whether it is there: the routes, and the filter."""
    _check_permission()
    host = _host(session_of(context))
    routes, filtered = (False, False) if host is None else _run(host.guarded)
    if as_json:
        print_json({"needed": host is not None, "routes": routes, "filter": filtered})
    elif host is None:
        typer.echo("this node has no interface: nothing is needed")
    else:
        typer.echo(f"routes  {'there' if routes else 'missing'}")
        typer.echo(f"filter  {'there' if filtered else 'missing'}")
        if not (routes and filtered):
            typer.echo("'phantom-tun guard set' sets it, and so does the node when it starts")


def _host(session: Session) -> LinuxHost | None:
    """This machine, if its node has an interface."""
    from phantom_tun import profile  # noqa: PLC0415 - they take the cryptography along
    from phantom_tun.daemon import logs  # noqa: PLC0415
    from phantom_tun.tun.host import LinuxHost  # noqa: PLC0415

    settings = session.load_config()
    logs.configure(settings.log)
    if not settings.wants_interface:
        return None
    network = profile.load(settings.network.profile)
    interface = settings.interface
    return LinuxHost(
        interface.name,
        interface.mtu,
        network.ap4,
        network.ap6,
        require_filter=interface.require_filter,
    )


def _run(work: Callable[[], Awaitable[_T]]) -> _T:
    import trio  # noqa: PLC0415 - only these commands pay for it

    return trio.run(work)


def _check_permission() -> None:
    if places.is_relay_only():
        raise CommandFailed(
            ExitCode.NO_PERMISSION, "the leak guard is the whole machine's: as root, please"
        )
