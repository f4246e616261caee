"""The network profile: the TOML file that all members of one network share (protocol section 2).

Its table ``[network]`` never changes: the network id is the hash of it. Its table ``[update]``
may be replaced by one with a higher number. Everything here is pure except :func:`load`.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec

from phantom_tun.crypto.hashes import h
from phantom_tun.decoding import in_words
from phantom_tun.errors import ConfigError
from phantom_tun.ids import CertHash, NetworkId, NodeId, PublicKey

MAX_HOPS = 8
DEFAULT_HOPS = 3
ARRAY_SLOTS = 24
"""Slots of a setup array; the one value this version speaks."""
PACKAGE_SIZE = 1536
"""Bytes of a sealed package in a slot; the one value this version speaks."""
NONCE_SIZE = 32
MAX_BOOTSTRAP = 256
"""Bootstrap nodes in a profile."""
DEFAULT_POW_BITS = 12
DEFAULT_AP4 = ipaddress.IPv4Network("240.0.0.0/4")
DEFAULT_AP6 = ipaddress.IPv6Network("2001:2f::/32")

_PROFILE_MAX_BYTES = 256 * 1024
_INTERFACE_PREFIX4 = 16
_INTERFACE_PREFIX6 = 64
_NO_HOSTS4 = tuple(
    ipaddress.IPv4Network(block)
    for block in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4")
)
_NO_HOSTS6 = tuple(ipaddress.IPv6Network(block) for block in ("::/8", "fe80::/10", "ff00::/8"))
_BOOTSTRAP = re.compile(
    r"(?P<node>[0-9a-f]{64})@(?:\[(?P<v6>[^\]]+)\]|(?P<v4>[^:\]]+)):(?P<port>[0-9]{1,5})"
    r"#(?P<certificate>[0-9a-f]{64})",
    re.IGNORECASE,
)
_HEX32 = re.compile("[0-9a-fA-F]{64}")
_BOOTSTRAP_FORM = "NODEID@ADDRESS:PORT#CERTIFICATEHASH, both ids as 64 hex digits, IPv6 in brackets"


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """A node that newcomers may dial first, pinned by its certificate."""

    node_id: NodeId
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int
    certificate_hash: CertHash

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{self.node_id.hex()}@{host}:{self.port}#{self.certificate_hash.hex()}"

    @classmethod
    def parse(cls, text: str) -> Bootstrap:
        """Read the one-line form that :meth:`__str__` writes.

        :raises ConfigError: naming the line.
        """
        match = _BOOTSTRAP.fullmatch(text.strip())
        if match is None:
            raise ConfigError(f"{text!r} isn't a bootstrap node; the form is {_BOOTSTRAP_FORM}")
        address: ipaddress.IPv4Address | ipaddress.IPv6Address
        try:
            if match["v6"] is not None:
                address = ipaddress.IPv6Address(match["v6"])
            else:
                address = ipaddress.IPv4Address(match["v4"])
        except ValueError as error:
            raise ConfigError(f"{text!r} has no valid address: {error}") from error
        port = int(match["port"])
        if not 1 <= port <= 65535:
            raise ConfigError(f"{text!r} has port {port}; ports are 1 to 65535")
        return cls(
            NodeId(bytes.fromhex(match["node"])),
            address,
            port,
            CertHash(bytes.fromhex(match["certificate"])),
        )


@dataclass(frozen=True, slots=True)
class Profile:
    """One network, checked. The first six fields make the network id; the others may change."""

    name: str
    nonce: bytes
    """32 random bytes: two networks of the same name are different networks."""
    ap4: ipaddress.IPv4Network
    """Where AP4 addresses are leased; its first /16 is the interface's own, its last is unused."""
    ap6: ipaddress.IPv6Network
    """A /32; its first /64 is the interface's own."""
    pow_bits: int
    """Leading zero bits that the proof of work of a node id needs."""
    array_slots: int = ARRAY_SLOTS
    package_size: int = PACKAGE_SIZE
    update_number: int = 0
    override_keys: tuple[PublicKey, ...] = ()
    bootstrap: tuple[Bootstrap, ...] = ()
    exit_hops: int = DEFAULT_HOPS
    entry_hops: int = DEFAULT_HOPS

    @property
    def network_id(self) -> NetworkId:
        """H('network', name, nonce, AP4 prefix, AP6 prefix, difficulty, slots, package size): texts
        in UTF-8, prefixes as address and length byte, numbers big-endian."""
        digest = h(
            "network",
            self.name.encode(),
            self.nonce,
            self.ap4.network_address.packed + bytes([self.ap4.prefixlen]),
            self.ap6.network_address.packed + bytes([self.ap6.prefixlen]),
            bytes([self.pow_bits]),
            self.array_slots.to_bytes(2, "big"),
            self.package_size.to_bytes(2, "big"),
        )
        return NetworkId(digest)

    @property
    def reserved4(self) -> tuple[ipaddress.IPv4Network, ipaddress.IPv4Network]:
        """The blocks of :attr:`ap4` that nobody leases: the interface's own, and the unused one."""
        first = ipaddress.IPv4Network((self.ap4.network_address, _INTERFACE_PREFIX4))
        last = ipaddress.IPv4Network((int(self.ap4.broadcast_address) & ~0xFFFF, 16))
        return first, last

    @property
    def reserved6(self) -> ipaddress.IPv6Network:
        """The block of :attr:`ap6` for the interface itself (gateway, NAT peers)."""
        return ipaddress.IPv6Network((self.ap6.network_address, _INTERFACE_PREFIX6))

    def accepts_update(self, other: Profile) -> bool:
        """Whether ``other`` is a later edition of the same network."""
        return other.network_id == self.network_id and other.update_number > self.update_number


