"""The secure channel of one connection, without I/O: TLS 1.3 with both AP certificates over memory,
wrapped in a post-quantum keystream (docs/spec/session.md, "Channel").

The ClientHello travels in the request, the server's flight in the answer; everything later goes
through the tunnel, wrapped::

    caller                                       callee
    CallerHandshake(context).hello    ──────►    CalleeHandshake(context, hello)
    .finish(flight, …) → Channel      ◄──────    .flight, .open(…) → Channel
    Channel.flush                     ──────►    Channel.unwrap, feed    (certificate, finished)
    Channel.encode; unwrap, feed, read ◄────►    Channel.encode; unwrap, feed, read

With early data (:mod:`phantom_tun.tunnel.early`) the callee's channel can be read and written at
once: what it writes until its end of TLS is complete goes into early records. The caller's end
completes TLS, which takes a millisecond, only when it has something to say or TLS comes: what is in
the records the ticket has proved already.

All methods work on regions of the caller's memory that have ``SLACK`` bytes behind them. TLS is fed
and emptied record by record, so an idle connection keeps little memory inside the TLS library.

Cost with 64 KiB frames, measured by ``scripts/bench_session``: see docs/spec/session.md, "Cost".
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from typing import Any

from phantom_tun.crypto.certificates import check_peer
from phantom_tun.crypto.openssl import forget_errors
from phantom_tun.errors import CryptoError
from phantom_tun.tunnel.answer import Wrap
from phantom_tun.tunnel.early import EarlyOpener, EarlySealer
from phantom_tun.wire.frames import REGION_LEN
from phantom_tun.wire.session import (
    FRAME_HEADER_LEN,
    MAX_FLIGHT,
    FrameKind,
    frame_header,
)

RECORD = 16_384
"""Plaintext bytes of the longest TLS record."""

WIRE_RECORD = RECORD + 22
"""The same with header, content type and tag: what is fed to TLS at a time."""


class CallerHandshake:
    """The side that connects, until the answer is there."""

    __slots__ = ("_incoming", "_outgoing", "_tls", "hello")

    def __init__(self, context: ssl.SSLContext) -> None:
        """``context``: from :func:`~phantom_tun.crypto.certificates.caller_context`."""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing)
        _shake(self._tls)
        self.hello = self._outgoing.read()
        """The ClientHello for the request."""

    def finish(
        self,
        flight: bytes,
        callee_certificate: bytes,
        wrap: Wrap,
        early: EarlyOpener | None = None,
    ) -> Channel:
        """Complete the handshake with the callee's flight; ``callee_certificate`` is the hash of
        the certificate in its record. :meth:`Channel.flush` then has our second flight. ``early``:
        what comes before TLS, if the callee has taken our early data.

        :raises CryptoError: it doesn't complete, or with another certificate. With ``early`` the
            channel's methods raise that.
        """
        channel = Channel(self._tls, self._incoming, self._outgoing, wrap, None)
        if early is None:
            self._complete(flight, callee_certificate)
        else:
            channel.expect_early(early, lambda: self._complete(flight, callee_certificate))
        return channel

    def _complete(self, flight: bytes, callee_certificate: bytes) -> None:
        self._incoming.write(flight)
        if not _shake(self._tls):
            raise CryptoError("the callee's TLS flight is incomplete")
        check_peer(self._tls, callee_certificate)


class CalleeHandshake:
    """The side that is connected to, until the answer is on its way."""

    __slots__ = ("_incoming", "_outgoing", "_tls", "flight")

    def __init__(self, context: ssl.SSLContext, hello: bytes) -> None:
        """``context``: from :func:`~phantom_tun.crypto.certificates.callee_context`.

        :raises CryptoError: ``hello`` is not an acceptable ClientHello.
        """
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._incoming.write(hello)
        if _shake(self._tls) or self._incoming.pending:
            raise CryptoError("not just a ClientHello")
        self.flight = self._outgoing.read()
        """The server's flight for the answer."""
        if not 0 < len(self.flight) <= MAX_FLIGHT:
            raise CryptoError("the ClientHello leads to no usable flight")

    def open(self, caller_certificate: bytes, wrap: Wrap) -> Channel:
        """The channel; it is established once the caller's flight was fed and read. Then the
        caller's certificate is compared with the hash ``caller_certificate``."""
        return Channel(self._tls, self._incoming, self._outgoing, wrap, caller_certificate)

    def open_early(
        self, caller_certificate: bytes, wrap: Wrap, sealer: EarlySealer, data: bytes
    ) -> Channel:
        """The same, after early ``data`` was taken: a channel that carries frames at once."""
        channel = self.open(caller_certificate, wrap)
        channel.begin_early(sealer, data)
        return channel


