"""Every rule a record must satisfy, in one table (docs/spec/netdb.md, "Storage rules").

Two kinds of rules: *lasting* ones depend on nothing but the bytes and the network, so a record
that passed them once need not be checked again (``netdb.verifier`` remembers); *acceptance* rules
depend on the moment, on who brings the record and on what is held already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from phantom_tun.clock import DAY, HOUR, MINUTE
from phantom_tun.errors import CryptoError, RecordRefused
from phantom_tun.ids import NodeId
from phantom_tun.netdb import proof
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.netdb.signing import verify_signature
from phantom_tun.wire.netdb import Refusal
from phantom_tun.wire.nodes import IpAddress
from phantom_tun.wire.records import (
    APKeyRecord,
    APRoute,
    Networks,
    NodeAddress,
    NodeRecord,
    Record,
    path_key_digest,
)

MAX_SKEW = 5 * MINUTE
"""How far two honest clocks may differ, and how old a record may be when first brought."""
MAX_NODE_LIFETIME = 26 * HOUR
MAX_KEY_RECORD_LIFETIME = DAY
MAX_ROUTE_LIFETIME = 25 * HOUR

_R = TypeVar("_R", bound=Record)
_Dated = TypeVar("_Dated", NodeRecord, APKeyRecord)
_Numbered = TypeVar("_Numbered", APKeyRecord, APRoute)
_Expiring = TypeVar("_Expiring", NodeRecord, APKeyRecord, APRoute)


class RuleBroken(RecordRefused):
    """A record breaks a rule; ``refusal`` is its number on the wire."""

    def __init__(self, refusal: Refusal, says: str) -> None:
        super().__init__(says)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Caller:
    """Who brought a record: an authenticated node, at the address its link comes from."""

    node_id: NodeId
    address: IpAddress

    @property
    def wide(self) -> frozenset[bytes]:
        """The /16 (IPv6 /32) that it calls from; a private address counts by itself."""
        return Networks.of([NodeAddress.of(self.address, 0)]).wide


@dataclass(frozen=True, slots=True)
class Circumstances(Generic[_R]):
    """What acceptance rules look at besides the record."""

    now: float
    caller: Caller | None = None
    held: _R | None = None
    """What is held already in the record's place."""
    vouched: bool = False
    """Most of the nodes that should hold the record say that they do."""
    path_key: bytes | None = None
    """What came beside a node record."""
    public: bool = False
    """This node has a public address itself."""
    banned: bool = False
    """An override command is against it."""
    responsible: bool = True
    """This node is among the storers of one of the record's addresses."""
    lease_free: bool = True
    """No other key holds the AP4 address that the record claims; irrelevant, and True, for a node
    that stores the AP6 address."""
    among_newest: bool = True
    """There is room for one more route of its identity, or an older one to drop."""
    within_source_limits: bool = True
    """Its bringer has not brought too many new identities lately."""
    room: bool = True
    """The store isn't full, or holds the identity already."""


@dataclass(frozen=True, slots=True)
class LastingRule(Generic[_R]):
    """A rule about the bytes alone."""

    refusal: Refusal
    says: str
    """What a record must satisfy, for people; docs/spec/netdb.md has the same words."""
    holds: Callable[[_R, NetworkParams], bool]


@dataclass(frozen=True, slots=True)
class AcceptanceRule(Generic[_R]):
    """A rule about taking a record in, now and from this caller."""

    refusal: Refusal
    says: str
    holds: Callable[[_R, Circumstances[_R]], bool]


@dataclass(frozen=True, slots=True)
class Table(Generic[_R]):
    """The rules for one kind of record, in the order in which they are checked."""

    lasting: tuple[LastingRule[_R], ...]
    acceptance: tuple[AcceptanceRule[_R], ...]

    def check_lasting(self, record: _R, network: NetworkParams) -> None:
        """
        :raises RuleBroken: naming the first lasting rule that ``record`` breaks.
        """
        for rule in self.lasting:
            if not rule.holds(record, network):
                raise RuleBroken(rule.refusal, rule.says)

    def check_acceptance(self, record: _R, circumstances: Circumstances[_R]) -> None:
        """
        :raises RuleBroken: naming the first acceptance rule that ``record`` breaks.
        """
        for rule in self.acceptance:
            if not rule.holds(record, circumstances):
                raise RuleBroken(rule.refusal, rule.says)