_MISSING = re.compile(
    r"Object missing required field `(?P<key>[^`]*)`(?: - at `\$\.(?P<at>[^`]*)`)?"
)
_Hops = Annotated[int, msgspec.Meta(ge=0, le=MAX_HOPS)]
_NAME = re.compile("[a-z0-9][a-z0-9-]{0,62}")
_Hex32 = Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{64}$")]


class _Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(pattern=f"^{_NAME.pattern}$")]
    nonce: _Hex32
    ap4: str
    ap6: str
    pow_bits: Annotated[int, msgspec.Meta(ge=0, le=32)]
    array_slots: int
    package_size: int


class _Update(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    number: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    override_keys: Annotated[list[_Hex32], msgspec.Meta(max_length=16)] = []
    bootstrap: Annotated[list[str], msgspec.Meta(max_length=MAX_BOOTSTRAP)] = []
    exit_hops: _Hops = DEFAULT_HOPS
    entry_hops: _Hops = DEFAULT_HOPS


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    network: _Network
    update: _Update = _Update()


def load(path: Path) -> Profile:
    """Read and check the profile at ``path``.

    :raises ConfigError: missing, unreadable or not a valid profile; names file, key and fix.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_PROFILE_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no network profile at {path}: get the file from a member and run "
            "'phantom-tun network join FILE', or 'phantom-tun network new NAME --hops 0' to start "
            "a small network"
        ) from error
    except OSError as error:
        raise ConfigError(f"can't read the network profile {path}: {error.strerror}") from error
    return parse(data, source=str(path))


def parse(data: bytes, *, source: str) -> Profile:
    """Check the bytes of a profile; ``source`` is what messages call it.

    :raises ConfigError: naming ``source``, the key and what is allowed.
    """
    if len(data) > _PROFILE_MAX_BYTES:
        raise ConfigError(f"{source} is larger than a network profile can be")
    try:
        content = msgspec.convert(tomllib.loads(data.decode()), _File)
        return _checked(content)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source} isn't a network profile: it is no UTF-8 text") from error
    except msgspec.ValidationError as error:  # a ValueError too
        raise ConfigError(_explained(str(error), source)) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} isn't valid TOML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"the network profile {source} is wrong: {error}") from error


def _explained(message: str, source: str) -> str:
    """The decoder's message as a sentence for who wrote the file."""
    missing = _MISSING.fullmatch(message)
    if missing is None:
        return f"the network profile {source} is wrong: {in_words(message, _File) or message}"
    if missing["at"] is None:
        return f"{source} is no network profile: it has no [{missing['key']}]"
    return f"the network profile {source} is wrong: [{missing['at']}] has no {missing['key']}"


def dump(profile: Profile) -> str:
    """The TOML text of a profile; :func:`parse` reads it back to an equal one."""

    def listed(values: list[str]) -> str:
        return "".join(f'\n    "{value}",' for value in values) + ("\n" if values else "")

    return f"""\
# A phantom-tun network profile: every member of the network has this file.

[network] # fixed for ever: the network id is the hash of this table
name = "{profile.name}"
nonce = "{profile.nonce.hex()}"
ap4 = "{profile.ap4}"
ap6 = "{profile.ap6}"
pow_bits = {profile.pow_bits}
array_slots = {profile.array_slots}
package_size = {profile.package_size}

[update] # may change: count up the number, then hand the file to every member
number = {profile.update_number}
override_keys = [{listed([key.hex() for key in profile.override_keys])}]
bootstrap = [{listed([str(node) for node in profile.bootstrap])}]
exit_hops = {profile.exit_hops}
entry_hops = {profile.entry_hops}
"""


def new(
    name: str,
    nonce: bytes,
    *,
    pow_bits: int = DEFAULT_POW_BITS,
    override_keys: tuple[PublicKey, ...] = (),
    bootstrap: tuple[Bootstrap, ...] = (),
    exit_hops: int = DEFAULT_HOPS,
    entry_hops: int = DEFAULT_HOPS,
) -> Profile:
    """A new network with the default address prefixes; ``nonce`` is 32 fresh random bytes.

    :raises ConfigError: a value is out of its range.
    """
    if _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"{name!r} can't be a network's name: lower-case letters, digits and '-' can be in it, "
            "63 at most, and it begins with a letter or digit"
        )
    profile = Profile(
        name=name,
        nonce=nonce,
        ap4=DEFAULT_AP4,
        ap6=DEFAULT_AP6,
        pow_bits=pow_bits,
        override_keys=override_keys,
        bootstrap=bootstrap,
        exit_hops=exit_hops,
        entry_hops=entry_hops,
    )
    return parse(dump(profile).encode(), source=f"of the new network {name!r}")


