"""What a shell offers after ``phantom-tun …`` when somebody presses Tab.

A daemon that doesn't answer at once, or a lab that can't be read, is nothing to complete from.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from phantom_tun.cli.session import Session
from phantom_tun.control.schema import ListAddresses
from phantom_tun.errors import PhantomError

WITHIN_S = 0.1
"""How long a person who pressed Tab waits for the daemon."""


def address_names(ctx: Any, incomplete: str) -> list[str]:
    """The names of this node's addresses."""
    options = ctx.find_root().params
    session = Session(options.get("config_path"), options.get("socket_path"))
    found: list[str] = []

    def ask() -> None:
        with suppress(PhantomError, OSError):
            found.extend(info.name for info in session.ask(ListAddresses()))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(WITHIN_S)
    return beginning(incomplete, found)


def lab_names(incomplete: str) -> list[str]:
    """The labs of this machine."""
    from phantom_tun.lab.record import default_root  # noqa: PLC0415 - only where it is needed

    with suppress(PhantomError, OSError):
        return beginning(incomplete, (place.name for place in default_root().iterdir()))
    return []


def lab_nodes(ctx: Any, incomplete: str) -> list[str]:
    """The nodes of the lab that the command line names."""
    from phantom_tun.lab.lifecycle import open_lab  # noqa: PLC0415 - only where it is needed
    from phantom_tun.lab.plan import DEFAULT_NAME  # noqa: PLC0415

    with suppress(PhantomError, OSError):
        nodes = open_lab(ctx.params.get("name") or DEFAULT_NAME).read().nodes
        return [node.name for node in nodes if node.name.startswith(incomplete)]
    return []


def beginning(incomplete: str, words: Iterable[str]) -> list[str]:
    """Those of ``words`` that begin so."""
    return sorted(word for word in words if word.startswith(incomplete))
