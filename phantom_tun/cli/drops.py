"""What ``status`` says for the commonest reasons for which a node drops something."""

from __future__ import annotations

import re

WORDS = {
    "answer late": "answers that came too late",
    "array broken": "path builds that were no good",
    "array forwarding": "path builds more at once than allowed",
    "array rate": "path builds more than allowed",
    "array receiving": "path builds more at once than allowed",
    "array no slot": "path builds that had no place for this node",
    "array next unreachable": "path builds whose next node was away",
    "block neighbour gone": "tunnels being set up whose next node had gone",
    "block rate": "tunnels being set up more than allowed",
    "block unknown connection": "tunnels being set up over paths that had ended",
    "bulk limit": "data links more than allowed",
    "bulk not asked for": "data links nobody had asked for",
    "call network rate": "database calls of one network more than allowed",
    "call unfinished": "database calls that broke off",
    "calls of banned nodes": "database calls of banned nodes",
    "calls over network limit": "database calls of one network more than allowed",
    "dialed impostor": "links to addresses where another node answered",
    "dialer not authenticated": "links whose node didn't prove who it is",
    "hop block memory": "paths of others ended for setting up too many tunnels",
    "further connection CapacityExceeded": "connections in kept sessions more than allowed",
    "further connection ProtocolViolation": "connections in kept sessions that broke off",
    "interface destination reserved": "packets to addresses that are reserved",
    "link of banned": "links of banned nodes",
    "neighbour banned": "links to banned nodes",
    "relay limit": "tunnels of others more than allowed",
    "signal network rate": "messages of one network more than allowed",
    "stranger limit": "links of unknown nodes more than allowed",
    "tls failed": "connections that no TLS handshake completed",
    "tunnel late": "tunnels that came too late",
    "tunnel neighbour gone": "tunnels whose next node had gone",
    "tunnel unexpected": "tunnels that nobody waited for any more",
    "tunnel unknown connection": "tunnels over paths that had ended",
}
"""By the reason that ``drops`` of ``status --json`` names (docs/spec/control.md)."""


_NOUN = re.compile(
    r"\b(answer|build|call|connection|link|message|packet|path|tunnel)s\b( that were)?"
)
"""What is counted, the first of these in each of :data:`WORDS`."""


def in_words(reason: str, count: int) -> str:
    """``37 links of banned nodes``; of rarer things the reason as programs get it."""
    said = WORDS.get(reason, reason)
    if count == 1 and reason in WORDS:
        said = _NOUN.sub(lambda found: found[1] + (" that was" if found[2] else ""), said, count=1)
    return f"{count} {said}"
