"""An exit path at its owner: ready tunnels, and using one (docs/spec/tunnel.md, "Outbound").

:class:`OwnedExit` is a path through other nodes; :class:`DirectExit` one of length zero, where
this node is its own exit node. Both offer the same two operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from phantom_tun.errors import (
    DeadlineExpired,
    PathUnavailable,
    PeerError,
    StreamReset,
    Unreachable,
)
from phantom_tun.ids import EntryId, NodeId, TunnelBlock
from phantom_tun.net.links.bulk import Bulk
from phantom_tun.net.tunnels.announcer import BUILD_TIMEOUT, Announcer
from phantom_tun.net.tunnels.exit_node import EntryDialer, ExitDatabase, share_of_lookups
from phantom_tun.net.tunnels.hub import TunnelHub
from phantom_tun.net.tunnels.puzzles import PuzzleDemanded, Puzzler
from phantom_tun.net.tunnels.tunnel import Tunnel
from phantom_tun.path.hop import OwnedPath
from phantom_tun.tunnel.blocks import outbound_pairs
from phantom_tun.tunnel.layers import PackageBox, owner_layers
from phantom_tun.wire.puzzles import Challenge, Solution
from phantom_tun.wire.tunnel import (
    Body,
    ConnectRequest,
    Operation,
    Package,
    Status,
    netdb_body,
    pack_block,
    unpack_failed,
)

TAKE_TIMEOUT = 12.0
"""Seconds a connect may wait for a ready tunnel."""

RESULT_TIMEOUT = 21.0
"""Seconds from the request to the result: a little more than the exit node allows itself."""


class Exit(Protocol):
    """A way out for one AP identity."""

    path: OwnedPath
    ended: bool

    @property
    def ready(self) -> int:
        """Tunnels that can be used at once."""
        ...

    @property
    def number(self) -> int:
        """Of the path."""
        ...

    def heard_since(self, moment: float) -> bool:
        """Whether the path itself has brought anything since then."""
        ...

    async def connect(
        self, entry_node: NodeId, entry_id: EntryId, sealed_request: bytes
    ) -> tuple[bytes, Tunnel]:
        """Take a sealed request to an entry node; returns the callee's answer and the tunnel.

        :raises Unreachable: the entry node or what is behind it can't be reached.
        :raises PathUnavailable: this path failed; another one may not.
        :raises DeadlineExpired: no result in time.
        """
        ...

    async def netdb_call(self, call: bytes) -> bytes:
        """One strict-API call, carried out by the exit node.

        :raises PathUnavailable: this path failed.
        :raises WorldError: the exit node got no usable answer.
        """
        ...


def check_status(status: Status, challenge: Challenge | None = None) -> None:
    """Turn why there is no answer into an exception.

    :raises PuzzleDemanded: there is one to be had by solving ``challenge``.
    :raises Unreachable: always, unless ``status`` is OK.
    """
    if challenge is not None:
        raise PuzzleDemanded(challenge)
    if status is not Status.OK:
        raise Unreachable(f"the far side gave no answer: {status.name.lower().replace('_', ' ')}")


class OwnedExit:
    """An exit path of at least one hop."""

    def __init__(
        self,
        path: OwnedPath,
        hub: TunnelHub,
        on_dead: Callable[[OwnedPath], None],
        on_doubt: Callable[[OwnedPath], None],
    ) -> None:
        self.path = path
        self._hub = hub
        self._announcer = Announcer(
            hub,
            draw=lambda: TunnelBlock(hub.rng.randbytes(16)),
            send=self._send,
            on_silence=lambda: on_dead(path),
            on_doubt=lambda: on_doubt(path),
        )
        self._puzzler = Puzzler(hub.workshop, hub.counts)
        self.active = 0
        self.ended = False
        """Nothing new begins in its tunnels."""

    @property
    def number(self) -> int:
        """Of the path."""
        return self.path.number

    @property
    def ends(self) -> float:
        """Until when its hops find it in order: an entry node stops sending blocks at that time,
        whatever becomes of the path at its owner."""
        return self.path.retires

    @property
    def ready(self) -> int:
        """Ready tunnels."""
        return self._announcer.ready

    def plug_in(self) -> None:
        """Start building ready tunnels."""
        self._hub.board.plug(self.path.members[0].node_id, self.path.first_connection, self)
        self._announcer.start()

    def unplug(self) -> None:
        """Stop building; tunnels in use finish by themselves."""
        self._hub.board.unplug(self.path.members[0].node_id, self.path.first_connection)
        self._announcer.stop()
        self.ended = True

    async def wait_first(self, within: float) -> None:
        """Wait until the path has given its first tunnel.

        :raises DeadlineExpired: it didn't.
        """
        await self._announcer.wait_first(within)

    async def wait_filled(self, within: float) -> None:
        """See :meth:`Announcer.wait_filled`."""
        await self._announcer.wait_filled(within)

    def heard_since(self, moment: float) -> bool:
        """See :class:`Exit`."""
        return self._announcer.heard_since(moment)

    # --- building -------------------------------------------------------------------------------

    def block_arrived(self, block: TunnelBlock) -> None:
        """Blocks never travel towards the owner of an exit path."""
        self._hub.counts["drop_block_at_owner"] += 1

    async def _send(self, block: TunnelBlock) -> None:
        first = self.path.members[0]
        await self._hub.links.signal(first, pack_block(self.path.first_connection, block))

    async def tunnel_opened(self, block: TunnelBlock, bulk: Bulk) -> None:
        """The exit node's answer to one of our blocks, through all hops."""
        announced = self._announcer.expects(block)
        if announced is None:
            self._hub.counts["drop_tunnel_unexpected"] += 1
            bulk.reset()
            return
        secrets = self.path.secrets
        pairs = outbound_pairs(secrets, block)
        layers = owner_layers(secrets, pairs, outbound=True)
        box = PackageBox("exit", secrets[-1], pairs[-1])
        tunnel = Tunnel(bulk, layers.outgoing, layers.incoming, box, path_number=self.path.number)
        try:
            await tunnel.receive_package(Package.INIT, BUILD_TIMEOUT)
        except (StreamReset, DeadlineExpired, PeerError):
            self._hub.counts["outbound_builds_broken"] += 1
            tunnel.reset()
            return
        if await self._announcer.keep(tunnel, announced):
            self.active += 1
            try:
                await tunnel.wait_released()
            finally:
                self.active -= 1
        else:
            tunnel.reset()

    # --- use ------------------------------------------------------------------------------------

    async def _exchange(self, request: Body) -> tuple[Body, Tunnel]:
        try:
            tunnel = await self._announcer.take(TAKE_TIMEOUT)
        except DeadlineExpired as error:
            raise PathUnavailable("the path gave no tunnel in time") from error
        try:
            await tunnel.send_package(Package.REPLY, request)
            return await self._announcer.receive_result(tunnel, RESULT_TIMEOUT), tunnel
        except StreamReset as error:
            tunnel.reset()
            raise PathUnavailable("the tunnel broke off") from error
        except PeerError as error:
            self._hub.counts["drop_result"] += 1
            tunnel.reset()
            raise PathUnavailable("the tunnel brought something altered") from error
        except BaseException:
            tunnel.reset()
            raise

    async def connect(
        self, entry_node: NodeId, entry_id: EntryId, sealed_request: bytes
    ) -> tuple[bytes, Tunnel]:
        """See :class:`Exit`."""

        async def attempt(solution: Solution) -> tuple[bytes, Tunnel]:
            request = ConnectRequest(entry_node, entry_id, sealed_request, solution).body()
            result, tunnel = await self._exchange(request)
            if result.operation is Operation.ANSWER:
                return result.content, tunnel
            self._hub.start_or(_finish, tunnel.reset, tunnel)
            check_status(*_failure(result))
            raise Unreachable("the exit node answered something else")

        return await self._puzzler.ask(entry_id, sealed_request, attempt)

    async def netdb_call(self, call: bytes) -> bytes:
        """See :class:`Exit`."""
        result, tunnel = await self._exchange(netdb_body(call))
        self._hub.start_or(_finish, tunnel.reset, tunnel)
        if result.operation is Operation.NETDB:
            return result.content
        check_status(_failure(result)[0])
        raise Unreachable("the exit node answered something else")


