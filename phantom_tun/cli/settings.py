"""Files that people edit: ``config`` and ``network``."""

from __future__ import annotations

import dataclasses
import itertools
import re
import secrets
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from phantom_tun import config, places
from phantom_tun.cli.exits import CommandFailed, ExitCode
from phantom_tun.cli.session import JsonOption, Session, print_json, session_of
from phantom_tun.cli.text import counted, fitted, room
from phantom_tun.control.schema import ControlError, GetStatus
from phantom_tun.daemon.account import resolve_account, resolve_group
from phantom_tun.daemon.underlay import advertised_addresses
from phantom_tun.errors import ConfigError, UsageError
from phantom_tun.files import atomic_write
from phantom_tun.ids import PublicKey
from phantom_tun.path.ring import member_count

# The network profile is hashed, which takes the whole cryptography package: commands that need it
# import it themselves.

config_app = typer.Typer(
    no_args_is_help=True, help="Show and check this node's configuration.", rich_markup_mode=None
)
network_app = typer.Typer(
    no_args_is_help=True, help="Make, show and join networks.", rich_markup_mode=None
)

_PUBLIC_FILE = 0o644
_STANDARD_INPUT = "-"

NodesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bootstrap",
        metavar="NODEID@ADDR:PORT#HASH",
        help="A node that newcomers ask first; 'status --json' on it shows this line.",
    ),
]


@config_app.command("show")
def show_config(context: typer.Context, as_json: JsonOption = False) -> None:
    """Print the configuration in force, defaults included."""
    settings = session_of(context).load_config()
    if as_json:
        print_json(msgspec.to_builtins(settings, enc_hook=str))
    else:
        typer.echo(config.render(settings, comments=False), nl=False)


@config_app.command("default")
def default_config() -> None:
    """Print a file with every setting, its default and what it means."""
    typer.echo(config.render(config.Config()), nl=False)


@config_app.command("check")
def check_config(context: typer.Context, as_json: JsonOption = False) -> None:
    """Say whether a daemon could start with this configuration.

    Looks at what it names, too: network profile, web page, user, group, addresses. Only starting
    it shows whether the port is free.
    """
    try:
        found = _problems(session_of(context).load_config())
    except ConfigError as error:
        found = str(error).splitlines()
    if as_json:
        print_json({"problems": found})
    elif not found:
        typer.echo("nothing is wrong with it")
    if found:
        raise CommandFailed(ExitCode.CONFIG, "\n".join(found))


def _problems(settings: config.Config) -> list[str]:
    """What is wrong with what a configuration names."""
    from phantom_tun import profile  # noqa: PLC0415 - see above

    found: list[str] = []
    for check in (
        lambda: profile.load(settings.network.profile),
        settings.node.own_web_page,
        lambda: resolve_account(settings.node.user),
        lambda: resolve_group(settings.control.group),
        lambda: advertised_addresses(settings.node),
    ):
        try:
            check()
        except ConfigError as error:
            found.append(str(error))
    return found


@network_app.command("new")
def new_network(
    context: typer.Context,
    *,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What it is called: a-z, 0-9 and hyphens.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            readable=False,
            help="Write it there, not to where this node looks.",
        ),
    ] = None,
    hops: Annotated[
        int | None,
        typer.Option(
            "--hops", metavar="H", min=0, max=8, help="Default length of exit and entry paths."
        ),
    ] = None,
    pow_bits: Annotated[
        int | None,
        typer.Option(
            "--pow-bits", metavar="N", min=0, max=32, help="How hard it is to make a node id."
        ),
    ] = None,
    bootstrap: NodesOption = None,
    override_key: Annotated[
        list[str] | None,
        typer.Option(
            "--override-key",
            metavar="KEY",
            help="A public key that 'override keygen' printed: who has it may give commands.",
        ),
    ] = None,
) -> None:
    """Start a network: write the profile that every member needs."""
    from phantom_tun import profile  # noqa: PLC0415 - see above

    target = output or session_of(context).load_config().network.profile
    if target.exists():
        raise CommandFailed(
            ExitCode.CONFLICT,
            f"{target} exists: it is the profile of a network; move or delete it if this node is "
            "to leave that network, or choose another file with --output",
        )
    try:
        made = profile.new(
            name,
            secrets.token_bytes(profile.NONCE_SIZE),
            pow_bits=profile.DEFAULT_POW_BITS if pow_bits is None else pow_bits,
            override_keys=tuple(profile.parse_override_key(text) for text in override_key or ()),
            bootstrap=tuple(profile.Bootstrap.parse(line) for line in bootstrap or ()),
            exit_hops=profile.DEFAULT_HOPS if hops is None else hops,
            entry_hops=profile.DEFAULT_HOPS if hops is None else hops,
        )
    except ConfigError as error:  # it came from the command line, not from a file
        raise UsageError(str(error)) from error
    _write(target, profile.dump(made))
    typer.echo(fitted(f"wrote {target}: the network {name!r}, {made.network_id.hex()}", hang=4))
    if made.exit_hops:
        note = (
            f"Its paths have {counted(made.exit_hops, 'hop')}: a node needs "
            f"{member_count(made.exit_hops)} others in different /16 to build one; "
            "until it knows that many, 'phantom-tun up' ends with code 9 (6 if its --timeout is "
            "over first), and the node goes on trying. --hops 0 asks for none, and hides nothing."
        )
        typer.echo(fitted(note))
    if not made.bootstrap:
        note = (
            f"Start the first node ({places.start_command()}); there 'phantom-tun network invite' "
            "prints what others need to join."
        )
        typer.echo(fitted(note))


