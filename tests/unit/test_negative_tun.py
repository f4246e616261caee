"""The interface under programs that send nonsense and an overlay that fails in ways nobody thought
of: one flow may end, the interface stays up."""

from __future__ import annotations

import random

import pytest
import trio
from scapy.layers.inet import ICMP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest
from tun_harness import FAR, datagram, echo, ip, syn, world

from phantom_tun.errors import Refused
from phantom_tun.guard import COUNTER, RESTART_AFTER
from phantom_tun.packet.rewrite import SHORTEST_BUFFER
from phantom_tun.tun.desk import Desk


class UnheardError(Exception):
    """What no layer expects of the one below."""


FIRSTS = {"stream": syn, "datagrams": lambda v: datagram(v, b"x"), "echo": echo}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("first", FIRSTS.values(), ids=FIRSTS)
async def test_an_overlay_that_fails_ends_one_flow(mock_clock, version, first):
    async with world(mock_clock) as w:
        await w.send(first(version))
        (await w.overlay.wait_call()).fail(UnheardError("?"))
        await trio.testing.wait_all_tasks_blocked()
        assert w.flows() == []
        assert w.count(COUNTER) == 1
        await w.send(syn(version, sport=6000))
        (await w.overlay.wait_call()).fail(Refused("closed"))
        assert (await w.receive())[TCP].dport == 6000


async def test_a_stream_that_fails_ends_one_flow(mock_clock):
    async with world(mock_clock) as w:
        await w.send(syn(4))
        far = (await w.overlay.wait_call()).accept_stream()
        sock = await w.handshake()

        async def fail(_data):
            raise UnheardError("?")

        far._back.put = fail  # what the near end's sending does
        sock.sendall(b"x")
        with trio.fail_after(5):
            while not w.count(COUNTER):
                await trio.testing.wait_all_tasks_blocked(0.01)
        assert w.flows() == []


async def test_a_packet_that_the_desk_fails_on_is_counted(mock_clock, monkeypatch):
    def fail(_self, _packet, _destination):
        raise UnheardError("?")

    async with world(mock_clock) as w:
        with monkeypatch.context() as patch:
            patch.setattr(Desk, "_decide", fail)
            await w.send(syn(4))
            with trio.fail_after(5):
                while not w.count(COUNTER):
                    await trio.testing.wait_all_tasks_blocked(0.01)
        await w.all_decided()


async def test_the_clockwork_of_the_interface_is_begun_again(mock_clock, monkeypatch):
    async with world(mock_clock) as w:
        nat = w.interface._running.shared.nat
        expire = nat.expire
        monkeypatch.setattr(nat, "expire", lambda _now: 1 / 0)
        await w.pass_time(2)
        assert w.count(COUNTER) == 1
        looks = []
        monkeypatch.setattr(nat, "expire", lambda now: (looks.append(now), expire(now)))
        await w.pass_time(RESTART_AFTER + 2)
        assert looks


def packets(rng):
    """Packets of every kind, some of them cut, lengthened or altered anywhere."""
    kinds = [
        lambda v: syn(v, sport=rng.randrange(1, 9)),
        lambda v: bytes(ip(v) / TCP(sport=5, dport=6, flags=rng.choice(["A", "R", "F", "SA", ""]))),
        lambda v: bytes(ip(v) / UDP(sport=5, dport=6) / rng.randbytes(rng.randrange(40))),
        lambda v: echo(v, data=rng.randbytes(rng.randrange(40))),
        lambda v: bytes(ip(v) / (ICMP(type=3, code=3) if v == 4 else ICMPv6EchoRequest(type=1))
                        / datagram(v, b"quoted")),
        lambda v: bytes(ip(v, target=rng.choice(list(FAR.values())[: 1 if v == 4 else 2][-1:]))),
    ]  # fmt: skip
    while True:
        packet = bytearray(rng.choice(kinds)(rng.choice([4, 6])))
        for _ in range(rng.choice([0, 1, 1, 2, 8])):
            packet[rng.randrange(len(packet))] = rng.randrange(256)
        if rng.random() < 0.3:
            del packet[rng.randrange(1, len(packet)) :]
        elif rng.random() < 0.2:
            packet += rng.randbytes(rng.randrange(SHORTEST_BUFFER))
        yield bytes(packet)


@pytest.mark.parametrize("seed", range(3))
async def test_no_packet_of_a_program_is_unheard_of(mock_clock, seed):
    source = packets(random.Random(seed))
    async with world(mock_clock) as w:
        for _ in range(60):
            for _ in range(4):
                await w.send(next(source))
            await trio.testing.wait_all_tasks_blocked()
            w.tun.outer.setblocking(False)
            while True:
                try:
                    w.tun.outer.recv(1 << 17)
                except BlockingIOError:
                    break
        assert w.count(COUNTER) == 0
        assert w.count("dropped_malformed")
