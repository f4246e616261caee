"""Tickets, at both ends: with one, a caller's requests take the first bytes along
(docs/spec/session.md, "Early data").

They are kept in memory only and for minutes: what was sent early is out of reach for whoever gets
hold of a node later. Identities go by their keys: one that is made anew under an old name has
nothing in common with the old one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from math import inf
from typing import TypeVar

from phantom_tun.clock import Clock, Rng
from phantom_tun.endpoints import Endpoint
from phantom_tun.ids import PublicKey
from phantom_tun.wire.session import TICKET_ID_LEN, TICKET_SECRET_LEN, Request, Ticket

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")

LIFETIME = 600.0
"""Seconds for which a callee takes a ticket."""
RENEW_AFTER = 120.0
"""Seconds until the same caller is handed out another one."""
MAX_ISSUED = 8192
"""Tickets that a callee remembers; the oldest is forgotten first."""
MAX_HELD = 1024
"""Callees whose ticket a caller remembers."""
STEADY_FOR = 120.0
"""Seconds for which a service that accepted is believed to be still there."""
MAX_STEADY = 4096
"""Services about which that is remembered."""


@dataclass(frozen=True, slots=True)
class _Issued:
    identity: PublicKey
    caller: PublicKey
    ticket: Ticket
    made: float


class IssuedTickets:
    """What our identities have handed out."""

    def __init__(self, clock: Clock, rng: Rng) -> None:
        self._clock = clock
        self._rng = rng
        self._all: OrderedDict[bytes, _Issued] = OrderedDict()
        self._latest: dict[tuple[PublicKey, PublicKey], bytes] = {}

    def issue(self, identity: PublicKey, caller: PublicKey) -> Ticket | None:
        """A new ticket, unless ``caller`` was given one shortly before."""
        now = self._clock.now()
        self._forget_old(now)
        latest = self._all.get(self._latest.get((identity, caller), b""))
        if latest is not None and abs(now - latest.made) < RENEW_AFTER:
            return None
        draw = self._rng.randbytes
        ticket = Ticket(draw(TICKET_ID_LEN), draw(TICKET_SECRET_LEN))
        self._all[ticket.number] = _Issued(identity, caller, ticket, now)
        self._latest[identity, caller] = ticket.number
        if len(self._all) > MAX_ISSUED:
            self._forget_oldest()
        return ticket

    def find(self, identity: PublicKey, request: Request) -> Ticket | None:
        """The ticket that ``request`` names, if ``identity`` gave it to its caller."""
        self._forget_old(self._clock.now())
        issued = self._all.get(request.ticket)
        if issued is None or (issued.identity, issued.caller) != (identity, request.caller):
            return None
        return issued.ticket

    def _forget_old(self, now: float) -> None:
        while self._all and abs(now - next(iter(self._all.values())).made) > LIFETIME:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        number, issued = self._all.popitem(last=False)
        if self._latest.get((issued.identity, issued.caller)) == number:
            del self._latest[issued.identity, issued.caller]

    def __len__(self) -> int:
        return len(self._all)


class HeldTickets:
    """What others have given to our identities, and which services were there lately."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tickets: OrderedDict[tuple[PublicKey, PublicKey], tuple[Ticket, float]] = (
            OrderedDict()
        )
        self._steady: OrderedDict[tuple[PublicKey, Endpoint], tuple[PublicKey, float]] = (
            OrderedDict()
        )
        self._called: OrderedDict[tuple[PublicKey, PublicKey], float] = OrderedDict()

    def keep(self, identity: PublicKey, callee: PublicKey, ticket: Ticket) -> None:
        """``callee`` has given ``ticket`` to ``identity``."""
        _put(self._tickets, (identity, callee), (ticket, self._clock.now()), MAX_HELD)

    def get(self, identity: PublicKey, callee: PublicKey) -> Ticket | None:
        """The latest ticket, if it still serves."""
        ticket, made = self._tickets.get((identity, callee), (None, 0.0))
        return ticket if abs(self._clock.now() - made) < LIFETIME else None

    def worked(self, identity: PublicKey, service: Endpoint, callee: PublicKey) -> None:
        """``service`` has accepted a connection."""
        now = self._clock.now()
        _put(self._steady, (identity, service), (callee, now), MAX_STEADY)
        _put(self._called, (identity, callee), now, MAX_HELD)

    def called_within(self, within: float, identity: PublicKey, callee: PublicKey) -> bool:
        """Whether a service of ``callee`` has accepted less than so many seconds ago."""
        return abs(self._clock.now() - self._called.get((identity, callee), -inf)) < within

    def failed(self, identity: PublicKey, service: Endpoint) -> None:
        """A connection to ``service`` didn't come to be."""
        self._steady.pop((identity, service), None)

    def is_steady(self, identity: PublicKey, service: Endpoint) -> bool:
        """Whether ``service`` accepted lately, and a ticket for it is there."""
        known = self._steady.get((identity, service))
        if known is None:
            return False
        callee, since = known
        is_recent = abs(self._clock.now() - since) < STEADY_FOR
        return is_recent and self.get(identity, callee) is not None


def _put(table: OrderedDict[_Key, _Value], key: _Key, value: _Value, limit: int) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > limit:
        table.popitem(last=False)
