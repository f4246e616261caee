"""Connections that a node makes to see whether they work: echo exchanges for ping and why."""

from __future__ import annotations

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
    StreamReset,
    Unreachable,
)
from phantom_tun.ids import ApAddress
from phantom_tun.net.inquiry import NotPublished
from phantom_tun.net.pins import PinChanged
from phantom_tun.netdb.addresses import is_ap_address
from phantom_tun.view.identities import check_running, one

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
    """Send echo requests, each of them answered or not in its time. A connection that fails, or
    can't be made in time, is made again for the next one.

    :raises ControlError: there is nothing to ping: see :func:`check_target`, :func:`source_for`;
        ``not_found``, nobody has the address; ``conflict``, not the pinned owner any more;
        ``timeout``, its owner's node doesn't answer pings.
    :raises PathUnavailable: no way out.
    """
    check_running(node)
    source = source_for(node, address)
    check_target(node, address)
    pinger = _Pinger(node, source, Endpoint(address, 0), pace)
    rtts: list[float | None] = []
    try:
        while pace.count is None or len(rtts) < pace.count:
            if rtts:
                await trio.sleep(pace.interval_s)
            reply = await pinger.once(len(rtts) + 1)
            rtts.append(reply.rtt_ms)
            await report(reply)
    finally:
        await pinger.close()
    return PingSummary.of(rtts)


class _Pinger:
    """One address being pinged."""

    def __init__(self, node: Node, source: Endpoint, target: Endpoint, pace: Pace) -> None:
        self._node = node
        self._source = source
        self._target = target
        self._pace = pace
        self._echo: DatagramStream | None = None

    async def once(self, sequence: int) -> PingReply:
        """One echo request."""
        try:
            with trio.fail_after(self._pace.timeout_s):
                if self._echo is None:
                    self._echo = await self._open()
                rtt = await echo_once(self._echo, sequence, self._pace.size)
                return PingReply(sequence, self._pace.size + 8, rtt)
        except trio.TooSlowError:
            return PingReply(sequence, 0, None)
        except (StreamReset, Unreachable, NoAnswer) as error:
            await self.close()
            return PingReply(sequence, 0, None, str(error))
        except CapacityExceeded as error:
            return PingReply(sequence, 0, None, str(error))

    async def _open(self) -> DatagramStream:
        """
        :raises ControlError: what no further attempt would change.
        """
        target = self._target
        try:
            return await self._node.sessions.open_echo(self._source, target)
        except PinChanged as error:
            raise ControlError("conflict", str(error)) from error
        except NotPublished as error:
            raise ControlError("not_found", not_published(target.address)) from error
        except NoAnswer:
            raise
        except Filtered as error:
            raise ControlError("timeout", f"{target.address} doesn't answer pings") from error

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
    """From where to reach ``target``: the first identity's address of the same family.

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
    """That ``address`` is outside the network."""
    network = node.network
    return (
        f"{address} can't belong to anybody: the AP addresses of this network are in "
        f"{network.ap4} and {network.ap6}"
    )


def not_published(address: ApAddress) -> str:
    """That nobody has ``address``."""
    return f"nobody has published the AP address {address}"