def with_bootstrap(profile: Profile, nodes: tuple[Bootstrap, ...]) -> Profile:
    """The next update of ``profile``, with other bootstrap nodes."""
    return replace(profile, update_number=profile.update_number + 1, bootstrap=nodes)


def parse_override_key(text: str) -> PublicKey:
    """A public override key, 64 hex digits.

    :raises ConfigError: it is none.
    """
    if _HEX32.fullmatch(text) is None:
        raise ConfigError(f"{text!r} isn't a public override key, which is 64 hex digits")
    return PublicKey(bytes.fromhex(text))


def _checked(content: _File) -> Profile:
    network, update = content.network, content.update
    if (network.array_slots, network.package_size) != (ARRAY_SLOTS, PACKAGE_SIZE):
        raise ConfigError(
            f"network.array_slots and network.package_size are {network.array_slots} and "
            f"{network.package_size}; this version speaks only {ARRAY_SLOTS} and {PACKAGE_SIZE}"
        )
    return Profile(
        name=network.name,
        nonce=bytes.fromhex(network.nonce),
        ap4=_prefix4(network.ap4),
        ap6=_prefix6(network.ap6),
        pow_bits=network.pow_bits,
        array_slots=network.array_slots,
        package_size=network.package_size,
        update_number=update.number,
        override_keys=tuple(PublicKey(bytes.fromhex(key)) for key in update.override_keys),
        bootstrap=tuple(Bootstrap.parse(line) for line in update.bootstrap),
        exit_hops=update.exit_hops,
        entry_hops=update.entry_hops,
    )


def _prefix4(text: str) -> ipaddress.IPv4Network:
    try:
        prefix = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise ConfigError(f"network.ap4: {error}") from error
    if not 4 <= prefix.prefixlen <= 12:
        raise ConfigError(f"network.ap4 is a /{prefix.prefixlen}; it must be a /4 to a /12")
    if any(prefix.overlaps(taken) for taken in _NO_HOSTS4):
        raise ConfigError(f"network.ap4 {prefix} is a block that no host can use")
    return prefix


def _prefix6(text: str) -> ipaddress.IPv6Network:
    try:
        prefix = ipaddress.IPv6Network(text)
    except ValueError as error:
        raise ConfigError(f"network.ap6: {error}") from error
    if prefix.prefixlen != 32:
        raise ConfigError(f"network.ap6 is a /{prefix.prefixlen}; it must be a /32")
    if any(prefix.overlaps(taken) for taken in _NO_HOSTS6):
        raise ConfigError(f"network.ap6 {prefix} is a block that no host can use")
    return prefix