@network_app.command("show")
def show_network(context: typer.Context, as_json: JsonOption = False) -> None:
    """Show the network this node belongs to."""
    from phantom_tun import profile  # noqa: PLC0415 - see above

    path = session_of(context).load_config().network.profile
    loaded = profile.load(path)
    if as_json:
        print_json(
            {
                "file": str(path),
                "name": loaded.name,
                "network_id": loaded.network_id.hex(),
                "ap4": str(loaded.ap4),
                "ap6": str(loaded.ap6),
                "pow_bits": loaded.pow_bits,
                "update_number": loaded.update_number,
                "bootstrap": [str(node) for node in loaded.bootstrap],
                "override_keys": [key.hex() for key in loaded.override_keys],
                "exit_hops": loaded.exit_hops,
                "entry_hops": loaded.entry_hops,
            }
        )
        return
    typer.echo(f"name       {loaded.name}")
    typer.echo(f"id         {loaded.network_id.hex()}")
    typer.echo(f"addresses  {loaded.ap4} and {loaded.ap6}")
    typer.echo(f"update     {loaded.update_number}")
    typer.echo(f"hops       {loaded.exit_hops} exit, {loaded.entry_hops} entry")
    for node in loaded.bootstrap:
        typer.echo(_over_lines(f"bootstrap  {node}", hang=11))
    for key in loaded.override_keys:
        typer.echo(f"override   {key.hex()}")
    typer.echo(f"file       {path}")


@network_app.command("join")
def join_network(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="The profile a member gave you; - to paste it.")
    ],
    leave: Annotated[
        bool,
        typer.Option(
            "--leave", help="Leave the network this node is in now; its profile is kept beside."
        ),
    ] = False,
) -> None:
    """Join a network, or take a newer profile of this node's network."""
    from phantom_tun import profile  # noqa: PLC0415 - see above

    session = session_of(context)
    target = session.load_config().network.profile
    called = "standard input" if source == _STANDARD_INPUT else source
    joined = profile.parse(_read(source), source=called)
    obeyed: tuple[PublicKey, ...] = ()
    if target.exists():
        current = profile.load(target)
        obeyed = current.override_keys if current.network_id == joined.network_id else ()
        if current == joined:
            typer.echo(f"this node is in {joined.name!r} already")
            return
        same_network = current.network_id == joined.network_id
        if same_network and not current.accepts_update(joined):
            raise CommandFailed(
                ExitCode.CONFLICT,
                f"{called} has update {joined.update_number} of {joined.name!r}, this node has "
                f"{current.update_number} already",
            )
        if not same_network and not leave:
            raise CommandFailed(
                ExitCode.CONFLICT,
                f"this node is in another network, {current.name!r}; --leave replaces it "
                "and keeps the profile",
            )
        if not same_network:
            typer.echo(f"kept the profile of {current.name!r} as {_keep(target)}")
    _write(target, profile.dump(joined))
    typer.echo(f"wrote {target}: the network {joined.name!r}, update {joined.update_number}")
    for key in joined.override_keys:
        if key not in obeyed:
            typer.echo(fitted(f"May give override commands from now on: {key.hex()}", hang=4))
    typer.echo(_what_next(session))


@network_app.command("invite")
def invite(context: typer.Context) -> None:
    """Print the profile that others need to join.

    It names this node as the one to ask first.
    """
    from phantom_tun import profile  # noqa: PLC0415 - see above

    session = session_of(context)
    loaded = profile.load(session.load_config().network.profile)
    own = tuple(profile.Bootstrap.parse(line) for line in session.ask(GetStatus()).bootstrap)
    if not own:
        raise CommandFailed(
            ExitCode.UNAVAILABLE,
            "other nodes can't dial this one, so newcomers can't ask it: invite from another node",
        )
    others = tuple(node for node in loaded.bootstrap if node not in own)
    invitation = dataclasses.replace(loaded, bootstrap=(own + others)[: profile.MAX_BOOTSTRAP])
    typer.echo(profile.dump(invitation), nl=False)


def _over_lines(line: str, hang: int) -> str:
    """A bootstrap node's line, broken before ``@`` and ``#`` where a terminal has no room for it;
    ``network invite`` prints what others need."""
    width = room(sys.stdout)
    if width is None or len(line) <= width:
        return line
    return f"\n{' ' * hang}".join(re.split("(?=[@#])", line))


def _what_next(session: Session) -> str:
    start = places.start_command()
    try:
        session.ask(GetStatus())
    except ControlError as error:
        if error.code == "no_daemon":
            return f"Start the node: {start}"
    return f"Restart the node to use it: phantom-tun down; {start}"


def _read(source: str) -> bytes:
    if source == _STANDARD_INPUT:
        return sys.stdin.buffer.read()
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise ConfigError(f"can't read {source}: {error.strerror}") from error


def _keep(profile: Path) -> Path:
    """Copy a profile that is about to be replaced, perhaps the only one; returns where it is."""
    data = profile.read_bytes()
    for number in itertools.count(1):
        kept = profile.with_name(f"{profile.name}.old{number if number > 1 else ''}")
        if not kept.exists():
            atomic_write(kept, data, mode=_PUBLIC_FILE)
            return kept
        if kept.is_file() and kept.read_bytes() == data:
            return kept
    raise AssertionError("numbers never end")


def _write(target: Path, text: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"can't make {target.parent}: {error.strerror}") from error
    atomic_write(target, text.encode(), mode=_PUBLIC_FILE)
