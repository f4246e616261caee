"""The delaying switch, in virtual time."""

from __future__ import annotations

import random

import pytest

from phantom_tun.lab.switch import (
    UNLIMITED_QUEUE_BYTES,
    DelayingSwitch,
    SwitchStatistics,
    queue_bytes,
    wire_size,
)

PORTS = [bytes([2, 0, 0, 0, 0, i]) for i in range(4)]
BROADCAST = b"\xff" * 6
DELAY = 0.02


def frame(to: bytes, size: int = 100, *, mark: int = 0, segment: int = 0) -> bytes:
    """A frame of ``size`` bytes, behind its virtio-net header."""
    header = bytes([0, 0, 0, 0]) + segment.to_bytes(2, "little") + bytes(4)
    return header + (to + PORTS[0] + b"\x08\x00" + bytes([mark])).ljust(size, b"\0")


def drain(switch: DelayingSwitch) -> list[tuple[float, int, bytes]]:
    """Everything on its way, with the time it comes out."""
    out = []
    while (at := switch.next_due()) is not None:
        out += [(at, port, sent) for port, sent in switch.due(at)]
    return out


def test_a_frame_comes_out_at_its_port_after_the_delay() -> None:
    switch = DelayingSwitch(PORTS, delay=DELAY, rate=None)
    sent = frame(PORTS[2])
    switch.receive(5.0, 0, sent)
    assert list(switch.due(5.0 + DELAY - 1e-6)) == []
    assert list(switch.due(5.0 + DELAY)) == [(2, sent)]
    assert switch.next_due() is None


def test_broadcast_reaches_all_others() -> None:
    switch = DelayingSwitch(PORTS, delay=DELAY, rate=None)
    switch.receive(0.0, 1, frame(BROADCAST))
    assert sorted(port for _, port, _ in drain(switch)) == [0, 2, 3]


def test_multicast_reaches_all_others() -> None:
    switch = DelayingSwitch(PORTS, delay=DELAY, rate=None)
    switch.receive(0.0, 0, frame(bytes.fromhex("333300000001")))
    assert sorted(port for _, port, _ in drain(switch)) == [1, 2, 3]


@pytest.mark.parametrize(
    "lost", [frame(b"\x02" + bytes(4) + b"\x99"), frame(PORTS[0]), b"", b"short"]
)
def test_what_belongs_nowhere_is_dropped_and_counted(lost: bytes) -> None:
    switch = DelayingSwitch(PORTS, delay=DELAY, rate=None)
    switch.receive(0.0, 0, lost)
    assert drain(switch) == []
    assert switch.statistics() == SwitchStatistics(0, 0, 1)


def test_frames_are_serialised_on_both_cables() -> None:
    rate = 8000.0  # 1,000 bytes a second
    switch = DelayingSwitch(PORTS, delay=DELAY, rate=rate)
    switch.receive(0.0, 0, frame(PORTS[1], 500, mark=1))
    switch.receive(0.0, 0, frame(PORTS[1], 500, mark=2))
    times = [at for at, _, _ in drain(switch)]
    assert times == pytest.approx([0.5 + DELAY + 0.5, 1.0 + DELAY + 0.5])


def test_two_senders_share_the_receivers_cable() -> None:
    switch = DelayingSwitch(PORTS, delay=DELAY, rate=8000.0)
    switch.receive(0.0, 0, frame(PORTS[2], 500))
    switch.receive(0.0, 1, frame(PORTS[2], 500))
    assert [at for at, _, _ in drain(switch)] == pytest.approx([1.0 + DELAY, 1.5 + DELAY])


def test_two_receivers_do_not_share_a_cable() -> None:
    switch = DelayingSwitch(PORTS, delay=DELAY, rate=8000.0)
    switch.receive(0.0, 0, frame(PORTS[2], 500))
    switch.receive(0.0, 1, frame(PORTS[3], 500))
    assert [at for at, _, _ in drain(switch)] == pytest.approx([1.0 + DELAY] * 2)


def test_a_full_uplink_drops_its_tail() -> None:
    rate = 8e6
    switch = DelayingSwitch(PORTS, delay=DELAY, rate=rate)
    fit = -(-queue_bytes(rate) // 1000)
    for _ in range(fit + 50):
        switch.receive(0.0, 0, frame(PORTS[1], 1000))
    assert len(drain(switch)) == fit
    assert switch.statistics() == SwitchStatistics(fit, 50, 0)


def test_a_full_downlink_drops_and_the_senders_recover() -> None:
    rate = 8e6
    switch = DelayingSwitch(PORTS, delay=0.0, rate=rate)
    for step in range(500):
        for port in (0, 1, 2):
            switch.receive(step / 1000, port, frame(PORTS[3], 1000))
    out = drain(switch)
    statistics = switch.statistics()
    assert statistics.dropped_queue_full == 1500 - len(out) > 0
    # Dropped frames have left: what they took is free again.
    switch.receive(100.0, 0, frame(PORTS[3]))
    assert len(drain(switch)) == 1


def test_memory_is_bounded_without_a_rate() -> None:
    switch = DelayingSwitch(PORTS, delay=DELAY, rate=None)
    big = frame(PORTS[1], 1 << 20)
    for _ in range(100):
        switch.receive(0.0, 0, big)
    out = drain(switch)
    assert sum(len(sent) for _, _, sent in out) <= UNLIMITED_QUEUE_BYTES
    assert switch.statistics().dropped_queue_full == 100 - len(out) > 0
    switch.receive(1.0, 0, big)
    assert len(drain(switch)) == 1


@pytest.mark.parametrize("rate", [None, 1e6])
def test_flows_keep_their_order(rate: float | None) -> None:
    rng = random.Random(7)
    switch = DelayingSwitch(PORTS, delay=DELAY, rate=rate)
    now = 0.0
    got: list[int] = []
    for mark in range(200):
        now += rng.expovariate(1000)
        switch.receive(now, 0, frame(PORTS[1], rng.randrange(60, 1500), mark=mark))
        switch.receive(now, 2, frame(PORTS[1], rng.randrange(60, 1500), mark=255))
        got += [out[24] for _, out in switch.due(now) if out[24] != 255]
    got += [out[24] for _, _, out in drain(switch) if out[24] != 255]
    assert got == sorted(got)
    assert len(got) > 150


def test_offloaded_frames_count_all_their_headers() -> None:
    assert wire_size(frame(PORTS[1], 1514)) == 1514
    assert wire_size(frame(PORTS[1], 1000, segment=1448)) == 1000
    one, two = 66 + 1448, 66 + 2 * 1448
    assert wire_size(frame(PORTS[1], two, segment=1448)) == 2 * one
    assert wire_size(frame(PORTS[1], two + 1, segment=1448)) == 2 * one + 67
    assert wire_size(frame(PORTS[1], one, segment=1448)) == one


def test_slow_links_still_take_the_largest_frames() -> None:
    assert queue_bytes(64_000) == 128 * 1024
    assert queue_bytes(1e9) == 12_500_000
