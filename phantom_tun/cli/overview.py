"""The node at a glance: ``status`` and ``peers``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from phantom_tun.cli.drops import in_words
from phantom_tun.cli.pictures import small_picture
from phantom_tun.cli.session import JsonOption, print_json, session_of
from phantom_tun.cli.text import columns, counted, duration, fitted, room, short_id
from phantom_tun.control.model import IdentityStatus, Kind, PathInfo, Statistics, Status
from phantom_tun.control.schema import GetStatistics, GetStatus, ListPaths, ListPeers

peers_app = typer.Typer(help="List the nodes this node has links with.", rich_markup_mode=None)

_REACHABLE = {
    True: "other nodes reach it",
    False: "other nodes can't reach it",
    None: "not known yet whether other nodes reach it",
}
_HANG = 11
_COLOURS = {"ready": typer.colors.GREEN, "stopping": typer.colors.RED}
_LEASES = {"claiming": " (being claimed)", "held": "", "lost": " (lost to another owner)"}


def status(
    context: typer.Context,
    counters: Annotated[
        bool,
        typer.Option(
            "--counters",
            help="Show the node's counters instead: at a terminal without zeros, by "
            "part of the node; to a pipe all of them, one a line.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what the node is doing and how well.

    Links join this node to others: one with each of them for messages, and some for data, which a
    tunnel takes while it needs one. Tunnels go through paths: some wait, so that connections are
    quick; those in use carry one connection each; those that are relayed belong to others.
    """
    session = session_of(context)
    answer = session.ask(GetStatistics()) if counters else session.ask(GetStatus())
    if as_json:
        print_json(answer)
        return
    if isinstance(answer, Statistics):
        lines = _counters(answer)
    else:
        lines = _status(answer, session.ask(ListPaths()))
    for line in lines:
        typer.echo(line)


@peers_app.callback(invoke_without_command=True)
def peers(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the nodes this node has links with."""
    if context.invoked_subcommand is None:
        list_peers(context, as_json)


@peers_app.command("list")
def list_peers(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the nodes this node has links with, as 'peers' alone does."""
    answer = session_of(context).ask(ListPeers())
    if as_json:
        print_json(answer)
        return
    if not answer:
        typer.echo("this node has no link to any other; 'phantom-tun status' may say why")
        return
    rows = (
        (
            short_id(peer.node_id),
            str(peer.links),
            "yes" if peer.guard else "",
            ", ".join(peer.addresses),
            ", ".join(peer.roles),
        )
        for peer in answer
    )
    for line in columns(("node", "links", "guard", "address", "roles"), rows):
        typer.echo(line)


def _status(status: Status, paths: tuple[PathInfo, ...]) -> Iterator[str]:
    state = typer.style(status.state, fg=_COLOURS.get(status.state, typer.colors.YELLOW), bold=True)
    yield (
        f"phantom-tun {status.version} is {state} "
        f"(process {status.pid}, up {duration(status.uptime_s)})"
    )
    network, netdb = status.network, status.netdb
    yield _row(
        "network",
        f"{network.name} ({short_id(network.network_id)}): "
        f"{counted(netdb.known_nodes, 'other node')} known, "
        f"records of {counted(netdb.records, 'address')} kept",
    )
    if netdb.unusable:
        usable = netdb.known_nodes - sum(netdb.unusable.values())
        why = ", ".join(f"{count} {reason}" for reason, count in netdb.unusable.items())
        yield _row("", f"{max(usable, 0)} of them can be in paths; the others: {why}")
    yield _row("node", f"{short_id(status.node_id)}, {_REACHABLE[status.dialable]}")
    if status.relay_only:
        yield _row("interface", "none, since this node only relays")
    else:
        yield _row("interface", status.interface or "none")
    for identity in status.identities:
        yield from _identity(identity, [path for path in paths if path.identity == identity.name])
    links, tunnels, builds = status.links, status.tunnels, status.builds
    yield _row(
        "links",
        f"{links.signalling} for messages, {links.bulk_busy + links.bulk_idle} for data "
        f"({links.bulk_busy} in use)",
    )
    own = f"{tunnels.ready} waiting, {tunnels.active} in use, " if status.identities else ""
    yield _row("tunnels", f"{own}{tunnels.relayed} relayed for others")
    if tunnels.resumed or tunnels.lost:
        said = f"{counted(tunnels.resumed, 'time')} one went on over another path"
        yield _row("", f"{said}, {counted(tunnels.lost, 'connection')} found none in time")
    if builds.tried:
        median = "" if builds.median_s is None else f", median {duration(builds.median_s)}"
        yield _row("builds", f"{builds.succeeded} of {builds.tried} path builds succeeded{median}")
    if status.drops:
        drops = sorted(status.drops.items(), key=lambda item: -item[1])
        said = ", ".join(in_words(reason, count) for reason, count in drops)
        yield _row("dropped", f"of what nodes and programs sent: {said}")
    for warning in status.warnings:
        said = f"{typer.style('warning', fg=typer.colors.RED, bold=True)}: {warning}"
        yield fitted(said, hang=len("warning: "))


def _identity(identity: IdentityStatus, paths: Sequence[PathInfo]) -> Iterator[str]:
    ap4 = (identity.ap4 or "no IPv4 address yet") + _LEASES[identity.ap4_state]
    yield _row("address", f"{identity.name}  {ap4}  {identity.ap6}")
    ways: tuple[tuple[str, Kind, int], ...] = (
        ("out", "exit", identity.exit_paths_ready),
        ("in", "entry", identity.entry_paths_ready),
    )
    for name, kind, count in ways:
        hops = max((path.hops for path in paths if path.kind == kind), default=None)
        if not count or hops is None:
            yield _row(f"  {name}", typer.style("no path yet", fg=typer.colors.YELLOW))
            continue
        picture = typer.style(small_picture(hops, kind), fg=typer.colors.GREEN)
        hidden = counted(hops, "hop") if hops else "no hops: hides nothing"
        yield _row(f"  {name}", f"{picture}  {counted(count, f'{kind} path')} ready, {hidden}")


def _counters(statistics: Statistics) -> Iterator[str]:
    """For people by group, without zeros; else one a line, as ``grep`` likes it."""
    for group, values in statistics.groups.items():
        if room(sys.stdout) is None:
            yield from (f"{group}.{name} {value}" for name, value in values.items())
            continue
        counted_any = {name: str(value) for name, value in values.items() if value}
        if not counted_any:
            continue
        yield typer.style(group, bold=True)
        longest, digits = (max(map(len, each)) for each in (counted_any, counted_any.values()))
        for name, text in counted_any.items():
            yield f"  {name:<{longest}}  {text:>{digits}}"


def _row(name: str, text: str) -> str:
    return fitted(f"{name:<10} {text}", hang=_HANG)