# --- what the rules say ------------------------------------------------------------------------


def _is_signed(record: Record, network: NetworkParams) -> bool:
    try:
        verify_signature(record, network.network_id)
    except CryptoError:
        return False
    return True


def _node_lifetime(record: NodeRecord, _: NetworkParams) -> bool:
    return 0 < record.expires - record.created <= MAX_NODE_LIFETIME


def _key_lifetime(record: APKeyRecord, _: NetworkParams) -> bool:
    return 0 < record.expires - record.created <= MAX_KEY_RECORD_LIFETIME


def _addresses_usable(record: NodeRecord, network: NetworkParams) -> bool:
    dialable = record.dialable
    return all(_usable(address, network, dialable=dialable) for address in record.addresses)


def _usable(address: NodeAddress, network: NetworkParams, *, dialable: bool) -> bool:
    ip = address.ip
    if ip.is_unspecified or ip.is_multicast or (dialable and not address.port):
        return False
    if ip.version == 4:
        return ip not in network.ap4
    return ip not in network.ap6 and ip.ipv4_mapped is None


def _does_work(record: NodeRecord, network: NetworkParams) -> bool:
    return proof.proves(network.network_id, record.identity, network.pow_bits, record.pow)


def _not_from_the_future(record: _Dated, circumstances: Circumstances[_Dated]) -> bool:
    return record.created <= circumstances.now + MAX_SKEW


def _not_expired(record: _Expiring, circumstances: Circumstances[_Expiring]) -> bool:
    return record.expires > circumstances.now


def _brought_by_its_owner(record: NodeRecord, circumstances: Circumstances[NodeRecord]) -> bool:
    caller = circumstances.caller
    return caller is not None and caller.node_id == record.node_id


def _comes_from_its_address(record: NodeRecord, circumstances: Circumstances[NodeRecord]) -> bool:
    caller = circumstances.caller
    if caller is None or not record.dialable:
        return True
    # Compared by /24 or /48, what the prefix limits count: IPv6 hosts dial from changing addresses.
    return any(_same_network(caller.address, ip) for ip in record.ips)


def _same_network(left: IpAddress, right: IpAddress) -> bool:
    bits = 24 if left.version == 4 else 48
    shift = left.max_prefixlen - bits
    return left.version == right.version and int(left) >> shift == int(right) >> shift


def _reachable_from_here(record: NodeRecord, circumstances: Circumstances[NodeRecord]) -> bool:
    # Or strangers could have us dial whatever stands in the networks around us.
    return not circumstances.public or record.public


def _has_its_path_key(record: NodeRecord, circumstances: Circumstances[NodeRecord]) -> bool:
    key = circumstances.path_key
    return key is not None and path_key_digest(key) == record.path_key_digest


def _fresh_at_first(record: APKeyRecord, circumstances: Circumstances[APKeyRecord]) -> bool:
    held = circumstances.held
    known = held is not None and held.digest == record.digest
    return known or circumstances.vouched or record.created >= circumstances.now - MAX_SKEW


def _sequence_rises(record: _Numbered, circumstances: Circumstances[_Numbered]) -> bool:
    held = circumstances.held
    return held is None or held.sequence < record.sequence or held.digest == record.digest


def _route_lifetime(record: APRoute, circumstances: Circumstances[APRoute]) -> bool:
    return record.expires <= circumstances.now + MAX_ROUTE_LIFETIME


_SIGNED = "signed by the key it is about, for this network"

NODE_TABLE: Table[NodeRecord] = Table(
    lasting=(
        LastingRule(
            Refusal.LIFETIME, "expires after it was created, within 26 hours", _node_lifetime
        ),
        LastingRule(
            Refusal.ADDRESS,
            "every address can belong to a host outside the overlay, with a port if dialable",
            _addresses_usable,
        ),
        LastingRule(Refusal.PROOF_OF_WORK, "proves the work that an identity costs", _does_work),
        LastingRule(Refusal.SIGNATURE, _SIGNED, _is_signed),
    ),
    acceptance=(
        AcceptanceRule(Refusal.EXPIRED, "has not expired", _not_expired),
        AcceptanceRule(
            Refusal.FROM_THE_FUTURE, "was created at most 5 minutes ahead", _not_from_the_future
        ),
        AcceptanceRule(
            Refusal.ADDRESS,
            "has a public address, if this node has one",
            _reachable_from_here,
        ),
    ),
)
"""A node record heard of from anybody."""

