"""The address table: symmetry, reuse, lingering, exhaustion."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from phantom_tun.endpoints import Endpoint
from phantom_tun.errors import CapacityExceeded, UsageError
from phantom_tun.packet.header import FlowKey, endpoints_of, flow_key, reverse_key
from phantom_tun.packet.nat import FIRST_PORT, LAST_PORT, Binding, NatTable

LISTENER = Endpoint(ip_address("240.0.0.1"), 40_000)
PEER = ip_address("240.0.0.2")
APPLICATION = Endpoint(ip_address("241.1.2.3"), 50_000)
REMOTE = Endpoint(ip_address("250.9.8.7"), 443)
KEY = flow_key(APPLICATION, REMOTE)

addresses4 = st.integers(0, 2**32 - 1).map(ip_address)
addresses6 = st.integers(2**32, 2**128 - 1).map(ip_address)
ports = st.integers(0, 65_535)
endpoint_pairs = st.one_of(
    *(
        st.tuples(st.builds(Endpoint, family, ports), st.builds(Endpoint, family, ports))
        for family in (addresses4, addresses6)
    )
)


@given(endpoint_pairs)
def test_keys_name_their_endpoints(pair: tuple[Endpoint, Endpoint]) -> None:
    key = flow_key(*pair)
    assert len(key) in (12, 36)
    assert endpoints_of(key) == pair
    assert reverse_key(key) == flow_key(pair[1], pair[0])
    assert reverse_key(reverse_key(key)) == key


def test_a_witness_sees_what_the_application_sends_until_the_flow_is_settled() -> None:
    table = NatTable(linger=10)

    def witness(_packet: memoryview) -> None:
        raise AssertionError

    binding = table.bind(KEY, LISTENER, PEER, witness)
    assert table.rewrites[KEY][3] is witness
    assert table.rewrites[binding.socket][3] is True
    table.settle(binding)
    assert table.rewrites[KEY][3] is True
    table.release(binding, 0)
    again = table.bind(KEY, LISTENER, PEER, witness)
    table.settle(binding)  # of the earlier one
    assert table.rewrites[KEY][3] is witness
    table.release(again, 0)
    assert table.lingering[KEY][3] is True


def test_a_binding_is_two_mirrored_rewrites() -> None:
    table = NatTable(linger=65)
    binding = table.bind(KEY, LISTENER, PEER)
    assert binding.peer.address == PEER
    assert table.rewrites[KEY][0] == flow_key(binding.peer, LISTENER)
    back = flow_key(LISTENER, binding.peer)
    assert table.rewrites[back][0] == flow_key(REMOTE, APPLICATION)
    assert len(table) == 1


def test_a_bound_flow_cant_be_bound_again() -> None:
    table = NatTable(linger=65)
    table.bind(KEY, LISTENER, PEER)
    with pytest.raises(UsageError):
        table.bind(KEY, LISTENER, PEER)
    assert len(table.rewrites) == 2


def test_released_flows_linger_then_go() -> None:
    table = NatTable(linger=65)
    binding = table.bind(KEY, LISTENER, PEER)
    entries = dict(table.rewrites)
    table.release(binding, now=100.0)
    table.release(binding, now=120.0)  # idempotent: the first time counts
    assert not table.rewrites
    assert table.lingering == entries
    assert table.expire(164.9) == 0
    assert table.released == 1
    assert table.expire(165.0) == 1
    assert not table.lingering
    assert table.released == 0


def test_a_new_connection_displaces_a_lingering_one_but_not_its_port() -> None:
    table = NatTable(linger=65)
    first = table.bind(KEY, LISTENER, PEER)
    table.release(first, now=0.0)
    second = table.bind(KEY, LISTENER, PEER)
    assert second.peer != first.peer
    assert not table.lingering
    assert table.rewrites[KEY][0] == flow_key(second.peer, LISTENER)
    assert table.expire(65.0) == 1
    assert table.rewrites[KEY][0] == flow_key(second.peer, LISTENER)


def test_expiry_of_a_displaced_binding_spares_its_lingering_successor() -> None:
    table = NatTable(linger=65)
    first = table.bind(KEY, LISTENER, PEER)
    table.release(first, now=0.0)
    second = table.bind(KEY, LISTENER, PEER)
    table.release(second, now=10.0)
    assert table.expire(65.0) == 1
    assert table.lingering[KEY][0] == reverse_key(second.socket)
    assert table.expire(75.0) == 1
    assert not table.lingering


def test_ports_are_bounded_and_come_back_after_the_linger_time() -> None:
    table = NatTable(linger=65, start=LAST_PORT - 1)
    count = LAST_PORT - FIRST_PORT + 1
    bindings = [
        table.bind(FlowKey(i.to_bytes(12, "big")), LISTENER, PEER) for i in range(1, count + 1)
    ]
    assert len({b.peer.port for b in bindings}) == count
    with pytest.raises(CapacityExceeded):
        table.bind(KEY, LISTENER, PEER)
    table.bind(KEY, LISTENER, ip_address("240.0.0.3"))  # another peer has its own ports
    table.release(bindings[7], now=0.0)
    other = FlowKey(b"x" * 12)
    with pytest.raises(CapacityExceeded):
        table.bind(other, LISTENER, PEER)
    table.expire(65.0)
    assert table.bind(other, LISTENER, PEER).peer == bindings[7].peer


class NatMachine(RuleBasedStateMachine):
    """Any order of operations keeps the two directions consistent."""

    def __init__(self) -> None:
        super().__init__()
        self.table = NatTable(linger=10)
        self.live: dict[FlowKey, Binding] = {}
        self.now = 0.0

    @rule(remote_port=st.integers(1, 5))
    def bind(self, remote_port: int) -> None:
        key = flow_key(APPLICATION, Endpoint(REMOTE.address, remote_port))
        if key in self.live:
            with pytest.raises(UsageError):
                self.table.bind(key, LISTENER, PEER)
        else:
            self.live[key] = self.table.bind(key, LISTENER, PEER)

    @rule(remote_port=st.integers(1, 5))
    def release(self, remote_port: int) -> None:
        key = flow_key(APPLICATION, Endpoint(REMOTE.address, remote_port))
        if key in self.live:
            self.table.release(self.live.pop(key), self.now)

    @rule(seconds=st.floats(0, 12))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.table.expire(self.now)

    @invariant()
    def both_directions_agree(self) -> None:
        assert len(self.table) == len(self.live)
        assert len(self.table.rewrites) == 2 * len(self.live)
        for entries in (self.table.rewrites, self.table.lingering):
            for key, (new, *_) in entries.items():
                assert entries[reverse_key(FlowKey(new))][0] == reverse_key(FlowKey(key))
        ports = [binding.peer for binding in self.live.values()]
        assert len(set(ports)) == len(ports)


TestNatMachine = NatMachine.TestCase
