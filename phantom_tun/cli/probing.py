"""Does it work, and if not, why: ``ping``, ``why`` and ``netdb get``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from phantom_tun.cli.addresses import parse_port
from phantom_tun.cli.exits import CommandFailed, ExitCode
from phantom_tun.cli.session import JsonOption, Session, print_json, session_of
from phantom_tun.cli.text import columns, counted, duration, fitted, short_id
from phantom_tun.control.dispatch import parse_address, parse_key
from phantom_tun.control.model import (
    NetdbAnswer,
    NetdbPoll,
    NetdbRecord,
    NetdbVote,
    PingReply,
    PingSummary,
    WhyStep,
)
from phantom_tun.control.schema import (
    ControlError,
    GetNetdb,
    GetStatus,
    ListPaths,
    ListPeers,
    Ping,
    Why,
)
from phantom_tun.files import atomic_write

netdb_app = typer.Typer(
    no_args_is_help=True, help="Ask the network database.", rich_markup_mode=None
)

AddressArgument = Annotated[str, typer.Argument(metavar="ADDRESS", help="An AP address.")]
_MARKS = {"ok": "ok", "failed": "FAILED", "skipped": "-"}
_BEFORE_DETAIL = 29
"""Columns before a step's detail."""
_SHORTEST_ID = 4
_NODE_ID_DIGITS = 64
_BEGINNING_OF_ID = re.compile(f"[0-9a-f]{{{_SHORTEST_ID},{_NODE_ID_DIGITS - 1}}}")


def ping(
    context: typer.Context,
    *,
    address: AddressArgument,
    count: Annotated[
        int | None,
        typer.Option(
            "-c", "--count", metavar="N", min=1, max=1_000_000, help="Stop after so many requests."
        ),
    ] = None,
    interval: Annotated[
        float,
        typer.Option(
            "-i",
            "--interval",
            metavar="SECONDS",
            min=0.01,
            max=3600,
            help="Time between two requests.",
        ),
    ] = 1.0,
    timeout: Annotated[
        float,
        typer.Option(
            "-W",
            "--timeout",
            metavar="SECONDS",
            min=0.1,
            max=300,
            help="How long to wait for each answer.",
        ),
    ] = 10.0,
    size: Annotated[
        int,
        typer.Option(
            "-s",
            "--size",
            metavar="BYTES",
            min=0,
            max=8192,
            help="Size of the data in each request.",
        ),
    ] = 56,
    as_json: JsonOption = False,
) -> None:
    """Send echo requests to an AP address, as ping does. Ends with Ctrl-C."""
    replies: list[PingReply] = []

    def begin() -> None:
        if not as_json and not replies:
            typer.echo(f"PING {address}: {size} data bytes")

    def show(reply: PingReply) -> None:
        begin()
        replies.append(reply)
        if not as_json:
            typer.echo(_ping_line(address, reply, timeout))

    request = Ping(str(parse_address(address)), count, interval, timeout, size)
    interrupted = False
    try:
        session_of(context).ask(request, show)
    except KeyboardInterrupt:
        interrupted = True
        if not as_json:
            typer.echo()
    else:
        begin()
    summary = PingSummary.of([reply.rtt_ms for reply in replies])
    if as_json:
        print_json({"replies": replies, "summary": summary})
    else:
        for line in _summary_lines(address, summary):
            typer.echo(line)
    if not summary.received:
        if interrupted and not summary.sent:
            raise CommandFailed(ExitCode.INTERRUPTED)
        raise CommandFailed(
            ExitCode.TIMEOUT, f"{address} didn't answer; 'phantom-tun why {address}' tells more"
        )


