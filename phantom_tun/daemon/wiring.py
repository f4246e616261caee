"""The one place where the daemon learns what a node and its interface are made of."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import trio

from phantom_tun.config import Address, Config
from phantom_tun.control.backend import ControlBackend
from phantom_tun.daemon.workers import WorkerSpawner
from phantom_tun.profile import Profile

if TYPE_CHECKING:
    from phantom_tun.tun.interface import Interface


class Watched(Protocol):
    """Hears what happens to the machine."""

    def moved(self, addresses: Sequence[Address]) -> None:
        """The machine has other addresses than before; at these it is to be dialed now."""
        ...

    def woke(self) -> None:
        """The machine slept for so long that others have given it up."""
        ...


class DaemonNode(Protocol):
    """What the daemon needs of a node."""

    @property
    def backend(self) -> ControlBackend:
        """Answers the control socket; usable before and while :meth:`run` runs."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Be a node until cancelled, then stop in order; started means READY: the address is up
        and the network database joined."""
        ...

    @property
    def machine(self) -> Watched:
        """To be told what happens to the machine while :meth:`run` runs."""
        ...


NodeFactory = Callable[[Config, Profile, list[socket.socket], "Interface | None"], DaemonNode]
InterfaceOpener = Callable[[Config, Profile], "Interface"]


def open_interface(config: Config, profile: Profile) -> Interface:
    """Make the network interface while there is privilege to do so; it has no address yet.

    :raises UsageError: no permission, no TUN support or the name is taken; says what to do.
    """
    # A node that only relays does without: 1 MB.
    from phantom_tun.tun.device import open_tun  # noqa: PLC0415
    from phantom_tun.tun.interface import Interface  # noqa: PLC0415
    from phantom_tun.tun.settings import InterfaceConfig, Timeouts  # noqa: PLC0415

    settings = InterfaceConfig(
        name=config.interface.name,
        mtu=config.interface.mtu,
        ap4=profile.ap4,
        ap6=profile.ap6,
        require_filter=config.interface.require_filter,
        timeouts=Timeouts(udp_idle=config.interface.udp_idle_s),
    )
    return Interface(settings, open_tun(settings.name))


def load_node() -> NodeFactory:
    """The node of this package. Loaded before privileges are dropped, since afterwards its files
    may not be readable any more.
    """
    from phantom_tun.node import Node  # noqa: PLC0415 - most of the program; fakes do without

    def new_node(
        config: Config,
        profile: Profile,
        listeners: list[socket.socket],
        interface: Interface | None,
    ) -> DaemonNode:
        return Node(config, profile, listeners, interface, WorkerSpawner(config.log))

    return new_node
