"""What can be asked over the control socket, and how it looks there (docs/spec/control.md).

A client sends one line, ``{"version": 1, "request": {"type": "status"}}``, and reads lines
``{"type": "event", "value": …}`` until one is ``{"type": "result", "value": …}`` or
``{"type": "error", "code": …, "message": …}``. Each request class names the types of its events
and of its result as ``Request[Event, Result]``; nothing else pairs them.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Generic, Literal, Never, TypeVar, get_args

import msgspec
from msgspec import Meta

from phantom_tun.control.model import (
    AddressInfo,
    Answer,
    Done,
    ExposeRule,
    NetdbAnswer,
    OverrideInfo,
    OverridesInfo,
    PathInfo,
    PeerInfo,
    PingReply,
    PingSummary,
    PinInfo,
    Progress,
    Protocol,
    Statistics,
    Status,
    TunnelInfo,
    Verdict,
    WhyStep,
)
from phantom_tun.decoding import UNREADABLE
from phantom_tun.errors import PhantomError

VERSION = 1
MAX_REQUEST_BYTES = 64 * 1024
"""Longest request line, newline included."""
MAX_REPLY_BYTES = 16 * 1024 * 1024
"""Longest line a client accepts."""

NAME_PATTERN = "[a-z0-9][a-z0-9-]{0,31}"
"""Names of AP identities."""

ErrorCode = Literal[
    "invalid",
    "not_found",
    "conflict",
    "unavailable",
    "timeout",
    "denied",
    "busy",
    "unsupported",
    "failed",
    "no_daemon",
]
"""Stable; ``no_daemon`` is made by clients only."""

EventT = TypeVar("EventT")
ResultT = TypeVar("ResultT")

_Port = Annotated[int, Meta(ge=1, le=65535)]
_Name = Annotated[str, Meta(pattern=f"^{NAME_PATTERN}$")]
_Address = Annotated[str, Meta(max_length=64)]
_Id = Annotated[str, Meta(max_length=64)]
_Selector = Annotated[str, Meta(max_length=64)]


class ControlError(PhantomError):
    """A request failed: a stable ``code``, and as text a sentence that says what to do.

    Backends raise it to refuse; clients raise it when the other side did.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: ErrorCode = code


class Request(
    msgspec.Struct,
    Generic[EventT, ResultT],
    frozen=True,
    tag_field="type",
    forbid_unknown_fields=True,
):
    """Base of all requests."""

    deadline_s: ClassVar[float | None] = 30.0
    """When the node gives up on it; ``None``: when the client goes away."""

    @classmethod
    def event_type(cls) -> Any:
        """The type of its events; ``None`` (JSON null only) if it has none."""
        event = get_args(cls.__orig_bases__[0])[0]  # type: ignore[attr-defined]
        return None if event is Never else event

    @classmethod
    def result_type(cls) -> Any:
        """The type of its result."""
        return get_args(cls.__orig_bases__[0])[1]  # type: ignore[attr-defined]


class GetStatus(Request[Never, Status], frozen=True, tag="status"):
    """The node at a glance."""

    deadline_s: ClassVar[float | None] = 5.0


class GetStatistics(Request[Never, Statistics], frozen=True, tag="statistics"):
    """All counters."""


class ListAddresses(Request[Never, tuple[AddressInfo, ...]], frozen=True, tag="addresses"):
    """All AP identities of this node."""


class NewAddress(Request[Progress, AddressInfo], frozen=True, tag="address_new"):
    """Make an AP identity; returns when its addresses are claimed and its paths stand. Events say
    what it waits for."""

    name: _Name
    deadline_s: ClassVar[float | None] = 120.0


class RemoveAddress(Request[Never, Done], frozen=True, tag="address_remove"):
    """Delete an AP identity with its key: its AP6 address can never be had again."""

    name: _Name


class Expose(Request[Never, ExposeRule], frozen=True, tag="expose"):
    """Let others reach a port."""

    port: _Port
    protocol: Protocol = "tcp"
    to: Literal["any"] | Annotated[tuple[_Address, ...], Meta(min_length=1, max_length=256)] = "any"
    target_port: _Port | None = None
    """``None``: the same as ``port``."""
    identity: _Name | None = None
    """``None``: the first one."""


class Unexpose(Request[Never, ExposeRule], frozen=True, tag="unexpose"):
    """Take an expose rule back; connections that stand are kept."""

    port: _Port
    protocol: Protocol = "tcp"
    identity: _Name | None = None


class ListExposed(Request[Never, tuple[ExposeRule, ...]], frozen=True, tag="exposed"):
    """All expose rules."""


class ListPaths(Request[Never, tuple[PathInfo, ...]], frozen=True, tag="paths"):
    """Our own paths, with their members."""


class RebuildPaths(Request[Progress, tuple[PathInfo, ...]], frozen=True, tag="paths_rebuild"):
    """Replace paths by new ones; tunnels in the old ones finish there."""

    path_id: _Id | None = None
    """``None``: all."""
    deadline_s: ClassVar[float | None] = 300.0


class ListTunnels(Request[Never, tuple[TunnelInfo, ...]], frozen=True, tag="tunnels"):
    """Our own tunnels in use."""


class CloseTunnel(Request[Never, Done], frozen=True, tag="tunnel_close"):
    """Reset one of them."""

    tunnel_id: _Id