REGISTRATION_TABLE: Table[NodeRecord] = Table(
    lasting=NODE_TABLE.lasting,
    acceptance=(
        *NODE_TABLE.acceptance,
        AcceptanceRule(
            Refusal.NOT_THE_OWNER, "is brought by the node itself", _brought_by_its_owner
        ),
        AcceptanceRule(
            Refusal.ADDRESS,
            "a dialable node's link comes from the network of one of its addresses",
            _comes_from_its_address,
        ),
        AcceptanceRule(
            Refusal.PATH_KEY, "the path key beside it is the one it names", _has_its_path_key
        ),
        AcceptanceRule(
            Refusal.BANNED,
            "no override command bans or deletes what it is about",
            lambda _, circumstances: not circumstances.banned,
        ),
    ),
)
"""A node record in register_node."""

KEY_RECORD_TABLE: Table[APKeyRecord] = Table(
    lasting=(
        LastingRule(
            Refusal.LIFETIME, "expires after it was created, within 24 hours", _key_lifetime
        ),
        LastingRule(Refusal.SIGNATURE, _SIGNED, _is_signed),
    ),
    acceptance=(
        AcceptanceRule(Refusal.EXPIRED, "has not expired", _not_expired),
        AcceptanceRule(
            Refusal.BANNED,
            "no override command bans or deletes what it is about",
            lambda _, circumstances: not circumstances.banned,
        ),
        AcceptanceRule(
            Refusal.FROM_THE_FUTURE, "was created at most 5 minutes ahead", _not_from_the_future
        ),
        AcceptanceRule(
            Refusal.SEQUENCE,
            "its sequence is higher than that of the record held, or it is that record",
            _sequence_rises,
        ),
        AcceptanceRule(
            Refusal.TOO_OLD,
            "was created at most 5 minutes ago when first brought, or most of those that should "
            "hold it do",
            _fresh_at_first,
        ),
        AcceptanceRule(
            Refusal.NOT_RESPONSIBLE,
            "this node is among those that should hold it",
            lambda _, circumstances: circumstances.responsible,
        ),
        AcceptanceRule(
            Refusal.LEASE_HELD,
            "no other key holds an unexpired lease of the AP4 address it claims (this rule binds "
            "the storers of the AP4 address; those of the AP6 address take the record regardless)",
            lambda _, circumstances: circumstances.lease_free,
        ),
        AcceptanceRule(
            Refusal.SOURCE_LIMIT,
            "its bringer has not brought too many new identities in the last hour",
            lambda _, circumstances: circumstances.within_source_limits,
        ),
        AcceptanceRule(
            Refusal.STORE_FULL,
            "the store has room, or holds its identity already",
            lambda _, circumstances: circumstances.room,
        ),
    ),
)

ROUTE_TABLE: Table[APRoute] = Table(
    lasting=(LastingRule(Refusal.SIGNATURE, _SIGNED, _is_signed),),
    acceptance=(
        AcceptanceRule(Refusal.EXPIRED, "has not expired", _not_expired),
        AcceptanceRule(
            Refusal.BANNED,
            "no override command bans or deletes what it is about",
            lambda _, circumstances: not circumstances.banned,
        ),
        AcceptanceRule(Refusal.LIFETIME, "expires within 25 hours from now", _route_lifetime),
        AcceptanceRule(
            Refusal.SEQUENCE,
            "its sequence is higher than that of the route held under the same entry id, or it is "
            "that route",
            _sequence_rises,
        ),
        AcceptanceRule(
            Refusal.NOT_RESPONSIBLE,
            "this node is among those that should hold it",
            lambda _, circumstances: circumstances.responsible,
        ),
        AcceptanceRule(
            Refusal.TOO_MANY_ROUTES,
            "is among the 16 newest of its identity",
            lambda _, circumstances: circumstances.among_newest,
        ),
        AcceptanceRule(
            Refusal.SOURCE_LIMIT,
            "its bringer has not brought too many new identities in the last hour",
            lambda _, circumstances: circumstances.within_source_limits,
        ),
        AcceptanceRule(
            Refusal.STORE_FULL,
            "the store has room, or holds its identity already",
            lambda _, circumstances: circumstances.room,
        ),
    ),
)
