"""Builds over real TLS links on the loopback interface, and what they cost."""

import ipaddress
import random
import socket
import time
from contextlib import ExitStack, asynccontextmanager

import trio

from phantom_tun.clock import HOUR, SystemClock
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.crypto.x509 import make_certificate
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.links import Links
from phantom_tun.netdb import proof
from phantom_tun.netdb.signing import sign_node_record
from phantom_tun.path.keys import PathKeys
from phantom_tun.testing.path_nodes import KnownNode, PathNode, PathWorld
from phantom_tun.testing.record_factory import NETWORK
from phantom_tun.wire.records import Capability, NodeAddress

CLOCK = SystemClock()


def tls_node(number, port, known, certificate):
    signing = SigningKey(bytes([number]) * 32)
    keys = PathKeys(CLOCK.now())
    rng = random.Random(number)
    network_id = NETWORK.network_id
    record = sign_node_record(
        signing,
        network_id,
        cert_hash=certificate.hash,
        addresses=[NodeAddress.of(ipaddress.ip_address(f"127.{number}.0.1"), port)],
        path_key=keys.published.public,
        path_key_until=keys.published.until,
        capabilities=Capability.RELAY | Capability.DIALABLE,
        created=CLOCK.now(),
        expires=CLOCK.now() + 3600,
        pow_nonce=proof.solve(network_id, signing.public, NETWORK.pow_bits),
    )
    links = Links(
        signing, certificate, network_id, limits=LinkLimits(), clock=CLOCK, rng=rng, web_page=b""
    )
    return PathNode(links, record, keys, clock=CLOCK, rng=rng, known=known, allow_loopback=True)


@asynccontextmanager
async def tls_world(count):
    known = []
    certificate = make_certificate("localhost", time.time())
    with ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            nodes = []
            for number in range(1, count + 1):
                listener = stack.enter_context(socket.socket())
                listener.bind((f"127.{number}.0.1", 0))
                listener.listen(100)
                port = listener.getsockname()[1]
                node = tls_node(number, port, known, certificate)
                await nursery.start(node.run, [listener])
                nodes.append(node)
            known += [KnownNode(node.record, node.keys.published.public) for node in nodes]
            yield PathWorld(None, nodes)
            nursery.cancel_scope.cancel()


async def test_paths_are_built_over_real_links_which_are_used_again():
    async with tls_world(12) as world:
        owner = world.nodes[0]
        times = []
        for number in range(12):
            kind = "entry" if number % 2 else "exit"
            started, cpu = time.perf_counter(), time.process_time()
            path = await owner.builder.build(kind, 3, "main", lambda *_: b"route", lifetime=HOUR)
            times.append((time.perf_counter() - started, time.process_time() - cpu))
            for member, secret in zip(path.members, path.secrets, strict=True):
                assert secret in {hop.path_secret for hop in world[member.node_id].hops}
        print("wall and CPU seconds of the build:", *(f"{w:.3f}/{c:.3f}" for w, c in times))
        assert owner.builder.statistics()["builds_succeeded"] == 12
