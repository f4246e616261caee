"""The interface as a whole: see :mod:`phantom_tun.tun` for the parts and the order to read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from phantom_tun.clock import SYSTEM_RNG
from phantom_tun.endpoints import Endpoint, LocalConnection, LocalDatagrams, Overlay
from phantom_tun.errors import Filtered, UsageError
from phantom_tun.ids import ApAddress
from phantom_tun.packet.layers import load_layers
from phantom_tun.packet.nat import FIRST_PORT, LAST_PORT, NatTable
from phantom_tun.packet.rewrite import make_translator
from phantom_tun.tun.datagrams import Datagrams
from phantom_tun.tun.desk import Desk
from phantom_tun.tun.device import TunDevice, writer
from phantom_tun.tun.flows import BufferPool, Counters, FlowInfo
from phantom_tun.tun.host import Host, LinuxHost
from phantom_tun.tun.inbound import Inbound
from phantom_tun.tun.outbound import Outbound
from phantom_tun.tun.plan import AddressPlan
from phantom_tun.tun.pump import Pump
from phantom_tun.tun.settings import InterfaceConfig
from phantom_tun.tun.shared import Shared

TICK = 1.0
"""Seconds between looks at what has to be forgotten."""
FAREWELL = 0.2
"""Seconds the pump goes on after the flows were reset, so that their programs hear of it."""
PRELOAD_AFTER = 5.0
"""Seconds until what a first connection needs is loaded, unless one came earlier."""
_TIDY_TIME = 10.0


@dataclass(frozen=True, slots=True)
class _Running:
    """What exists while the interface is up."""

    shared: Shared
    outbound: Outbound
    inbound: Inbound
    datagrams: Datagrams
    desk_counters: Counters
    pump: Pump


class Interface:
    """Connects the programs of this machine with the overlay, both ways; implements
    :class:`phantom_tun.endpoints.LocalHost`.

    :param config: names, prefixes, our addresses at the start, bounds.
    :param device: from :func:`phantom_tun.tun.device.open_tun`; closed when :meth:`run` ends.
    :param host: what sets addresses and routes; this machine unless given.
    """

    def __init__(
        self, config: InterfaceConfig, device: TunDevice, host: Host | None = None
    ) -> None:
        self._config = config
        self._device = device
        self._host = host or LinuxHost(
            device.name,
            config.mtu,
            config.ap4,
            config.ap6,
            require_filter=config.require_filter,
        )
        self._plan = AddressPlan(config.ap4, config.ap6)
        self._addresses: tuple[ApAddress, ...] = ()
        self._changing = trio.Lock()
        self._running: _Running | None = None
        self._guarded = False

    async def guard(self) -> None:
        """Make the leak guard: to be the first thing a machine with an interface does, before
        anything of it meets a network.

        :raises UsageError: no ``ip`` tool, or the filter is required and can't be had.
        :raises WorldError: routes could not be set.
        """
        await self._host.guard()
        self._guarded = True

    async def keep_guard(self) -> None:
        """Put back what others take away of the leak guard; for ever."""
        await self._host.keep_guard()

    def warnings(self) -> list[str]:
        """Sentences: what is missing of the leak guard."""
        return self._host.warnings()

    async def run(
        self, overlay: Overlay, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Be the interface until cancelled. Reports started once every address answers.

        What ends it early: the device is removed by somebody else (:class:`WorldError`). The leak
        guard, which is made unless :meth:`guard` has done so, stays in any case; on the way out all
        flows are reset and the firewall is as it was.

        :raises UsageError: no ``ip`` tool.
        :raises WorldError: addresses or routes could not be set.
        """
        try:
            if not self._guarded:
                await self.guard()
            await self._host.bring_up()
            await self._be_up(self._build(overlay), task_status)
        except ExceptionGroup as group:
            raise _reason(group) from group
        finally:
            self._device.close()

    @property
    def addresses(self) -> tuple[ApAddress, ...]:
        """Our AP addresses at the moment; the first of each family is the default source."""
        return self._addresses

    async def set_addresses(self, wanted: Callable[[], Sequence[ApAddress]]) -> None:
        """Own these addresses and no others; flows of those that go are reset.

        :param wanted: asked when earlier changes are done, so that the last word counts whatever
            the order in which it came.
        :raises UsageError: one is outside the AP prefixes or reserved, or the interface is down.
        :raises WorldError: the host wouldn't have it.
        """
        async with self._changing:
            addresses = tuple(wanted())
            if addresses != self._addresses:
                await self._change(addresses)

    async def connect_stream(self, caller: Endpoint, target: Endpoint) -> LocalConnection:
        """See :class:`phantom_tun.endpoints.LocalHost`."""
        return await self._up().inbound.connect(caller, target)

    async def open_datagrams(self, caller: Endpoint, target: Endpoint) -> LocalDatagrams:
        """See :class:`phantom_tun.endpoints.LocalHost`."""
        return self._up().datagrams.open_inbound(caller, target)

    def flows(self) -> list[FlowInfo]:
        """Everything that is open, opening or draining, the oldest first."""
        if self._running is None:
            return []
        shared = self._running.shared
        now = shared.now()
        return sorted((flow.info(now) for flow in shared.flows), key=lambda f: -f.age)

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables, and what was dropped, answered or gone wrong since the start."""
        if self._running is None:
            return {}
        running = self._running
        nat = running.shared.nat
        totals = Counter(
            flows=len(running.shared.flows), tcp_bound=len(nat), tcp_lingering=nat.released
        )
        for counters in (running.pump.counters, running.desk_counters, running.shared.counters):
            totals.update(counters.snapshot())
        return dict(totals)

    def _build(self, overlay: Overlay) -> _Running:
        config = self._config
        shared = Shared(
            plan=self._plan,
            nat=NatTable(config.timeouts.linger, SYSTEM_RNG.randint(FIRST_PORT, LAST_PORT)),
            timeouts=config.timeouts,
            limits=config.limits,
            token=trio.lowlevel.current_trio_token(),
            clock=trio.lowlevel.current_clock(),
            write=writer(self._device),
            buffers=BufferPool(config.limits.spare_buffers),
        )
        outbound = Outbound(shared, overlay, self._device)
        inbound = Inbound(shared, self._device)
        datagrams = Datagrams(shared, overlay)
        desk_counters = Counters()
        desk = Desk(shared, outbound, datagrams, inbound, desk_counters)
        pump = Pump(self._device, make_translator(shared.nat.rewrites), datagrams.table, desk)
        return _Running(shared, outbound, inbound, datagrams, desk_counters, pump)

    async def _change(self, addresses: Sequence[ApAddress]) -> None:
        running = self._running
        if running is None:
            raise UsageError("the interface is down")
        for address in addresses:
            if not self._plan.is_ap(address):
                raise UsageError(f"{address} is no AP address of this network")
        gone = self._plan.own - set(addresses)
        self._plan.own -= gone
        flows = [flow for flow in running.shared.flows if any(map(flow.is_of, gone))]
        for flow in flows:
            flow.scope.cancel()
        if flows:
            # Their programs can hear of it only while the address is there.
            await trio.sleep(FAREWELL)
        await self._host.set_addresses(addresses)
        self._plan.own = frozenset(addresses)
        self._addresses = tuple(addresses)

    def _up(self) -> _Running:
        if self._running is None:
            raise Filtered("the interface is down")
        return self._running

    async def _be_up(self, running: _Running, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as around:
            around.start_soon(running.pump.run)
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(running.outbound.run)
                    await nursery.start(running.datagrams.run)
                    nursery.start_soon(running.shared.guard.forever, self._tick, running)
                    nursery.start_soon(running.shared.guard.once, _preload)
                    await self._host.open_firewall()
                    self._running = running
                    await self._change(self._config.addresses)
                    task_status.started()
            finally:
                self._running = None
                # Flows of remote callers run in the overlay's tasks, which may go on.
                for flow in running.shared.flows:
                    flow.scope.cancel()
                with trio.CancelScope(shield=True):
                    await trio.sleep(FAREWELL)
                running.pump.stop()
                with trio.move_on_after(_TIDY_TIME, shield=True):
                    await self._host.close_firewall()

    async def _tick(self, running: _Running) -> None:
        while True:
            await trio.sleep(TICK)
            running.outbound.tick()
            running.shared.nat.expire(running.shared.now())
            for bridge in list(running.shared.bridges):
                bridge.end_if_dead()


async def _preload() -> None:
    """Load scapy when the start is over, so that the first connection need not wait for it."""
    await trio.sleep(PRELOAD_AFTER)
    await trio.to_thread.run_sync(load_layers)


def _reason(group: ExceptionGroup[Exception]) -> Exception:
    """The one thing that went wrong, taken out of the nurseries it went through; several stay a
    group."""
    error: Exception = group
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
