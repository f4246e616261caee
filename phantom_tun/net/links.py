"""Links over TLS: the outer face of the links layer (docs/spec/links.md)."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence

import trio

from phantom_tun.clock import Clock, Rng
from phantom_tun.crypto.certificates import Certificate
from phantom_tun.crypto.signing import SigningKey, node_id_of
from phantom_tun.net.bulk import Bulk
from phantom_tun.net.dialer import Dialer
from phantom_tun.net.limits import LinkLimits
from phantom_tun.net.listener import Listener
from phantom_tun.net.neighbours import Neighbours
from phantom_tun.net.peers import LinkHandlers, NeighbourInfo, Peer
from phantom_tun.net.tls import HandshakeSteps
from phantom_tun.net.web import Site
from phantom_tun.wire.door import Door

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
    ) -> None:
        """``web_page``: HTML shown to strangers."""
        counts: Counter[str] = Counter()
        steps = HandshakeSteps(limits.handshake_steps)
        node_id = node_id_of(identity.public)
        dialer = Dialer(
            identity,
            network_id,
            limits=limits,
            steps=steps,
            clock=clock,
            rng=rng,
            counts=counts,
        )
        super().__init__(node_id, dialer.dial, limits=limits, counts=counts)
        self._listener = Listener(
            identity,
            certificate,
            Door(network_id, node_id, certificate.hash),
            Site(web_page),
            limits=limits,
            steps=steps,
            clock=clock,
            rng=rng,
            counts=counts,
            on_link=self.accept,
        )

    async def run(
        self,
        listeners: Sequence[socket.socket],
        handlers: LinkHandlers,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen on ``listeners`` (bound and listening; none for a node that can't be dialed) and
        serve neighbours until cancelled; then every link is closed."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.tend, handlers)
            for listener in listeners:
                nursery.start_soon(self._guard.forever, self._listener.serve, listener)
            task_status.started()

    def statistics(self) -> dict[str, int]:
        """Counters by name; ``drop_…`` counts what was turned away."""
        return {**super().statistics(), "strangers": self._listener.strangers}
