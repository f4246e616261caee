"""Whose IPv4 AP addresses are, as seen at first contact: ``pins``, like ssh's known hosts."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from phantom_tun.cli.session import JsonOption, confirm, print_json, session_of
from phantom_tun.cli.text import counted, duration, fitted
from phantom_tun.control.dispatch import parse_address4
from phantom_tun.control.model import PinInfo
from phantom_tun.control.schema import AcceptPin, ListPins, RemovePin

app = typer.Typer(
    no_args_is_help=True,
    help="Whose IPv4 AP addresses are: the keys seen at first contact.",
    rich_markup_mode=None,
)

PinArgument = Annotated[str, typer.Argument(metavar="ADDRESS", help="An IPv4 AP address.")]
_RULER = "@" * 74


@app.command("list")
def list_pins(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the pinned addresses.

    Those whose owner has changed come first and are explained.
    """
    answer = session_of(context).ask(ListPins())
    if as_json:
        print_json(answer)
    elif not answer:
        typer.echo(
            fitted(
                "no address is pinned; the key of an IPv4 AP address is pinned when this node "
                "first connects to it"
            )
        )
    else:
        for pin in answer:
            _print(pin)


@app.command("accept")
def accept_pin(
    context: typer.Context,
    address: PinArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Trust the new key of an address whose owner has changed. Ask its owner first."""
    parse_address4(address)
    session = session_of(context)
    if not yes:
        pins = {pin.address: pin for pin in session.ask(ListPins())}
        pin = pins.get(address)
        if pin is not None and pin.change is not None:
            typer.echo(f"new key  {pin.change.fingerprint}", err=True)
            confirm(f"Did the owner of {address} tell you this key?", "nothing was changed")
    accepted = session.ask(AcceptPin(address))
    if as_json:
        print_json(accepted)
    else:
        typer.echo(fitted(f"{accepted.address} belongs to {accepted.fingerprint} now", hang=4))


@app.command("remove")
def remove_pin(context: typer.Context, address: PinArgument) -> None:
    """Forget the key of an address.

    The next contact counts as the first.
    """
    parse_address4(address)
    session_of(context).ask(RemovePin(address))
    typer.echo(f"{address} is no longer pinned")


def _print(pin: PinInfo) -> None:
    change = pin.change
    if change is not None:
        typer.echo(_RULER)
        typer.echo(f"WARNING: THE OWNER OF {pin.address} HAS CHANGED!")
        typer.echo(_RULER)
    age = duration(max(0.0, time.time() - pin.since))
    typer.echo(f"{pin.address}")
    typer.echo(f"    pinned {age} ago, over {counted(pin.confirmations, 'path')}:")
    typer.echo(f"    {pin.fingerprint}")
    if change is not None:
        seen = duration(max(0.0, time.time() - change.seen))
        typer.echo(f"    offered {seen} ago, over {counted(change.confirmations, 'path')}:")
        typer.echo(f"    {change.fingerprint}")
        typer.echo(fitted(change.explanation))
