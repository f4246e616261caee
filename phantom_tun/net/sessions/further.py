"""Further connections within one session (docs/spec/session.md, "Kept sessions"). Each is a
:class:`SecureTunnel` of its own over the same tunnel and channel::

    first connection ── END both ways ──► idle ── OPEN, OPENED ──► next connection ── …
                                            └─── FIN both ways ──► over
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from phantom_tun.errors import PeerError, ProtocolViolation
from phantom_tun.net.sessions.handshake import hold_answer
from phantom_tun.net.sessions.secure_tunnel import SecureTunnel
from phantom_tun.wire.session import FrameKind, Opening, Outcome, parse_outcome

ANSWER_TAKEN_WITHIN = 5.0
"""Seconds for the caller's tunnel to take what :func:`answer_next` says: a few bytes, and a session
that waits to say them is in no table."""


def keep(secure: SecureTunnel, on_rest: Callable[[SecureTunnel], None]) -> None:
    """Don't let the tunnel end with this connection. Once that has ended both ways, ``on_rest``
    gets what takes its place for the next one, idle; if it ends otherwise, all ends."""
    secure.on_rest = lambda ended: on_rest(_successor(ended))


def _successor(ended: SecureTunnel) -> SecureTunnel:
    pipe = ended.pipe
    idle = SecureTunnel(pipe.channel, pipe.tunnel, ended.spawn, pipe.reader)
    idle.secret, idle.ahead.secret = ended.secret, ended.ahead.secret
    idle.awaits_secret = ended.awaits_secret
    return idle


async def open_next(secure: SecureTunnel, opening: Opening) -> Outcome:
    """Ask for the next connection; the caller's first act. Unless it is CONNECTED the session is
    idle again.

    :raises StreamReset: the session is over.
    """
    await secure.send(FrameKind.OPEN, memoryview(opening.pack()))
    frame = await secure.next_frame()
    try:
        if frame.kind is not FrameKind.OPENED:
            raise ProtocolViolation("no answer to an opening")
        outcome = parse_outcome(frame.payload)
        secure.pipe.reader.rest()
    except PeerError as error:
        raise secure.pipe.tear("the session broke") from error
    secure.took_first = True
    secure.is_idle = outcome is not Outcome.CONNECTED
    return outcome


async def wait_next(secure: SecureTunnel) -> Opening:
    """Wait until the next connection is asked for; the callee's first act. The first bytes are what
    it then receives first.

    :raises StreamReset: the session is over.
    """
    frame = await secure.next_frame()
    try:
        if frame.kind is not FrameKind.OPEN:
            raise ProtocolViolation("no connection is open")
        opening = Opening.unpack(bytes(frame.payload))
    except PeerError as error:
        raise secure.pipe.tear("the session broke") from error
    secure.first = opening.first
    return opening


async def answer_next(secure: SecureTunnel, outcome: Outcome) -> None:
    """Answer :func:`wait_next`, with the service's first bytes if it has the caller's already.

    :raises StreamReset: the session is over, or the caller takes no answers.
    """
    secure.is_idle = outcome is not Outcome.CONNECTED
    secure.ahead.outcome = outcome
    if not secure.is_idle and secure.first:
        hold_answer(secure)
        return
    secure.first = b""
    with trio.move_on_after(ANSWER_TAKEN_WITHIN):
        await secure.flush()
        return
    raise secure.pipe.tear("the caller doesn't take its answer")
