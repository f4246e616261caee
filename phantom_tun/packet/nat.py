"""The symmetric address table that lets the kernel's own TCP end the applications' connections.

Every flow has two sides, both of them kernel sockets of this machine, which believe to talk to
somebody behind the interface:

- the *application* (or local service), whose packets carry real AP addresses, and
- the daemon's *socket*, at the listener address L, whose packets go to a peer that doesn't exist:
  N:n where an application connected out, M:m where the daemon connects to a local service.

One binding is two rewrites, mirror images of each other::

    application sends  A:p → R:q    becomes   N:n → L:l    (reverse of what the socket sends)
    socket sends       L:l → N:n    becomes   R:q → A:p    (reverse of what the application sends)

For an inbound connection the application is the service A:port, R the remote caller, N:n is M:m and
L:l the socket that connects. Only headers change, so every property of TCP passes through.

A released binding lingers while a kernel may still repeat a FIN or an ACK; its port is not given
out again before that. A new connection of the same application key displaces a lingering one.

The table is changed by one thread; :attr:`NatTable.rewrites` may be read by another at any time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from phantom_tun.endpoints import Endpoint
from phantom_tun.errors import CapacityExceeded, UsageError
from phantom_tun.packet.checksum import difference
from phantom_tun.packet.header import FlowKey, flow_key, reverse_key

Witness = Callable[[memoryview], None]
"""Is shown a packet after it was rewritten and sent on, in the thread that did so."""

Rewrite = tuple[bytes, int, int, Witness | bool]
"""Replacement for the flow key, what that adds to the TCP checksum, and to the IPv4 checksum; and
``True``, or who has to see the packet then. A bare tuple because the hot loop unpacks one per
packet."""

FIRST_PORT = 1024
LAST_PORT = 65_535


@dataclass(frozen=True, slots=True)
class Binding:
    """One flow in the table."""

    application: FlowKey
    """Key of the packets the application or local service sends."""
    socket: FlowKey
    """Key of the packets the daemon's socket sends."""
    peer: Endpoint
    """N:n or M:m, whom the daemon's socket believes to talk to."""


@dataclass(frozen=True, slots=True)
class _Lingering:
    binding: Binding
    until: float


def rewrite(old: FlowKey, new: FlowKey) -> Rewrite:
    """The entry that turns packets of key ``old`` into packets of key ``new``."""
    return new, difference(new, old), difference(new[:-4], old[:-4]), True


class NatTable:
    """Bindings of both IP versions; see the module's description.

    :param linger: seconds for which a released binding still translates late segments.
    :param start: port given out first. A random one keeps a restarted daemon away from what the
        kernel remembers of the last one's connections.
    """

    def __init__(self, linger: float, start: int = FIRST_PORT) -> None:
        self.rewrites: dict[bytes, Rewrite] = {}
        """Live bindings, both directions: what the hot loop looks at."""
        self.lingering: dict[bytes, Rewrite] = {}
        """Released bindings, both directions."""
        self._linger = linger
        self._start = start
        self._released: deque[_Lingering] = deque()
        self._by_application: dict[FlowKey, Binding] = {}
        self._lingering_by_application: dict[FlowKey, Binding] = {}
        self._used: set[Endpoint] = set()
        self._next: dict[IPv4Address | IPv6Address, int] = {}

    def __len__(self) -> int:
        """Number of live bindings."""
        return len(self._by_application)

    @property
    def released(self) -> int:
        """Number of bindings that linger."""
        return len(self._released)

    def bind(
        self,
        application: FlowKey,
        local: Endpoint,
        peer: IPv4Address | IPv6Address,
        witness: Witness | None = None,
    ) -> Binding:
        """Join the application's key to the daemon's socket at ``local``; the socket's packets will
        go to a fresh port of ``peer``.

        :param witness: is shown what the application sends until :meth:`settle`.
        :raises UsageError: the application's key has a live binding.
        :raises CapacityExceeded: all ports of ``peer`` are taken.
        """
        if application in self._by_application:
            raise UsageError("this flow is in the address table already")
        far = self._free_port(peer)
        socket_key = flow_key(local, far)
        binding = Binding(application, socket_key, far)
        self._used.add(far)
        self._forget_lingering(application)
        self._by_application[application] = binding
        self.rewrites[socket_key] = rewrite(socket_key, reverse_key(application))
        entry = rewrite(application, reverse_key(socket_key))
        self.rewrites[application] = (*entry[:3], witness or True)
        return binding

    def settle(self, binding: Binding) -> None:
        """Nobody has to see the flow's packets any more. Idempotent."""
        if self._by_application.get(binding.application) is binding:
            entry = self.rewrites[binding.application]
            self.rewrites[binding.application] = (*entry[:3], True)

    def release(self, binding: Binding, now: float) -> None:
        """The flow is over; keep translating its late segments for a while. Idempotent."""
        if self._by_application.get(binding.application) is not binding:
            return
        self.settle(binding)
        del self._by_application[binding.application]
        for key in (binding.application, binding.socket):
            # In this order: who looks into both tables, one after the other, finds it.
            self.lingering[key] = self.rewrites[key]
            del self.rewrites[key]
        self._lingering_by_application[binding.application] = binding
        self._released.append(_Lingering(binding, now + self._linger))

    def expire(self, now: float) -> int:
        """Forget bindings that have lingered long enough; returns how many."""
        count = 0
        while self._released and self._released[0].until <= now:
            binding = self._released.popleft().binding
            self._used.discard(binding.peer)
            # Unless displaced since, by a binding that may linger itself by now.
            if self._lingering_by_application.get(binding.application) is binding:
                self._forget_lingering(binding.application)
            count += 1
        return count

    def _forget_lingering(self, application: FlowKey) -> None:
        binding = self._lingering_by_application.pop(application, None)
        if binding is not None:
            del self.lingering[binding.application]
            del self.lingering[binding.socket]

    def _free_port(self, peer: IPv4Address | IPv6Address) -> Endpoint:
        start = self._next.get(peer, self._start)
        span = LAST_PORT - FIRST_PORT + 1
        for step in range(span):
            port = FIRST_PORT + (start - FIRST_PORT + step) % span
            candidate = Endpoint(peer, port)
            if candidate not in self._used:
                self._next[peer] = port + 1
                return candidate
        raise CapacityExceeded("all ports of the address table are taken")
