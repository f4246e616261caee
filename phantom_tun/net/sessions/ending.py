"""How a connection ends (docs/spec/session.md, "Ending"): in the background, soon
(``LAST_WORD_WITHIN``, ``CLOSE_WITHIN``) and if possible with FIN both ways, so that the links below
can be used again: an application's reset costs no link.
"""

from __future__ import annotations

import trio

from phantom_tun.errors import PeerError, StreamReset, WorldError
from phantom_tun.net.links.buffers import POOL
from phantom_tun.net.sessions.pipe import Encode
from phantom_tun.net.sessions.ports import Tunnel
from phantom_tun.net.sessions.secure_tunnel import SecureTunnel
from phantom_tun.wire.session import FrameKind

LAST_WORD_WITHIN = 1.0
"""Seconds for saying goodbye; if the tunnel is too full for that, it is torn down."""

LAST_WORD_OF_SURVIVOR_WITHIN = 10.0
"""The same in a session that can be resumed: that a tunnel is torn down doesn't say RESET there."""

CLOSE_WITHIN = 5.0
"""Seconds for the peer to do the same."""

CLOSE_IDLE_WITHIN = 15.0
"""The same between two connections: a caller notices when it gives the session up itself."""

_NOTHING = memoryview(b"")


async def send_end(secure: SecureTunnel) -> None:
    """Send END, and FIN unless the session is kept: nothing of this connection can follow. A
    program that resets afterwards costs the links.

    :raises StreamReset: the connection was reset, or the tunnel died.
    """
    if secure.sent_end:
        return
    is_kept = secure.on_rest is not None

    def encode(view: memoryview, start: int) -> int:
        if secure.sent_end:
            return start
        return _encode_end(secure, view, start) if is_kept else encode_last(view, start)

    encode_last = _encode_last(secure, FrameKind.END)
    await secure.pipe.write(encode, fin=not is_kept)
    secure.sent_fin = not is_kept


def finish(secure: SecureTunnel, last: FrameKind | None) -> None:
    """End the connection, with ``last`` as last word unless the peer has reset it anyway.
    Idempotent, never waits, never raises; ``secure.closed`` tells when it is done."""
    if secure.is_ending:
        return
    secure.stop()
    if last is None and secure.on_rest is not None and _can_rest(secure):
        secure.closed.set()
        secure.on_rest(secure)
        return
    if not secure.spawn(lambda: _say_goodbye(secure, last)):
        secure.pipe.tear_down()


def abandon(secure: SecureTunnel) -> None:
    """Tear the tunnel down now, without a word."""
    if not secure.is_ending:
        secure.stop()
        secure.pipe.tear_down()


async def release_unused(tunnel: Tunnel) -> None:
    """Let go of a tunnel that no data will follow on."""
    try:
        with trio.fail_after(CLOSE_WITHIN):
            await tunnel.send_fin()
            await _drain(tunnel)
        await tunnel.aclose()
    except (WorldError, PeerError, trio.TooSlowError):
        pass
    finally:
        tunnel.reset()


def _can_rest(secure: SecureTunnel) -> bool:
    pipe = secure.pipe
    return (
        secure.sent_end
        and secure.got_end
        and not (pipe.is_torn or pipe.got_fin or pipe.send_lock.locked())
    )


async def _say_goodbye(secure: SecureTunnel, last: FrameKind | None) -> None:
    pipe = secure.pipe
    try:
        survives = secure.secret is not None
        within = LAST_WORD_OF_SURVIVOR_WITHIN if survives else LAST_WORD_WITHIN
        with trio.fail_after(within):
            async with pipe.send_lock:
                await _send_last(secure, last)
        with trio.fail_after(CLOSE_IDLE_WITHIN if secure.is_idle else CLOSE_WITHIN):
            async with pipe.receive_lock:
                if not pipe.got_fin:
                    await _drain(pipe.tunnel)
        await pipe.tunnel.aclose()
    except (WorldError, PeerError, trio.TooSlowError):
        pass
    finally:
        pipe.tear_down()


async def _send_last(secure: SecureTunnel, last: FrameKind | None) -> None:
    pipe = secure.pipe
    if pipe.is_torn:
        raise StreamReset("nothing can be sent any more")
    if last is FrameKind.RESET and secure.sent_end and not secure.got_reset:
        raise StreamReset("the peer doesn't listen any more")
    if secure.sent_fin:
        return
    if secure.got_reset or (pipe.holds_flight and not secure.is_resumed):
        # Without our flight the callee knows of no session. It must not get to know one that ends
        # at once: it would have the local service, and another attempt wouldn't.
        last = None
    await pipe.write_locked(_encode_last(secure, last), fin=True)


def _encode_last(secure: SecureTunnel, last: FrameKind | None) -> Encode:
    """What comes before FIN."""
    channel, ahead = secure.pipe.channel, secure.ahead

    def encode(view: memoryview, start: int) -> int:
        if last is FrameKind.END:
            start = _encode_end(secure, view, start)
        elif last is not None:
            start = ahead.encode_outcome(view, start)
            start = channel.encode(view, start, last, _NOTHING)
        if secure.is_idle or (secure.sent_end and secure.got_end):
            start = channel.encode_close(view, start)
        return start

    return encode


def _encode_end(secure: SecureTunnel, view: memoryview, start: int) -> int:
    secure.sent_end = True  # not before: who waits for the lock may be cancelled
    start = secure.ahead.encode(view, start)
    return secure.pipe.channel.encode(view, start, FrameKind.END, _NOTHING)


async def _drain(tunnel: Tunnel) -> None:
    """Throw away what is still on its way, up to the peer's FIN."""
    is_over = False
    while not is_over:
        buffer = await tunnel.receive_pooled()
        is_over = not buffer.segments
        POOL.give_back(buffer)
