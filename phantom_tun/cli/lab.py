"""``phantom-tun lab``: whole networks on this machine (docs/lab.md)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from phantom_tun.cli import completing
from phantom_tun.cli.exits import ExitCode
from phantom_tun.cli.session import JsonOption, print_json
from phantom_tun.cli.text import fitted, fitting_columns, short_id
from phantom_tun.lab import lifecycle
from phantom_tun.lab import nodes as lab_nodes
from phantom_tun.lab.errors import LabFailed, LabUsageError
from phantom_tun.lab.plan import DEFAULT_NAME, plan_lab
from phantom_tun.lab.record import check_not_of_root, lab_command, not_ours
from phantom_tun.lab.signals import ending_in_order

app = typer.Typer(
    no_args_is_help=True,
    help="Whole anonymous networks in namespaces on this machine.",
    rich_markup_mode=None,
)


NameOption = Annotated[
    str,
    typer.Option(
        "--name",
        metavar="NAME",
        help="Which lab; several can run at once.",
        autocompletion=completing.lab_names,
    ),
]
NodeArgument = Annotated[
    str,
    typer.Argument(metavar="NODE", help="n1, n2, …", autocompletion=completing.lab_nodes),
]
TimeoutOption = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="How long nodes may take to become ready.")
]


@app.command()
def up(
    *,
    nodes: Annotated[int, typer.Option(metavar="N", help="How many nodes: n1 to nN.")],
    exit_hops: Annotated[
        int | None,
        typer.Option(
            metavar="H",
            help="Hops: nodes that exit paths lead through, 0 to 8. Unset: 3 if N allows it.",
        ),
    ] = None,
    entry_hops: Annotated[
        int | None,
        typer.Option(metavar="H", help="The same for entry paths."),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(metavar="RATE", help="Rate of every node's link, each way, as 100mbit."),
    ] = None,
    delay_ms: Annotated[
        float, typer.Option(metavar="MS", help="One-way delay between any two nodes.")
    ] = 0.0,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", metavar="D", help="Where the nodes' files go: empty, or to be made."),
    ] = None,
    name: NameOption = DEFAULT_NAME,
    timeout: TimeoutOption = 120.0,
    relay_only: Annotated[
        int,
        typer.Option(metavar="K", help="The last K nodes relay only: no interface, not root."),
    ] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="[NODE:]SECTION.KEY=VALUE",
            help="A configuration setting of all nodes or of one, as n3:paths.exit_hops=0.",
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave a lab that didn't become ready as it is.")
    ] = False,
) -> None:
    """Bring a lab up and wait until all nodes are ready and have paths."""
    with _own_exit_codes(), ending_in_order():
        plan = plan_lab(
            name=name,
            nodes=nodes,
            exit_hops=exit_hops,
            entry_hops=entry_hops,
            rate=rate,
            delay_ms=delay_ms,
            relay_only=relay_only,
            settings=tuple(settings or ()),
        )
        wishes = lifecycle.Wishes(directory=directory, timeout=timeout, keep=keep)
        try:
            lifecycle.up(plan, wishes, _report)
        except KeyboardInterrupt:
            _report(f"interrupted: {_what_is_left(name)}")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
    _report(f"lab {name!r} is ready: n1 to n{nodes}; '{lab_command('down', name)}' ends it")


@app.command()
def status(
    name: NameOption = DEFAULT_NAME,
    as_json: JsonOption = False,
) -> None:
    """Show every node: its addresses, its state, where things are."""
    with _own_exit_codes():
        nodes = lab_nodes.status(lifecycle.open_lab(name))
    if as_json:
        print_json(nodes)
        return
    rows = (
        (
            node.name,
            node.state,
            node.ap4 or "",
            node.ap6 or "",
            short_id(node.node_id or ""),
            node.underlay,
            "" if node.pid is None else str(node.pid),
            ", ".join(node.roles),
        )
        for node in nodes
    )
    heads = ("node", "state", "AP4", "AP6", "id", "underlay", "process", "roles")
    for line in fitting_columns(heads, rows, least=5):
        typer.echo(line)


@app.command(name="exec", context_settings={"ignore_unknown_options": True})
def execute(
    node: NodeArgument,
    command: Annotated[list[str], typer.Argument(metavar="-- CMD …", help="What to run there.")],
    name: NameOption = DEFAULT_NAME,
) -> None:
    """Run a command at a node, as `lab exec n1 -- curl http://…`.

    Ends with the exit code of the command.
    """
    with _own_exit_codes():
        prefix, environment = lab_nodes.inside(lifecycle.open_lab(name), node)
        # Python ignores it, and the command would inherit that.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execvpe(prefix[0], [*prefix, *command], environment)  # noqa: S606 - that is its purpose


@app.command()
def kill(node: NodeArgument, name: NameOption = DEFAULT_NAME) -> None:
    """End a node's daemon at once (SIGKILL)."""
    with _own_exit_codes(name):
        lab_nodes.kill_node(lifecycle.open_lab(name), node)
    _report(f"{node} is killed")


