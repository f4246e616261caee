"""Tunnel blocks and layers: mirror symmetry, refusal of repeats, flipped bits."""

import itertools
import random
import tracemalloc

import pytest

from phantom_tun.crypto.streams import SLACK, ChainedStream
from phantom_tun.errors import CapacityExceeded, CryptoError, ProtocolViolation, WireError
from phantom_tun.ids import TunnelBlock
from phantom_tun.tunnel.blocks import (
    BLOCK_BURST,
    MAX_BLOCKS,
    MAX_PENDING,
    PENDING_BYTES,
    PENDING_LIFE,
    SEEN_BYTES,
    HopBlocks,
    inbound_pairs,
    outbound_pairs,
)
from phantom_tun.tunnel.layers import PackageBox, hop_layers, owner_layers
from phantom_tun.wire.sizes import ANSWER_LEN, PACKAGE_LEN
from phantom_tun.wire.tunnel import (
    BODY_LEN,
    Body,
    Operation,
    Package,
    Status,
    answer_body,
    failed_body,
    unpack_status,
)

RNG = random.Random(7)
SECRETS = [RNG.randbytes(32) for _ in range(4)]


def test_the_owner_derives_what_the_hops_derive_outbound():
    hops = [HopBlocks(secret, 0.0) for secret in SECRETS]
    first = TunnelBlock(RNG.randbytes(16))
    block = first
    blocks = [first]
    for hop in hops:
        block = hop.pass_on(block, 0, 0.0)
        blocks.append(block)
    pairs = outbound_pairs(SECRETS, first)
    assert [pair.before for pair in pairs] == blocks[:-1]
    # Coming back, each hop recognises what it sent and restores what it got.
    for hop, pair in zip(reversed(hops), reversed(pairs), strict=True):
        assert hop.recognise(pair.after, 1, 0.0) == pair


def test_the_owner_derives_what_the_hops_derive_inbound():
    hops = [HopBlocks(secret, 0.0) for secret in SECRETS]  # from the owner outward
    block = TunnelBlock(RNG.randbytes(16))
    for hop in reversed(hops):
        block = hop.pass_on(block, 1, 0.0)
    pairs = inbound_pairs(SECRETS, block)
    for hop, pair in zip(hops, pairs, strict=True):
        assert hop.recognise(pair.after, 0, 0.0) == pair


def test_a_repeated_block_is_refused_from_either_side():
    hop = HopBlocks(SECRETS[0], 0.0)
    block = TunnelBlock(RNG.randbytes(16))
    after = hop.pass_on(block, 0, 0.0)
    for repeated in (block, after):
        for side in (0, 1):
            with pytest.raises(ProtocolViolation):
                hop.pass_on(repeated, side, 0.0)


def test_a_block_is_recognised_once_and_only_from_the_right_side():
    hop = HopBlocks(SECRETS[0], 0.0)
    after = hop.pass_on(TunnelBlock(RNG.randbytes(16)), 0, 0.0)
    with pytest.raises(ProtocolViolation):
        hop.recognise(after, 0, 0.0)
    hop.recognise(after, 1, 0.0)
    with pytest.raises(ProtocolViolation):
        hop.recognise(after, 1, 0.0)


def test_a_flipped_bit_makes_a_block_unknown():
    hop = HopBlocks(SECRETS[0], 0.0)
    after = bytearray(hop.pass_on(TunnelBlock(RNG.randbytes(16)), 0, 0.0))
    after[3] ^= 1
    with pytest.raises(ProtocolViolation):
        hop.recognise(TunnelBlock(bytes(after)), 1, 0.0)


def test_blocks_come_through_a_token_bucket():
    hop = HopBlocks(SECRETS[0], 0.0)
    for _ in range(int(BLOCK_BURST)):
        hop.pass_on(TunnelBlock(RNG.randbytes(16)), 0, 0.0)
    with pytest.raises(CapacityExceeded):
        hop.pass_on(TunnelBlock(RNG.randbytes(16)), 0, 0.0)
    hop.pass_on(TunnelBlock(RNG.randbytes(16)), 0, 1.0)


