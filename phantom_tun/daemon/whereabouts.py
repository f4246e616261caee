"""Notices that the machine slept, or has other addresses than before, and tells the node: its links
lead nowhere then, and would show it only after half a minute of silence."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable

import structlog
import trio

from phantom_tun.config import Address, NodeConfig
from phantom_tun.daemon.underlay import addresses_of_default_routes, advertised_addresses
from phantom_tun.daemon.wiring import Watched
from phantom_tun.errors import ConfigError

LOOK_EVERY = 2.0
"""Seconds between looks at the machine."""
LONG_SLEEP = 20.0
"""Seconds of sleep after which neighbours may have given this node up (docs/spec/links.md)."""

_log = structlog.get_logger(__name__)


def seconds_asleep() -> float:
    """For how long the machine has been suspended since it started."""
    awake = time.clock_gettime(time.CLOCK_MONOTONIC)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - awake


def is_own(address: Address) -> bool:
    """Whether the machine has this address."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


class Whereabouts:
    """What was last seen of the machine."""

    def __init__(
        self,
        settings: NodeConfig,
        *,
        asleep: Callable[[], float] = seconds_asleep,
        find: Callable[[], Iterable[Address]] = addresses_of_default_routes,
        has: Callable[[Address], bool] = is_own,
    ) -> None:
        """``settings``: as the user wrote them; ``find``: the addresses that links are made from;
        ``has``: whether one is still there."""
        self._settings = settings
        self._asleep = asleep
        self._find = find
        self._has = has
        self._slept = asleep()
        self._addresses = frozenset(find())

    async def watch(self, node: Watched) -> None:
        """Tell ``node`` what happens until cancelled."""
        while True:
            await trio.sleep(LOOK_EVERY)
            self.look(node)

    def look(self, node: Watched) -> None:
        """Look once."""
        before, self._slept = self._slept, self._asleep()
        found = frozenset(self._find())
        if found and (self._is_one_gone() or self._has_new_family(found)):
            self._move(node, found)
        elif self._slept - before >= LONG_SLEEP:
            _log.info("this machine slept", seconds=round(self._slept - before))
            node.woke()
        else:
            # One that is merely not the first choice any more, as IPv6 has them every day, does no
            # harm as long as it's there.
            self._addresses |= found

    def _is_one_gone(self) -> bool:
        return not all(self._has(address) for address in self._addresses)

    def _has_new_family(self, found: frozenset[Address]) -> bool:
        """Whether others can dial us over IPv4 or IPv6 again, which they couldn't lately."""
        known = {address.version for address in self._addresses}
        return any(address.version not in known for address in found)

    def _move(self, node: Watched, found: frozenset[Address]) -> None:
        try:
            addresses = advertised_addresses(self._settings)
        except ConfigError:
            return  # there is none yet at which others may dial us
        self._addresses = found
        _log.info("this machine has other addresses than before")
        node.moved(addresses)