@app.command()
def stop(node: NodeArgument, name: NameOption = DEFAULT_NAME) -> None:
    """End a node's daemon in order (SIGTERM) and wait for it."""
    with _own_exit_codes(name):
        lab_nodes.stop_node(lifecycle.open_lab(name), node)
    _report(f"{node} has stopped")


@app.command()
def start(
    node: NodeArgument, name: NameOption = DEFAULT_NAME, timeout: TimeoutOption = 120.0
) -> None:
    """Start a node that is down, with its old keys, and wait for it.

    With --timeout 0 it isn't waited for.
    """
    with _own_exit_codes(name):
        lab_nodes.start_node(lifecycle.open_lab(name), node, timeout, _report)
    _report(f"{node} is ready" if timeout else f"{node} is starting")


@app.command()
def pause(node: NodeArgument, name: NameOption = DEFAULT_NAME) -> None:
    """Freeze a node's daemon (SIGSTOP)."""
    with _own_exit_codes(name):
        paused = lab_nodes.pause_node(lifecycle.open_lab(name), node)
    _report(f"{node} is paused" if paused else f"{node} is paused already")


@app.command()
def resume(node: NodeArgument, name: NameOption = DEFAULT_NAME) -> None:
    """Let a frozen daemon go on (SIGCONT)."""
    with _own_exit_codes(name):
        resumed = lab_nodes.resume_node(lifecycle.open_lab(name), node)
    _report(f"{node} goes on" if resumed else f"{node} wasn't paused")


@app.command()
def down(name: NameOption = DEFAULT_NAME) -> None:
    """End a lab and remove everything of it, also after a crash."""
    with _own_exit_codes(name):
        gone = lifecycle.down(name)
        if not gone:
            check_not_of_root(name)
    if gone:
        _report(f"lab {name!r} is gone")
    else:
        _report(f"there is no lab {name!r}: nothing to do")


def _what_is_left(name: str) -> str:
    if lifecycle.open_lab(name).exists():
        return f"the lab is left as it is, '{lab_command('down', name)}' ends it"
    return "nothing is left of the lab"


def _report(line: str) -> None:
    print(fitted(line, hang=4, stream=sys.stderr), file=sys.stderr, flush=True)


@contextmanager
def _own_exit_codes(lab: str | None = None) -> Iterator[None]:
    """Every kind of error of a lab ends with a code of its own (docs/lab.md). ``lab``: which one is
    worked on, if it must be ours."""
    try:
        try:
            yield
        except PermissionError as error:
            if lab is None:
                raise
            raise not_ours(lab) from error
    except (LabUsageError, LabFailed) as error:
        _report(f"phantom-tun: {error}")
        raise typer.Exit(error.exit_code) from None
