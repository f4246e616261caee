"""UDP flows and ICMP echo exchanges, in both directions.

No socket of ours is involved: messages are cut out of the packets that a local program sends, and
packets are made of the messages that come back, so that a datagram costs one read or one write of
the device. One flow is one 5-tuple (echo: source, destination, identifier) and one
:class:`~phantom_tun.endpoints.DatagramStream`.

The first messages wait in the flow's queue while the overlay opens the stream. What becomes of the
flow is what becomes of it in an IP network:

====================================  ==========================================
overlay or far side                   the local program sees
====================================  ==========================================
stream opens                          replies
Refused                               ICMP port unreachable
Unreachable                           ICMP host unreachable
Filtered                              nothing
far side closes, last message         ICMP port unreachable (that is how a remote
unanswered                            closed port shows)
nothing moves for the idle time       nothing; the next message opens a new flow
====================================  ==========================================
"""

from __future__ import annotations

import trio

from phantom_tun.endpoints import DatagramStream, Endpoint, Overlay
from phantom_tun.errors import (
    Filtered,
    PhantomError,
    Refused,
    Unreachable,
    WireError,
    WorldError,
)
from phantom_tun.packet.answer import QUOTE, host_unreachable, port_unreachable
from phantom_tun.packet.framing import MAX_MESSAGE, EchoFraming, Framing, UdpFraming
from phantom_tun.packet.header import MAX_PACKET, FlowKey, endpoints_of, flow_key
from phantom_tun.queues import QueueShares
from phantom_tun.tasks import Tasks
from phantom_tun.tun.flows import DatagramTransport, Direction, Flow, MessageQueue
from phantom_tun.tun.shared import Shared

GATHER_TIME = 0.002
"""Seconds between the batches in which messages of a busy flow go out. Each node on the way has
the same work with a batch as with one message: at 50 Mbit/s of 1200-byte messages that halves the
processor time (``scripts/bench --only plain/ours``), for a millisecond of delay."""
_RELEASE_TIME = 5.0
"""Seconds the overlay may take to release a stream."""
ANSWER_TIME = 10.0
"""A far side that closes within this many seconds of an unanswered message has refused it."""


class DatagramFlow(Flow):
    """One flow.

    :param key: of the packets the local program sends.
    :param framing: makes packets for it.
    :param shares: what its queue may hold.
    """

    __slots__ = ("framing", "key", "last_moved", "last_sent", "queue", "quote")

    def __init__(
        self,
        transport: DatagramTransport,
        direction: Direction,
        ends: tuple[Endpoint, Endpoint],
        *,
        key: FlowKey,
        framing: Framing,
        shares: QueueShares,
        shared: Shared,
    ) -> None:
        now = shared.now()
        super().__init__(transport, direction, *ends, now)
        limits = shared.limits
        self.key = key
        self.framing = framing
        self.queue = MessageQueue(limits.queued_messages, shares, shared.token)
        self.last_moved = now
        self.last_sent: float | None = None
        """When the last message went out that has had no answer."""
        self.quote = b""
        """Start of the packet an ICMP error would complain about."""

    def offer(self, message: bytes) -> bool:
        """Send a message of the local program; see :class:`phantom_tun.tun.pump.Inlet`."""
        return self.queue.offer(message)


