"""The node's own routing: ``paths`` and ``tunnels``."""

from __future__ import annotations

from typing import Annotated

import typer

from phantom_tun.cli.pictures import path_pictures
from phantom_tun.cli.session import JsonOption, Session, print_json, session_of
from phantom_tun.cli.text import columns, counted, duration, fitted, size
from phantom_tun.control.model import PathInfo, Progress
from phantom_tun.control.schema import (
    CloseTunnel,
    GetStatus,
    ListPaths,
    ListTunnels,
    RebuildPaths,
)

paths_app = typer.Typer(
    no_args_is_help=True, help="Show and rebuild your routing paths.", rich_markup_mode=None
)
tunnels_app = typer.Typer(
    no_args_is_help=True, help="List and close your tunnels.", rich_markup_mode=None
)


@paths_app.command("list")
def list_paths(context: typer.Context, as_json: JsonOption = False) -> None:
    """Draw your paths; only you can see this."""
    session = session_of(context)
    answer = session.ask(ListPaths())
    if as_json:
        print_json(answer)
    elif not answer:
        typer.echo(fitted(_why_none(session)))
    else:
        _draw(answer)


@paths_app.command("rebuild")
def rebuild_paths(
    context: typer.Context,
    path_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="One path; unless given, all of them.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Replace paths by new ones.

    Connections in the old ones go on until they end.
    """

    def show(progress: Progress) -> None:
        if not as_json:
            typer.echo(f"{progress.done} of {progress.total}: {progress.message}")

    answer = session_of(context).ask(RebuildPaths(path_id), show)
    if as_json:
        print_json(answer)
    else:
        _draw(answer)


@tunnels_app.command("list")
def list_tunnels(context: typer.Context, as_json: JsonOption = False) -> None:
    """List your tunnels that carry a connection.

    What was handed over was taken from the program here; some of it, of a fast sender up to some
    dozen MiB, is on its way to the far end still. A connection that has lost its tunnel is looking
    for another path.
    """
    answer = session_of(context).ask(ListTunnels())
    if as_json:
        print_json(answer)
        return
    if not answer:
        typer.echo("no tunnel carries a connection")
        return
    rows = (
        (
            tunnel.id,
            tunnel.path_id if tunnel.state == "open" else "looking",
            tunnel.identity,
            "to" if tunnel.direction == "out" else "from",
            tunnel.remote,
            tunnel.protocol,
            duration(tunnel.age_s),
            size(tunnel.bytes_in),
            size(tunnel.bytes_out),
        )
        for tunnel in answer
    )
    heads = ("id", "path", "address", "", "far end", "protocol", "age", "received", "handed over")
    for line in columns(heads, rows):
        typer.echo(line)


@tunnels_app.command("close")
def close_tunnel(
    context: typer.Context,
    tunnel_id: Annotated[str, typer.Argument(metavar="ID", help="From 'tunnels list'.")],
) -> None:
    """Reset one connection."""
    session_of(context).ask(CloseTunnel(tunnel_id))
    typer.echo(f"{tunnel_id} is closed")


def _why_none(session: Session) -> str:
    status = session.ask(GetStatus())
    if status.relay_only or status.interface is None:
        return (
            "this node has no AP addresses, so it has no paths of its own: "
            f"it relays {counted(status.tunnels.relayed, 'tunnel')} of others"
        )
    return (
        f"there are no paths yet, the node is {status.state}; 'phantom-tun status' shows how far "
        "it is"
    )


def _draw(paths: tuple[PathInfo, ...]) -> None:
    for line in path_pictures(paths):
        typer.echo(line)
    lengths = sorted({path.hops for path in paths})
    hops = " and ".join(str(length) for length in lengths)
    typer.echo(f"{counted(len(paths), 'path')} of {hops} {'hop' if hops == '1' else 'hops'}")
