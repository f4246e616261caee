"""The AP identities of this node: their keys, certificates, addresses and lease, on disk and in
memory (docs/spec/addresses.md, "Identities"; protocol sections 1, 2 and 4).

An identity is a directory ``identities/NAME`` of the state directory, every file in it mode 0600:

============ =================================================================================
ap.key       Ed25519 seed, 32 bytes: owning it is owning both addresses
ap.crt       end-to-end certificate with its private key, PEM; renewed before it expires
request.keys the HPKE keys that connection requests are sealed to; a new one every day
state.json   the AP4 lease and how far sequence numbers have been used
============ =================================================================================
"""

from __future__ import annotations

import enum
import ipaddress
import itertools
import os
import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from phantom_tun.clock import DAY, HOUR, Clock
from phantom_tun.crypto.certificates import Certificate, to_pem
from phantom_tun.crypto.sealing import SealingKey
from phantom_tun.crypto.signing import SEED_LEN, SigningKey
from phantom_tun.decoding import UNREADABLE
from phantom_tun.errors import ConfigError, CryptoError, UsageError
from phantom_tun.files import atomic_write, ensure_private_directory, load_secret
from phantom_tun.ids import ApAddress, EntryId, NodeId, PublicKey
from phantom_tun.netdb.addresses import AP4_CANDIDATES, ap4_candidate, ap6_address
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.netdb.signing import sign_ap_key_record, sign_ap_route
from phantom_tun.wire.records import APKeyRecord

DIRECTORY = "identities"
DEFAULT_NAME = "default"
MAX_IDENTITIES = 64

KEY_RECORD_LIFE = 20 * HOUR
"""How long a key record is valid, and with it an AP4 lease."""
REQUEST_KEY_LIFE = DAY
REQUEST_KEY_OVERLAP = KEY_RECORD_LIFE + 2 * HOUR
"""A replaced request key still opens requests for this long: no valid record names it later."""
RENEW_CERTIFICATE_BEFORE = 60 * DAY

_KEY, _CERTIFICATE, _REQUEST_KEYS, _STATE = "ap.key", "ap.crt", "request.keys", "state.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_UNFINISHED = "."
"""Directories that begin with this were being made or removed when the node stopped."""
_SEQUENCE_BLOCK = 600
"""Sequence numbers put aside with one write of the state file."""
_COMMON_NAME = "localhost"


class LeaseState(enum.StrEnum):
    """Where an identity stands with its AP4 address."""

    NONE = "none"
    """Never asked for, or the lease ran out while the node was down."""
    RESERVING = "reserving"
    HELD = "held"
    LOST = "lost"
    """Somebody else holds it; the next candidate is being asked for."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The lease of AP4 candidate ``n``."""

    n: int = 0
    state: LeaseState = LeaseState.NONE
    until: float = 0.0
    """End of the lease, seconds since the epoch; 0 if none is held."""


@dataclass(frozen=True, slots=True)
class _RequestKey:
    key: SealingKey
    created: float


@dataclass(slots=True, eq=False)
class ApIdentity:
    """One AP identity. Only the :class:`IdentityStore` changes it."""

    name: str
    signing: SigningKey
    certificate: Certificate = field(repr=False)
    ap6: ipaddress.IPv6Address
    created: float
    lease: Lease
    candidate: ipaddress.IPv4Address
    """The AP4 address that :attr:`lease` is about, held or not."""
    generations: tuple[_RequestKey, ...] = field(repr=False)
    sequence: int = field(repr=False)
    sequence_end: int = field(repr=False)

    @property
    def public_key(self) -> PublicKey:
        """What both addresses are derived from."""
        return self.signing.public

    @property
    def ap4(self) -> ipaddress.IPv4Address | None:
        """The AP4 address, while its lease is held."""
        return self.candidate if self.ap4_state is LeaseState.HELD else None

    @property
    def ap4_state(self) -> LeaseState:
        """Where it stands with its AP4 address."""
        return self.lease.state

    @property
    def request_keys(self) -> tuple[SealingKey, ...]:
        """What requests may be sealed to, the published key first."""
        return tuple(generation.key for generation in self.generations)


class _StoredKey(msgspec.Struct, frozen=True, array_like=True):
    seed: bytes
    created: float


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    created: float
    n: int
    held_until: float
    sequence_end: int


