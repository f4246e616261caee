"""Making and verifying the signatures of records (docs/spec/netdb.md, "Records").

A signature covers the kind of record, the network id and every other field, so a record is void
under any other kind and in any other network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from phantom_tun.crypto.signing import SIGNATURE_LEN, SigningKey, verify
from phantom_tun.ids import CertHash, EntryId, NetworkId, NodeId
from phantom_tun.wire.records import (
    APKeyRecord,
    APRoute,
    Capability,
    NodeAddress,
    NodeRecord,
    OverrideAction,
    OverrideRecord,
    Record,
    path_key_digest,
)

_R = TypeVar("_R", bound=Record)
_UNSIGNED = bytes(SIGNATURE_LEN)


def verify_signature(record: Record, network_id: NetworkId) -> None:
    """Check that the record's author signed it for this network.

    :raises CryptoError: altered, signed by somebody else, for another network or as another kind.
    """
    signature = record.encoded[-SIGNATURE_LEN:]
    verify(record.author, signature, record.KIND, network_id, record.signed_part)


def sign_node_record(
    key: SigningKey,
    network_id: NetworkId,
    *,
    cert_hash: CertHash,
    addresses: Sequence[NodeAddress],
    path_key: bytes,
    path_key_until: float,
    capabilities: Capability,
    created: float,
    expires: float,
    pow_nonce: int,
    families: Sequence[bytes] = (),
    work: int = 0,
) -> NodeRecord:
    """A node's record; ``path_key`` is the 1,216-byte public key, ``pow_nonce`` from
    :func:`phantom_tun.netdb.proof.solve`, ``work`` what builders are asked for, times in seconds
    since the epoch."""
    return _signed(
        NodeRecord(
            identity=key.public,
            cert_hash=cert_hash,
            addresses=tuple(addresses),
            path_key_digest=path_key_digest(path_key),
            path_key_until=int(path_key_until),
            capabilities=int(capabilities),
            families=tuple(families),
            work=work,
            created=int(created),
            expires=int(expires),
            pow=pow_nonce,
            signature=_UNSIGNED,
        ),
        key,
        network_id,
    )


def sign_ap_key_record(
    key: SigningKey,
    network_id: NetworkId,
    *,
    ap4_n: int | None,
    certificate: bytes,
    request_key: bytes,
    created: float,
    expires: float,
    sequence: int,
) -> APKeyRecord:
    """An AP identity's record, claiming AP4 candidate ``ap4_n`` (None: no AP4)."""
    return _signed(
        APKeyRecord(
            public_key=key.public,
            ap4_n=ap4_n,
            certificate=certificate,
            request_key=request_key,
            created=int(created),
            expires=int(expires),
            sequence=sequence,
            signature=_UNSIGNED,
        ),
        key,
        network_id,
    )


def sign_ap_route(
    key: SigningKey,
    network_id: NetworkId,
    *,
    entry_node: NodeId,
    entry_id: EntryId,
    sequence: int,
    expires: float,
) -> APRoute:
    """One entry path of the AP identity ``key``."""
    return _signed(
        APRoute(
            public_key=key.public,
            entry_node=entry_node,
            entry_id=entry_id,
            sequence=sequence,
            expires=int(expires),
            signature=_UNSIGNED,
        ),
        key,
        network_id,
    )


def sign_override(
    key: SigningKey,
    network_id: NetworkId,
    *,
    number: int,
    action: OverrideAction,
    subject: bytes = b"",
    record: bytes = b"",
    created: float,
    expires: float,
) -> OverrideRecord:
    """An override command, signed with an override key."""
    return _signed(
        OverrideRecord(
            signer=key.public,
            number=number,
            action=int(action),
            subject=subject,
            record=record,
            created=int(created),
            expires=int(expires),
            signature=_UNSIGNED,
        ),
        key,
        network_id,
    )


def _signed(record: _R, key: SigningKey, network_id: NetworkId) -> _R:
    signature = key.sign(record.KIND, network_id, record.signed_part)
    return msgspec.structs.replace(record, signature=signature)