class Channel:
    """Frames in, wrapped TLS bytes out, and back."""

    __slots__ = (
        "_complete",
        "_early_in",
        "_early_out",
        "_expected",
        "_incoming",
        "_outgoing",
        "_plain",
        "_tls",
        "_wrap",
        "is_closed",
    )

    def __init__(
        self,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        wrap: Wrap,
        expected_peer: bytes | None,
    ) -> None:
        self._tls = tls
        self._incoming = incoming
        self._outgoing = outgoing
        self._wrap = wrap
        self._expected = expected_peer
        self._complete: Callable[[], None] | None = None
        """What is left of the handshake, until it is needed."""
        self._early_in: EarlyOpener | None = None
        self._early_out: EarlySealer | None = None
        self._plain = b""
        """What was said before TLS and hasn't been read yet."""
        self.is_closed = False
        """The peer has sent close_notify."""

    def expect_early(self, opener: EarlyOpener, complete: Callable[[], None]) -> None:
        """The caller's, before anything was fed: early records come before TLS, which ``complete``
        makes stand at this end."""
        self._early_in, self._complete = opener, complete

    def begin_early(self, sealer: EarlySealer, data: bytes) -> None:
        """The callee's, before anything else: ``data`` is what the caller sent already."""
        self._early_out = sealer
        if data:
            self._plain = frame_header(FrameKind.DATA, len(data)) + data

    @property
    def is_established(self) -> bool:
        """Whether the handshake is complete at this end."""
        return self._expected is None

    @property
    def is_past_early(self) -> bool:
        """Whether what is sent could go through TLS, but the last early record is still owed:
        :meth:`flush` and short frames send it."""
        return self._early_out is not None and self._expected is None

    def rest(self) -> None:
        """Nothing comes or goes for a while: let go of what can be made again."""
        self._wrap.outgoing.rest()
        self._wrap.incoming.rest()

    # --- out ------------------------------------------------------------------------------------

    def encode(
        self, view: memoryview, start: int, kind: FrameKind, data: memoryview, along: bytes = b""
    ) -> int:
        """Write one frame, ready for the tunnel, to ``view[start:]``; returns its end. ``data`` may
        not overlap ``view``. ``along`` is another frame, whole and short, before it."""
        self._use_tls()
        # Beside the longest frame there is no room for another record: it may still go early.
        head = self._end_early(view, start) if len(data) <= RECORD else start
        header = along + frame_header(kind, len(data))
        first = min(len(data), RECORD - len(header))
        body = head + len(header)
        view[head:body] = header
        view[body : body + first] = data[:first]
        end = self._seal(view, head, view[head : body + first])
        for offset in range(first, len(data), RECORD):
            end = self._seal(view, end, data[offset : offset + RECORD])
        self._wrap.outgoing.process(view, start, end)
        return end

    def encode_messages(self, view: memoryview, start: int, messages: Iterable[bytes]) -> int:
        """Write DATAGRAM frames, together at most ``RECORD`` bytes, as one TLS record to
        ``view[start:]``; returns the end."""
        end = start
        for message in messages:
            body = end + FRAME_HEADER_LEN
            view[end:body] = frame_header(FrameKind.DATAGRAM, len(message))
            end = body + len(message)
            view[body:end] = message
        end = self._seal(view, start, view[start:end])
        self._wrap.outgoing.process(view, start, end)
        return end

    def flush(self, view: memoryview, start: int) -> int:
        """Write what TLS itself has to say to ``view[start:]``; returns the end."""
        self._use_tls()
        end = self._collect(view, self._end_early(view, start))
        self._wrap.outgoing.process(view, start, end)
        return end

    def encode_close(self, view: memoryview, start: int) -> int:
        """Write close_notify to ``view[start:]``; returns the end. Nothing can follow it."""
        self._use_tls()
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            pass  # the peer's own close_notify is still to come
        except ssl.SSLError as error:
            raise CryptoError("TLS can't be closed") from error
        finally:
            forget_errors()
        return self.flush(view, start)

    def _seal(self, view: memoryview, end: int, plain: memoryview) -> int:
        if self._early_out is not None:
            return _put(view, end, self._early_out.seal(plain))
        try:
            self._tls.write(plain)
        except ssl.SSLError as error:
            raise CryptoError("TLS can't send") from error
        return self._collect(view, end)

    def _collect(self, view: memoryview, start: int) -> int:
        return _put(view, start, self._outgoing.read())

    def _end_early(self, view: memoryview, start: int) -> int:
        """Write the last early record as soon as TLS can go on; its end."""
        if self._early_out is None or self._expected is not None:
            return start
        last, self._early_out = self._early_out.end(), None
        return _put(view, start, last)

    def _use_tls(self) -> None:
        if self._complete is not None:
            complete, self._complete = self._complete, None
            complete()

    # --- in -------------------------------------------------------------------------------------

    def unwrap(self, view: memoryview, start: int, end: int) -> None:
        """Take the wrap off ``view[start:end]``, in place, as it comes from the tunnel."""
        self._wrap.incoming.process(view, start, end)

    def feed(self, view: memoryview, start: int, end: int) -> None:
        """Take in ``view[start:end]``, unwrapped, at most ``WIRE_RECORD`` bytes at a time."""
        early = self._early_in
        if early is None:
            self._incoming.write(view[start:end])
            return
        self._plain += early.feed(view[start:end])
        if early.is_over:
            self._early_in = None
            self._use_tls()
            self._incoming.write(early.take_rest())

    def read(self, view: memoryview, start: int, limit: int, *, more_follows: bool = False) -> int:
        """Move plaintext of what was fed to ``view[start:limit]``; returns its end, which is
        ``start`` if there is none yet.

        :param more_follows: more is fed at once: less than the longest record may stay. To find out
            that TLS has only a part of a record means to raise and handle an exception: a seventh
            of the cost of reading, if it were done for each.
        :raises CryptoError: altered, truncated, or not from the expected peer.
        """
        stays = WIRE_RECORD - 1 if more_follows else 0
        if self._plain:
            count = min(limit - start, len(self._plain))
            view[start : start + count], self._plain = self._plain[:count], self._plain[count:]
            start += count
        try:
            if self._expected is not None:
                self._establish(self._expected)
            while start < limit and (self._incoming.pending > stays or self._tls.pending()):
                # With a buffer, read returns a count; typeshed only knows the other form.
                read: Any = self._tls.read(limit - start, view[start:limit])
                if not read:
                    self.is_closed = True
                    break
                start += read
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.is_closed = True
        except ssl.SSLError as error:
            raise CryptoError("the TLS stream does not authenticate") from error
        return start

    def _establish(self, expected: bytes) -> None:
        self._tls.do_handshake()
        check_peer(self._tls, expected)
        self._expected = None


def _put(view: memoryview, start: int, sealed: bytes) -> int:
    end = start + len(sealed)
    if end > REGION_LEN:
        # The peer can make TLS answer it; all of ours that fits into one frame does without.
        raise CryptoError("TLS has more to say than fits")
    view[start:end] = sealed
    return end


def _shake(tls: ssl.SSLObject) -> bool:
    """Go on with the handshake; whether it is complete."""
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return False
    except ssl.SSLError as error:
        raise CryptoError("the TLS handshake failed") from error
    return True
