"""The node at a glance: ``status`` and ``peers``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from phantom_tun.cli.session import JsonOption, print_json, session_of
from phantom_tun.cli.text import columns, counted, duration, short_id
from phantom_tun.control.model import IdentityStatus, Statistics, Status
from phantom_tun.control.schema import GetStatistics, GetStatus, ListPeers

_REACHABLE = {
    True: "other nodes reach it",
    False: "other nodes can't reach it",
    None: "not known yet whether other nodes reach it",
}
_LEASES = {"claiming": " (being claimed)", "held": "", "lost": " (lost to another owner)"}


def status(
    context: typer.Context,
    counters: Annotated[
        bool, typer.Option("--counters", help="Show every counter of the node instead.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what the node is doing and how well."""
    session = session_of(context)
    answer = session.ask(GetStatistics()) if counters else session.ask(GetStatus())
    if as_json:
        print_json(answer)
        return
    lines = _counters(answer) if isinstance(answer, Statistics) else _status(answer)
    for line in lines:
        typer.echo(line)


def peers(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the nodes this node has links with."""
    answer = session_of(context).ask(ListPeers())
    if as_json:
        print_json(answer)
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


def _status(status: Status) -> Iterator[str]:
    yield (
        f"phantom-tun {status.version} is {status.state} "
        f"(process {status.pid}, up {duration(status.uptime_s)})"
    )
    network, netdb = status.network, status.netdb
    yield _row(
        "network",
        f"{network.name} ({short_id(network.network_id)}), "
        f"{counted(netdb.known_nodes, 'node')} known, {counted(netdb.records, 'record')} held",
    )
    yield _row("node", f"{short_id(status.node_id)}, {_REACHABLE[status.dialable]}")
    if status.relay_only:
        yield _row("interface", "none, since this node only relays")
    else:
        yield _row("interface", status.interface or "none")
    for identity in status.identities:
        yield _row("address", _identity(identity))
    links, tunnels, builds = status.links, status.tunnels, status.builds
    yield _row(
        "links",
        f"{links.signalling} signalling, {links.bulk_busy} bulk busy, {links.bulk_idle} idle",
    )
    yield _row(
        "tunnels",
        f"{tunnels.ready} ready, {tunnels.active} active, {tunnels.relayed} relayed for others",
    )
    median = "" if builds.median_s is None else f", median {duration(builds.median_s)}"
    yield _row("builds", f"{builds.succeeded} of {builds.tried} succeeded{median}")
    if status.drops:
        drops = sorted(status.drops.items(), key=lambda item: -item[1])
        yield _row("dropped", ", ".join(f"{count} {reason}" for reason, count in drops))
    for warning in status.warnings:
        yield f"warning: {warning}"


def _identity(identity: IdentityStatus) -> str:
    ap4 = (identity.ap4 or "no IPv4 address yet") + _LEASES[identity.ap4_state]
    return (
        f"{identity.name}  {ap4}  {identity.ap6}  {identity.exit_paths_ready} exit and "
        f"{counted(identity.entry_paths_ready, 'entry path')} ready"
    )


def _counters(statistics: Statistics) -> Iterator[str]:
    for group, values in statistics.groups.items():
        for name, value in values.items():
            yield f"{group}.{name} {value}"


def _row(name: str, text: str) -> str:
    return f"{name:<10} {text}"