class Datagrams:
    """All flows; implements :class:`phantom_tun.tun.desk.DatagramDesk`."""

    def __init__(self, shared: Shared, overlay: Overlay) -> None:
        self._shared = shared
        self._overlay = overlay
        self._tasks = Tasks(shared.guard)
        self._echo_count = 0
        self.table: dict[FlowKey, DatagramFlow] = {}
        """What the pump looks at."""
        self._live: dict[str, set[DatagramFlow]] = {"udp": set(), "echo": set()}
        limits = shared.limits
        self._shares = QueueShares(
            limits.queued_bytes_all, most=limits.queued_bytes, least=MAX_PACKET
        )

    # --- the pump's thread ----------------------------------------------------------------------

    def begin(
        self, transport: DatagramTransport, key: FlowKey, packet: bytes, message: bytes
    ) -> str | None:
        """See :class:`~phantom_tun.tun.desk.DatagramDesk`."""
        if self._is_full(transport):
            return f"{transport}_flows_full"
        source, target = endpoints_of(key)
        framing: Framing
        if transport == "udp":
            framing = UdpFraming(target, source)
        else:
            framing = EchoFraming(target, source, identifier=message[:2])
            source, target = Endpoint(source.address, 0), Endpoint(target.address, 0)
        flow = DatagramFlow(
            transport,
            "out",
            (source, target),
            key=key,
            framing=framing,
            shares=self._shares,
            shared=self._shared,
        )
        flow.quote = packet[:QUOTE]
        if not flow.offer(message):
            return "queue_full"
        self._add(flow)
        self.table[key] = flow
        self._shared.token.run_sync_soon(self._start, flow)
        return None

    def refuse(self, key: FlowKey) -> bool:
        """See :class:`~phantom_tun.tun.desk.DatagramDesk`."""
        flow = self.table.get(key)
        if flow is None:
            return False
        self._shared.token.run_sync_soon(flow.scope.cancel)
        return True

    # --- trio's thread --------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve flows of local programs until cancelled."""
        await self._tasks.run(task_status)

    def open_inbound(self, caller: Endpoint, target: Endpoint) -> Association:
        """A flow from a remote ``caller`` to a local service; see
        :meth:`phantom_tun.endpoints.LocalHost.open_datagrams`."""
        shared = self._shared
        shared.check_ends(caller, target)
        if self._is_full("udp"):
            raise shared.filtered("inbound_udp_flows_full", "too many UDP flows")
        key = flow_key(target, caller)
        framing = UdpFraming(caller, target)
        flow = DatagramFlow(
            "udp",
            "in",
            (caller, target),
            key=key,
            framing=framing,
            shares=self._shares,
            shared=shared,
        )
        self._add(flow)
        shared.flows.add(flow)
        # If the service itself has called the caller from this very port, its messages go on
        # travelling in that flow; this one then only delivers.
        self.table.setdefault(key, flow)
        return Association(self, flow)

    async def exchange(self, flow: DatagramFlow, stream: DatagramStream) -> None:
        """Move messages both ways until either side is done; then forget the flow."""
        try:
            await _Exchange(self._shared, flow, stream).run()
        finally:
            self.forget(flow)
            with trio.move_on_after(_RELEASE_TIME, shield=True):
                await stream.aclose()

    def forget(self, flow: DatagramFlow) -> None:
        """The next message of this 5-tuple opens a new flow. Idempotent."""
        self._shared.flows.discard(flow)
        self._live[flow.transport].discard(flow)
        self._share()
        if self.table.get(flow.key) is flow:
            del self.table[flow.key]

    def _add(self, flow: DatagramFlow) -> None:
        self._live[flow.transport].add(flow)
        self._share()

    def _share(self) -> None:
        self._shares.members = sum(map(len, self._live.values()))

    def _is_full(self, transport: DatagramTransport) -> bool:
        limits = self._shared.limits
        limit = limits.datagram_flows if transport == "udp" else limits.echo_flows
        return len(self._live[transport]) >= limit

    def _start(self, flow: DatagramFlow) -> None:
        if self._tasks.start(self._serve, flow):
            self._shared.flows.add(flow)
        else:
            self.forget(flow)

    async def _serve(self, flow: DatagramFlow) -> None:
        try:
            with flow.scope:
                stream = await self._ask(flow)
                if stream is not None:
                    await self.exchange(flow, stream)
                    self._complain_if_refused(flow)
        finally:
            self.forget(flow)

    async def _ask(self, flow: DatagramFlow) -> DatagramStream | None:
        """The overlay's stream; or ``None`` once the program has got the answer it gets."""
        shared = self._shared
        ask = self._overlay.open_datagrams if flow.transport == "udp" else self._overlay.open_echo
        try:
            with trio.fail_after(shared.timeouts.open):
                return await ask(flow.source, flow.target)
        except Refused:
            shared.counters.add("answered_refused")
            if flow.transport == "udp":
                shared.write_or_count(port_unreachable(flow.quote))
        except Unreachable:
            shared.counters.add("answered_unreachable")
            gateway = shared.plan.roles[flow.target.address.version].peer
            shared.write_or_count(host_unreachable(flow.quote, gateway))
        except (Filtered, trio.TooSlowError):
            shared.counters.add("answered_silence")
            flow.state = "silent"
            flow.queue.shut()
            await trio.sleep(shared.timeouts.filtered_retry)
        except WorldError:
            shared.counters.add("open_failed")
        return None

    def _complain_if_refused(self, flow: DatagramFlow) -> None:
        if (
            flow.state == "closed there"
            and flow.transport == "udp"
            and flow.last_sent is not None
            and self._shared.now() - flow.last_sent < ANSWER_TIME
        ):
            self._shared.counters.add("answered_refused")
            self._shared.write_or_count(port_unreachable(flow.quote))


