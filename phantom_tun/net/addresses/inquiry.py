"""Asking strangers who owns an AP address (docs/spec/addresses.md, "Asking"; protocol sections 4
and 7).

An AP6 address proves its owner, so the first valid answer will do. For an AP4 address the exit
paths are asked until enough of them agree, and what they say is compared with the pin.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace

import structlog
import trio

from phantom_tun.clock import Clock, Rng
from phantom_tun.errors import ConfigError, PeerError, Unreachable, WorldError
from phantom_tun.ids import ApAddress, PublicKey
from phantom_tun.net.addresses.ap_database import (
    ApDatabase,
    Found,
    Undecided,
    check_resolution,
    claimed_ap4,
)
from phantom_tun.net.addresses.pins import Pins
from phantom_tun.netdb.addresses import ap6_address
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.wire.netdb import ResolveAp

FIRST_CONTACT_PATHS = 3
"""Exit paths asked about an AP4 address that isn't pinned yet, if so many stand."""
CONFLICT_PATHS = 5
"""Exit paths asked in all, if the first ones disagree."""
ENOUGH_CONFIRMATIONS = 2
"""With a pin that fewer paths confirmed, the next contact counts as a first one again."""
STRAGGLERS = 1.0
"""Seconds that the remaining paths have once two agree."""
SILENT_BESIDE_ONE = 6.0
"""Seconds that they have once one has answered, or several that don't agree."""
ATTEMPTS = 3
"""Questions over different paths before an address is given up."""
SILENT_AFTER = 2.0
"""Seconds after which a question that wasn't answered yet is put over another path too."""

_log = structlog.get_logger()


class NotPublished(Unreachable):
    """The network has no record of this AP address: nobody has it, or its owner's node is away."""

    def __init__(self, reason: str = "there is no such AP address") -> None:
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Question:
    """Who asks about which address, and what he knows already."""

    identity: str
    address: ApAddress
    known_key: bytes = b""
    known_sequence: int = 0
    """Of :attr:`known_key`: its older records aren't believed any more."""
    hidden: bool = False
    """Whether it is asked because somebody calls: see :class:`ApDatabase`."""


@dataclass(slots=True)
class _Poll:
    """Answers of several exit paths about one AP4 address."""

    found: list[Found] = field(default_factory=list)
    empty: int = 0
    """How many said that there's nothing."""
    undecided: list[Undecided] = field(default_factory=list)
    """Those that said that there is no telling."""

    def leaders(self) -> list[Found]:
        """The answers for the key that most paths named."""
        votes = Counter(found.record.public_key for found in self.found)
        if not votes:
            return []
        winner, _ = votes.most_common(1)[0]
        return [found for found in self.found if found.record.public_key == winner]

    @property
    def unanimous(self) -> bool:
        """Whether nobody disagreed."""
        return len(self.leaders()) == len(self.found) + len(self.undecided)

    @property
    def decided(self) -> bool:
        """Whether more than half of the answers, and at least two, agree."""
        count = len(self.leaders())
        answers = len(self.found) + len(self.undecided)
        return count >= ENOUGH_CONFIRMATIONS and 2 * count > answers