class IdentityStore:
    """Every AP identity of this node. All methods are quick and synchronous; what they change is on
    disk when they return.

    Any of them raises :class:`ConfigError` when a file can't be written.
    """

    def __init__(self, state_dir: Path, network: NetworkParams, clock: Clock) -> None:
        self._directory = state_dir / DIRECTORY
        self._network = network
        self._clock = clock
        self._identities: dict[str, ApIdentity] = {}

    @property
    def network(self) -> NetworkParams:
        """The network that the addresses are in."""
        return self._network

    def load(self) -> None:
        """Read all identities; at the very first start make the identity ``default``.

        :raises ConfigError: a directory or file can't be used; says what to do.
        """
        first = not self._directory.exists()
        ensure_private_directory(self._directory, uid=os.geteuid(), gid=os.getegid())
        for directory in sorted(self._directory.iterdir()):
            if directory.name.startswith(_UNFINISHED):
                shutil.rmtree(directory)
            elif directory.is_dir():
                self._identities[directory.name] = self._load(directory)
        if first:
            self.create(DEFAULT_NAME)

    def all(self) -> list[ApIdentity]:
        """Every identity, the oldest first: that is the one that is meant when none is named."""
        return sorted(
            self._identities.values(), key=lambda identity: (identity.created, identity.name)
        )

    def get(self, name: str) -> ApIdentity:
        """The identity called ``name``.

        :raises UsageError: there is none.
        """
        identity = self._identities.get(name)
        if identity is None:
            known = ", ".join(sorted(self._identities)) or "none"
            raise UsageError(f"there is no address named {name!r}; this node has: {known}")
        return identity

    def owner_of(self, address: ApAddress) -> ApIdentity | None:
        """Which of our identities has ``address`` (an AP4 only while its lease is held)."""
        for identity in self._identities.values():
            if address in {identity.ap6, identity.ap4}:
                return identity
        return None

    def create(self, name: str) -> ApIdentity:
        """Make a new identity with fresh keys.

        :raises UsageError: the name is taken or not a name, or there are too many.
        """
        if _NAME.fullmatch(name) is None:
            raise UsageError(
                f"{name!r} can't be the name of an address: 1 to 32 letters a-z, digits and "
                "hyphens, not beginning with a hyphen"
            )
        if name in self._identities:
            raise UsageError(f"there is an address named {name!r} already")
        if len(self._identities) >= MAX_IDENTITIES:
            raise UsageError(f"a node has at most {MAX_IDENTITIES} AP addresses")
        unfinished = self._directory / f"{_UNFINISHED}{name}"
        ensure_private_directory(unfinished, uid=os.geteuid(), gid=os.getegid())
        atomic_write(unfinished / _KEY, SigningKey.generate().seed)
        _make_what_is_missing(unfinished, self._clock.now())
        unfinished.rename(self._directory / name)
        identity = self._load(self._directory / name)
        self._identities[name] = identity
        return identity

    def remove(self, name: str) -> None:
        """Delete an identity with its keys: nobody can ever have its AP6 address again.

        :raises UsageError: there is none of that name.
        """
        identity = self.get(name)
        doomed = self._directory / f"{_UNFINISHED}{name}"
        (self._directory / name).rename(doomed)
        del self._identities[name]
        identity.generations = ()
        shutil.rmtree(doomed)

    # --- what changes with time -----------------------------------------------------------------

    def renew(self, identity: ApIdentity) -> bool:
        """Replace the request key when it is a day old, drop old ones when their overlap has
        passed, renew the certificate before it expires. Returns whether the key record has to be
        published anew."""
        from phantom_tun.crypto import x509  # noqa: PLC0415 - not at relays

        now = self._clock.now()
        directory = self._directory / identity.name
        publish = False
        if x509.expires_at(identity.certificate.der) - now < RENEW_CERTIFICATE_BEFORE:
            certificate = x509.make_certificate(_COMMON_NAME, now)
            atomic_write(directory / _CERTIFICATE, to_pem(certificate))
            identity.certificate = certificate
            publish = True
        generations = identity.generations
        if now - generations[0].created >= REQUEST_KEY_LIFE:
            generations = (_RequestKey(SealingKey.generate(), now), *generations)
            publish = True
        # A key is replaced when the next one is made, and goes when its overlap has passed.
        replaced = itertools.pairwise(generations)
        kept = [old for new, old in replaced if now - new.created < REQUEST_KEY_OVERLAP]
        generations = (generations[0], *kept)
        if generations != identity.generations:
            _write_request_keys(directory, generations)
            identity.generations = generations
        return publish

    def set_lease(self, identity: ApIdentity, lease: Lease) -> None:
        """Record where the identity stands with its AP4 address; a held lease survives restarts."""
        identity.lease = lease
        identity.candidate = ap4_candidate(self._network, identity.public_key, lease.n)
        self._save_state(identity)

    def next_sequence(self, identity: ApIdentity) -> int:
        """A sequence number above all that this identity ever used, also before a crash.

        They follow the clock, so that an identity restored from an old backup isn't refused.
        """
        sequence = max(identity.sequence + 1, int(self._clock.now()))
        if sequence >= identity.sequence_end:
            identity.sequence_end = sequence + _SEQUENCE_BLOCK
            self._save_state(identity)
        identity.sequence = sequence
        return sequence

    # --- what an identity signs -----------------------------------------------------------------

    def make_key_record(self, identity: ApIdentity, ap4_n: int | None) -> APKeyRecord:
        """A key record, valid from now for :data:`KEY_RECORD_LIFE`, claiming candidate ``ap4_n``
        or no AP4 address."""
        now = self._clock.now()
        return sign_ap_key_record(
            identity.signing,
            self._network.network_id,
            ap4_n=ap4_n,
            certificate=identity.certificate.der,
            request_key=identity.generations[0].key.public,
            created=now,
            expires=now + KEY_RECORD_LIFE,
            sequence=self.next_sequence(identity),
        )

    def make_route(
        self, identity: ApIdentity, entry_node: NodeId, entry_id: EntryId, expires: float
    ) -> bytes:
        """The signed APRoute of one entry path, as the entry node publishes it."""
        return sign_ap_route(
            identity.signing,
            self._network.network_id,
            entry_node=entry_node,
            entry_id=entry_id,
            sequence=self.next_sequence(identity),
            expires=expires,
        ).encoded

    # --- files ----------------------------------------------------------------------------------

    def _load(self, directory: Path) -> ApIdentity:
        ensure_private_directory(directory, uid=os.geteuid(), gid=os.getegid())
        signing = SigningKey(_secret(directory / _KEY, SEED_LEN))
        _make_what_is_missing(directory, self._clock.now())
        state = _read_state(directory / _STATE)
        held = state.held_until > self._clock.now()
        lease = Lease(state.n, LeaseState.HELD, state.held_until) if held else Lease(state.n)
        return ApIdentity(
            name=directory.name,
            signing=signing,
            certificate=_read_certificate(directory / _CERTIFICATE),
            ap6=ap6_address(self._network, signing.public),
            created=state.created,
            lease=lease,
            candidate=ap4_candidate(self._network, signing.public, lease.n),
            generations=_read_request_keys(directory / _REQUEST_KEYS),
            sequence=state.sequence_end,
            sequence_end=state.sequence_end,
        )

    def _save_state(self, identity: ApIdentity) -> None:
        lease = identity.lease
        state = _State(identity.created, lease.n, lease.until, identity.sequence_end)
        _write_state(self._directory / identity.name, state)


