"""Connections that a node makes to see whether they work: echo exchanges for ping and why."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from phantom_tun.control.model import PingReply, PingSummary
from phantom_tun.control.schema import ControlError
from phantom_tun.endpoints import DatagramStream, Endpoint
from phantom_tun.errors import (
    CapacityExceeded,
    Filtered,
    NoAnswer,
    PathUnavailable,
    PhantomError,
    StreamReset,
    Unreachable,
    WorldError,
)
from phantom_tun.ids import ApAddress
from phantom_tun.net.addresses.inquiry import NotPublished
from phantom_tun.net.addresses.pins import PinChanged
from phantom_tun.netdb.addresses import is_ap_address
from phantom_tun.view.identities import check_running, no_path, one

if TYPE_CHECKING:
    from phantom_tun.node import Node

_ECHO_HEADER = struct.Struct("!HH")


@dataclass(frozen=True, slots=True)
class Pace:
    """How pings are sent."""

    count: int | None
    """``None``: until cancelled."""
    interval_s: float
    timeout_s: float
    size: int
    """Data bytes of each."""


async def ping(
    node: Node,
    address: ApAddress,
    pace: Pace,
    report: Callable[[PingReply], Awaitable[None]],
) -> PingSummary:
    """Send echo requests, each of them answered or not in its time. A connection that fails is made
    again for the next one; one that takes long may take the time of several.

    :raises ControlError: there is nothing to ping: see :func:`check_target`, :func:`source_for`;
        ``not_found``, nobody has the address; ``conflict``, not the pinned owner any more;
        ``timeout``, its owner's node doesn't answer pings.
    :raises PathUnavailable: no way out.
    """
    check_running(node)
    name = one(node, None).name
    check_target(node, address)
    if not node.connector.exit_count(name):
        raise PathUnavailable(no_path(node, name, "exit"))
    source = source_for(node, address)
    rtts: list[float | None] = []
    failure: PhantomError | None = None
    async with trio.open_nursery() as nursery:
        pinger = _Pinger(node, source, Endpoint(address, 0), pace, nursery)
        try:
            while pace.count is None or len(rtts) < pace.count:
                if rtts:
                    await trio.sleep(pace.interval_s)
                reply = await pinger.once(len(rtts) + 1)
                rtts.append(reply.rtt_ms)
                await report(reply)
        except PhantomError as error:
            failure = error
        finally:
            await pinger.close()
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return PingSummary.of(rtts)


class _Pinger:
    """One address being pinged."""

    def __init__(
        self, node: Node, source: Endpoint, target: Endpoint, pace: Pace, nursery: trio.Nursery
    ) -> None:
        self._node = node
        self._source = source
        self._target = target
        self._pace = pace
        self._nursery = nursery
        self._echo: DatagramStream | None = None
        self._opened: trio.Event | None = None
        """While a connection is being made; set when it is there or has failed."""
        self._failure: WorldError | None = None

    async def once(self, sequence: int) -> PingReply:
        """One echo request.

        :raises ControlError: what no further attempt would change.
        :raises WorldError: there's no way out.
        """
        try:
            with trio.fail_after(self._pace.timeout_s):
                rtt = await echo_once(await self._exchange(), sequence, self._pace.size)
                return PingReply(sequence, self._pace.size + 8, rtt)
        except trio.TooSlowError:
            return PingReply(sequence, 0, None)
        except (StreamReset, Unreachable, NoAnswer) as error:
            await self.close()
            return PingReply(sequence, 0, None, str(error))
        except CapacityExceeded as error:
            return PingReply(sequence, 0, None, str(error))

    async def _exchange(self) -> DatagramStream:
        """The echo exchange; a new one if there is none. It is made in a task of its own: ways that
        don't work any more may cost more time than one ping has."""
        if self._echo is None and self._failure is None:
            opened = self._opened
            if opened is None:
                opened = self._opened = trio.Event()
                self._nursery.start_soon(self._open, opened)
            await opened.wait()
        failure, self._failure = self._failure, None
        if failure is not None or self._echo is None:
            raise self._explained(failure or StreamReset("the connection is gone"))
        return self._echo

    async def _open(self, opened: trio.Event) -> None:
        try:
            self._echo = await self._node.sessions.open_echo(self._source, self._target)
        except WorldError as error:
            self._failure = error
        self._opened = None
        opened.set()

    def _explained(self, error: WorldError) -> PhantomError:
        address = self._target.address
        match error:
            case PinChanged():
                return ControlError("conflict", str(error))
            case NotPublished():
                return ControlError("not_found", not_published(address))
            case Filtered() if not isinstance(error, NoAnswer):
                return ControlError("timeout", f"{address} doesn't answer pings")
        return error

    async def close(self) -> None:
        """End the echo exchange, if there is one."""
        echo, self._echo = self._echo, None
        if echo is not None:
            with trio.CancelScope(shield=True):
                await echo.aclose()


