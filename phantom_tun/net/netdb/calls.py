"""Asking other nodes: typed netdb calls over links (docs/spec/netdb.md, "Calls").

Every call teaches the book something: an answer that makes sense is a sign of life, anything else
is a failure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from phantom_tun.clock import Clock
from phantom_tun.errors import (
    DeadlineExpired,
    LinkBroken,
    PeerError,
    ProtocolViolation,
    WorldError,
)
from phantom_tun.ids import NodeId
from phantom_tun.netdb.book import NodeBook
from phantom_tun.netdb.overrides import Overrides
from phantom_tun.netdb.rules import NODE_TABLE, Circumstances, RuleBroken
from phantom_tun.netdb.server import Server, expect
from phantom_tun.netdb.verifier import Verifier
from phantom_tun.wire.netdb import (
    Answer,
    Call,
    CloserNodes,
    ClosestNodes,
    KeyedNode,
    RandomNodes,
    Registered,
    RegisterNode,
    decode_answer,
)
from phantom_tun.wire.nodes import IpAddress, NodeRef
from phantom_tun.wire.records import NodeRecord, path_key_digest

CALL_DEADLINE = 5.0
"""Seconds until a node that doesn't answer counts as gone, or its next address is tried."""
MAX_REACHED = 1_024
"""Nodes of which we remember that another address than the first is the one that works."""

Transport = Callable[[NodeRef, bytes], Awaitable[bytes]]
"""Carries one call to a node and brings the answer; ``Links.call``."""

OnFailure = Callable[[NodeRef, str], None]
"""Told which way to a node failed, and why."""

_A = TypeVar("_A", bound=Answer)


