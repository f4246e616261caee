"""AP addresses and what is reachable at them: ``address``, ``expose`` and ``unexpose``."""

from __future__ import annotations

import re
import sys
import time
from typing import Annotated, Literal

import typer

from phantom_tun.cli import completing
from phantom_tun.cli.exits import CommandFailed, ExitCode
from phantom_tun.cli.session import JsonOption, confirm, print_json, session_of
from phantom_tun.cli.text import columns, duration, fitted
from phantom_tun.control.dispatch import parse_address
from phantom_tun.control.model import AddressInfo, ExposeRule, Progress, Protocol
from phantom_tun.control.schema import (
    NAME_PATTERN,
    Expose,
    ListAddresses,
    ListExposed,
    NewAddress,
    RemoveAddress,
    Unexpose,
)

app = typer.Typer(
    no_args_is_help=True,
    help="List, make, show and remove your AP addresses.\n\nAn AP address is an identity on the "
    "network: a key, and an IPv4 and an IPv6 address that belong to it. A node may have several, "
    "each with a name that only its owner knows; --identity of other commands chooses one by it.",
    rich_markup_mode=None,
)

PortArgument = Annotated[
    str, typer.Argument(metavar="PORT[/tcp|/udp]", help="The port others use; TCP unless said.")
]
IdentityOption = Annotated[
    str | None,
    typer.Option(
        "--identity",
        metavar="NAME",
        help="Which of your AP addresses, by its name; unless given, the first.",
        autocompletion=completing.address_names,
    ),
]
NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Its name, or its IPv4 or IPv6 address.",
        autocompletion=completing.address_names,
    ),
]
_HIGHEST_PORT = 65535
_RANGE = re.compile(r"\d+ *(-|:|\.\.) *\d+")


@app.command("list")
def list_addresses(context: typer.Context, as_json: JsonOption = False) -> None:
    """List your AP addresses."""
    answer = session_of(context).ask(ListAddresses())
    if as_json:
        print_json(answer)
        return
    if not answer:
        typer.echo("this node has no AP addresses: it only relays, or has no interface")
        return
    rows = (
        (
            info.name,
            info.ap4 or "-",
            info.ap6,
            str(len(info.exposed)),
            "waits" if info.missing else "ready",
        )
        for info in answer
    )
    for line in columns(("name", "IPv4", "IPv6", "ports", "state"), rows):
        typer.echo(line)
    for info in answer:
        if info.missing:
            typer.echo(fitted(f"{info.name} waits for {', '.join(info.missing)}", hang=4))


