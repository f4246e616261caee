"""The node's objects as answers of the control socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phantom_tun.control.model import (
    AddressInfo,
    ExposeRule,
    FlowProtocol,
    LeaseState,
    PathInfo,
    TunnelInfo,
)
from phantom_tun.endpoints import Endpoint
from phantom_tun.ids import ApAddress
from phantom_tun.net.addresses import identities
from phantom_tun.net.sessions import expose
from phantom_tun.path.hop import OwnedPath

if TYPE_CHECKING:
    from phantom_tun.net.sessions.table import SessionInfo

LEASES: dict[identities.LeaseState, LeaseState] = {
    identities.LeaseState.NONE: "claiming",
    identities.LeaseState.RESERVING: "claiming",
    identities.LeaseState.HELD: "held",
    identities.LeaseState.LOST: "lost",
}
_FLOW_NAMES: dict[str, FlowProtocol] = {"tcp": "tcp", "udp": "udp", "echo": "icmp"}


def text(address: ApAddress | None) -> str | None:
    """An address, if there is one."""
    return None if address is None else str(address)


def address_info(
    identity: identities.ApIdentity, rules: list[expose.ExposeRule], missing: tuple[str, ...]
) -> AddressInfo:
    """An AP identity with those of ``rules`` that are its own, and what it waits for."""
    return AddressInfo(
        name=identity.name,
        ap4=text(identity.ap4),
        ap4_state=LEASES[identity.ap4_state],
        ap6=str(identity.ap6),
        created=identity.created,
        exposed=tuple(rule_info(rule) for rule in rules if rule.identity == identity.name),
        missing=missing,
    )


def rule_info(rule: expose.ExposeRule) -> ExposeRule:
    """An expose rule."""
    return ExposeRule(
        identity=rule.identity,
        port=rule.port,
        protocol=rule.protocol,
        to=tuple(sorted(str(address) for address in rule.to)) or ("any",),
        target_port=rule.target_port,
    )


def path_info(path: OwnedPath, now: float, *, retired: bool, ready: int, active: int) -> PathInfo:
    """A path of ours with its tunnels: ``ready`` ones and ``active`` ones."""
    return PathInfo(
        id=str(path.number),
        identity=path.identity,
        kind=path.kind,
        hops=path.hops,
        state="retired" if retired else "ready",
        age_s=max(0.0, now - path.built),
        expires_in_s=path.expires - now,
        build_s=path.build_seconds,
        nodes=tuple(node_id.hex() for node_id in path.node_ids),
        tunnels_ready=ready,
        tunnels_active=active,
    )


def tunnel_info(session: SessionInfo) -> TunnelInfo:
    """A connection and the path that carries it."""
    return TunnelInfo(
        id=str(session.number),
        path_id=str(session.path_number),
        identity=session.identity,
        direction=session.direction,
        remote=_endpoint(session.remote),
        protocol=_FLOW_NAMES[session.protocol],
        age_s=session.age,
        bytes_in=session.bytes_in,
        bytes_out=session.bytes_out,
        resumed=session.resumed,
        state="looking" if session.is_lost else "open",
    )


def _endpoint(endpoint: Endpoint) -> str:
    if not endpoint.port:  # an echo has none
        return str(endpoint.address)
    host = f"[{endpoint.address}]" if endpoint.address.version == 6 else str(endpoint.address)
    return f"{host}:{endpoint.port}"
