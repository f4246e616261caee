"""Steady datagrams, and the tally of what arrived."""

from __future__ import annotations

import pytest

from phantom_tun.lab.bench import load_udp
from phantom_tun.lab.bench.load_udp import HEADER, TALLY, Tallies, Tally


class Clock:
    """Time passes when somebody sleeps."""

    def __init__(self) -> None:
        self.at = 100.0
        self.slept = 0

    def now(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds
        self.slept += 1


def send(clock: Clock, seconds: float, sent: list[bytes], cost: float = 0.0) -> int:
    def take(datagram: bytes) -> None:
        sent.append(datagram)
        clock.at += cost

    return load_udp.send_steadily(
        take, 7, seconds=seconds, size=100, rate=800_000, now=clock.now, sleep=clock.sleep
    )


def test_datagrams_go_out_evenly_with_time_and_number() -> None:
    clock, sent = Clock(), list[bytes]()
    assert send(clock, 0.01, sent) == 10
    fields = [HEADER.unpack_from(each) for each in sent]
    assert [number for _, _, number in fields] == list(range(10))
    assert [at for _, at, _ in fields] == pytest.approx([100 + i / 1000 for i in range(10)])
    assert {len(each) for each in sent} == {100}


def test_a_sender_that_was_held_up_does_not_send_all_of_it_at_once() -> None:
    clock, sent = Clock(), list[bytes]()
    held_up = 0.5

    def take(datagram: bytes) -> None:
        if not sent:
            clock.at += held_up
        sent.append(datagram)

    load_udp.send_steadily(
        take, 7, seconds=0.6, size=100, rate=800_000, now=clock.now, sleep=clock.sleep
    )
    at_once = sum(HEADER.unpack_from(each)[1] == 100 + held_up for each in sent)
    assert at_once <= load_udp.MAX_CATCH_UP_S * 1000 + 2
    assert len(sent) < 600 - 1000 * (held_up - load_udp.MAX_CATCH_UP_S) + 3


def test_a_datagram_needs_room_for_its_header() -> None:
    with pytest.raises(ValueError, match="at least"):
        load_udp.send_steadily(print, 7, seconds=1, size=10, rate=1.0)


def test_jitter_is_none_if_all_take_as_long_and_grows_if_not() -> None:
    even, uneven = Tally(), Tally()
    for i in range(100):
        even.add(i, i + 0.5, 10)
        uneven.add(i, i + (0.5 if i % 2 else 0.516), 10)
    assert even.jitter == 0
    assert uneven.jitter == pytest.approx(0.016, rel=0.05)
    assert (even.received, even.size, even.seconds) == (100, 1000, 99)


def test_flows_are_told_apart_and_strange_datagrams_ignored() -> None:
    tallies = Tallies()
    for flow in (1, 2, 2):
        tallies.add(HEADER.pack(flow, 0.0, 0), 1.0)
    tallies.add(b"short", 1.0)
    assert [tallies.of(flow).received for flow in (1, 2, 3)] == [1, 2, 0]
    assert TALLY.unpack(tallies.of(2).pack()) == (2, 2 * HEADER.size, 0.0, 0.0)


def test_only_the_latest_flows_are_remembered() -> None:
    tallies = Tallies()
    for flow in range(load_udp.MAX_FLOWS + 1):
        tallies.add(HEADER.pack(flow, 0.0, 0), 1.0)
    assert tallies.of(0).received == 0
    assert tallies.of(1).received == 1
