"""Early data: a caller that has a ticket sends the first bytes with its request, and hears the
service before TLS stands (docs/spec/session.md, "Early data").

Both directions are under keys from the request's stream secret *and* the ticket's. What the callee
sends before its end of TLS is complete are *early records*::

    length u16 of the plaintext ‖ AES-256-GCM ciphertext and tag; the length is authenticated too

of which an empty one is the last; TLS follows behind it. Their plaintext and that of TLS are one
stream of frames, so nothing above :class:`~phantom_tun.tunnel.channel.Channel` notices.
"""

from __future__ import annotations

from phantom_tun.crypto.hashes import hkdf
from phantom_tun.crypto.packages import lock, unlock
from phantom_tun.crypto.records import TAG_LEN, RecordKey
from phantom_tun.errors import CryptoError
from phantom_tun.wire.session import Answer, Request, Ticket

HEADER_LEN = 2
MAX_RECORD = 16_384
"""Plaintext bytes of the longest record."""


def lock_early(ticket: Ticket, secret: bytes, nonce: bytes, data: bytes) -> bytes:
    """The early data of a request with this stream secret and nonce; 16 bytes longer."""
    return lock(_data_key(ticket, secret, nonce), data)


def unlock_early(ticket: Ticket, request: Request) -> bytes:
    """Undo :func:`lock_early`.

    :raises CryptoError: altered, or by somebody without the ticket's secret.
    """
    return unlock(_data_key(ticket, request.secret, request.nonce), request.early)


def _data_key(ticket: Ticket, secret: bytes, nonce: bytes) -> bytes:
    return hkdf(secret + ticket.secret, "early data", nonce)


def _record_key(ticket: Ticket, request: Request, answer: Answer) -> RecordKey:
    context = request.nonce + answer.callee_random
    return RecordKey(hkdf(request.secret + ticket.secret, "early records", context))


class EarlySealer:
    """The callee's end."""

    __slots__ = ("_key",)

    def __init__(self, ticket: Ticket, request: Request, answer: Answer) -> None:
        self._key = _record_key(ticket, request, answer)

    def seal(self, data: memoryview) -> bytes:
        """One record with 1 to ``MAX_RECORD`` bytes."""
        header = len(data).to_bytes(HEADER_LEN, "big")
        return header + self._key.lock(data, header)

    def end(self) -> bytes:
        """The last record."""
        return self.seal(memoryview(b""))


class EarlyOpener:
    """The caller's end."""

    __slots__ = ("_key", "_waiting", "is_over")

    def __init__(self, ticket: Ticket, request: Request, answer: Answer) -> None:
        self._key = _record_key(ticket, request, answer)
        self._waiting = bytearray()
        self.is_over = False
        """The last record has come."""

    def feed(self, data: bytes | memoryview) -> bytes:
        """Take in bytes from the tunnel; the plaintext of the records that are complete with
        them.

        :raises CryptoError: altered, or too long.
        """
        self._waiting += data
        found = bytearray()
        start = 0
        while not self.is_over and len(self._waiting) - start >= HEADER_LEN:
            header = bytes(self._waiting[start : start + HEADER_LEN])
            length = int.from_bytes(header, "big")
            if length > MAX_RECORD:
                raise CryptoError("an early record has an impossible length")
            body = start + HEADER_LEN
            end = body + length + TAG_LEN
            if end > len(self._waiting):
                break
            found += self._key.unlock(bytes(self._waiting[body:end]), header)
            self.is_over = not length
            start = end
        del self._waiting[:start]
        return bytes(found)

    def take_rest(self) -> bytes:
        """What came behind the last record; once."""
        rest = bytes(self._waiting)
        self._waiting.clear()
        return rest