def test_unanswered_blocks_are_bounded_and_forgotten_but_stay_refused():
    hop = HopBlocks(SECRETS[0], 0.0)
    block = TunnelBlock(RNG.randbytes(16))
    after = hop.pass_on(block, 0, 0.0)
    now = 0.0
    with pytest.raises(CapacityExceeded):
        for _ in range(MAX_PENDING + 1):
            now += 0.01
            hop.pass_on(TunnelBlock(RNG.randbytes(16)), 0, now)
    hop.pass_on(TunnelBlock(RNG.randbytes(16)), 0, now + PENDING_LIFE + 1)
    with pytest.raises(ProtocolViolation):
        hop.recognise(after, 1, 0.0)
    with pytest.raises(ProtocolViolation):
        hop.pass_on(block, 0, now + PENDING_LIFE + 1)


def test_a_path_that_is_used_up_takes_half_a_megabyte_and_no_repetition():
    hop = HopBlocks(SECRETS[0], 0.0)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    pairs, now = [], 0.0
    while not hop.exhausted:
        now += 0.005
        block = TunnelBlock(RNG.randbytes(16))
        pair = hop.recognise(hop.pass_on(block, 0, now), 1, now)
        if RNG.random() < 0.001:
            pairs.append((pair.before, pair.after))
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert hop.held() == (SEEN_BYTES * MAX_BLOCKS, 0)
    assert taken < 1.2 * SEEN_BYTES * MAX_BLOCKS
    for number, repeated in enumerate(itertools.chain.from_iterable(pairs)):
        with pytest.raises(ProtocolViolation):
            hop.pass_on(repeated, number % 2, now + 100 + number)


def test_what_a_hop_remembers_is_counted_by_who_brought_it():
    hop = HopBlocks(SECRETS[0], 0.0)
    for side in (0, 1, 1):
        hop.pass_on(TunnelBlock(RNG.randbytes(16)), side, 0.0)
    each = SEEN_BYTES + PENDING_BYTES
    assert hop.held() == (each, 2 * each)
    hop.tidy(PENDING_LIFE - 1)
    assert hop.held() == (each, 2 * each)
    hop.tidy(PENDING_LIFE)
    assert hop.held() == (SEEN_BYTES, 2 * SEEN_BYTES)


@pytest.mark.parametrize("outbound", [True, False])
@pytest.mark.parametrize("toward_owner", [True, False])
def test_layers_cancel_in_uneven_chunks(outbound, toward_owner):
    block = TunnelBlock(RNG.randbytes(16))
    pairs = (outbound_pairs if outbound else inbound_pairs)(SECRETS, block)
    owner = owner_layers(SECRETS, pairs, outbound=outbound)
    hops = [hop_layers(secret, pair) for secret, pair in zip(SECRETS, pairs, strict=True)]
    # Towards the owner is against an outbound tunnel's block and with an inbound one's.
    streams = [hop.against_block if outbound == toward_owner else hop.with_block for hop in hops]
    plain = RNG.randbytes(300_000)
    if toward_owner:
        steps = [*reversed(streams), *owner.incoming]
    else:
        steps = [*owner.outgoing, *streams]
    data = bytearray(plain + bytes(SLACK))
    for number, step in enumerate(steps):
        offset = 0
        while offset < len(plain):
            end = min(len(plain), offset + RNG.randrange(1, 70_000))
            step.process(memoryview(data), offset, end)
            offset = end
        if number < len(steps) - 1:
            assert data[: len(plain)] != plain
    assert data[: len(plain)] == plain


@pytest.mark.parametrize("outer", [False, True])
def test_a_layer_that_rested_goes_on_where_it_was(outer):
    data = random.Random(3).randbytes(100_000)
    cuts = [0, 0, 1, 16, 17, 500, PACKAGE_LEN - 1, PACKAGE_LEN, 5000, 20_480, 90_001, len(data)]
    found = []
    for rests in (False, True):
        layer = ChainedStream(bytes(range(64)), outer=outer)
        view = memoryview(bytearray(data + bytes(SLACK)))
        for start, end in itertools.pairwise(cuts):
            layer.process(view, start, end)
            if rests:
                layer.rest()
        found.append(bytes(view))
    assert found[0] == found[1] != data + bytes(SLACK)


