"""One running node, put together (docs/design.md).

This is the only place that knows all parts. :class:`Node` builds them from settings and keys, in
the order of the layers; :meth:`Node.run` starts them, each under the nursery that ends it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio

from phantom_tun.clock import MINUTE, SYSTEM_RNG, SystemClock
from phantom_tun.config import Config, NodeConfig
from phantom_tun.control.model import NodeState
from phantom_tun.errors import PeerError, UsageError, WorldError
from phantom_tun.ids import CertHash, NodeId
from phantom_tun.net import links
from phantom_tun.net.addresses.identities import ApIdentity, IdentityStore, LeaseState
from phantom_tun.net.addresses.pins import Pins
from phantom_tun.net.links.bulk import Bulk
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.links import Links
from phantom_tun.net.links.peers import Peer
from phantom_tun.net.links.workers import Spawn, WorkerPlan
from phantom_tun.net.netdb.files import NetdbFiles
from phantom_tun.net.netdb.node_database import NodeDatabase
from phantom_tun.net.netdb.own_record import NodeFacts, OwnRecord, in_record
from phantom_tun.net.netdb.service import NetdbService
from phantom_tun.net.paths.builder import PathBuilder, Surroundings
from phantom_tun.net.paths.guard_file import GuardFile
from phantom_tun.net.paths.guard_watch import GuardNews
from phantom_tun.net.paths.machine_events import MachineEvents
from phantom_tun.net.paths.member import PathMember
from phantom_tun.net.paths.pool import Change, PathEvent
from phantom_tun.net.paths.pools import PathPools, PathWishes
from phantom_tun.net.sessions.expose import ExposeRules
from phantom_tun.net.tunnels.connector import Connector
from phantom_tun.net.tunnels.entry_node import EntryDesk
from phantom_tun.net.tunnels.exit_node import EntryDialer
from phantom_tun.net.tunnels.hops import HopHost
from phantom_tun.net.tunnels.hub import TunnelHub
from phantom_tun.net.tunnels.owned_entry import Accept
from phantom_tun.net.tunnels.ready_pool import PoolLimits
from phantom_tun.net.tunnels.switchboard import Switchboard
from phantom_tun.net.tunnels.workshop import Workshop
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.netdb.overrides import InForce, Overrides
from phantom_tun.node_keys import create_node_keys
from phantom_tun.path.candidates import family_tag
from phantom_tun.path.hop import OwnedPath, PathHop
from phantom_tun.path.keys import PathKeys
from phantom_tun.path.member import Member, MemberLimits
from phantom_tun.profile import Profile
from phantom_tun.view.backend import NodeView
from phantom_tun.view.health import PathDeaths
from phantom_tun.wire.netdb import UpdateApRoutes
from phantom_tun.wire.nodes import IpAddress, NodeRef
from phantom_tun.wire.records import Capability

if TYPE_CHECKING:
    from phantom_tun.net.addresses.directory import Directory
    from phantom_tun.net.sessions.service import SessionService
    from phantom_tun.net.sessions.table import SessionInfo
    from phantom_tun.owner import Owner
    from phantom_tun.tun.interface import Interface

CACHE_FILE = "nodes.cache"
HOLDINGS_FILE = "records.held"
OVERRIDES_FILE = "overrides.known"
RULES_FILE = "expose.json"

_log = structlog.get_logger(__name__)


class Node:
    """A node of one network."""

    def __init__(
        self,
        config: Config,
        profile: Profile,
        listeners: list[socket.socket],
        interface: Interface | None,
        spawn_worker: Spawn | None = None,
    ) -> None:
        """
        :param listeners: bound and listening; empty for a node that can't be dialed.
        :param interface: the network interface, ``None`` for a node that only relays.
        :param spawn_worker: starts a worker process; without it this process does all the work.
        :raises ConfigError: a key or state file can't be used; says what to do.
        """
        self.config = config
        self.profile = profile
        self.clock = SystemClock()
        self._rng = SYSTEM_RNG
        self._listeners = listeners
        self._interface = interface
        self._workers: WorkerPlan | None = None
        if spawn_worker is not None and config.relay.workers > 1:
            self._workers = WorkerPlan(config.relay.workers, spawn_worker)
        self._state_dir = config.node.state_dir
        self._started = self.clock.now()
        self._phase: NodeState = "starting"
        self.deaths = PathDeaths()
        self.progress = trio.Event()
        """Set, and replaced, whenever a path or lease has changed."""

        self.network = NetworkParams(profile.network_id, profile.pow_bits, profile.ap4, profile.ap6)
        self.keys = create_node_keys(self._state_dir, self.network)
        self._build_foundation()
        self._build_relay()
        self._build_owner()
        self.backend = NodeView(self)

    # --- building, in the order of the layers -----------------------------------------------------

    def _build_foundation(self) -> None:
        """Links, own record, guards, netdb, tunnels."""
        config, rng = self.config, self._rng
        neighbours = min(2048, config.limits.links)
        self.links = Links(
            self.keys.signing,
            self.keys.certificate,
            self.network.network_id,
            limits=LinkLimits(
                neighbours=neighbours,
                neighbours_per_network=neighbours // 4,
                relayed=config.limits.relayed_tunnels,
            ),
            clock=self.clock,
            rng=rng,
            web_page=_web_page(config.node),
            workers=self._workers,
        )
        self._path_keys = PathKeys(self.clock.now())
        self._own_record = OwnRecord(
            self.keys,
            self.network.network_id,
            self._path_keys,
            self._facts(),
            clock=self.clock,
            rng=rng,
        )
        self.guard_file = GuardFile(self._state_dir)
        self._guards = self.guard_file.load(config.guards.trusted_ids)
        self.netdb = NetdbService(
            self.network,
            self._own_record.current,
            self._own_record.path_key,
            self.links.call,
            clock=self.clock,
            rng=rng,
            files=NetdbFiles(
                self._state_dir / CACHE_FILE,
                self._state_dir / HOLDINGS_FILE,
                self._state_dir / OVERRIDES_FILE,
            ),
            overrides=Overrides(
                self.network,
                self.profile.override_keys,
                config.guards.trusted_ids | {self.keys.node_id},
                enabled=config.network.overrides,
            ),
            on_override=self._overridden,
            neighbours=self._linked,
            trusted=config.guards.trusted_ids,
            kept=self._guards,
        )
        addresses = config.node.advertised_addresses
        version = 6 if addresses and all(found.version == 6 for found in addresses) else 4
        self._database = NodeDatabase(self.netdb, version)
        self.desk = EntryDesk(self.clock, rng)
        self.board = Switchboard(self._array, self.desk.handle, self.netdb.handle_call)
        tunnels = config.tunnels
        limits = PoolLimits(low=max(1, tunnels.ready_min), high=tunnels.ready_max)
        self._workshop = Workshop(rng)
        self.hub = TunnelHub(
            self.links, self.board, limits, self.clock, rng, workshop=self._workshop
        )

    def _build_relay(self) -> None:
        """What this node does for others."""
        self._dialer = EntryDialer(self.hub, self._database)
        self.hops = HopHost(
            self.hub,
            self.desk,
            self._database,
            self._dialer,
            publish=self._publish_route,
            on_end=self._hop_ended,
        )
        limits = MemberLimits(hops=self.config.limits.relayed_paths)
        member = Member(self.keys.node_id, self.network.network_id, self._path_keys, limits)
        self.member = PathMember(
            member,
            self._path_keys,
            self.links,
            on_hop=self.hops.add,
            on_hop_lost=self.hops.remove,
            on_new_key=lambda _key: self._own_record.renew(self.netdb.set_own_record),
            on_demand=self._ask_for_work,
            clock=self.clock,
            rng=self._rng,
        )

    def _build_owner(self) -> None:
        """What this node does for its own AP identities."""
        config, rng = self.config, self._rng
        self.builder = PathBuilder(
            self.links,
            self.member,
            self.network.network_id,
            self._guards,
            Surroundings(
                own_record=lambda: self._own_record.current,
                candidates=lambda _now: self.netdb.candidates(),
                relatives=config.node.family_ids,
                save_guards=self.guard_file.save,
                guard_news=GuardNews(self.netdb.record_of, self.netdb.report_success),
            ),
            clock=self.clock,
            rng=rng,
            workshop=self._workshop,
        )
        self.identities = IdentityStore(self._state_dir, self.network, self.clock)
        if self._interface is not None:
            self.identities.load()
        self.connector = Connector(self.hub, self.desk, self._database, self._dialer, self)
        exit_hops, entry_hops = config.paths.exit_hops, config.paths.entry_hops
        self.paths = PathPools(
            self.builder,
            self.connector,
            self.identities,
            PathWishes(
                exit_hops=self.profile.exit_hops if exit_hops is None else exit_hops,
                entry_hops=self.profile.entry_hops if entry_hops is None else entry_hops,
                exit_paths=config.paths.exit_paths,
                entry_paths=config.paths.entry_paths,
                lifetime=config.paths.lifetime_minutes * MINUTE,
            ),
            on_event=self._path_event,
            guard=self.hub.guard,
            clock=self.clock,
            rng=rng,
        )
        self.machine = MachineEvents(
            self.links,
            self._own_record,
            self.netdb,
            hub=self.hub,
            connector=self.connector,
            paths=self.paths,
        )
        self.pins = Pins(self._state_dir, self.clock.now)
        self.rules = ExposeRules(self._state_dir / RULES_FILE, (self.network.ap4, self.network.ap6))
        self.rules.load()
        self._owner = None if self._interface is None else self._new_owner()

    def _new_owner(self) -> Owner:
        from phantom_tun.owner import Owner  # noqa: PLC0415 - a node that only relays does without

        return Owner(
            self.network,
            self.identities,
            connector=self.connector,
            pins=self.pins,
            rules=self.rules,
            settings=self.config.interface,
            on_lease=self._lease_changed,
            clock=self.clock,
            rng=self._rng,
        )

    def _facts(self) -> NodeFacts:
        node = self.config.node
        capabilities = Capability(0)
        if node.dialable:
            capabilities = Capability.DIALABLE | Capability.RELAY
        return NodeFacts(
            in_record(node.advertised_addresses),
            node.port if node.dialable else 0,
            capabilities,
            sorted({family_tag(self.network.network_id, name) for name in node.family_names}),
        )

    # --- running --------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be a node until cancelled. Started means that the netdb is joined and the interface is
        up; paths follow. The leak guard stands before anything else is done: to join may take
        minutes, in which programs already send to AP addresses.

        :raises PhantomError: the interface can't be set up.
        """
        try:
            if self._interface is not None:
                await self._interface.guard()
            async with trio.open_nursery() as nursery:
                if self._interface is not None:
                    nursery.start_soon(self.hub.guard.forever, self._interface.keep_guard)
                below = trio.CancelScope()
                await nursery.start(self._run_below, below)
                below.shield = True  # what is above has last words to say
                try:
                    await self._run_above(task_status)
                finally:
                    below.cancel()
        finally:
            self._phase = "stopping"

    async def _run_below(
        self, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """What connections of this node and of others go through, until ``scope`` is cancelled."""
        with scope:
            async with trio.open_nursery() as nursery:
                await self._start_relay(nursery)
                if self._owner is not None:
                    await nursery.start(self.paths.run)
                task_status.started()

    async def _run_above(self, task_status: trio.TaskStatus[None]) -> None:
        """This node's own connections, if it has AP addresses, until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._interface is not None and self._owner is not None:
                await self._start_owner(nursery, self._owner, self._interface)
            self._phase = "ready"
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._phase = "stopping"

    async def _start_relay(self, nursery: trio.Nursery) -> None:
        await nursery.start(self.hub.run)
        await nursery.start(self.member.run)
        nursery.start_soon(self.hub.guard.forever, self.hops.run)
        await nursery.start(self.links.run, self._listeners, self.board)
        self._phase = "joining"
        bootstrap = [
            NodeRef(found.node_id, found.certificate_hash, found.address, found.port)
            for found in self.profile.bootstrap
        ]
        await nursery.start(self.netdb.run, bootstrap)
        nursery.start_soon(
            self.hub.guard.forever, self._own_record.keep_fresh, self.netdb.set_own_record
        )

    async def _start_owner(self, nursery: trio.Nursery, owner: Owner, interface: Interface) -> None:
        await owner.start(nursery, interface)
        for number, identity in enumerate(self.identities.all()):
            await self._bring_up(owner, identity, hurry=number == 0)

    async def _bring_up(self, owner: Owner, identity: ApIdentity, *, hurry: bool) -> None:
        await self._assign_addresses()
        self.paths.add(identity)
        owner.publishers.add(identity, hurry=hurry)

    # --- identities -----------------------------------------------------------------------------

    async def add_identity(self, name: str) -> ApIdentity:
        """Make an AP identity and bring it up.

        :raises UsageError: the name is taken or not a name, or this node has no interface.
        """
        owner = self._owned()
        identity = self.identities.create(name)
        # Whoever asked for it may go away; an identity that is half there helps nobody.
        with trio.CancelScope(shield=True):
            await self._bring_up(owner, identity, hurry=True)
        return identity

    async def remove_identity(self, name: str) -> None:
        """Delete an AP identity for good.

        :raises UsageError: there is none of that name, or this node has no interface.
        """
        owner = self._owned()
        self.identities.remove(name)
        owner.publishers.remove(name)
        self.paths.remove(name)
        owner.directory.forget_identity(name)
        for rule in [found for found in self.rules.rules() if found.identity == name]:
            self.rules.unexpose(name, rule.protocol, rule.port)
        with trio.CancelScope(shield=True):
            await self._assign_addresses()

    def _identity_ready(self, identity: ApIdentity) -> bool:
        return (
            identity.ap4_state is LeaseState.HELD
            and self.connector.exit_count(identity.name) > 0
            and self.connector.entry_count(identity.name) > 0
        )

    def _lease_changed(self, identity: ApIdentity) -> None:
        del identity
        self._tell_progress()
        self.hub.start(self._assign_addresses)

    async def _assign_addresses(self) -> None:
        """Have the interface own what the identities hold now. Programs that don't choose speak
        as the first identity."""
        if self._interface is not None:
            await self._interface.set_addresses(
                lambda: [
                    address
                    for identity in self.identities.all()
                    for address in (identity.ap6, identity.ap4)
                    if address is not None
                ]
            )

    # --- what the parts ask of each other ---------------------------------------------------------

    async def handle_request(self, identity: str, sealed_request: bytes, accept: Accept) -> None:
        """A request came over an entry path."""
        await self.sessions.handle_request(identity, sealed_request, accept)

    async def private_exit(self, identity: str) -> OwnedPath:
        """See :class:`~phantom_tun.net.tunnels.connector.OwnerEvents`."""
        return await self.paths.private_exit(identity)

    def path_died(self, path: OwnedPath) -> None:
        """A standing path gives no tunnels any more."""
        self.paths.died(path)

    def path_doubted(self, path: OwnedPath) -> None:
        """A standing path gives no tunnels at the moment."""
        self.paths.doubted(path)

    def _tell_progress(self) -> None:
        self.progress.set()
        self.progress = trio.Event()

    def _path_event(self, event: PathEvent) -> None:
        self._tell_progress()
        path = event.path
        if event.change is Change.DIED:
            self.deaths.note(self.clock.now())
        _log.info("path", change=event.change.name.lower(), kind=path.kind, hops=path.hops)
        if path.kind == "entry" and self._owner is not None:
            self._owner.publishers.routes_changed(path.identity)
        if event.change is Change.UP and path.route is not None:
            self.hub.start(self._publish_own_route, path.route)

    async def _publish_own_route(self, route: bytes) -> None:
        try:
            await self._publish_route(route)
        except (PeerError, WorldError):
            self.hub.counts["route_publications_failed"] += 1

    async def _publish_route(self, route: bytes) -> None:
        await self._database.perform_for_entry(UpdateApRoutes((route,)).encode())

    def _hop_ended(self, hop: PathHop) -> None:
        self.member.hop_ended(hop)

    async def _array(self, peer: Peer, opening: bytes, bulk: Bulk) -> None:
        await self.member.handle_array(peer, opening, bulk)

    def _ask_for_work(self, bits: int) -> None:
        self._own_record.work = bits
        self._own_record.renew(self.netdb.set_own_record)

    def _linked(self) -> list[NodeRef]:
        """Everybody there is a signalling link with, to be reached over just that."""
        return [
            NodeRef(found.node_id, CertHash(bytes(32)), found.address, 0)
            for found in self.links.neighbours()
            if found.signalling
        ]

    def _overridden(self, view: InForce) -> None:
        """Other override commands are in force: banned nodes lose their links and our paths."""
        self.links.bar(view.bans_peer)
        for path in self.connector.standing():
            if any(view.bans_peer(ref.node_id, ref.address) for ref in path.members):
                self.paths.died(path)

    # --- what the owner sees (view) ---------------------------------------------------------------

    def _owned(self) -> Owner:
        if self._owner is None:
            raise UsageError("this node has no interface, so it has no AP addresses")
        return self._owner

    @property
    def directory(self) -> Directory:
        """Finds others' addresses.

        :raises UsageError: this node has no interface.
        """
        return self._owned().directory

    @property
    def sessions(self) -> SessionService:
        """Makes and takes connections.

        :raises UsageError: this node has no interface.
        """
        return self._owned().sessions

    def connections(self) -> list[SessionInfo]:
        """All connections of programs of this machine, oldest first."""
        return [] if self._owner is None else self._owner.sessions.sessions()

    def publisher_warnings(self) -> list[str]:
        """What the publishers of our addresses have to say, as sentences."""
        return [] if self._owner is None else self._owner.publishers.warnings()

    def repeated_deaths(self) -> int:
        """How often within ten minutes a connection lost a tunnel again."""
        return 0 if self._owner is None else self._owner.sessions.repeated_deaths()

    @property
    def state(self) -> NodeState:
        """How far the node is."""
        if self._phase != "ready":
            return self._phase
        if all(self._identity_ready(identity) for identity in self.identities.all()):
            return "ready"
        return "building"

    @property
    def interface_name(self) -> str | None:
        """Name of the network interface, if there is one."""
        return None if self._interface is None else self.config.interface.name

    def interface_warnings(self) -> list[str]:
        """What the interface has to say, as sentences."""
        return [] if self._interface is None else self._interface.warnings()

    @property
    def dialable(self) -> bool | None:
        """Whether other nodes reach us; ``None`` while nobody has."""
        if not self.config.node.dialable:
            return False
        return self.links.statistics().get("links_accepted", 0) > 0 or None

    @property
    def addresses(self) -> Sequence[IpAddress]:
        """Where others dial us, if they can."""
        return self._own_record.addresses

    def uptime(self) -> float:
        """Seconds since the start."""
        return self.clock.now() - self._started

    def guard_ids(self) -> frozenset[NodeId]:
        """Who may stand next to us in paths."""
        neighbours = (found.node_id for found in self.links.neighbours())
        return frozenset(found for found in neighbours if found in self._guards)

    def counters(self) -> Mapping[str, Mapping[str, int]]:
        """Every counter, by part."""
        parts: dict[str, Callable[[], Mapping[str, int]]] = {
            "links": self.links.statistics,
            "netdb": self.netdb.statistics,
            "builds": self.builder.statistics,
            "member": self.member.statistics,
            "hops": self.hops.statistics,
            "entries": self.desk.statistics,
            "switchboard": self.board.statistics,
            "pins": self.pins.statistics,
        }
        if self._interface is not None:
            parts["interface"] = self._interface.statistics
        return {
            "tunnels": dict(self.hub.counts),
            **{name: part() for name, part in parts.items()},
            **({} if self._owner is None else self._owner.statistics()),
        }


def _web_page(node: NodeConfig) -> bytes:
    own = node.own_web_page()
    return (Path(links.__file__).parent / "page.html").read_bytes() if own is None else own
