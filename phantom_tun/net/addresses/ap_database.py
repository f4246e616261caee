"""What an anonymized node may ask of the network database about AP addresses, and what it believes
of the answers (docs/spec/addresses.md, "Asking").

The only way there is :class:`ApDatabase`, which the routing paths implement: exit paths carry
questions, entry paths carry updates. Nothing in the modules that use it could reach the netdb
directly. Whoever answers is a stranger, so every answer is checked against the keys it is about.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from phantom_tun.errors import ProtocolViolation, RecordRefused, Unreachable, WireError
from phantom_tun.ids import ApAddress, EntryId, NodeId
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.netdb.rules import KEY_RECORD_TABLE, MAX_SKEW, ROUTE_TABLE
from phantom_tun.wire.netdb import Resolution, Vote, WriteReport, decode_answer
from phantom_tun.wire.records import APKeyRecord, APRoute, decode


class Undecided(Unreachable):
    """The nodes that store an AP4 address don't agree on who owns it."""

    def __init__(self, votes: tuple[Vote, ...]) -> None:
        storers: Counter[bytes] = Counter()
        for vote in votes:
            storers[vote.public_key] += vote.storers
        most, *others = (count for _, count in storers.most_common())
        said = f"{most} name one key, {sum(others)} others"
        super().__init__(f"the nodes that store it don't agree on who owns it: {said}")


class ApDatabase(Protocol):
    """The netdb as seen through this node's own routing paths."""

    async def netdb_call(
        self,
        identity: str,
        call: bytes,
        *,
        path_index: int | None = None,
        hidden: bool = False,
        private: bool = False,
    ) -> bytes:
        """One question through an exit path of ``identity``: the ``path_index``-th (modulo their
        number) or any one; of those that hide the owner as well as the entry paths do (``hidden``),
        as whatever has to do with being called must; or one that is built for it (``private``), as
        whatever is about the identity's own addresses must.

        :raises WorldError: no path, or no answer in time.
        """
        ...

    def queue_update(self, identity: str, call: bytes) -> None:
        """Have an entry node of ``identity`` carry out a write soon; no answer comes back.

        :raises PathUnavailable: there's no entry path.
        """
        ...

    def exit_count(self, identity: str, *, hidden: bool = False) -> int:
        """Exit paths of ``identity`` that stand, ``hidden`` as in :meth:`netdb_call`."""
        ...


class Route(NamedTuple):
    """One way in to an AP identity."""

    entry_node: NodeId
    entry_id: EntryId
    expires: float


@dataclass(frozen=True, slots=True)
class Found:
    """A key record and routes that are valid, whoever gave them."""

    record: APKeyRecord
    routes: tuple[APRoute, ...]
    votes: tuple[Vote, ...]
    """What the answering node says the storers said; unproven."""
    bad_routes: int
    """Routes that were left out, because a check failed."""
    asked: int
    """Storers that it says it has asked; unproven, as :attr:`answered`."""
    answered: int


def check_resolution(
    answer: bytes, address: ApAddress, network: NetworkParams, now: float
) -> Found | None:
    """Check an answer to ``ResolveAp(address)``; ``None`` if it says that there's nothing.

    :raises Undecided: it says that there is no telling.
    :raises WireError: it doesn't parse.
    :raises ProtocolViolation: it answers something else.
    :raises CryptoError: its certificate is none.
    :raises RecordRefused: the key record breaks a storage rule, is for another address, has expired
        or comes from the future.
    """
    from phantom_tun.crypto.x509 import check_certificate  # noqa: PLC0415 - not at relays

    resolution = decode_answer(answer)
    if not isinstance(resolution, Resolution):
        raise ProtocolViolation("the answer to a resolution is of another kind")
    if not resolution.key_record:
        if resolution.votes:
            raise Undecided(resolution.votes)
        return None
    record = decode(APKeyRecord, resolution.key_record)
    KEY_RECORD_TABLE.check_lasting(record, network)
    check_certificate(record.certificate)
    if address not in addresses_of(record, network):
        raise RecordRefused("the key record belongs to another address")
    if not record.created - MAX_SKEW <= now < record.expires:
        raise RecordRefused("the key record isn't valid at this time")
    routes: dict[bytes, APRoute] = {}
    bad = 0
    for encoded in resolution.routes:
        try:
            route = _check_route(encoded, record, network, now)
        except (WireError, RecordRefused):
            bad += 1
            continue
        known = routes.get(route.entry_id)
        if known is None or known.sequence < route.sequence:
            routes[route.entry_id] = route
    return Found(
        record,
        tuple(routes.values()),
        resolution.votes,
        bad,
        resolution.asked,
        resolution.answered,
    )


def check_write(answer: bytes) -> WriteReport:
    """Check an answer to ``ReserveAp``.

    :raises WireError: it doesn't parse.
    :raises ProtocolViolation: it answers something else.
    """
    report = decode_answer(answer)
    if not isinstance(report, WriteReport):
        raise ProtocolViolation("the answer to a write is of another kind")
    return report


def addresses_of(record: APKeyRecord, network: NetworkParams) -> tuple[ApAddress, ...]:
    """The AP6 address that the record's key has, and the AP4 address that the record claims."""
    ap6 = ap6_address(network, record.public_key)
    ap4 = claimed_ap4(record, network)
    return (ap6,) if ap4 is None else (ap6, ap4)


def claimed_ap4(record: APKeyRecord, network: NetworkParams) -> ipaddress.IPv4Address | None:
    """The AP4 address that the record claims, if any."""
    if record.ap4_n is None:
        return None
    return ap4_candidate(network, record.public_key, record.ap4_n)


def _check_route(
    encoded: bytes, record: APKeyRecord, network: NetworkParams, now: float
) -> APRoute:
    route = decode(APRoute, encoded)
    if route.public_key != record.public_key:
        raise RecordRefused("the route is another identity's")
    ROUTE_TABLE.check_lasting(route, network)
    if route.expires <= now:
        raise RecordRefused("the route has expired")
    return route
