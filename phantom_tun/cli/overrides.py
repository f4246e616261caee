"""Override commands, which correct everybody's view of a network: ``override``.

Keys, signing and verifying need no daemon and no network, so that the key can stay on a machine
that is connected to nothing.
"""

from __future__ import annotations

import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from phantom_tun.cli import completing
from phantom_tun.cli.exits import CommandFailed, ExitCode
from phantom_tun.cli.session import JsonOption, Session, print_json, session_of
from phantom_tun.cli.text import duration, fitted, short_id
from phantom_tun.control.model import OverrideInfo
from phantom_tun.control.schema import ListOverrides, SendOverride
from phantom_tun.errors import ConfigError, PeerError, UsageError
from phantom_tun.files import atomic_write, load_secret

if TYPE_CHECKING:
    from phantom_tun.crypto.signing import SigningKey
    from phantom_tun.profile import Profile
    from phantom_tun.wire.records import OverrideRecord

# Records and keys take the whole cryptography package: commands that need it import it themselves.

app = typer.Typer(
    no_args_is_help=True,
    help="Bans, deletions and pins: signed, and obeyed by every node.",
    rich_markup_mode=None,
)

Verb = Literal["ban", "unban", "delete", "pin"]
_VERBS: tuple[Verb, ...] = ("ban", "unban", "delete", "pin")


def _verbs(incomplete: str) -> list[str]:
    return completing.beginning(incomplete, _VERBS)


KeyOption = Annotated[
    Path,
    typer.Option(
        "--key", metavar="FILE", readable=False, help="The key that 'override keygen' made."
    ),
]
ProfileOption = Annotated[
    Path | None,
    typer.Option(
        "--network",
        metavar="FILE",
        readable=False,
        help="The network profile; unless given, this node's.",
    ),
]
CommandsArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="What 'override sign' printed; - to paste it.")
]

