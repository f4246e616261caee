"""How a tunnel begins to carry: what completes TLS at either end, and what each end says first.

What could go alone waits a moment for something to go with
(:class:`~phantom_tun.net.sessions.ahead.Ahead`): a message less at every hop.
"""

from __future__ import annotations

import trio

from phantom_tun.errors import PeerError, StreamReset
from phantom_tun.net.sessions.secure_tunnel import SecureTunnel

FLIGHT_WAIT = 0.002
"""Seconds that the caller's last TLS flight waits for the application's first bytes: they save it a
message of its own at every hop. A service that speaks first is heard so much later."""

EARLY_FLIGHT_WAIT = 0.05
"""The same if the callee took early data: it doesn't wait for our flight."""

ANSWER_WAIT = 0.002
"""Seconds that the callee's answer waits for the service's first bytes, if the service has the
caller's already."""

SECRET_WAIT = 1.0
"""Seconds that the secret for resuming the session waits for what the service says first."""


def hold_flight(secure: SecureTunnel, wait: float = FLIGHT_WAIT) -> None:
    """Send what completes the TLS handshake, the caller's first act, together with the first bytes,
    or alone if there are none within ``wait`` seconds."""
    secure.pipe.holds_flight = _hold(secure, wait)


def hold_answer(secure: SecureTunnel) -> None:
    """Send what the tunnel owes together with the first bytes, or alone if there are none within
    ``ANSWER_WAIT``."""
    if not _hold(secure, ANSWER_WAIT):
        secure.pipe.tear("nobody would send the answer")


def give_secret(secure: SecureTunnel, secret: bytes) -> None:
    """The callee's: send ``secret`` with whatever is sent next, or alone if there is nothing within
    ``SECRET_WAIT``, so that the session can be resumed."""
    secure.secret = secret
    if _hold(secure, SECRET_WAIT):
        secure.ahead.secret = secret


async def wait_established(secure: SecureTunnel, within: float) -> None:
    """Wait for what completes the TLS handshake; the callee's first act.

    :raises StreamReset: it didn't complete in time, or not with the right certificate.
    """
    pipe = secure.pipe
    with trio.move_on_after(within):
        while not pipe.channel.is_established:
            await pipe.load()
            try:
                pipe.reader.fill()
            except PeerError as error:
                raise pipe.tear("the caller failed the TLS handshake") from error
        return
    raise pipe.tear("the caller didn't complete the TLS handshake")


def _hold(secure: SecureTunnel, wait: float) -> bool:
    """Send what is still held in ``wait`` seconds; whether somebody will."""
    return secure.spawn(lambda: _send_held(secure, wait))


async def _send_held(secure: SecureTunnel, wait: float) -> None:
    await trio.sleep(wait)
    try:
        if secure.ahead.is_due():
            await secure.flush()
    except StreamReset:
        if secure.pipe.is_torn and not secure.is_ending:
            secure.pipe.tunnel.reset()  # whoever waits for bytes is told so