def why(
    context: typer.Context,
    address: AddressArgument,
    port: Annotated[
        str | None, typer.Argument(metavar="PORT", help="Try this TCP port too.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Try the way to an AP address and say where it ends.

    Ends with 1 if it doesn't work, whatever the reason; with --json, "reason" of the verdict is
    one for programs: not_published, not_exposed, refused, no_answer …
    """
    steps: list[WhyStep] = []

    def show(step: WhyStep) -> None:
        if step.outcome == "trying":
            if not as_json and sys.stdout.isatty():
                typer.echo(f"{step.name:<10} …\r", nl=False)
            return
        steps.append(step)
        if not as_json:
            took = f"{step.took_ms:.0f} ms" if step.outcome != "skipped" else ""
            line = f"{step.name:<10} {_MARKS[step.outcome]:<7} {took:>8}  {step.detail}".rstrip()
            typer.echo(fitted(line, hang=_BEFORE_DETAIL))

    request = Why(str(parse_address(address)), None if port is None else _tcp_port(port))
    verdict = session_of(context).ask(request, show)
    if as_json:
        print_json({"steps": steps, "verdict": verdict})
    else:
        typer.echo(fitted(verdict.summary))
        if verdict.fix:
            typer.echo(fitted(f"What to do: {verdict.fix}", hang=4))
    if not verdict.reachable:
        raise CommandFailed(ExitCode.FAILED)


@netdb_app.command("get")
def netdb_get(
    context: typer.Context,
    *,
    key: Annotated[
        str,
        typer.Argument(
            metavar="KEY",
            help="An AP address or a node id: all 64 hex digits, or how it begins if it is this "
            "node's or one that 'peers' or 'paths list' shows.",
        ),
    ],
    votes: Annotated[
        bool,
        typer.Option(
            "--votes",
            help="Ask over several exit paths, or several nodes, and show what each says.",
        ),
    ] = False,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            metavar="FILE",
            readable=False,
            help="Write the address's key record there, for 'override sign pin'.",
        ),
    ] = None,
    encoded: Annotated[
        bool,
        typer.Option("--encoded", help="With --json: the address's key record as it is, too."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what the network database holds about an address or a node."""
    session = session_of(context)
    if _BEGINNING_OF_ID.fullmatch(key.lower()):
        key = _whole_id(session, key.lower())
    _check_key(key)
    answer = session.ask(GetNetdb(key, votes))
    if save is not None:
        found = next((record.encoded for record in answer.records if record.encoded), None)
        if found is None:
            raise CommandFailed(ExitCode.USAGE, f"{key} is no AP address, so it has no key record")
        text = f"# key record of {answer.key}\n{found}\n"
        atomic_write(save, text.encode(), mode=0o644)
    if as_json:
        print_json(answer if encoded else _without_encoded(answer))
    else:
        _print_answer(answer)
    if answer.warning:
        raise CommandFailed(ExitCode.CONFLICT, answer.warning)


def _without_encoded(answer: NetdbAnswer) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(answer)
    for record in shown["records"]:
        del record["encoded"]
    return shown


def _check_key(text: str) -> None:
    """:raises CommandFailed: it can't be looked up."""
    try:
        parse_key(text)
    except ControlError as error:
        raise CommandFailed(
            ExitCode.USAGE,
            f"{text!r} is neither an AP address nor a node id: all {_NODE_ID_DIGITS} hex digits, "
            f"or at least {_SHORTEST_ID} from its beginning",
        ) from error


def _tcp_port(text: str) -> int:
    """:raises CommandFailed: it is none."""
    number, protocol = parse_port(text, only_tcp=True)
    if protocol != "tcp":
        raise CommandFailed(ExitCode.USAGE, f"{text!r}: only TCP ports can be tried")
    return number


def _whole_id(session: Session, beginning: str) -> str:
    """The id of the one node of this node's own, its peers and its paths that begins so.

    :raises CommandFailed: there is none, or more than one.
    """
    known = {session.ask(GetStatus()).node_id}
    known.update(peer.node_id for peer in session.ask(ListPeers()))
    known.update(node for path in session.ask(ListPaths()) for node in path.nodes)
    found = [node_id for node_id in known if node_id.startswith(beginning)]
    if len(found) == 1:
        return found[0]
    which = (
        f"{len(found)} nodes have ids that begin" if found else "no node here has an id that begins"
    )
    raise CommandFailed(
        ExitCode.NOT_FOUND,
        f"{which} with {beginning!r}; give all {_NODE_ID_DIGITS} digits, as "
        "'phantom-tun peers --json' does",
    )


def _print_answer(answer: NetdbAnswer) -> None:
    typer.echo(f"{answer.key}: {counted(answer.asked, 'node')} answered")
    for record in answer.records:
        typer.echo(_record_line(record))
        for name, value in record.fields.items():
            typer.echo(f"    {name} = {value}")
    if not answer.polls:
        return
    if any(poll.path_id for poll in answer.polls):
        heads = ("path", "exit node", "says", "storers", "routes", "dissent")
        lines = columns(heads, map(_path_row, answer.polls))
    else:
        rows = ((short_id(poll.answerer), _says(poll)) for poll in answer.polls)
        lines = columns(("node", "says"), rows)
    typer.echo()
    for line in lines:
        typer.echo(line)


def _path_row(poll: NetdbPoll) -> tuple[str, ...]:
    """What one exit path found out."""
    who = (poll.path_id, short_id(poll.answerer), _says(poll))
    if not poll.votes:
        return (*who, "", "", "")
    dissent = ", ".join(f"{vote.storers} say {_vote(vote)}" for vote in poll.votes[1:])
    storers = f"{poll.votes[0].storers} of {poll.answered}"
    return (*who, storers, str(poll.routes), dissent or "none")


def _says(poll: NetdbPoll) -> str:
    if poll.votes:
        return _vote(poll.votes[0])
    return f"no answer: {poll.detail}" if poll.outcome == "failed" else "nothing"


def _vote(vote: NetdbVote) -> str:
    return f"key {short_id(vote.key)}, edition {vote.sequence}"


def _ping_line(address: str, reply: PingReply, timeout: float) -> str:
    if reply.rtt_ms is not None:
        return f"{reply.size} bytes from {address}: seq={reply.sequence} time={reply.rtt_ms:.1f} ms"
    reason = reply.error or f"no answer within {duration(timeout)}"
    return f"seq={reply.sequence}: {reason}"


def _summary_lines(address: str, summary: PingSummary) -> list[str]:
    lost = 0.0 if not summary.sent else 100 * (1 - summary.received / summary.sent)
    lines = [
        f"--- {address} ping statistics ---",
        f"{summary.sent} sent, {summary.received} received, {lost:.0f} % lost",
    ]
    if summary.min_ms is not None:
        lines.append(
            f"round trip min/mean/max = "
            f"{summary.min_ms:.1f}/{summary.mean_ms:.1f}/{summary.max_ms:.1f} ms"
        )
    return lines


def _record_line(record: NetdbRecord) -> str:
    dissent = f", {record.dissent} gave another one" if record.dissent else ""
    return (
        f"  {record.table}: {counted(record.votes, 'vote')}{dissent}, "
        f"expires in {duration(record.expires_in_s)}"
    )