class Inquiry:
    """Puts questions to the network and judges the answers."""

    def __init__(
        self,
        database: ApDatabase,
        network: NetworkParams,
        pins: Pins,
        *,
        clock: Clock,
        rng: Rng,
        counts: Counter[str],
    ) -> None:
        """``counts`` is where statistics are kept."""
        self._database = database
        self._network = network
        self._pins = pins
        self._clock = clock
        self._rng = rng
        self._counts = counts

    async def ask(
        self,
        identity: str,
        address: ApAddress,
        *,
        path_index: int | None = None,
        hidden: bool = False,
        private: bool = False,
    ) -> Found | None:
        """One question over one exit path; None if the answer is that there's nothing.

        :raises PeerError: the answer is not valid.
        :raises WorldError: no path, or no answer.
        """
        call = ResolveAp.of(address).encode()
        answer = await self._database.netdb_call(
            identity, call, path_index=path_index, hidden=hidden, private=private
        )
        return check_resolution(answer, address, self._network, self._clock.now())

    async def find(self, question: Question) -> tuple[Found, int | None]:
        """The owner of the address, and for an AP4 how many paths confirmed it at first contact.

        :raises PinChanged: (an Unreachable) another key is pinned.
        :raises NotPublished: (an Unreachable) nothing there.
        :raises Unreachable: nobody could be asked, or the paths don't agree.
        """
        address = question.address
        if isinstance(address, ipaddress.IPv6Address):
            return await self._find_any(question), None
        pin = self._pins.get(address)
        if pin is not None and pin.confirmations >= ENOUGH_CONFIRMATIONS:
            found = await self._find_pinned(question, pin.public_key)
            if found.record.public_key == pin.public_key:
                return found, pin.confirmations
            # One liar among the exit nodes shall neither get through nor raise the alarm.
        found, confirmations = await self._find_agreed(question)
        try:
            key = PublicKey(found.record.public_key)
            return found, self._pins.confirm(address, key, confirmations).confirmations
        except ConfigError as error:
            self._counts["pins_not_written"] += 1
            _log.warning("an AP4 address could not be pinned", reason=str(error))
            return found, confirmations

    async def _find_any(self, question: Question) -> Found:
        """The first valid answer; another path is asked after a bad, old, empty or missing one, and
        beside one that is silent."""
        answers: list[Found] = []
        failure: Unreachable = NotPublished()
        first = self._rng.randrange(ATTEMPTS)

        async def ask(attempt: int, over: trio.Event) -> None:
            nonlocal failure
            try:
                found = await self._ask(question, None if attempt == 0 else first + attempt)
            except Undecided as error:
                failure = error
            except WorldError as error:
                failure = Unreachable(f"the network database could not be asked: {error}")
            except PeerError:
                failure = Unreachable("the network database gave no valid answer")
            else:
                if found is None:
                    failure = NotPublished()
                else:
                    answers.append(found)
                    nursery.cancel_scope.cancel()
            over.set()

        async with trio.open_nursery() as nursery:
            for attempt in range(ATTEMPTS):
                over = trio.Event()
                nursery.start_soon(ask, attempt, over)
                with trio.move_on_after(SILENT_AFTER):
                    await over.wait()
        if answers:
            return answers[0]
        raise failure

    async def _find_pinned(self, question: Question, public_key: PublicKey) -> Found:
        """As :meth:`_find_any`; where there is no telling whose the AP4 address is, what the pinned
        key itself says, which its AP6 address leads to."""
        try:
            return await self._find_any(question)
        except Undecided:
            ap6 = ap6_address(self._network, public_key)
            with suppress(Unreachable):
                found = await self._find_any(replace(question, address=ap6))
                if claimed_ap4(found.record, self._network) == question.address:
                    return found
            raise

    async def _find_agreed(self, question: Question) -> tuple[Found, int]:
        """The owner that the paths agree on, and how many of them named it."""
        poll = _Poll()
        paths = self._database.exit_count(question.identity, hidden=question.hidden)
        paths = max(1, paths)
        wave = range(min(paths, FIRST_CONTACT_PATHS))
        await self._poll(question, wave, poll)
        if not poll.unanimous:
            self._counts["conflicting_answers"] += 1
            _log.warning("exit paths name different owners of one AP4 address")
            await self._poll(question, range(wave.stop, min(paths, CONFLICT_PATHS)), poll)
            if poll.undecided and not poll.found:
                raise poll.undecided[0]
            if not poll.decided:
                raise Unreachable(
                    f"the exit paths don't agree on who owns {question.address}; one of them may "
                    "lie, so nothing was sent"
                )
        leaders = poll.leaders()
        if not leaders:
            if poll.empty >= ENOUGH_CONFIRMATIONS:
                raise NotPublished
            # Slower, but it tries again and knows why there is nothing.
            return await self._find_any(question), 1
        newest = max(leaders, key=lambda found: found.record.sequence)
        routes = {route.entry_id: route for found in leaders for route in found.routes}
        return replace(newest, routes=tuple(routes.values())), len(leaders)

    async def _poll(self, question: Question, paths: range, poll: _Poll) -> None:
        async with trio.open_nursery() as nursery:

            async def ask(path: int) -> None:
                try:
                    found = await self._ask(question, path)
                except Undecided as error:
                    poll.undecided.append(error)
                    return
                except (WorldError, PeerError):
                    return
                if found is None:
                    poll.empty += 1
                    return
                poll.found.append(found)
                patience = STRAGGLERS if poll.unanimous and poll.decided else SILENT_BESIDE_ONE
                scope = nursery.cancel_scope
                scope.deadline = min(scope.deadline, trio.current_time() + patience)

            for path in paths:
                nursery.start_soon(ask, path)

    async def _ask(self, question: Question, path_index: int | None) -> Found | None:
        """:meth:`ask`, not believing what is older than what is known."""
        try:
            found = await self.ask(
                question.identity,
                question.address,
                path_index=path_index,
                hidden=question.hidden,
            )
        except PeerError:
            self._counts["bad_answers"] += 1
            raise
        if found is None:
            return None
        self._counts["bad_routes"] += found.bad_routes
        record = found.record
        if record.public_key == question.known_key and record.sequence < question.known_sequence:
            self._counts["old_answers"] += 1
            return None
        return found
