"""The callee's answer and the key schedule that starts with it (docs/spec/session.md, "Answer" and
"Keys"). Everything derives from the stream secret in the sealed request and from both randoms."""

from __future__ import annotations

from dataclasses import dataclass

from phantom_tun.crypto.hashes import hkdf
from phantom_tun.crypto.packages import lock, unlock
from phantom_tun.crypto.streams import Keystream
from phantom_tun.wire.session import Answer, Request


@dataclass(frozen=True, slots=True)
class Wrap:
    """The keystreams around the TLS bytes of one connection, for one of its ends."""

    outgoing: Keystream
    incoming: Keystream


def lock_answer(answer: Answer, request: Request) -> bytes:
    """Encrypt the one answer to ``request``; always ``ANSWER_LEN`` bytes.

    :raises WireError: its TLS flight is too long.
    """
    return lock(_answer_key(request), answer.pack())


def unlock_answer(locked: bytes, request: Request) -> Answer:
    """Undo :func:`lock_answer`.

    :raises CryptoError: altered, or not the answer to this request.
    :raises WireError: it doesn't parse.
    """
    return Answer.unpack(unlock(_answer_key(request), locked))


def caller_wrap(request: Request, answer: Answer) -> Wrap:
    """The wrap at the end that sent the request."""
    return Wrap(
        outgoing=_keystream(request, answer, b"caller"),
        incoming=_keystream(request, answer, b"callee"),
    )


def callee_wrap(request: Request, answer: Answer) -> Wrap:
    """The wrap at the end that answered."""
    return Wrap(
        outgoing=_keystream(request, answer, b"callee"),
        incoming=_keystream(request, answer, b"caller"),
    )


def _answer_key(request: Request) -> bytes:
    return hkdf(request.secret, "answer", request.nonce)


def _keystream(request: Request, answer: Answer, sender: bytes) -> Keystream:
    context = request.nonce + answer.callee_random + sender
    return Keystream(hkdf(request.secret, "wrap", context))
