"""The node's own routing: ``paths`` and ``tunnels``."""

from __future__ import annotations

from typing import Annotated

import typer

from phantom_tun.cli.session import JsonOption, print_json, session_of
from phantom_tun.cli.text import columns, counted, duration, size
from phantom_tun.control.model import PathInfo, Progress
from phantom_tun.control.schema import CloseTunnel, ListPaths, ListTunnels, RebuildPaths

paths_app = typer.Typer(
    no_args_is_help=True, help="Show and rebuild your routing paths.", rich_markup_mode=None
)
tunnels_app = typer.Typer(
    no_args_is_help=True, help="List and close your tunnels.", rich_markup_mode=None
)


@paths_app.command("list")
def list_paths(context: typer.Context, as_json: JsonOption = False) -> None:
    """Draw your paths; only you can see this."""
    answer = session_of(context).ask(ListPaths())
    if as_json:
        print_json(answer)
    elif not answer:
        typer.echo("there are no paths; 'phantom-tun status' shows what the node is doing")
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
    """Replace paths by new ones; connections in the old ones go on until they end."""

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
    """List your tunnels that carry a connection."""
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
            tunnel.path_id,
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
    heads = ("id", "path", "address", "", "far end", "protocol", "age", "received", "sent")
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


def _draw(paths: tuple[PathInfo, ...]) -> None:
    from phantom_tun.cli.pictures import console, path_picture  # noqa: PLC0415 - slow to import

    output = console()
    for path in paths:
        output.print(path_picture(path))
    lengths = sorted({path.hops for path in paths})
    hops = " and ".join(str(length) for length in lengths)
    output.print(f"{counted(len(paths), 'path')} of {hops} {'hop' if hops == '1' else 'hops'}")