class ListPeers(Request[Never, tuple[PeerInfo, ...]], frozen=True, tag="peers"):
    """Nodes we have links with."""


class Ping(Request[PingReply, PingSummary], frozen=True, tag="ping"):
    """Echo requests to an AP address; one event for each."""

    address: _Address
    count: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """``None``: until the client goes away."""
    interval_s: Annotated[float, Meta(ge=0.01, le=3600)] = 1.0
    timeout_s: Annotated[float, Meta(gt=0, le=300)] = 10.0
    size: Annotated[int, Meta(ge=0, le=8192)] = 56
    """Data bytes after the ICMP header."""
    deadline_s: ClassVar[float | None] = None


class GetNetdb(Request[Never, NetdbAnswer], frozen=True, tag="netdb_get"):
    """Look up an AP address or a node id (64 hex digits)."""

    key: _Selector
    votes: bool = False
    """Ask over several exit paths, or several nodes, and tell what each one said."""
    deadline_s: ClassVar[float | None] = 90.0


class ListPins(Request[Never, tuple[PinInfo, ...]], frozen=True, tag="pins"):
    """Every pinned AP4 address, those with a changed key first."""


class AcceptPin(Request[Never, PinInfo], frozen=True, tag="pin_accept"):
    """Trust the key that an AP4 address has now."""

    address: _Address


class RemovePin(Request[Never, Done], frozen=True, tag="pin_remove"):
    """Forget a pin: the next contact counts as the first."""

    address: _Address


class SendOverride(Request[Never, OverrideInfo], frozen=True, tag="override_send"):
    """Obey a signed override command and pass it on to the whole network."""

    command: Annotated[str, Meta(min_length=1, max_length=8192)]
    """Base64."""


class ListOverrides(Request[Never, OverridesInfo], frozen=True, tag="overrides"):
    """Every override command that the node knows."""


class Why(Request[WhyStep, Verdict], frozen=True, tag="why"):
    """Try the way to an AP address step by step; one event for each step."""

    address: _Address
    port: _Port | None = None
    deadline_s: ClassVar[float | None] = 150.0


class Shutdown(Request[Never, Done], frozen=True, tag="shutdown"):
    """Stop in order; answered before it begins."""


AnyRequest = (
    GetStatus
    | GetStatistics
    | ListAddresses
    | NewAddress
    | RemoveAddress
    | Expose
    | Unexpose
    | ListExposed
    | ListPaths
    | RebuildPaths
    | ListTunnels
    | CloseTunnel
    | ListPeers
    | Ping
    | GetNetdb
    | ListPins
    | AcceptPin
    | RemovePin
    | SendOverride
    | ListOverrides
    | Why
    | Shutdown
)


class _Envelope(msgspec.Struct, frozen=True):
    version: int
    request: msgspec.Raw


class Event(msgspec.Struct, frozen=True, tag_field="type", tag="event"):
    """Something on the way to the result."""

    value: msgspec.Raw


class Result(msgspec.Struct, frozen=True, tag_field="type", tag="result"):
    """The end, as wished."""

    value: msgspec.Raw


class Failure(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    """The end, otherwise."""

    code: ErrorCode
    message: str


Reply = Event | Result | Failure

_encoder = msgspec.json.Encoder()
_envelopes = msgspec.json.Decoder(_Envelope)
_requests: msgspec.json.Decoder[AnyRequest] = msgspec.json.Decoder(AnyRequest)
_replies: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


def encode_request(request: Request[Any, Any]) -> bytes:
    """One line."""
    envelope = _Envelope(VERSION, msgspec.Raw(_encoder.encode(request)))
    return _encoder.encode(envelope) + b"\n"


def decode_request(line: bytes) -> AnyRequest:
    """Read one line.

    :raises ControlError: ``unsupported`` for another version, ``invalid`` for anything malformed.
    """
    try:
        envelope = _envelopes.decode(line)
        if envelope.version != VERSION:
            raise ControlError(
                "unsupported",
                f"this node speaks version {VERSION} of the control protocol, not "
                f"{envelope.version}; use the phantom-tun command it was installed with",
            )
        return _requests.decode(envelope.request)
    except UNREADABLE as error:
        raise ControlError("invalid", f"the request isn't valid: {error}") from error


def encode_event(value: Answer) -> bytes:
    """One line."""
    return _encoder.encode(Event(msgspec.Raw(_encoder.encode(value)))) + b"\n"


def encode_result(value: Answer | tuple[Answer, ...]) -> bytes:
    """One line."""
    return _encoder.encode(Result(msgspec.Raw(_encoder.encode(value)))) + b"\n"


def encode_failure(error: ControlError) -> bytes:
    """One line."""
    return _encoder.encode(Failure(error.code, str(error))) + b"\n"


def decode_reply(line: bytes) -> Reply:
    """Read one line from a node.

    :raises ControlError: ``failed``, the line isn't a reply.
    """
    try:
        return _replies.decode(line)
    except UNREADABLE as error:
        raise ControlError("failed", f"the node's answer can't be read: {error}") from error


def decode_value(value: msgspec.Raw, kind: Any) -> Any:
    """Read the value of an event or result as ``kind``.

    :raises ControlError: ``failed``, it is something else.
    """
    try:
        return msgspec.json.decode(value, type=kind)
    except UNREADABLE as error:
        raise ControlError("failed", f"the node's answer can't be read: {error}") from error
