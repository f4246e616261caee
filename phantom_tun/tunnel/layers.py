"""Stream layers and package keys of hops and owners (docs/spec/tunnel.md, "Streams").

``with`` is the direction in which the first block travelled: owner → exit on an exit path,
entry → owner on an entry path. The init and result packages travel *against* it, the reply *with*
it, on both kinds.
"""

from __future__ import annotations

from dataclasses import dataclass

from phantom_tun.crypto import packages
from phantom_tun.crypto.streams import (
    AGAINST,
    WITH,
    ChainedStream,
    package_key,
    stream_secret,
)
from phantom_tun.errors import ProtocolViolation
from phantom_tun.tunnel.blocks import BlockPair
from phantom_tun.wire.tunnel import Body, Operation, Package

ALLOWED: dict[tuple[str, Package], frozenset[Operation]] = {
    ("exit", Package.INIT): frozenset({Operation.READY}),
    ("exit", Package.REPLY): frozenset({Operation.CONNECT, Operation.NETDB}),
    ("exit", Package.RESULT): frozenset({Operation.ANSWER, Operation.NETDB, Operation.FAILED}),
    ("entry", Package.INIT): frozenset({Operation.READY, Operation.UPDATE}),
    ("entry", Package.REPLY): frozenset({Operation.REQUEST}),
    ("entry", Package.RESULT): frozenset({Operation.ANSWER, Operation.FAILED}),
}
"""Operations a package may carry, by kind of path."""


@dataclass(frozen=True, slots=True)
class HopLayers:
    """One hop's two streams, each for the bytes travelling that way."""

    with_block: ChainedStream
    against_block: ChainedStream


def hop_layers(path_secret: bytes, pair: BlockPair) -> HopLayers:
    """For an X-node: authenticate what comes in, then apply the keystream."""
    return HopLayers(
        *(
            ChainedStream(
                stream_secret(path_secret, pair.before, pair.after, direction), outer=False
            )
            for direction in (WITH, AGAINST)
        )
    )


@dataclass(frozen=True, slots=True)
class OwnerLayers:
    """All hops' streams as their owner applies and removes them."""

    outgoing: tuple[ChainedStream, ...]
    """To apply in this order: terminating node's first."""
    incoming: tuple[ChainedStream, ...]
    """To remove in this order: nearest hop's first."""


def owner_layers(secrets: list[bytes], pairs: list[BlockPair], *, outbound: bool) -> OwnerLayers:
    """``secrets`` and ``pairs`` from the owner outward."""
    out, back = (WITH, AGAINST) if outbound else (AGAINST, WITH)

    def streams(direction: bytes) -> list[ChainedStream]:
        return [
            ChainedStream(stream_secret(secret, pair.before, pair.after, direction), outer=True)
            for secret, pair in zip(secrets, pairs, strict=True)
        ]

    return OwnerLayers(tuple(reversed(streams(out))), tuple(streams(back)))


class PackageBox:
    """Locks and unlocks the three packages of one tunnel; owner and terminating node hold one."""

    __slots__ = ("_kind", "_pair", "_secret")

    def __init__(self, kind: str, terminating_secret: bytes, pair: BlockPair) -> None:
        """``kind``: "exit" or "entry"; ``pair``: the terminating node's."""
        self._kind = kind
        self._secret = terminating_secret
        self._pair = pair

    def _key(self, package: Package) -> bytes:
        return package_key(self._secret, self._pair.before, self._pair.after, package)

    def lock(self, package: Package, body: Body) -> bytes:
        """``PACKAGE_LEN`` bytes.

        :raises ProtocolViolation: this package can't carry that operation.
        """
        self._check(package, body)
        return packages.lock(self._key(package), body.pack())

    def unlock(self, package: Package, locked: bytes | memoryview) -> Body:
        """Undo :meth:`lock`.

        :raises CryptoError: altered, or for another tunnel or number.
        :raises WireError: the body doesn't parse.
        :raises ProtocolViolation: this package can't carry that operation.
        """
        body = Body.unpack(packages.unlock(self._key(package), locked))
        self._check(package, body)
        return body

    def _check(self, package: Package, body: Body) -> None:
        if body.operation not in ALLOWED[self._kind, package]:
            raise ProtocolViolation(
                f"{body.operation.name} is not for the {package.name} of an {self._kind} path"
            )

    def __repr__(self) -> str:
        return "PackageBox(…)"