def next_candidate(lease: Lease) -> Lease:
    """The lease to ask for after ``lease`` was lost to somebody else."""
    return replace(lease, n=(lease.n + 1) % AP4_CANDIDATES, state=LeaseState.RESERVING, until=0.0)


def _secret(path: Path, size: int | None = None) -> bytes:
    secret = load_secret(path, size=size)
    if secret is None:
        raise ConfigError(
            f"the AP address {path.parent.name!r} has lost its key: there is no {path}; restore it "
            f"from a backup, or move {path.parent} away (its addresses are lost with that key)"
        )
    return secret


def _make_what_is_missing(directory: Path, now: float) -> None:
    """Everything but the key can be made anew, and the addresses stay: an AP4 address is claimed
    again, and sequence numbers follow the clock."""
    if not (directory / _CERTIFICATE).exists():
        from phantom_tun.crypto.x509 import make_certificate  # noqa: PLC0415 - not at relays

        certificate = make_certificate(_COMMON_NAME, now)
        atomic_write(directory / _CERTIFICATE, to_pem(certificate))
    if not (directory / _REQUEST_KEYS).exists():
        _write_request_keys(directory, (_RequestKey(SealingKey.generate(), now),))
    if not (directory / _STATE).exists():
        _write_state(directory, _State(now, 0, 0.0, int(now)))


def _damaged(path: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"{path} is damaged ({error}); restore it from a backup, or move it away: what isn't a key "
        "is made anew at the next start, and the addresses stay"
    )


def _read_certificate(path: Path) -> Certificate:
    from phantom_tun.crypto.x509 import from_pem  # noqa: PLC0415 - not at relays

    try:
        return from_pem(_secret(path))
    except CryptoError as error:
        raise _damaged(path, error) from error


def _read_request_keys(path: Path) -> tuple[_RequestKey, ...]:
    try:
        stored = msgspec.msgpack.decode(_secret(path), type=tuple[_StoredKey, ...])
        keys = tuple(_RequestKey(SealingKey(key.seed), key.created) for key in stored)
    except (*UNREADABLE, CryptoError) as error:
        raise _damaged(path, error) from error
    if not keys:
        raise _damaged(path, ValueError("it holds no key"))
    return keys


def _write_request_keys(directory: Path, keys: tuple[_RequestKey, ...]) -> None:
    stored = tuple(_StoredKey(key.key.seed, key.created) for key in keys)
    atomic_write(directory / _REQUEST_KEYS, msgspec.msgpack.encode(stored))


def _read_state(path: Path) -> _State:
    try:
        state = msgspec.json.decode(_secret(path), type=_State)
    except UNREADABLE as error:
        raise _damaged(path, error) from error
    if not 0 <= state.n < AP4_CANDIDATES:
        raise _damaged(path, ValueError(f"there is no AP4 candidate {state.n}"))
    return state


def _write_state(directory: Path, state: _State) -> None:
    atomic_write(directory / _STATE, msgspec.json.encode(state))