async def echo_once(echo: DatagramStream, sequence: int, size: int) -> float:
    """Send one echo message with ``size`` bytes and wait for it; returns milliseconds.

    :raises StreamReset: the exchange is over.
    :raises CapacityExceeded: too much is waiting to be sent.
    """
    message = _ECHO_HEADER.pack(0, sequence & 0xFFFF) + bytes(size)
    began = trio.current_time()
    await echo.send(message)
    while (answer := await echo.receive()) is not None:
        if answer == message:
            return (trio.current_time() - began) * 1000
    raise StreamReset("the other side ended the exchange")


@asynccontextmanager
async def echo_exchange(
    node: Node, source: Endpoint, address: ApAddress
) -> AsyncIterator[DatagramStream]:
    """An echo exchange with ``address`` that ends with the block.

    :raises ConnectFailed: see :class:`~phantom_tun.endpoints.Overlay`.
    :raises WorldError: no way out.
    """
    echo = await node.sessions.open_echo(source, Endpoint(address, 0))
    try:
        yield echo
    finally:
        with trio.CancelScope(shield=True):
            await echo.aclose()


def source_for(node: Node, target: ApAddress) -> Endpoint:
    """From where to reach ``target``, once there is a path: the first identity's address of the
    same family.

    :raises ControlError: ``unavailable``, there is none.
    """
    identity = one(node, None)
    if target.version == 6:
        return Endpoint(identity.ap6, 0)
    if identity.ap4 is None:
        raise ControlError(
            "unavailable",
            f"{identity.name!r} holds no IPv4 address yet; its IPv6 address works already",
        )
    return Endpoint(identity.ap4, 0)


def check_target(node: Node, address: ApAddress) -> None:
    """
    :raises ControlError: ``not_found``, ``address`` can't be anybody's; ``invalid``, it is ours.
    """
    if not is_ap_address(node.network, address):
        raise ControlError("not_found", no_ap_address(node, address))
    if node.identities.owner_of(address) is not None:
        raise ControlError(
            "invalid",
            f"{address} is this node's own address, which takes no way through the network; "
            f"'phantom-tun why {address}' says whether others can reach it",
        )


def no_ap_address(node: Node, address: ApAddress) -> str:
    """That ``address`` is outside the network, or reserved within."""
    network = node.network
    if address in network.ap4 or address in network.ap6:
        block = ipaddress.ip_network((address, 16 if address.version == 4 else 64), strict=False)
        is_first = block.network_address in {
            network.ap4.network_address,
            network.ap6.network_address,
        }
        what_for = " for the interface itself" if is_first else ""
        return f"{address} can't belong to anybody: {block} is reserved{what_for}"
    return (
        f"{address} can't belong to anybody: the AP addresses of this network are in "
        f"{network.ap4} and {network.ap6}"
    )


def not_published(address: ApAddress) -> str:
    """That nobody has ``address``."""
    return f"nobody has published the AP address {address}"
