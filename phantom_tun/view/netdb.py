"""What the network database says about an address or a node, for people (``netdb get``)."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from phantom_tun.control.model import NetdbAnswer, NetdbPoll, NetdbRecord, NetdbVote
from phantom_tun.control.schema import ControlError
from phantom_tun.errors import PeerError, Unreachable, WorldError
from phantom_tun.ids import ApAddress, NodeId
from phantom_tun.net.addresses.ap_database import Found
from phantom_tun.net.addresses.identities import ApIdentity
from phantom_tun.net.addresses.pins import PinChanged
from phantom_tun.net.netdb.witnesses import Witness
from phantom_tun.netdb import override_text
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address, is_ap_address
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.view import identities, probing
from phantom_tun.view.overrides import ban_of
from phantom_tun.wire.records import NodeRecord

if TYPE_CHECKING:
    from phantom_tun.node import Node
    from phantom_tun.path.hop import OwnedPath

MOST_PATHS = 5
"""Exit paths that are asked about one address."""


async def answer(node: Node, key: ApAddress | NodeId, *, votes: bool) -> NetdbAnswer:
    """Look ``key`` up: an AP address through exit paths of the first identity, past the cache and
    the pins; a node directly.

    :raises ControlError: ``not_found``; ``unavailable``, this node looks up nothing of that kind;
        ``failed``, nobody gave a valid answer.
    :raises WorldError: nobody could be asked.
    """
    identities.check_running(node)
    if isinstance(key, ipaddress.IPv4Address | ipaddress.IPv6Address):
        return await _Lookup(node, identities.one(node, None), key).run(votes=votes)
    return await _node_answer(node, key, votes=votes)


# --- AP addresses ---------------------------------------------------------------------------------


class _Lookup:
    """One question about an AP address, asked over one exit path or several."""

    def __init__(self, node: Node, identity: ApIdentity, address: ApAddress) -> None:
        if not is_ap_address(node.network, address):
            raise ControlError("not_found", probing.no_ap_address(node, address))
        self._node = node
        self._identity = identity
        self._address = address
        self._is_own = node.identities.owner_of(address) is not None
        self._found: list[Found] = []
        self._polls: dict[int, NetdbPoll] = {}
        self._failure: WorldError | PeerError | None = None

    async def run(self, *, votes: bool) -> NetdbAnswer:
        """See :func:`answer`."""
        paths = self._paths()
        if votes and not self._is_own:
            async with trio.open_nursery() as nursery:
                for index, path in enumerate(paths):
                    nursery.start_soon(self._ask, index, path)
        else:
            await self._ask_in_turn(paths)
        if not self._found:
            raise self._nothing()
        best = max(self._found, key=self._weight)
        polls = tuple(self._polls[index] for index in sorted(self._polls)) if votes else ()
        records = _records(best, self._node.network, self._node.clock.now())
        return NetdbAnswer(str(self._address), records, best.answered, polls, await self._warning())

    async def _ask_in_turn(self, paths: list[OwnedPath]) -> None:
        """Over another path only if the one before gave nothing, and over the next that stands if
        all of them have died."""
        for index, path in enumerate(paths):
            await self._ask(index, path)
            if self._found:
                return
        if not any(poll.outcome == "nothing" for poll in self._polls.values()):
            await self._ask(len(paths), None)

    def _paths(self) -> list[OwnedPath]:
        """None for an own address, which is only asked about over a path built for it."""
        if self._is_own:
            return []
        name = self._identity.name
        users = self._node.connector.users()
        found = [u.path for u in users if u.path.kind == "exit" and u.path.identity == name]
        return found[:MOST_PATHS]

    async def _ask(self, index: int, path: OwnedPath | None) -> None:
        """Ask over the ``index``-th exit path; over any, as soon as one stands, if there's none."""
        if path is None:
            number, answerer = "private" if self._is_own else "", ""
        else:
            number = str(path.number)
            answerer = (path.node_ids[-1] if path.members else self._node.keys.node_id).hex()
        try:
            found = await self._node.directory.ask(
                self._identity.name, self._address, path_index=index
            )
        except (WorldError, PeerError) as error:
            self._failure = error
            self._polls[index] = NetdbPoll(number, answerer, "failed", str(error))
            return
        if found is None:
            self._polls[index] = NetdbPoll(number, answerer, "nothing", "")
            return
        self._found.append(found)
        self._polls[index] = NetdbPoll(
            number,
            answerer,
            "found",
            "",
            tuple(NetdbVote(v.public_key.hex(), v.sequence, v.storers) for v in found.votes),
            found.asked,
            found.answered,
            len(found.routes),
        )

    def _weight(self, found: Found) -> tuple[int, int]:
        """What most paths say counts; of that the newest edition."""
        key = found.record.public_key
        agreeing = sum(1 for other in self._found if other.record.public_key == key)
        return agreeing, found.record.sequence

    def _nothing(self) -> Exception:
        if any(poll.outcome == "nothing" for poll in self._polls.values()):
            return ControlError("not_found", probing.not_published(self._address))
        if isinstance(self._failure, PeerError):
            return ControlError("failed", f"the exit node's answer is not valid: {self._failure}")
        return self._failure or WorldError("nobody could be asked")

    async def _warning(self) -> str:
        """What is wrong with what was found."""
        address = self._address
        keys = {found.record.public_key for found in self._found}
        if isinstance(address, ipaddress.IPv4Address):
            pin = self._node.pins.get(address)
            if pin is not None and keys != {pin.public_key}:
                try:
                    # One exit node that lies must not raise the alarm: this asks several.
                    await self._node.directory.resolve(self._identity.name, address, fresh=True)
                except PinChanged as error:
                    return str(error)
                except Unreachable as error:
                    return f"not all answers name the pinned owner of {address}: {error}"
                return f"an exit node named another owner of {address} than the pinned one; it lied"
        if len(keys) > 1:
            return f"the exit paths don't agree on who owns {address}; one of them may lie"
        return ""


