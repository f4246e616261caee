"""What OpenSSL keeps for all connections of a thread (docs/spec/links.md, "Connections")."""

from __future__ import annotations

import ssl
from contextlib import suppress
from functools import cache


@cache
def _unanswered() -> ssl.SSLObject:
    """A handshake that never gets an answer: each step of one begins by emptying the list."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())


def forget_errors() -> None:
    """To be called after a connection has failed or said goodbye, before another one is asked for
    anything.

    OpenSSL keeps a list of errors for the whole thread. What a socket said stays on it from Python
    3.13 on, and with any Python an alert that is met while saying goodbye: the next connection
    that has nothing to read, or no room for more, would be said to have failed in the same way."""
    with suppress(ssl.SSLWantReadError):
        _unanswered().do_handshake()
