"""Nodes die, freeze and come back: paths are rebuilt and connections work again, by themselves."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest
from labs import Lab, Node, lab_of, wait_until
from probing import DatagramProber, Prober, connects
from services import DatagramEcho, Echo, serving
from stalling import Transfer
from watching import Watch

from phantom_tun.control.model import PathInfo, TunnelInfo
from phantom_tun.control.schema import GetStatus, ListPaths, ListTunnels, RebuildPaths, Unexpose
from phantom_tun.net.sessions.offers import ONE_CALL

pytestmark = [pytest.mark.netns, pytest.mark.timeout(900)]

ECHO, OTHER = 7001, 7002
RECOVERY = 180.0
"""Seconds that a busy machine may need; the figures say how long it took."""
PROBED = 10.0
"""Seconds after a fault for which new connections are watched."""
FROZEN_IS_DEAD = 30.0
"""Seconds of silence after which neighbours take a node for dead (docs/spec/links.md)."""
LONG_FROZEN = 60.0
ATTEMPTS = 12
"""Connections that are made until one leads over a path that serves the test."""
BUILDS = 10
PATHS = 2
"""Of each kind; the default."""

slow = pytest.mark.slow
Figures = Callable[[str], None]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_of("--nodes", "16", "--exit-hops", "3", "--entry-hops", "3") as lab:
        yield lab


@pytest.fixture(scope="module")
def client(lab: Lab) -> Node:
    return lab["n15"]


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[Node]:
    node = lab["n16"]
    node.expose(ECHO, "tcp", "udp")
    node.expose(OTHER)
    with serving(node, ECHO, Echo):
        yield node


@pytest.fixture
def settled(client: Node, server: Node) -> None:
    """What an earlier test did is over."""
    for node in (client, server):
        wait_until(lambda node=node: all(paths(node, kind) for kind in ("exit", "entry")), RECOVERY)
    wait_until(lambda: connects(client, server, ECHO, 5.0), RECOVERY)


def paths(owner: Node, kind: str) -> list[PathInfo]:
    """The paths of a node that stand and give tunnels, if all do; else none."""
    found = [path for path in owner.ask(ListPaths()) if path.kind == kind]
    ready = [path for path in found if path.state == "ready" and path.tunnels_ready]
    return ready if len(ready) >= PATHS else []


def member(lab: Lab, owner: Node, kind: str, place: int, number: int = 0) -> Node:
    """One X-node of a path, counted from the owner."""
    node = lab.by_id()[paths(owner, kind)[number].nodes[place]]
    if node.name in ("n15", "n16"):
        pytest.skip("client and server lead through each other")
    return node


def are_rid_of(owner: Node, kind: str, lost: set[str]) -> bool:
    """Whether all paths stand, and none leads through these nodes."""
    found = paths(owner, kind)
    return bool(found) and not any(lost & set(path.nodes) for path in found)


def seconds_until(condition: Callable[[], bool], since: float) -> float:
    wait_until(condition, RECOVERY, 0.2)
    return time.monotonic() - since


def member_that_carries(
    lab: Lab, client: Node, server: Node, kind: str, ports: tuple[int, int]
) -> Node | None:
    """The middle node of the exit or entry path that carries a connection between two ports; none
    if that path is being replaced, or the node is one of both ends."""
    owner = client if kind == "exit" else server
    ends = tuple(f":{port}" for port in ports)

    def carrying() -> list[TunnelInfo]:
        return [t for t in owner.ask(ListTunnels()) if t.remote.endswith(ends)]

    wait_until(carrying)
    path = {path.id: path for path in paths(owner, kind)}.get(carrying()[0].path_id)
    node = None if path is None else lab.by_id()[path.nodes[1]]
    return None if node is None or node.name in ("n15", "n16") else node


@contextlib.contextmanager
def joined_through(
    lab: Lab, client: Node, server: Node, kind: str
) -> Iterator[tuple[socket.socket, socket.socket, Node]]:
    """Both ends of a connection, and the middle node of the exit or entry path that carries it."""
    for _ in range(ATTEMPTS):
        with client.joined(server, OTHER) as (caller, called):
            ports = (OTHER, caller.getsockname()[1])
            member = member_that_carries(lab, client, server, kind, ports)
            if member is not None:
                yield caller, called, member
                return
        time.sleep(1.0)
    pytest.skip("client and server lead through each other")


@contextlib.contextmanager
def killed(lab: Lab, *nodes: Node) -> Iterator[None]:
    """The nodes are dead until the end of the block."""
    for node in nodes:
        lab.command("kill", node.name)
    try:
        yield
    finally:
        for node in nodes:
            lab.command("start", node.name, timeout=300)
        lab.refresh()


@contextlib.contextmanager
def frozen(lab: Lab, node: Node) -> Iterator[None]:
    """The node stands still until the end of the block."""
    lab.command("pause", node.name)
    try:
        yield
    finally:
        lab.command("resume", node.name)


def longest_pause(transfer: Transfer, within: float) -> float:
    """Seconds in which nothing arrived, at most, while this waits for so long and until something
    arrives again."""
    end = time.monotonic() + within
    received, since, longest = transfer.received, time.monotonic(), 0.0
    while not transfer.errors:
        time.sleep(0.005)
        now = time.monotonic()
        if transfer.received > received:
            longest = max(longest, now - since)
            received, since = transfer.received, now
            if now > end:
                break
    return longest


def test_ten_builds(lab: Lab, client: Node, server: Node, figures: Figures) -> None:
    before = client.ask(GetStatus()).builds
    times: list[float] = []
    while client.ask(GetStatus()).builds.tried - before.tried < BUILDS:
        known = {path.id for path in client.ask(ListPaths())}
        client.ask(RebuildPaths())
        times += [
            path.build_s
            for path in client.ask(ListPaths())
            if path.id not in known and path.build_s is not None
        ]
    after = client.ask(GetStatus()).builds
    tried, succeeded = after.tried - before.tried, after.succeeded - before.succeeded
    took = []
    for _ in range(20):
        began = time.monotonic()
        assert connects(client, server, ECHO, 30.0)
        took.append(time.monotonic() - began)
    figures(
        f"{succeeded} of {tried} builds in a lab of 16, {statistics.median(times):.2f} s median; "
        f"connect and first byte {statistics.median(took) * 1e3:.0f} ms median"
    )
    assert succeeded / tried >= 0.9


# --- members of paths -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["exit", pytest.param("entry", marks=slow)])
@pytest.mark.parametrize(
    ("who", "place", "count"),
    [
        ("middle of an {} path", 1, 1),
        pytest.param("first members of all {} paths", 0, PATHS, marks=slow),
    ],
    ids=["middle", "first"],
)
@pytest.mark.usefixtures("settled")
def test_killed_members_are_replaced(
    lab: Lab,
    client: Node,
    server: Node,
    kind: str,
    who: str,
    place: int,
    count: int,
    figures: Figures,
) -> None:
    owner = client if kind == "exit" else server
    found = (member(lab, owner, kind, place, number) for number in range(count))
    victims = {node.name: node for node in found}
    lost = {node.node_id for node in victims.values()}
    with Prober(client, server, ECHO) as prober, killed(lab, *victims.values()):
        since = time.monotonic()
        stand = seconds_until(lambda: are_rid_of(owner, kind, lost), since)
        time.sleep(PROBED)
    figures(f"{who.format(kind)} killed: {prober.story(since)}; paths after {stand:.1f} s")
    assert not prober.failed(since)


@slow
@pytest.mark.parametrize("kind", ["exit", "entry"])
@pytest.mark.usefixtures("settled")
def test_a_frozen_member_is_passed_by(
    lab: Lab, client: Node, server: Node, kind: str, figures: Figures
) -> None:
    owner = client if kind == "exit" else server
    victim = member(lab, owner, kind, 1)
    with Prober(client, server, ECHO) as prober, frozen(lab, victim):
        since = time.monotonic()
        time.sleep(PROBED)
    figures(f"middle of an {kind} path frozen: {prober.story(since)}")
    assert not prober.failed(since)
    wait_until(lambda: victim.ask(GetStatus()).state == "ready", RECOVERY)


@pytest.mark.parametrize(
    ("kind", "direction"),
    [
        ("exit", "down"),
        pytest.param("exit", "up", marks=slow),
        pytest.param("entry", "down", marks=slow),
        pytest.param("entry", "up", marks=slow),
    ],
)
@pytest.mark.usefixtures("settled")
def test_a_transfer_goes_on_when_a_member_dies(
    lab: Lab, client: Node, server: Node, kind: str, direction: str, figures: Figures
) -> None:
    """Neither program notices more than a pause, and not a byte is lost."""
    with joined_through(lab, client, server, kind) as (caller, called, victim):
        ends = (called, caller) if direction == "down" else (caller, called)
        with Transfer(*ends) as transfer, killed(lab, victim):
            pause = longest_pause(transfer, PROBED)
            transfer.finish()
    assert not transfer.errors
    assert transfer.got.digest() == transfer.sent.digest()
    figures(
        f"middle of an {kind} path killed: a transfer {direction} paused for {pause:.2f} s and "
        f"went on, {transfer.received / 1e6:.0f} MB, nothing lost"
    )


@slow
@pytest.mark.parametrize("kind", ["exit", "entry"])
@pytest.mark.usefixtures("settled")
def test_a_transfer_goes_on_past_a_member_that_stays_frozen(
    lab: Lab, client: Node, server: Node, kind: str, figures: Figures
) -> None:
    with (
        joined_through(lab, client, server, kind) as (caller, called, victim),
        Transfer(caller, called) as transfer,
        frozen(lab, victim),
    ):
        pause = longest_pause(transfer, FROZEN_IS_DEAD + 25.0)
        transfer.finish()
    assert not transfer.errors
    assert transfer.got.digest() == transfer.sent.digest()
    figures(
        f"middle of an {kind} path stays frozen: a transfer went on after {pause:.1f} s, "
        "nothing lost"
    )
    assert pause < FROZEN_IS_DEAD + 20.0


@slow
@pytest.mark.parametrize("kind", ["exit", "entry"])
@pytest.mark.usefixtures("settled")
def test_a_transfer_goes_on_when_a_frozen_member_comes_back(
    lab: Lab, client: Node, server: Node, kind: str, figures: Figures
) -> None:
    with (
        joined_through(lab, client, server, kind) as (caller, called, victim),
        Transfer(called, caller) as transfer,
    ):
        with frozen(lab, victim):
            time.sleep(FROZEN_IS_DEAD / 2)
        before, resumed = transfer.received, time.monotonic()
        wait_until(lambda: transfer.received > before)
        took = time.monotonic() - resumed
        transfer.finish()
    assert not transfer.errors
    assert transfer.got.digest() == transfer.sent.digest()
    figures(
        f"middle of an {kind} path frozen for {FROZEN_IS_DEAD / 2:.0f} s: a transfer went on "
        f"{took:.1f} s after it was resumed, nothing lost"
    )


@slow
@pytest.mark.parametrize("kind", ["exit", "entry"])
@pytest.mark.usefixtures("settled")
def test_datagrams_find_another_way_past_a_member_that_stays_frozen(
    lab: Lab, client: Node, server: Node, kind: str, figures: Figures
) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(serving(server, ECHO, DatagramEcho))
        for _ in range(ATTEMPTS):
            with contextlib.ExitStack() as probing:
                prober = probing.enter_context(DatagramProber(client, server, ECHO))
                wait_until(lambda prober=prober: prober.came)
                ports = (ECHO, prober.socket.getsockname()[1])
                if member_that_carries(lab, client, server, kind, ports) is not None:
                    stack.push(probing.pop_all())
                    break
        else:
            pytest.skip("client and server lead through each other")
        time.sleep(ONE_CALL + 15.0)  # so that the flow that comes next is known for another one
        victim = member_that_carries(lab, client, server, kind, ports)
        if victim is None:
            pytest.skip("client and server lead through each other, or the path has just ended")
        with frozen(lab, victim):
            since = time.monotonic()
            time.sleep(FROZEN_IS_DEAD + 2 * PROBED)
            silence = prober.longest_silence(since)
    figures(f"middle of an {kind} path stays frozen: datagrams find another way in {silence:.1f} s")
    assert silence < FROZEN_IS_DEAD + PROBED


@slow
@pytest.mark.parametrize("frozen_ones", ["all", "client", "server"])
@pytest.mark.usefixtures("settled")
def test_who_was_frozen_goes_on_at_once(
    lab: Lab, client: Node, server: Node, frozen_ones: str, figures: Figures
) -> None:
    """As after a pause of virtual machines, or of one of them."""
    nodes = {"all": list(lab.nodes.values()), "client": [client], "server": [server]}[frozen_ones]
    for node in nodes:
        os.kill(lab[node.name].pid, signal.SIGSTOP)
    time.sleep(LONG_FROZEN)
    for node in nodes:
        os.kill(lab[node.name].pid, signal.SIGCONT)
    since = time.monotonic()
    with Prober(client, server, ECHO) as prober:
        time.sleep(2 * PROBED)
    figures(f"{frozen_ones} frozen for {LONG_FROZEN:.0f} s and resumed: {prober.story(since)}")
    assert not prober.failed(since)
    assert all(attempt.took < 10.0 for attempt in prober.attempts)


# --- the owner itself -----------------------------------------------------------------------------


def test_a_node_that_is_down_leaks_nothing(lab: Lab) -> None:
    node = lab["n14"]
    targets = {ip_address("240.1.2.3"), ip_address("2001:2f:1:2:3:4:5:6")}
    elsewhere = ip_address("192.0.2.1")
    # With a default route, as every ordinary machine has, packets would have somewhere to go.
    node.check("ip", "route", "add", "default", "via", lab["n1"].underlay, "onlink", "dev", "eth0")
    node.check("ip", "route", "add", "default", "via", lab["n1"].underlay6, "onlink", "dev", "eth0")
    try:
        with killed(lab, node), Watch(node, "eth0") as outside:
            for target in targets:
                with pytest.raises(OSError, match="No route to host"):
                    node.dial(target.version, str(target), ECHO)
                with (
                    node.socket(target.version, socket.SOCK_DGRAM) as sock,
                    pytest.raises(OSError, match="No route to host"),
                ):
                    sock.sendto(b"leak", (str(target), ECHO))
            # The watch works: this one is seen.
            with node.socket(4, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"seen", (str(elsewhere), ECHO))
            wait_until(lambda: elsewhere in outside.seen())
            assert not targets & outside.seen()
    finally:
        node.check("ip", "-4", "route", "del", "default")
        node.check("ip", "-6", "route", "del", "default")


def test_connections_of_a_node_that_stops_are_reset(
    lab: Lab, client: Node, server: Node, figures: Figures
) -> None:
    """It says so, both as caller and as called, and behind all that is on its way: nobody looks for
    another way to it."""
    node = lab["n14"]
    node.expose(OTHER)
    with (
        node.joined(server, OTHER) as (own, called),
        client.joined(node, OTHER) as (caller, taken),
        client.joined(node, OTHER) as (slow, fast),
    ):
        for sender, receiver in ((own, called), (called, own), (caller, taken), (taken, caller)):
            sender.sendall(b"here")
            assert receiver.recv(4) == b"here"
        fast.settimeout(1.0)
        with pytest.raises(TimeoutError):  # nobody reads
            fast.sendall(bytes(200_000_000))
        began = time.monotonic()
        stopping = threading.Thread(target=lab.command, args=("stop", node.name))
        stopping.start()
        for sock in (called, caller, slow):
            sock.settimeout(10.0)
            with pytest.raises(ConnectionResetError):
                while sock.recv(1 << 20):
                    pass
        took = time.monotonic() - began
        stopping.join()
    lab.command("start", node.name, timeout=300)
    lab.refresh()
    figures(f"a node stopped: its connections were reset at the other ends within {took:.1f} s")


@pytest.mark.parametrize("end", ["kill", pytest.param("stop", marks=slow)])
def test_a_node_that_comes_back_has_its_addresses_and_is_reachable(
    lab: Lab, client: Node, end: str, figures: Figures
) -> None:
    before = lab["n13"]
    node_id, pid = before.node_id, before.pid
    before.expose(ECHO)
    with serving(before, ECHO, Echo):
        wait_until(lambda: connects(client, before, ECHO, 30.0), RECOVERY)
        lab.command(end, before.name)
        lab.command("start", before.name, timeout=300)
        started = time.monotonic()
        # Rules are kept as well. Who calls still has the old ways in.
        wait_until(lambda: connects(client, before, ECHO, 30.0), RECOVERY)
        took = time.monotonic() - started
        lab.refresh()
        after = lab["n13"]
    after.ask(Unexpose(ECHO, "tcp"))
    figures(f"after {end} and start: connected {took:.1f} s after the node was ready")
    assert (after.ap(4), after.ap(6), after.node_id) == (before.ap(4), before.ap(6), node_id)
    assert after.pid != pid