def _records(found: Found, network: NetworkParams, now: float) -> tuple[NetdbRecord, ...]:
    key = found.record
    votes = [vote.storers for vote in found.votes]
    fields: dict[str, str | int | float | bool] = {
        "key": key.public_key.hex(),
        "ap6": str(ap6_address(network, key.public_key)),
        "sequence": key.sequence,
    }
    if key.ap4_n is not None:
        fields["ap4"] = str(ap4_candidate(network, key.public_key, key.ap4_n))
    return (
        NetdbRecord(
            "ap_key",
            fields,
            key.expires - now,
            sum(votes[:1]),
            sum(votes[1:]),
            override_text.to_line(key.encoded),
        ),
        *(
            NetdbRecord(
                "ap_route",
                {
                    "entry_node": route.entry_node.hex(),
                    "entry_id": route.entry_id.hex(),
                    "sequence": route.sequence,
                },
                route.expires - now,
                sum(votes[:1]),
                0,
            )
            for route in found.routes
        ),
    )


# --- nodes ----------------------------------------------------------------------------------------


async def _node_answer(node: Node, key: NodeId, *, votes: bool) -> NetdbAnswer:
    try:
        record = await node.netdb.find_node(key)
    except Unreachable as error:
        ban = ban_of(node, key)
        if ban is None:
            raise ControlError("not_found", "no node with this id is in the network") from error
        until = datetime.fromtimestamp(ban.expires, UTC).strftime("%Y-%m-%d %H:%M UTC")
        raise ControlError(
            "not_found",
            f"this node is banned here by override command {ban.number} until {until}; "
            "'phantom-tun override list' shows it",
        ) from error
    now = node.clock.now()
    if not votes:
        return NetdbAnswer(key.hex(), (_node(record, now, 1, 0),), 1)
    witnesses = await node.netdb.witnesses(key)
    known = [witness.record for witness in witnesses if witness.record is not None]
    newest = max((record, *known), key=lambda record: record.created)
    agreeing = sum(1 for record in known if record.created == newest.created)
    listed = _node(newest, now, agreeing, len(known) - agreeing)
    answered = sum(1 for witness in witnesses if not witness.failure)
    return NetdbAnswer(key.hex(), (listed,), answered, tuple(map(_witness, witnesses)))


def _witness(witness: Witness) -> NetdbPoll:
    answerer, record = witness.node_id.hex(), witness.record
    if witness.failure:
        return NetdbPoll("", answerer, "failed", witness.failure)
    if record is None:
        return NetdbPoll("", answerer, "nothing", "")
    vote = NetdbVote(record.identity.hex(), int(record.created), 1)
    return NetdbPoll("", answerer, "found", "", (vote,))


def _node(record: NodeRecord, now: float, votes: int, dissent: int) -> NetdbRecord:
    addresses = ", ".join(str(address) for address in record.ips)
    fields: dict[str, str | int | float | bool] = {
        "addresses": addresses,
        "relays": record.relays,
        "dialable": record.dialable,
        "certificate": record.cert_hash.hex(),
    }
    return NetdbRecord("node", fields, record.expires - now, votes, dissent)
