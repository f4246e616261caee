"""One connection's attempts over several routes, of which the first result counts
(docs/spec/session.md, "Connecting")."""

from __future__ import annotations

import trio

from phantom_tun.errors import (
    ConnectFailed,
    Filtered,
    NoAnswer,
    PathUnavailable,
    PeerError,
    PhantomError,
    Refused,
    Unreachable,
)
from phantom_tun.net.sessions.ending import finish
from phantom_tun.net.sessions.ports import WayOut
from phantom_tun.net.sessions.routes import Route
from phantom_tun.net.sessions.secure_tunnel import SecureTunnel
from phantom_tun.wire.session import FrameKind, Outcome

_FAILURES: dict[Outcome, tuple[type[ConnectFailed], str]] = {
    Outcome.REFUSED: (Refused, "nothing listens there"),
    Outcome.FILTERED: (Filtered, "the port isn't exposed to us"),
    Outcome.UNREACHABLE: (Unreachable, "the far node can't serve it"),
    Outcome.GONE: (Refused, "the far node doesn't know the session any more"),
}


class Attempt:
    """One request over one route."""

    __slots__ = ("began", "doubts_way", "failed", "is_extra", "route", "way")

    def __init__(self, route: Route, *, is_extra: bool, way: WayOut | None = None) -> None:
        self.route = route
        self.is_extra = is_extra
        """Made beside a silent one."""
        self.began = trio.current_time()
        self.way = way
        """The exit path, once there is one."""
        self.doubts_way = False
        """Whether the exit path has been silent altogether."""
        self.failed = trio.Event()


class Race:
    """Attempts over several routes; the first result counts."""

    __slots__ = (
        "decided",
        "errors",
        "failure",
        "given_up",
        "last_choice",
        "lookup_failure",
        "received",
        "route",
        "running",
        "winner",
    )

    def __init__(self) -> None:
        self.decided = trio.Event()
        self.winner: SecureTunnel | None = None
        self.route: Route | None = None
        """The winner's."""
        self.received = 0
        """What has arrived at the callee, if a session is resumed."""
        self.last_choice: Route | None = None
        """A route that is tried last."""
        self.failure: ConnectFailed | None = None
        """What the callee itself said."""
        self.errors: list[PhantomError] = []
        """Why routes failed."""
        self.lookup_failure: Unreachable | None = None
        """Why a fresh record couldn't be had."""
        self.running: set[Attempt] = set()
        """Attempts that are under way."""
        self.given_up: set[int] = set()
        """Numbers of exit paths that others are better than, though no attempt waits for them."""

    def in_order(self, routes: list[Route]) -> list[Route]:
        """``routes``, the one that is the last choice at the end."""
        return sorted(routes, key=lambda route: route == self.last_choice)

    def is_tried(self, route: Route) -> bool:
        """Whether an attempt over ``route`` is under way that may still come to something."""
        return any(attempt.route == route and not attempt.doubts_way for attempt in self.running)

    def connected(self, secure: SecureTunnel, route: Route, received: int = 0) -> None:
        """An attempt succeeded."""
        if self.decided.is_set():
            finish(secure, FrameKind.RESET)
        else:
            self.winner = secure
            self.route = route
            self.received = received
            self.decided.set()

    def answered(self, outcome: Outcome) -> None:
        """The callee said no. While another attempt is under way, that may just mean that the
        callee is busy with that one: two connections of the same four numbers can't be."""
        if not self.decided.is_set():
            kind, reason = _FAILURES[outcome]
            self.failure = kind(reason)
            if outcome is not Outcome.FILTERED or len(self.running) == 1:
                self.decided.set()

    def result(self) -> SecureTunnel:
        """
        :raises ConnectFailed: what the callee said, or why no route worked.
        :raises PathUnavailable: this node has no way out.
        """
        if self.winner is not None:
            return self.winner
        if self.failure is not None:
            raise self.failure
        if self.lookup_failure is not None:
            raise self.lookup_failure
        if any(isinstance(error, Unreachable | PeerError) for error in self.errors):
            raise Unreachable("none of the ways in to this AP address works")
        if any(isinstance(error, PathUnavailable) for error in self.errors):
            raise PathUnavailable("no exit path works at the moment")
        raise NoAnswer("nobody answered")
