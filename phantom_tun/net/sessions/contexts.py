"""TLS contexts of the end-to-end layer. One costs about 2 ms, so they are kept where they are
needed again: one for each identity that calls, and one for each caller of an identity."""

from __future__ import annotations

import ssl
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

from phantom_tun.crypto.certificates import (
    Certificate,
    callee_context,
    caller_context,
    certificate_hash,
)
from phantom_tun.ids import CertHash

_Key = TypeVar("_Key", bound=Hashable)

MAX_CONTEXTS = 256
"""Of each kind; the least recently used one is dropped."""


class ContextCache:
    """TLS contexts by certificates."""

    def __init__(self) -> None:
        self._caller: OrderedDict[CertHash, ssl.SSLContext] = OrderedDict()
        self._callee: OrderedDict[tuple[CertHash, CertHash], ssl.SSLContext] = OrderedDict()

    def caller(self, own: Certificate) -> ssl.SSLContext:
        """For an identity that calls."""
        return _get(self._caller, own.hash, lambda: caller_context(own))

    def callee(self, own: Certificate, caller_der: bytes) -> ssl.SSLContext:
        """For an identity that is called by the owner of the certificate ``caller_der``.

        :raises CryptoError: that is no usable certificate.
        """
        key = own.hash, certificate_hash(caller_der)
        return _get(self._callee, key, lambda: callee_context(own, caller_der))


def _get(
    table: OrderedDict[_Key, ssl.SSLContext], key: _Key, make: Callable[[], ssl.SSLContext]
) -> ssl.SSLContext:
    context = table.get(key)
    if context is None:
        context = table[key] = make()
        if len(table) > MAX_CONTEXTS:
            table.popitem(last=False)
    table.move_to_end(key)
    return context