_LASTS = re.compile(r"(\d+)([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_USUAL_LIFETIME = 30 * 86_400
_STANDARD_INPUT = "-"
_STANDINGS = {
    "in_force": "in force",
    "replaced": "replaced by a later one",
    "over_budget": "NOT in force: bans would cover too many nodes",
    "too_few_known": "NOT in force yet: this node knows too few others to ban a prefix",
    "trusted": "NOT in force: this node trusts that node",
    "off": "not obeyed: overrides are off here",
}


@app.command()
def keygen(
    target: Annotated[
        Path,
        typer.Argument(metavar="FILE", readable=False, help="Where the key goes (mode 0600)."),
    ],
    as_json: JsonOption = False,
) -> None:
    """Make an override key. Its public half belongs into the profile of the network."""
    from phantom_tun.crypto.signing import SigningKey  # noqa: PLC0415 - see above

    _check_free(target)
    key = SigningKey.generate()
    atomic_write(target, f"{key.seed.hex()}\n".encode())
    if as_json:
        print_json({"file": str(target), "public_key": key.public.hex()})
        return
    typer.echo(key.public.hex())
    note = (
        f"wrote {target}: keep it secret. The line above is for everybody: put it into the "
        "profile, with 'network new --override-key' or among override_keys of its next update."
    )
    typer.echo(fitted(note, stream=sys.stderr), err=True)


@app.command()
def sign(
    context: typer.Context,
    verb: Annotated[
        str,
        typer.Argument(metavar="WHAT", help="ban, unban, delete or pin.", autocompletion=_verbs),
    ],
    subject: Annotated[
        str,
        typer.Argument(
            metavar="SUBJECT",
            help="ban, unban: a node id, an address or a prefix. delete: the key of "
            "an AP address, which 'netdb get ADDRESS' shows. pin: a file that 'netdb get --save' "
            "wrote.",
        ),
    ],
    *,
    key: KeyOption,
    network: ProfileOption = None,
    lasts: Annotated[
        str | None,
        typer.Option(
            "--for", metavar="TIME", help="As 12h or 30d, 90d at most; 30d, 90d to unban."
        ),
    ] = None,
    number: Annotated[
        int | None,
        typer.Option(
            "--number",
            metavar="N",
            min=0,
            max=2**62 - 1,
            help="Of commands about the same, the highest number counts; unless given, the time.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            readable=False,
            help="Write it there, not to standard output.",
        ),
    ] = None,
) -> None:
    """Sign a command; 'override send' on any node makes it known to all."""
    from phantom_tun.netdb import override_text  # noqa: PLC0415 - see above
    from phantom_tun.netdb.overrides import MAX_COMMAND_LIFETIME  # noqa: PLC0415
    from phantom_tun.netdb.signing import sign_override  # noqa: PLC0415
    from phantom_tun.wire.records import OverrideAction  # noqa: PLC0415

    what_to_do = _verb(verb)
    if output is not None:
        _check_free(output)
    profile = _profile(context, network)
    signer = _load_key(key)
    record = b""
    if what_to_do == "pin":
        (line, *more) = _lines(subject)
        if more:
            raise UsageError(f"{subject} must hold one key record only")
        pinned = override_text.parse_key_record(line)
        action, target, record = OverrideAction.PIN_RECORD, pinned.public_key, pinned.encoded
    else:
        action, target = override_text.parse_subject(what_to_do, subject)
    if lasts is not None and _seconds(lasts) > MAX_COMMAND_LIFETIME:
        raise UsageError(f"{lasts} is too long: a command lasts 90 days at most")
    now = time.time()
    # An unban lasts as long as any ban that it is to lift can.
    usual = MAX_COMMAND_LIFETIME if what_to_do == "unban" else _USUAL_LIFETIME
    command = sign_override(
        signer,
        profile.network_id,
        number=int(now * 1000) if number is None else number,
        action=action,
        subject=target,
        record=record,
        created=now,
        expires=int(now) + (usual if lasts is None else _seconds(lasts)),
    )
    if signer.public not in profile.override_keys:
        note = (
            f"phantom-tun: note: this key isn't one of the network {profile.name!r}, so its nodes "
            "will refuse the command until a profile update names it"
        )
        typer.echo(fitted(note, hang=4, stream=sys.stderr), err=True)
    else:
        _check(command, profile, now)
    what, whom = override_text.describe(command)
    text = (
        f"# network {profile.name}: {what} {whom}\n"
        f"# number {command.number}, until {_moment(command.expires)}\n"
        f"{override_text.to_line(command.encoded)}\n"
    )
    if output is None:
        typer.echo(text, nl=False)
    else:
        atomic_write(output, text.encode(), mode=0o644)


@app.command()
def verify(
    context: typer.Context,
    source: CommandsArgument,
    network: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what signed commands do and whether nodes would take them."""
    from phantom_tun.netdb import override_text  # noqa: PLC0415 - see above

    profile = _profile(context, network)
    commands = [override_text.parse_command(line) for line in _lines(source)]
    now = time.time()
    failures = [_failure(command, profile, now) for command in commands]
    if as_json:
        print_json([_as_json(each, why) for each, why in zip(commands, failures, strict=True)])
    else:
        for command, failure in zip(commands, failures, strict=True):
            what, whom = _described(command)
            typer.echo(f"{what} {whom}")
            typer.echo(f"    number {command.number}, until {_moment(command.expires)}")
            typer.echo(f"    signed by {command.signer.hex()}")
            typer.echo(f"    NOT VALID: {failure}" if failure else "    valid")
    wrong = len(list(filter(None, failures)))
    if wrong:
        which = "it" if len(failures) == 1 else f"{wrong} of {len(failures)} commands"
        raise CommandFailed(ExitCode.FAILED, f"nodes of {profile.name!r} would refuse {which}")


@app.command()
def send(context: typer.Context, source: CommandsArgument, as_json: JsonOption = False) -> None:
    """Have this node obey signed commands and pass them on.

    The whole network knows them seconds later.
    """
    session = session_of(context)
    answers = [session.ask(SendOverride(line)) for line in _lines(source)]
    if as_json:
        print_json(answers)
        return
    for answer in answers:
        news = "sent" if answer.new else "known already"
        standing = _STANDINGS[answer.standing]
        typer.echo(fitted(f"{news}: {answer.action} {answer.subject} ({standing})", hang=4))


@app.command("list")
def list_overrides(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the commands this node knows, and what they amount to here."""
    answer = session_of(context).ask(ListOverrides())
    if as_json:
        print_json(answer)
        return
    if not answer.keys:
        typer.echo(
            fitted("the profile of this network has no override keys: nobody can give commands")
        )
    elif not answer.commands:
        typer.echo(
            fitted(
                "no override command is known here (a node that is banned itself is told by nobody)"
            )
        )
    else:
        for command in answer.commands:
            for line in _said(command):
                typer.echo(line)
        typer.echo(f"bans may cover {answer.ban_limit} of the nodes known here")


def _check_free(target: Path) -> None:
    """:raises CommandFailed: something is there."""
    if target.exists() or target.is_symlink():
        raise CommandFailed(
            ExitCode.CONFLICT, f"{target} exists; choose another file, nothing is ever overwritten"
        )


def _said(info: OverrideInfo) -> tuple[str, ...]:
    left = duration(max(0.0, info.expires - time.time()))
    return (
        fitted(f"{info.action} {info.subject}", hang=4),
        fitted(f"    {_STANDINGS[info.standing]}", hang=4),
        fitted(f"    number {info.number}, ends in {left}, signer {short_id(info.signer)}", hang=4),
    )


def _profile(context: typer.Context, path: Path | None) -> Profile:
    from phantom_tun import profile  # noqa: PLC0415 - see above

    session: Session = session_of(context)
    return profile.load(session.load_config().network.profile if path is None else path)


def _load_key(path: Path) -> SigningKey:
    from phantom_tun.crypto.signing import SEED_LEN, SigningKey  # noqa: PLC0415 - see above

    content = load_secret(path)
    if content is None:
        raise ConfigError(f"there is no key {path}; 'phantom-tun override keygen FILE' makes one")
    try:
        seed = bytes.fromhex(content.decode())
    except ValueError:
        seed = b""
    if len(seed) != SEED_LEN:
        raise ConfigError(f"{path} isn't a key that 'phantom-tun override keygen' made")
    return SigningKey(seed)


def _failure(command: OverrideRecord, profile: Profile, now: float) -> str:
    try:
        _check(command, profile, now)
    except CommandFailed as error:
        return str(error)
    return ""


def _check(command: OverrideRecord, profile: Profile, now: float) -> None:
    """
    :raises CommandFailed: nodes of the network would refuse it.
    """
    from phantom_tun.netdb.network import NetworkParams  # noqa: PLC0415 - see above
    from phantom_tun.netdb.overrides import Overrides  # noqa: PLC0415

    network = NetworkParams(profile.network_id, profile.pow_bits, profile.ap4, profile.ap6)
    try:
        Overrides(network, profile.override_keys, ()).check(command, now)
    except PeerError as error:
        raise CommandFailed(ExitCode.FAILED, str(error)) from error


def _described(command: OverrideRecord) -> tuple[str, str]:
    from phantom_tun.netdb import override_text  # noqa: PLC0415 - see above

    try:
        return override_text.describe(command)
    except PeerError:
        return "a command about", command.subject.hex()


def _as_json(command: OverrideRecord, failure: str) -> dict[str, object]:
    what, whom = _described(command)
    return {
        "valid": not failure,
        "reason": failure,
        "number": command.number,
        "signer": command.signer.hex(),
        "action": what,
        "subject": whom,
        "created": command.created,
        "expires": command.expires,
    }


def _lines(source: str) -> list[str]:
    """What is in a file, but for remarks."""
    lines = [line.strip() for line in _read(source).splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        where = "standard input" if source == _STANDARD_INPUT else source
        raise UsageError(f"there is nothing in {where}, or only remarks")
    return found


def _read(source: str) -> str:
    try:
        data = sys.stdin.buffer.read() if source == _STANDARD_INPUT else Path(source).read_bytes()
        return data.decode()
    except OSError as error:
        raise ConfigError(f"can't read {source}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{source} is no text, as 'phantom-tun override sign' prints it"
        ) from error


def _verb(text: str) -> Verb:
    for verb in _VERBS:
        if verb == text:
            return verb
    raise UsageError(f"{text!r} is no command: ban, unban, delete or pin")


def _seconds(text: str) -> int:
    match = _LASTS.fullmatch(text)
    if match is None or not int(match[1]):
        raise UsageError(f"{text!r} is no time: write for example 90m, 12h or 30d")
    return int(match[1]) * _UNITS[match[2]]


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
