"""Links over TLS: the outer face of the links layer (docs/spec/links.md)."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace

import trio

from phantom_tun.clock import Clock, Rng
from phantom_tun.crypto.certificates import Certificate
from phantom_tun.crypto.signing import SigningKey, node_id_of
from phantom_tun.ids import NodeId
from phantom_tun.net.links.bulk import Bulk
from phantom_tun.net.links.credentials import OwnCredentials
from phantom_tun.net.links.dialer import Dialer
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.listener import Accepted, Greeter, Listener
from phantom_tun.net.links.neighbours import Neighbours
from phantom_tun.net.links.peers import LinkHandlers, NeighbourInfo, Peer
from phantom_tun.net.links.rest import rest
from phantom_tun.net.links.tls import HandshakeSteps
from phantom_tun.net.links.web import Site
from phantom_tun.net.links.workers import WorkerPlan, Workers
from phantom_tun.wire.door import Door
from phantom_tun.wire.nodes import IpAddress
from phantom_tun.wire.worker import Setup

__all__ = ["Bulk", "LinkHandlers", "LinkLimits", "Links", "NeighbourInfo", "Peer"]


class Links(Neighbours):
    """This node's links: dials others, listens for them, and is a web server to everyone else."""

    def __init__(
        self,
        identity: SigningKey,
        certificate: Certificate,
        network_id: bytes,
        *,
        limits: LinkLimits,
        clock: Clock,
        rng: Rng,
        web_page: bytes,
        workers: WorkerPlan | None = None,
    ) -> None:
        """``web_page``: HTML shown to strangers; ``workers``: processes that accept links and carry
        tunnels, ``None`` if this one does it all."""
        counts: Counter[str] = Counter()
        steps = HandshakeSteps(limits.handshake_steps)
        node_id = node_id_of(identity.public)
        door = Door(network_id, node_id, certificate.hash)
        self._credentials = OwnCredentials(identity, door, clock, rng)
        dialer = Dialer(
            self._credentials,
            network_id,
            limits=limits,
            steps=steps,
            clock=clock,
            rng=rng,
            counts=counts,
        )
        super().__init__(node_id, dialer.dial, limits=limits, counts=counts)
        self._greeter = Greeter(
            certificate,
            door,
            Site(web_page),
            self._credentials,
            limits=limits,
            steps=steps,
            clock=clock,
            counts=counts,
        )
        self._listener = Listener(self._greet, self.accept, limits=limits, counts=counts)
        self._workers: Workers | None = None
        if workers is not None:
            shared = _shares(limits, workers.count)
            setup = Setup(
                network_id, node_id, certificate.der, certificate.key_der, web_page, asdict(shared)
            )
            self._workers = Workers(workers, setup, self._credentials, self.accept, counts)

    async def run(
        self,
        listeners: Sequence[socket.socket],
        handlers: LinkHandlers,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen on ``listeners`` (bound and listening; none for a node that can't be dialed) and
        serve neighbours until cancelled; then every link is closed."""
        rest()  # as long as there are descriptors
        async with trio.open_nursery() as nursery:
            await nursery.start(self.tend, handlers)
            if self._workers is not None:
                nursery.start_soon(self._workers.run)
            for listener in listeners:
                nursery.start_soon(self._guard.forever, self._listener.serve, listener)
            task_status.started()

    def statistics(self) -> dict[str, int]:
        """Counters by name; ``drop_…`` counts what was turned away."""
        found = {**super().statistics(), "strangers": self._listener.strangers}
        if self._workers is not None:
            found |= self._workers.statistics()
            found["bulk_idle"] += found.pop("workers_bulk_idle")
        return found

    def neighbours(self) -> list[NeighbourInfo]:
        """Everyone there is a link with."""
        found, workers = super().neighbours(), self._workers
        if workers is None:
            return found
        return [
            replace(info, bulk_idle=info.bulk_idle + workers.idle(info.node_id)) for info in found
        ]

    async def _greet(self, tcp: socket.socket, address: IpAddress) -> Accepted | None:
        if self._workers is not None and await self._workers.greet(tcp, address):
            return None
        return await self._greeter.greet(tcp, address)

    def _closed(self, node_id: NodeId) -> None:
        if self._workers is not None:
            self._workers.forget(node_id)


def _shares(limits: LinkLimits, workers: int) -> LinkLimits:
    """What one of several processes may do, so that all together keep to ``limits``."""
    return replace(
        limits,
        dials=max(1, limits.dials // workers),
        idle_bulk=max(1, limits.idle_bulk // workers),
        spares=-(-limits.spares // workers),
    )
