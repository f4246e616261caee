"""A network database in memory and the routing paths to it, for tests of everything that asks for
AP addresses. The strict interface and the storage rules are the real ones; nodes, lookups and paths
are not there. Time is the caller's clock, waiting is trio's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from phantom_tun.clock import Clock
from phantom_tun.errors import PathUnavailable, ProtocolViolation, WorldError
from phantom_tun.ids import ApAddress
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.netdb.rules import RuleBroken
from phantom_tun.netdb.store import ApStore, Duty, Holding
from phantom_tun.netdb.verifier import Verifier
from phantom_tun.wire.netdb import (
    Call,
    ExtendApLease,
    Refusal,
    ReserveAp,
    Resolution,
    ResolveAp,
    UpdateApRoutes,
    Vote,
    WriteReport,
    decode_call,
)

STORERS = 20
"""How many storers the answers speak of; all hold the same."""

_EVERYTHING = Duty(ap6=True, ap4=True)


class FakeNetdb:
    """One store for all addresses, and what terminating nodes answer from it."""

    def __init__(self, network: NetworkParams, clock: Clock) -> None:
        self.network = network
        self.refused: Counter[Refusal] = Counter()
        """Why records were refused."""
        self._store = ApStore(network)
        self._verifier = Verifier(network)
        self._clock = clock

    def perform(self, call: Call) -> Resolution | WriteReport:
        """Carry out a strict call as a terminating node does.

        :raises ProtocolViolation: not a call that anonymized nodes make.
        """
        match call:
            case ResolveAp():
                return self._resolve(call.ip)
            case ReserveAp() | ExtendApLease():
                return self._write(self._put_key_record, (call.record,))
            case UpdateApRoutes():
                return self._write(self._put_route, call.routes)
            case _:
                raise ProtocolViolation("not a call that anonymized nodes make")

    def holding(self, address: ApAddress) -> Holding:
        """What is held for an address now."""
        return self._store.holding(address, self._clock.now())

    def _resolve(self, address: ApAddress) -> Resolution:
        holding = self.holding(address)
        record = holding.record
        if record is None:
            return Resolution(b"", (), STORERS, STORERS, ())
        vote = Vote(record.public_key, record.sequence, record.digest, STORERS)
        routes = tuple(route.encoded for route in holding.routes)
        return Resolution(record.encoded, routes, STORERS, STORERS, (vote,))

    def _write(self, put: Callable[[bytes], bytes], records: tuple[bytes, ...]) -> WriteReport:
        holder, refusal = b"", Refusal.NONE
        for encoded in records:
            try:
                holder = put(encoded)
            except RuleBroken as error:
                refusal = error.refusal
                self.refused[refusal] += 1
        return WriteReport(STORERS, 0 if refusal else STORERS, int(refusal), holder)

    def _put_key_record(self, encoded: bytes) -> bytes:
        record = self._verifier.key_record(encoded)
        return self._store.put_key_record(record, self._clock.now(), duty=_EVERYTHING, caller=None)

    def _put_route(self, encoded: bytes) -> bytes:
        route = self._verifier.route(encoded)
        self._store.put_route(route, self._clock.now(), duty=_EVERYTHING, caller=None)
        return b""


@dataclass(frozen=True, slots=True)
class Asked:
    """One call that went out."""

    identity: str
    call: Call
    path: int | None
    """Index of the exit path; None for a private one or an entry path."""
    private: bool
    at: float
    """Moment of the clock."""
    hidden: bool = False


Bend = Callable[[Call, bytes], bytes]
"""What a dishonest terminating node makes of a call and its true answer."""


@dataclass
class FakePaths:
    """The routing paths of every identity (``net.ap_database.ApDatabase``)."""

    netdb: FakeNetdb
    clock: Clock
    exits: int = 3
    """Exit paths that stand; with 0 every question but a private one fails."""
    entries: int = 1
    """Entry paths that stand; with 0 updates can't be queued."""
    round_trip: float = 0.1
    """Seconds that a call takes."""
    slow: dict[int, float] = field(default_factory=dict)
    """Seconds that a call takes over one exit path."""
    liars: dict[int | None, Bend] = field(default_factory=dict)
    """Dishonest exit nodes by path index; under None those of private paths."""
    failures: list[WorldError] = field(default_factory=list)
    """Raised by the next questions, in order."""
    lose_updates: bool = False
    """Entry nodes drop what they were asked to write."""
    log: list[Asked] = field(default_factory=list)

    async def netdb_call(
        self,
        identity: str,
        call: bytes,
        *,
        path_index: int | None = None,
        hidden: bool = False,
        private: bool = False,
    ) -> bytes:
        """Answer after a round trip."""
        path = None if private else (path_index or 0) % max(1, self.exits)
        decoded = decode_call(call)
        self.log.append(Asked(identity, decoded, path, private, self.clock.now(), hidden))
        delay = self.round_trip if path is None else self.slow.get(path, self.round_trip)
        await trio.sleep(delay)
        if self.failures:
            raise self.failures.pop(0)
        if not private and self.exits == 0:
            raise PathUnavailable("no exit path stands")
        if not isinstance(decoded, ResolveAp | ReserveAp):
            raise ProtocolViolation("not a call that exits carry out")
        answer = self.netdb.perform(decoded).encode()
        liar = self.liars.get(path)
        return answer if liar is None else liar(decoded, answer)

    def queue_update(self, identity: str, call: bytes) -> None:
        """Write at once, or lose it."""
        if self.entries == 0:
            raise PathUnavailable("no entry path stands")
        decoded = decode_call(call)
        self.log.append(Asked(identity, decoded, None, False, self.clock.now()))
        if not isinstance(decoded, ExtendApLease | UpdateApRoutes):
            raise ProtocolViolation("not a call that entries carry out")
        if not self.lose_updates:
            self.netdb.perform(decoded)

    def exit_count(self, identity: str, *, hidden: bool = False) -> int:
        """The same for every identity."""
        return self.exits

    def asked(self, kind: type[Call]) -> list[Asked]:
        """Calls of one kind, in order."""
        return [asked for asked in self.log if isinstance(asked.call, kind)]