class Association:
    """A flow from a remote caller; implements :class:`phantom_tun.endpoints.LocalDatagrams`."""

    def __init__(self, datagrams: Datagrams, flow: DatagramFlow) -> None:
        self._datagrams = datagrams
        self._flow = flow

    async def carry(self, stream: DatagramStream) -> None:
        """See :class:`~phantom_tun.endpoints.LocalDatagrams`."""
        with self._flow.scope:
            await self._datagrams.exchange(self._flow, stream)

    def abort(self) -> None:
        """See :class:`~phantom_tun.endpoints.LocalDatagrams`."""
        self._flow.scope.cancel()
        self._datagrams.forget(self._flow)


class _Exchange:
    """Messages of one flow, both ways."""

    def __init__(self, shared: Shared, flow: DatagramFlow, stream: DatagramStream) -> None:
        self._shared = shared
        self._flow = flow
        self._stream = stream
        timeouts = shared.timeouts
        self._idle = timeouts.udp_idle if flow.transport == "udp" else timeouts.echo_idle

    async def run(self) -> None:
        """Return when the far side has closed, the tunnel has died or nothing moves."""
        self._flow.state = "open"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._outwards, nursery.cancel_scope)
            nursery.start_soon(self._inwards, nursery.cancel_scope)
            await self._wait_idle()
            nursery.cancel_scope.cancel()

    async def _outwards(self, scope: trio.CancelScope) -> None:
        shared, flow, send, queue = self._shared, self._flow, self._stream.send, self._flow.queue
        gathered_until = 0.0
        try:
            while True:
                await queue.wait()
                now = shared.now()
                # What comes alone goes at once; what comes close behind waits for company.
                if now < gathered_until:
                    await trio.sleep_until(gathered_until)
                    now = gathered_until
                gathered_until = now + GATHER_TIME
                for message in queue.take_all():
                    if len(message) > MAX_MESSAGE:
                        shared.counters.add("dropped_too_long")
                        continue
                    await send(message)
                    flow.sent += len(message)
                flow.last_moved = flow.last_sent = now
        except PhantomError:
            scope.cancel()

    async def _inwards(self, scope: trio.CancelScope) -> None:
        shared, flow, receive, header = (
            self._shared, self._flow, self._stream.receive, self._flow.framing.header,
        )  # fmt: skip
        try:
            while (message := await receive()) is not None:
                flow.last_moved = shared.now()
                flow.last_sent = None
                flow.received += len(message)
                try:
                    shared.write_or_count(header(message), message)
                except WireError:
                    shared.counters.add("dropped_bad_message")
            flow.state = "closed there"
        except PhantomError:
            flow.state = "broken"
        scope.cancel()

    async def _wait_idle(self) -> None:
        # The deadline moves while it is waited for.
        while (due := self._flow.last_moved + self._idle) > self._shared.now():  # noqa: ASYNC110
            await trio.sleep_until(due)