def _failure(result: Body) -> tuple[Status, Challenge | None]:
    if result.operation is not Operation.FAILED:
        return Status.OK, None
    try:
        return unpack_failed(result.content)
    except PeerError:
        return Status.CALL_FAILED, None


async def _finish(tunnel: Tunnel) -> None:
    try:
        await tunnel.finish()
    except StreamReset:
        tunnel.reset()
    finally:
        await tunnel.aclose()


class DirectExit:
    """An exit path of length zero: this node dials entry nodes and asks the netdb itself."""

    def __init__(
        self, path: OwnedPath, hub: TunnelHub, dialer: EntryDialer, database: ExitDatabase
    ) -> None:
        self.path = path
        self._puzzler = Puzzler(hub.workshop, hub.counts)
        self._dialer = dialer
        self._lookups = share_of_lookups()
        self._database = database
        self.active = 0
        self.ended = False
        """No new connections are made any more."""

    @property
    def number(self) -> int:
        """Of the path."""
        return self.path.number

    @property
    def ready(self) -> int:
        """A direct exit needs no preparation."""
        return 1

    def heard_since(self, moment: float) -> bool:
        """There is no path that could be silent."""
        return True

    def unplug(self) -> None:
        """Connections finish by themselves."""
        self.ended = True

    async def connect(
        self, entry_node: NodeId, entry_id: EntryId, sealed_request: bytes
    ) -> tuple[bytes, Tunnel]:
        """See :class:`Exit`."""

        async def attempt(solution: Solution) -> tuple[bytes, Tunnel]:
            request = ConnectRequest(entry_node, entry_id, sealed_request, solution)
            status, said, bulk = await self._dialer.ask(request, self._lookups)
            check_status(status, Challenge.unpack(said) if status is Status.PUZZLE else None)
            if bulk is None:
                raise Unreachable("the far side gave no answer")
            return said, Tunnel(bulk, path_number=self.path.number)

        return await self._puzzler.ask(entry_id, sealed_request, attempt)

    async def netdb_call(self, call: bytes) -> bytes:
        """See :class:`Exit`."""
        return await self._database.perform_for_exit(call)