def test_a_flipped_bit_garbles_everything_after_the_next_boundary():
    pairs = outbound_pairs(SECRETS, TunnelBlock(RNG.randbytes(16)))
    owner = owner_layers(SECRETS, pairs, outbound=True)
    hops = [hop_layers(secret, pair) for secret, pair in zip(SECRETS, pairs, strict=True)]
    size = 200_000
    data = bytearray(size + SLACK)
    view = memoryview(data)
    for layer in owner.outgoing:
        layer.process(view, 0, size)
    hops[0].with_block.process(view, 0, size)
    data[100] ^= 4
    for hop in hops[1:]:
        hop.with_block.process(view, 0, size)
    assert data[:100] == bytes(100)
    assert data[100] == 4
    assert data[101:PACKAGE_LEN] == bytes(PACKAGE_LEN - 101)
    garbled = data[PACKAGE_LEN:size]
    assert garbled.count(0) < len(garbled) // 100
    # An accomplice who undoes the flip further on repairs nothing after the boundary.


def test_directions_and_tunnels_never_share_a_keystream():
    seen = set()
    for _ in range(3):
        pairs = outbound_pairs(SECRETS, TunnelBlock(RNG.randbytes(16)))
        for secret, pair in zip(SECRETS, pairs, strict=True):
            for stream in (
                hop_layers(secret, pair).with_block,
                hop_layers(secret, pair).against_block,
            ):
                data = bytearray(64 + SLACK)
                stream.process(memoryview(data), 0, 64)
                seen.add(bytes(data[:64]))
    assert len(seen) == 3 * 4 * 2


def package_boxes(kind="exit"):
    pair = outbound_pairs(SECRETS, TunnelBlock(RNG.randbytes(16)))[-1]
    return PackageBox(kind, SECRETS[-1], pair), PackageBox(kind, SECRETS[-1], pair)


def test_packages_have_one_size_and_open_only_as_themselves():
    mine, theirs = package_boxes()
    ready = mine.lock(Package.INIT, Body(Operation.READY))
    answer = mine.lock(Package.RESULT, answer_body(bytes(ANSWER_LEN)))
    failed = mine.lock(Package.RESULT, failed_body(Status.BUSY))
    assert {len(ready), len(answer), len(failed)} == {PACKAGE_LEN}
    assert theirs.unlock(Package.INIT, ready).operation is Operation.READY
    with pytest.raises(CryptoError):
        theirs.unlock(Package.REPLY, ready)
    other, _ = package_boxes()
    with pytest.raises(CryptoError):
        other.unlock(Package.INIT, ready)
    flipped = bytearray(ready)
    flipped[5000] ^= 1
    with pytest.raises(CryptoError):
        theirs.unlock(Package.INIT, bytes(flipped))


@pytest.mark.parametrize(
    ("kind", "package", "operation"),
    [
        ("exit", Package.INIT, Operation.UPDATE),
        ("exit", Package.REPLY, Operation.REQUEST),
        ("entry", Package.REPLY, Operation.NETDB),
        ("entry", Package.RESULT, Operation.READY),
    ],
)
def test_operations_are_refused_where_they_do_not_belong(kind, package, operation):
    mine, _ = package_boxes(kind)
    with pytest.raises(ProtocolViolation):
        mine.lock(package, Body(operation))


def test_bodies_are_strict():
    packed = bytearray(Body(Operation.READY, b"abc").pack())
    assert Body.unpack(bytes(packed)) == Body(Operation.READY, b"abc")
    packed[-1] = 1
    with pytest.raises(WireError):
        Body.unpack(bytes(packed))
    with pytest.raises(WireError):
        Body.unpack(bytes([99]) + bytes(BODY_LEN - 1))
    with pytest.raises(WireError):
        Body.unpack(b"\0\xff\xff" + bytes(BODY_LEN - 3))
    with pytest.raises(WireError):
        Body.unpack(bytes(BODY_LEN - 1))
    for bad in (b"", b"\xff", b"\0\0"):
        with pytest.raises(WireError):
            unpack_status(bad)
