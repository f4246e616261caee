"""One member's two arrays, against values that were computed without this package."""

import hashlib
import json
from pathlib import Path

import pytest

from phantom_tun.crypto.sealing import SealingKey
from phantom_tun.path.keys import PathKeys
from phantom_tun.path.layers import find_slot, hash_without, hint
from phantom_tun.path.member import Member, MemberLimits
from phantom_tun.path.work import task
from phantom_tun.wire.nodes import NodeRef
from phantom_tun.wire.setup import ARRAY_LEN, slot_range, split_work

VECTOR = json.loads((Path(__file__).parent / "path.json").read_text())


def raw(name):
    return bytes.fromhex(VECTOR[name])


def array_of(number):
    told = VECTOR["rounds"][str(number)]
    array = bytearray(hashlib.shake_256(b"path vector array %d" % number).digest(ARRAY_LEN))
    array[slot_range(told["slot"])] = bytes.fromhex(told["hint"] + told["content"])
    return bytes(array), told


@pytest.mark.parametrize("number", [1, 2])
def test_hints_slots_and_hashes(number):
    array, told = array_of(number)
    assert hint(raw("incoming"), number).hex() == told["hint"]
    assert find_slot(array, raw("incoming"), number) == told["slot"]
    assert hash_without(array, told["slot"]).hex() == told["array_hash"]


def test_the_work_is_what_it_should_be():
    nonce, sealed = split_work(bytes.fromhex(VECTOR["rounds"]["1"]["content"]))
    me = NodeRef.unpack(raw("me"))
    work = task(me.node_id, sealed)
    assert work.proven(nonce) >= VECTOR["work"]
    assert work.solve(VECTOR["work"], 0) == nonce


def test_a_member_opens_both_arrays_and_passes_on_what_it_should():
    keys = PathKeys(VECTOR["now"])
    keys._held[0] = type(keys._held[0])(SealingKey(raw("path_key_seed")), VECTOR["now"] + 1)
    me, sender = NodeRef.unpack(raw("me")), NodeRef.unpack(raw("sender"))
    member = Member(me.node_id, raw("network_id"), keys, MemberLimits())
    for number in (1, 2):
        array, told = array_of(number)
        accepted = member.receive(sender.node_id, raw("incoming"), array, VECTOR["now"])
        assert hashlib.sha256(accepted.array).hexdigest() == told["leaving_sha256"]
        assert (accepted.next.node.pack(), accepted.next.connection) == (
            raw("next"),
            raw("outgoing"),
        )
    hop = accepted.hop
    assert hop.role == "interior"
    assert hop.expires == VECTOR["expires"]
    assert hop.path_secret == raw("path_secret")
    assert [[ref.pack().hex(), identifier.hex()] for ref, identifier in hop.neighbours] == VECTOR[
        "neighbours"
    ]
    assert accepted.successor == hop.neighbours[1][0]