class NodeCalls:
    """Calls to other nodes on behalf of one node."""

    def __init__(
        self,
        transport: Transport,
        server: Server,
        book: NodeBook,
        verifier: Verifier,
        clock: Clock,
        *,
        overrides: Overrides,
    ) -> None:
        self._overrides = overrides
        self._transport = transport
        self._server = server
        self._verifier = verifier
        self.book = book
        self.clock = clock
        self.own_id = server.own.record.node_id
        self._counts: Counter[str] = Counter()
        self._reached: dict[NodeId, IpAddress] = {}
        """Where nodes were met that could not be met at another address of theirs."""

    @property
    def ip_version(self) -> int | None:
        """By which IP version we reach others, if we have addresses of one only."""
        return self._server.own.ip_version

    def ref(self, record: NodeRecord) -> NodeRef:
        """How we dial a node."""
        return self.refs(record)[0]

    def refs(self, record: NodeRecord) -> tuple[NodeRef, ...]:
        """All ways in which we can dial a node: first the one that worked when another didn't."""
        found = record.refs(self.ip_version)
        reached = self._reached.get(record.node_id)
        if reached is None:
            return found
        return tuple(sorted(found, key=lambda ref: ref.address != reached))

    async def ask(
        self, ref: NodeRef, call: Call, kind: type[_A], deadline: float = CALL_DEADLINE
    ) -> _A:
        """One call; ``kind`` is the answer it must have.

        :raises WorldError: no answer.
        :raises PeerError: an answer that makes no sense.
        """
        try:
            return await self._ask(ref, call, kind, deadline)
        except (WorldError, PeerError):
            self.distrust(ref)
            raise

    async def _ask(self, ref: NodeRef, call: Call, kind: type[_A], deadline: float) -> _A:
        self._counts["calls_sent"] += 1
        try:
            with trio.fail_after(deadline):
                answer = await self._transport(ref, call.encode())
        except trio.TooSlowError as error:
            raise DeadlineExpired("the node did not answer in time") from error
        found = expect(decode_answer(answer), kind)
        self.book.succeeded(ref.node_id, self.clock.now())
        return found

    def distrust(self, ref: NodeRef) -> None:
        """``ref`` failed us, in whatever way."""
        self._counts["calls_failed"] += 1
        self.book.failed(ref.node_id, self.clock.now())

    async def closest_nodes(self, record: NodeRecord, target: bytes) -> list[NodeRecord]:
        """Ask a node whom it knows close to ``target``. It counts as met.

        :raises WorldError: no answer.
        :raises PeerError: an answer that makes no sense, or a record in it that isn't genuine.
        """
        ref = self.ref(record)
        answer = await self.ask(ref, ClosestNodes(target), CloserNodes)
        nodes = self._genuine(ref, answer.nodes)
        self.book.met(record, self.clock.now())
        return nodes

    async def register(
        self, refs: Sequence[NodeRef], on_failure: OnFailure | None = None
    ) -> list[NodeRecord]:
        """Introduce ourselves; the other side does the same and counts as met. Returns nodes close
        to us that it names. ``refs``: all ways to the one node, tried one after the other.

        :raises WorldError: no answer.
        :raises PeerError: an answer that makes no sense, or the node isn't the one of ``refs``.
        """
        own = self._server.own
        digest = self._overrides.digest(self.clock.now())
        call = RegisterNode(own.record.encoded, own.path_key, digest)
        ref, answer = await self._ask_first(refs, call, on_failure)
        nodes = self._genuine(ref, answer.nodes)
        record = self._keyed(ref, answer.record, answer.path_key)
        if record.node_id != ref.node_id or record.cert_hash != ref.cert_hash:
            self.distrust(ref)
            raise ProtocolViolation("a node introduces itself as another one")
        self.book.met(record, self.clock.now(), answer.path_key)
        self._overrides.compare(ref, answer.commands, self.clock.now())
        if answer.refusal:
            self._counts["registrations_refused"] += 1
        return nodes

    async def _ask_first(
        self, refs: Sequence[NodeRef], call: RegisterNode, on_failure: OnFailure | None
    ) -> tuple[NodeRef, Registered]:
        """Ask the first of ``refs`` that answers.

        :raises WorldError: none does; the last one's.
        :raises PeerError: an answer that makes no sense.
        """
        for number, ref in enumerate(refs, 1):
            try:
                answer = await self._ask(ref, call, Registered, CALL_DEADLINE)
            except WorldError as error:
                if on_failure is not None:
                    on_failure(ref, str(error))
                if number == len(refs):
                    self.distrust(ref)
                    raise
            except PeerError:
                self.distrust(ref)
                raise
            else:
                if number > 1:
                    self._remember(ref)
                return ref, answer
        raise LinkBroken("there is no way to the node")

    def _remember(self, ref: NodeRef) -> None:
        self._reached.pop(ref.node_id, None)
        if len(self._reached) >= MAX_REACHED:
            del self._reached[next(iter(self._reached))]
        self._reached[ref.node_id] = ref.address

    async def random_node(self, ref: NodeRef, near: bytes) -> tuple[NodeRecord, bytes]:
        """The node closest to ``near``, and its path key, as one node says.

        :raises WorldError: no answer.
        :raises PeerError: an answer that makes no sense.
        """
        answer = await self.ask(ref, RandomNodes(near), KeyedNode)
        return self._keyed(ref, answer.record, answer.path_key), answer.path_key

    def statistics(self) -> dict[str, int]:
        """Counts for people."""
        return dict(self._counts)

    def _genuine(self, ref: NodeRef, encoded: tuple[bytes, ...]) -> list[NodeRecord]:
        try:
            records = self._verifier.nodes(encoded)
        except PeerError:
            self.distrust(ref)
            raise
        circumstances = self._circumstances()
        return [record for record in records if _acceptable(record, circumstances)]

    def _keyed(self, ref: NodeRef, encoded: bytes, path_key: bytes) -> NodeRecord:
        try:
            record = self._verifier.node(encoded)
            NODE_TABLE.check_acceptance(record, self._circumstances())
            if path_key_digest(path_key) != record.path_key_digest:
                raise ProtocolViolation("a path key comes beside a record that names another")
        except PeerError:
            self.distrust(ref)
            raise
        return record

    def _circumstances(self) -> Circumstances[NodeRecord]:
        return Circumstances(self.clock.now(), public=self._server.own.record.public)


def _acceptable(record: NodeRecord, circumstances: Circumstances[NodeRecord]) -> bool:
    try:
        NODE_TABLE.check_acceptance(record, circumstances)
    except RuleBroken:
        return False
    return True