@app.command("new")
def new_address(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What you call it: a-z, 0-9 and hyphens.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Make another AP address, with a key and paths of its own.

    Returns when it works. Programs use the first address unless they choose another one as their
    source: 'curl --interface ADDR', 'ssh -b ADDR', 'ping -I ADDR'.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise CommandFailed(
            ExitCode.USAGE,
            f"{name!r} can't be a name: 1 to 32 letters a-z, digits and hyphens, not beginning "
            "with a hyphen",
        )

    def show(progress: Progress) -> None:
        if not as_json:
            typer.echo(fitted(progress.message, hang=4, stream=sys.stderr), err=True)

    try:
        info = session_of(context).ask(NewAddress(name), show)
    except KeyboardInterrupt:
        raise CommandFailed(
            ExitCode.INTERRUPTED,
            f"interrupted; 'phantom-tun address show {name}' tells whether it is made already",
        ) from None
    if as_json:
        print_json(info)
    else:
        typer.echo(f"{info.name}  {info.ap4 or '-'}  {info.ap6}")


@app.command("show")
def show_address(
    context: typer.Context,
    name: NameArgument,
    as_json: JsonOption = False,
) -> None:
    """Show one of your AP addresses and what it exposes."""
    info = _find(session_of(context).ask(ListAddresses()), name)
    if as_json:
        print_json(info)
        return
    typer.echo(f"name     {info.name}")
    typer.echo(f"IPv4     {info.ap4 or '-'} ({info.ap4_state})")
    typer.echo(f"IPv6     {info.ap6}")
    typer.echo(f"age      {duration(max(0.0, time.time() - info.created))}")
    for what in info.missing:
        typer.echo(fitted(f"waits    for {what}", hang=9))
    for rule in info.exposed:
        typer.echo(fitted(f"exposed  {_rule(rule)}", hang=9))


@app.command("remove")
def remove_address(
    context: typer.Context,
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """Delete an AP address for ever: its key is destroyed."""
    session = session_of(context)
    found = _find(session.ask(ListAddresses()), name)
    if not yes:
        confirm(
            f"Delete {found.name!r} ({found.ap4 or found.ap6}) and its key? Nobody can bring it "
            "back.",
            "nothing was deleted; --yes doesn't ask",
        )
    session.ask(RemoveAddress(found.name))
    typer.echo(f"{found.name} is deleted")


def expose(
    context: typer.Context,
    *,
    port: Annotated[
        str | None,
        typer.Argument(metavar="PORT[/tcp|/udp]", help="The port others use; TCP unless said."),
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", metavar="AP", help="Only for this AP address; may be repeated."),
    ] = None,
    target_port: Annotated[
        int | None,
        typer.Option("--target-port", metavar="P", help="Where the service listens, if elsewhere."),
    ] = None,
    identity: IdentityOption = None,
    show: Annotated[bool, typer.Option("--list", help="List what is exposed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Let others reach a service of this machine. Without this, nothing is reachable."""
    session = session_of(context)
    if show:
        if port is not None:
            raise CommandFailed(ExitCode.USAGE, "--list takes no port")
        _print_rules(session.ask(ListExposed()), as_json)
        return
    if port is None:
        raise CommandFailed(
            ExitCode.USAGE, "which port? 'phantom-tun expose 80', or 'phantom-tun expose --list'"
        )
    number, protocol = parse_port(port)
    if target_port is not None:
        check_port(target_port, "target port")
    allowed: Literal["any"] | tuple[str, ...] = "any"
    if to:
        allowed = tuple(str(parse_address(text)) for text in to)
    rule = session.ask(Expose(number, protocol, allowed, target_port, identity))
    if as_json:
        print_json(rule)
    else:
        typer.echo(fitted(f"exposed: {_rule(rule)}", hang=4))
        if rule.hint:
            typer.echo(f"phantom-tun: note: {rule.hint}", err=True)


def unexpose(
    context: typer.Context,
    port: PortArgument,
    identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take back what expose did; connections that stand are kept."""
    number, protocol = parse_port(port)
    rule = session_of(context).ask(Unexpose(number, protocol, identity))
    if as_json:
        print_json(rule)
    else:
        typer.echo(fitted(f"no longer exposed: {_rule(rule)}", hang=4))


def parse_port(text: str, *, only_tcp: bool = False) -> tuple[int, Protocol]:
    """``80``, ``80/tcp`` or ``53/udp``; ``only_tcp``: what messages say, no more.

    :raises CommandFailed: it is none of these.
    """
    number, slash, protocol = text.lower().partition("/")
    if _RANGE.fullmatch(number):
        raise CommandFailed(
            ExitCode.USAGE, f"{text!r}: ranges of ports aren't supported; name one port at a time"
        )
    if slash and protocol not in {"tcp", "udp"}:
        raise CommandFailed(ExitCode.USAGE, f"{text!r}: after the port comes /tcp or /udp")
    examples = "80 or 80/tcp" if only_tcp else "80, 80/tcp or 53/udp"
    if not (number.isascii() and number.isdigit()):
        raise CommandFailed(ExitCode.USAGE, f"{text!r} is no port; write {examples}")
    check_port(int(number), "port")
    return int(number), "udp" if protocol == "udp" else "tcp"


def check_port(number: int, what: str) -> None:
    """:raises CommandFailed: ``number`` is no port."""
    if not 1 <= number <= _HIGHEST_PORT:
        raise CommandFailed(
            ExitCode.USAGE, f"{what} {number} doesn't exist: ports are 1 to {_HIGHEST_PORT}"
        )


def _find(infos: tuple[AddressInfo, ...], name: str) -> AddressInfo:
    for info in infos:
        if name in {info.name, info.ap4, info.ap6}:
            return info
    known = ", ".join(info.name for info in infos) or "none"
    raise CommandFailed(ExitCode.NOT_FOUND, f"no address of yours is {name!r}; there are: {known}")


def _print_rules(rules: tuple[ExposeRule, ...], as_json: bool) -> None:
    if as_json:
        print_json(rules)
    elif not rules:
        typer.echo("nothing is exposed: nobody can connect to this machine through the network")
    else:
        for rule in rules:
            typer.echo(fitted(_rule(rule), hang=4))


def _rule(rule: ExposeRule) -> str:
    who = "anybody" if rule.to == ("any",) else ", ".join(rule.to)
    target = "" if rule.target_port == rule.port else f" (local port {rule.target_port})"
    return f"{rule.port}/{rule.protocol} of {rule.identity}{target} to {who}"
