"""The manual page, made from the commands themselves.

``python -m phantom_tun.cli.manpage > docs/man/phantom-tun.1`` writes it; a test sees to it that
this was done.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

import typer.main

from phantom_tun import __version__, places
from phantom_tun.cli.background import LOG_FILE
from phantom_tun.cli.exits import MEANINGS, PROGRAM
from phantom_tun.cli.main import app
from phantom_tun.lab.errors import MEANINGS as LAB_MEANINGS

_OF_THE_LIBRARY = frozenset({"install_completion", "show_completion"})
"""Options whose description changes with the version of typer."""

_DESCRIPTION = """\
phantom-tun runs one node of an anonymous network and talks to it. The node gives this machine AP
addresses, which any program can use: connections from and to them go through routing paths of
other nodes, so that neither end learns where the other one is. Nobody can connect to an AP address
until a port of it is exposed.

Every command that shows something takes --json, but for those that print a file: config default,
network invite and override sign. Errors are one sentence on standard error, after the usage if
it is the command line that makes no sense; the exit status says what kind."""

_EXAMPLES = (
    ("Start a network and its first node", ("network new home --hops 0", "up")),
    ("Print what others need to join it", ("network invite > home.toml",)),
    ("Join a network with what a member gave you", ("network join home.toml", "up")),
    ("Offer a web server that listens on port 8080", ("expose 80 --target-port 8080",)),
    ("See which way your connections take", ("paths list",)),
    ("Play with a network of twelve nodes on this machine", ("lab up --nodes 12",)),
    ("Find out why an address can't be reached", ("why 250.1.2.3 80",)),
)


def render() -> str:
    """The page, as troff source with the man macros."""
    lines = [
        f'.TH PHANTOM\\-TUN 1 "" "phantom\\-tun {__version__}" "User Commands"',
        ".SH NAME",
        "phantom\\-tun \\- reach and offer services anonymously, with any program",
        ".SH SYNOPSIS",
        ".B phantom\\-tun",
        "[\\fIoptions\\fR] \\fIcommand\\fR [\\fIarguments\\fR]",
        ".SH DESCRIPTION",
        *_paragraphs(_DESCRIPTION),
    ]
    root: Any = typer.main.get_command(app)
    lines += [
        ".SH OPTIONS",
        *_options(root),
        *_item("-h, --help", "Say what the program, or any of its commands, takes."),
        *_item("--install-completion", "Teach your shell to complete commands and names."),
        *_item("--show-completion", "Print what that would add to the shell."),
        ".SH COMMANDS",
    ]
    for name in root.list_commands(None):
        lines += _command(name, root.get_command(None, name))
    lines += [
        ".SH ENVIRONMENT",
        *_item(places.CONFIG_VARIABLE, "The configuration file, as \\-\\-config."),
        *_item(places.SOCKET_VARIABLE, "The control socket, as \\-\\-socket."),
        *_item(
            places.START_VARIABLE,
            "The command that messages name when they say how to start the node.",
        ),
        *_item(places.NO_COLOUR_VARIABLE, "If set to anything: no colours, as for TERM=dumb."),
        ".SH FILES",
        *_item(f"{places.SYSTEM_CONFIG}/config.toml", "The configuration of the system's node."),
        *_item(f"{places.SYSTEM_CONFIG}/network.toml", "The profile of its network."),
        *_item(str(places.SYSTEM_STATE), "Its keys, addresses and what it remembers."),
        *_item(str(places.SYSTEM_SOCKET), "Its control socket."),
        *_item(
            f"{places.SYSTEM_STATE}/{LOG_FILE}",
            "Its log if up started it without systemd, else: journalctl \\-u phantom\\-tun.",
        ),
        *_item("~/.config, ~/.local/state", "The same for a node of an ordinary user."),
        ".SH EXIT STATUS",
    ]
    for code, meaning in MEANINGS.items():
        lines += _item(str(int(code)), _sentence(meaning))
    lines += [".PP", "Commands of \\fBlab\\fR end with 2, 7 or 130 as all do, and with:"]
    for number, meaning in LAB_MEANINGS.items():
        lines += _item(str(number), _sentence(meaning))
    lines.append(".SH EXAMPLES")
    for purpose, commands in _EXAMPLES:
        lines += [".PP", f"{_escaped(purpose)}:", ".PP", ".RS 4", ".nf"]
        lines += [_escaped(f"{PROGRAM} {command}") for command in commands]
        lines += [".fi", ".RE"]
    lines += [".SH SEE ALSO", ".BR ip (8),", ".BR systemctl (1)"]
    return "\n".join(lines) + "\n"


def _command(name: str, command: Any) -> Iterator[str]:
    if not hasattr(command, "list_commands"):
        yield from _single(name, command)
        return
    for subname in command.list_commands(None):
        yield from _single(f"{name} {subname}", command.get_command(None, subname))


def _single(name: str, command: Any) -> Iterator[str]:
    arguments = [each for each in command.params if not _is_option(each)]
    options = _visible_options(command)
    usage = [f"\\fB{_escaped(name)}\\fR"]
    usage += ["[\\fIoptions\\fR]"] if options else []
    usage += [_usage(argument) for argument in arguments]
    yield from (".SS", " ".join(usage))
    help_text = inspect.cleandoc(command.help or "")
    yield from _paragraphs(help_text)
    for argument in arguments:
        yield from _item(_placeholder(argument), _escaped(argument.help or ""))
    yield from _options(command)


def _options(command: Any) -> Iterator[str]:
    for option in _visible_options(command):
        names = ", ".join((*option.opts, *option.secondary_opts))
        value = "" if option.is_flag else f" \\fI{_escaped(_placeholder(option))}\\fR"
        yield from _item(names, _escaped(_said_of(option, command)), after=value)


def _said_of(option: Any, command: Any) -> str:
    """Its help, and as ``--help`` says it the default and the range."""
    _names, text = option.get_help_record(command.context_class(command))
    return " ".join(text.split())


def _visible_options(command: Any) -> list[Any]:
    return [
        each
        for each in command.params
        if _is_option(each) and not each.hidden and each.name not in _OF_THE_LIBRARY
    ]


def _is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


def _usage(argument: Any) -> str:
    text = f"\\fI{_escaped(_placeholder(argument))}\\fR"
    return text if argument.required else f"[{text}]"


def _placeholder(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _item(term: str, text: str, *, after: str = "") -> tuple[str, str, str]:
    return ".TP", f"\\fB{_escaped(term)}\\fR{after}", text


def _sentence(meaning: str) -> str:
    return _escaped(f"{meaning[0].upper()}{meaning[1:]}.")


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text)):
        if number:
            yield ".PP"
        yield _escaped(" ".join(paragraph.split()))


def _escaped(text: str) -> str:
    """Text that troff prints as it is; hyphens stay hyphens when copied from the page."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    return f"\\&{text}" if text.startswith((".", "'")) else text


if __name__ == "__main__":
    sys.stdout.write(render())
