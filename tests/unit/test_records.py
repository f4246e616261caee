"""Records as bytes: canonical, bounded, and one exception for everything that isn't a record."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_tun.crypto.signing import SigningKey
from phantom_tun.errors import CryptoError, WireError
from phantom_tun.ids import NetworkId, NodeId
from phantom_tun.netdb.signing import sign_override, verify_signature
from phantom_tun.testing.record_factory import NETWORK, NOW, ApMaker, NodeMaker
from phantom_tun.wire.records import (
    APKeyRecord,
    APRoute,
    Capability,
    Networks,
    NodeAddress,
    NodeRecord,
    OverrideAction,
    OverrideRecord,
    Record,
    decode,
    path_key_digest,
)

NODE = NodeMaker(1).record()
KEY_RECORD = ApMaker(1).record()
ROUTE = ApMaker(1).route(entry_node=NODE.node_id)
OVERRIDE = sign_override(
    SigningKey(b"o" * 32),
    NETWORK.network_id,
    number=1,
    action=OverrideAction.BAN_NODE,
    subject=NODE.node_id,
    created=NOW,
    expires=NOW + 60,
)
ALL: tuple[Record, ...] = (NODE, KEY_RECORD, ROUTE, OVERRIDE)
KINDS: tuple[type[Record], ...] = (NodeRecord, APKeyRecord, APRoute, OverrideRecord)
each = pytest.mark.parametrize("record", ALL, ids=lambda record: record.KIND)


@each
def test_a_record_survives_the_wire(record: Record) -> None:
    again = decode(type(record), record.encoded)
    assert again == record
    assert again.digest == record.digest
    verify_signature(again, NETWORK.network_id)


@each
def test_a_record_fits_its_limit(record: Record) -> None:
    assert len(record.encoded) <= record.MAX_LEN
    padded = record.encoded + bytes(record.MAX_LEN)
    with pytest.raises(WireError, match="longer"):
        decode(type(record), padded)


def test_the_largest_records_fit_their_limits() -> None:
    longest = 2**40 - 1
    node = msgspec.structs.replace(
        NODE,
        addresses=(NodeAddress(b"\xff" * 16, 65_535),) * 4,
        families=(b"f" * 16,) * 4,
        path_key_until=longest,
        created=longest,
        expires=longest,
        pow=2**62 - 1,
    )
    assert decode(NodeRecord, node.encoded) == node
    key_record = msgspec.structs.replace(
        KEY_RECORD, certificate=bytes(1024), ap4_n=255, sequence=2**62 - 1, created=longest
    )
    assert decode(APKeyRecord, key_record.encoded) == key_record
    override = msgspec.structs.replace(OVERRIDE, record=bytes(2_560), subject=bytes(32))
    assert decode(OverrideRecord, override.encoded) == override
    assert len(ROUTE.encoded) <= 300


@each
def test_every_truncation_and_extension_is_refused(record: Record) -> None:
    encoded = record.encoded
    for length in range(0, len(encoded), 7):
        with pytest.raises(WireError):
            decode(type(record), encoded[:length])
    with pytest.raises(WireError):
        decode(type(record), encoded + b"\0")


@each
def test_every_flipped_bit_voids_record_or_signature(record: Record) -> None:
    encoded = record.encoded
    for index in range(0, len(encoded), 11):
        altered = bytearray(encoded)
        altered[index] ^= 0x04
        with pytest.raises((WireError, CryptoError)):
            verify_signature(decode(type(record), bytes(altered)), NETWORK.network_id)


@each
def test_a_signature_is_void_in_another_network(record: Record) -> None:
    with pytest.raises(CryptoError):
        verify_signature(record, NetworkId(bytes(32)))


@each
def test_a_record_of_another_kind_is_refused(record: Record) -> None:
    for kind in KINDS:
        if kind is not type(record):
            with pytest.raises(WireError):
                decode(kind, record.encoded)


def test_a_longer_form_of_the_same_number_is_refused() -> None:
    fields: list[Any] = list(msgspec.to_builtins(ROUTE, builtin_types=(bytes,)))
    canonical = msgspec.msgpack.encode(fields)
    assert canonical == ROUTE.encoded
    short = msgspec.msgpack.encode(fields[3])
    assert short == b"\x01"
    start = canonical.index(b"\x01" + msgspec.msgpack.encode(fields[4]))
    stretched = canonical[:start] + b"\xcc\x01" + canonical[start + 1 :]
    assert msgspec.msgpack.decode(stretched) == msgspec.msgpack.decode(canonical)
    with pytest.raises(WireError, match="canonical"):
        decode(APRoute, stretched)


@pytest.mark.parametrize(
    "changes",
    [
        {"identity": bytes(31)},
        {"cert_hash": bytes(33)},
        {"addresses": ()},
        {"addresses": (NodeAddress(bytes([10, 0, 0, 1]), 443),) * 5},
        {"path_key_digest": b""},
        {"path_key_until": -1},
        {"capabilities": 4},
        {"families": (b"f" * 15,)},
        {"families": (b"f" * 16,) * 5},
        {"created": 2**40},
        {"pow": 2**62},
        {"signature": bytes(63)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_node_fields_out_of_range_are_refused(changes: dict[str, object]) -> None:
    bad = msgspec.msgpack.encode(msgspec.structs.replace(NODE, **changes))
    with pytest.raises(WireError):
        decode(NodeRecord, bad)


@pytest.mark.parametrize(
    "changes",
    [
        {"public_key": bytes(31)},
        {"ap4_n": 256},
        {"ap4_n": -1},
        {"certificate": b""},
        {"certificate": bytes(1025)},
        {"request_key": bytes(1215)},
        {"sequence": 2**62},
        {"expires": -1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_key_record_fields_out_of_range_are_refused(changes: dict[str, object]) -> None:
    bad = msgspec.msgpack.encode(msgspec.structs.replace(KEY_RECORD, **changes))
    with pytest.raises(WireError):
        decode(APKeyRecord, bad)


@pytest.mark.parametrize("length", [0, 3, 5, 15, 17])
def test_an_address_has_4_or_16_bytes(length: int) -> None:
    raw = list(msgspec.to_builtins(NODE, builtin_types=(bytes,)))
    raw[2] = [[bytes(length), 443]]
    with pytest.raises(WireError):
        decode(NodeRecord, msgspec.msgpack.encode(raw))


@given(st.binary(max_size=400))
def test_noise_raises_the_one_exception(noise: bytes) -> None:
    for kind in KINDS:
        with pytest.raises(WireError):
            decode(kind, noise)


@given(
    st.sampled_from(ALL),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_mutations_raise_nothing_else(record: Record, edits: list[tuple[int, int]]) -> None:
    altered = bytearray(record.encoded)
    for place, value in edits:
        altered[place % len(altered)] = value
    try:
        again = decode(type(record), bytes(altered))
    except WireError:
        return
    assert again.encoded == bytes(altered)


class TestNodeRecord:
    def test_the_id_is_the_hash_of_the_identity(self) -> None:
        assert NODE.node_id != NodeId(NODE.identity)
        assert NODE.node_id == NodeMaker(1).record(NOW + 1).node_id
        assert NODE.node_id != NodeMaker(2).record().node_id

    def test_capabilities(self) -> None:
        assert NODE.relays
        assert NODE.dialable
        hidden = NodeMaker(1).record(capabilities=Capability.RELAY)
        assert hidden.relays
        assert not hidden.dialable
        assert hidden.ref().port == 0

    def test_ref_prefers_the_ip_version_asked_for(self) -> None:
        four = NodeAddress.of(ipaddress.IPv4Address("11.0.0.1"), 443)
        six = NodeAddress.of(ipaddress.IPv6Address("2a00::1"), 8443)
        record = msgspec.structs.replace(NODE, addresses=(four, six))
        assert str(record.ref().address) == "11.0.0.1"
        assert str(record.ref(6).address) == "2a00::1"
        assert record.ref(6).port == 8443
        assert [ref.port for ref in record.refs(6)] == [8443, 443]
        assert [ref.port for ref in record.refs(4)] == [443, 8443]
        hidden = msgspec.structs.replace(record, capabilities=0)
        assert [(str(ref.address), ref.port) for ref in hidden.refs(6)] == [("2a00::1", 0)]
        only_four = msgspec.structs.replace(NODE, addresses=(four,))
        assert str(only_four.ref(6).address) == "11.0.0.1"
        assert record.ref().node_id == NODE.node_id
        assert record.ref().cert_hash == NODE.cert_hash

    def test_the_path_key_digest_is_of_the_key(self) -> None:
        assert path_key_digest(NodeMaker(1).path_key) == NODE.path_key_digest
        assert path_key_digest(NodeMaker(2).path_key) != NODE.path_key_digest


class TestNetworks:
    def of(self, *texts: str) -> Networks:
        return Networks.of(NodeAddress.of(ipaddress.ip_address(text), 443) for text in texts)

    def test_public_addresses_count_by_prefix(self) -> None:
        assert self.of("11.1.2.3").narrow == self.of("11.1.2.200").narrow
        assert self.of("11.1.2.3").narrow != self.of("11.1.3.3").narrow
        assert self.of("11.1.2.3").wide == self.of("11.1.9.9").wide
        assert self.of("11.1.2.3").wide != self.of("11.2.2.3").wide
        assert self.of("2a00:1:2::1").narrow == self.of("2a00:1:2:ff::1").narrow
        assert self.of("2a00:1:2::1").wide == self.of("2a00:1:3::1").wide
        assert self.of("2a00:1::1").wide != self.of("2a00:2::1").wide

    def test_private_addresses_count_one_by_one(self) -> None:
        assert self.of("10.0.0.1").wide != self.of("10.0.0.2").wide
        loopback = ipaddress.ip_address("127.0.0.1")
        one, two = (Networks.of([NodeAddress.of(loopback, port)]) for port in (1, 2))
        assert one.narrow != two.narrow

    def test_all_addresses_count(self) -> None:
        both = self.of("11.1.2.3", "2a00:1:2::1")
        assert both.wide == self.of("11.1.0.0").wide | self.of("2a00:1::").wide
