"""Why an AP address can't be reached: the way there, step by step (``phantom-tun why``)."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from phantom_tun.control.model import Verdict, WhyReason, WhyStep
from phantom_tun.control.schema import ControlError
from phantom_tun.endpoints import ByteStream, Endpoint
from phantom_tun.errors import (
    Filtered,
    NoAnswer,
    PathUnavailable,
    PeerError,
    PhantomError,
    Refused,
    StreamReset,
    Unreachable,
    WorldError,
)
from phantom_tun.ids import ApAddress
from phantom_tun.net.addresses.identities import ApIdentity
from phantom_tun.net.addresses.inquiry import NotPublished
from phantom_tun.net.addresses.pins import PinChanged
from phantom_tun.netdb.addresses import is_ap_address
from phantom_tun.view import health, identities, probing

if TYPE_CHECKING:
    from phantom_tun.node import Node

STEP_WITHIN = 28.0
"""Seconds for one step: a little more than a connection attempt or a resolution has."""
FAREWELL = 1.0
"""Seconds for a service to end its side of a connection that it was tried with."""
LOCAL_WITHIN = 3.0
"""Seconds for a local service to accept."""

_PING_SIZE = 56
_LOOK_AT_STATUS = "'phantom-tun status' says how far it is and what is in the way"
_OWN_PATHS = "wait some seconds and try again; if it goes on, 'phantom-tun paths rebuild'"
_GONE = (
    "its node has probably stopped or died, which its record doesn't say until it expires, or its "
    "paths are just changing: try again in a minute, then ask its owner"
)

_Attempt = Callable[[], Awaitable[str]]


class _Stopped(PhantomError):  # noqa: N818 - reads as what happened
    """The way ends here; ``str()`` says how, :attr:`verdict` that and what can be done."""

    def __init__(self, reason: WhyReason, detail: str, fix: str, explanation: str = "") -> None:
        """:param explanation: what to say in the end, if ``detail`` isn't enough."""
        super().__init__(detail)
        self.verdict = Verdict(False, explanation or f"It doesn't work: {detail}.", fix, reason)


class Inquest:
    """One inquiry into why ``address``, and its TCP ``port``, can or can't be reached."""

    def __init__(self, node: Node, address: ApAddress, port: int | None) -> None:
        self._node = node
        self._address = address
        self._port = port
        self._ways = 0
        self._stream: ByteStream | None = None

    async def hold(self, report: Callable[[WhyStep], Awaitable[None]]) -> Verdict:
        """Try one step after the other, report each, and say what it all means."""
        try:
            return await self._hold(report)
        finally:
            if self._stream is not None:
                await _leave(self._stream)

    async def _hold(self, report: Callable[[WhyStep], Awaitable[None]]) -> Verdict:
        own = self._node.identities.owner_of(self._address)
        stopped: _Stopped | None = None
        for name, attempt in self._steps(own):
            if stopped is not None or attempt is None:
                detail = "" if stopped is not None else "not needed: the address is this node's own"
                await report(WhyStep(name, "skipped", detail, 0.0))
                continue
            await report(WhyStep(name, "trying", "", 0.0))
            began = trio.current_time()
            try:
                detail = await self._try(attempt)
            except _Stopped as error:
                stopped, detail = error, str(error)
            took = (trio.current_time() - began) * 1000
            await report(WhyStep(name, "ok" if stopped is None else "failed", detail, took))
        if stopped is not None:
            return stopped.verdict
        if own is not None:
            return Verdict(True, "It is this node's own address, and others can reach it.", "")
        return Verdict(True, "It works.", "")

    def _steps(self, own: ApIdentity | None) -> list[tuple[str, _Attempt | None]]:
        steps: list[tuple[str, _Attempt | None]] = [
            ("interface", self._interface),
            ("network", self._network),
            ("path", self._path if own is None else lambda: self._own_paths(own)),
            ("record", self._record if own is None else lambda: self._own_record(own)),
            ("handshake", self._handshake if own is None else None),
        ]
        if self._port is not None:
            port = self._port
            steps.append(
                (
                    "service",
                    (lambda: self._service(port))
                    if own is None
                    else (lambda: self._own_service(own, port)),
                )
            )
        return steps

    @staticmethod
    async def _try(attempt: _Attempt) -> str:
        """
        :raises _Stopped: it failed.
        """
        try:
            with trio.fail_after(STEP_WITHIN):
                return await attempt()
        except trio.TooSlowError as error:
            raise _Stopped("out_of_time", "no answer in time", "try again in a minute") from error
        except ControlError as error:
            raise _Stopped("other", str(error), _LOOK_AT_STATUS) from error
        except PathUnavailable as error:
            raise _Stopped(
                "no_path", f"this node's own way out failed ({error})", _OWN_PATHS
            ) from error

    # --- this node ------------------------------------------------------------------------------

    async def _interface(self) -> str:
        reason = identities.no_addresses(self._node)
        if reason is not None:
            setting = (
                "node.relay_only = false"
                if self._node.config.node.relay_only
                else "interface.enabled = true"
            )
            raise _Stopped(
                "no_interface", reason, f"set {setting}, or run 'phantom-tun why' on another node"
            )
        return f"{self._node.interface_name} is up"

    async def _network(self) -> str:
        reason = identities.not_running(self._node)
        if reason is not None:
            raise _Stopped("not_running", reason, _LOOK_AT_STATUS)
        connected = health.linked(self._node)
        if not connected and health.is_alone(self._node):
            raise _Stopped(
                "no_links",
                "this node is the only one of its network: nobody has joined it yet",
                "'phantom-tun network invite' prints the file that others join it with",
            )
        if not connected:
            raise _Stopped(
                "no_links",
                "no link to any other node stands: this machine's connection is gone"
                + health.or_banned(self._node),
                "check this machine's connection; 'phantom-tun status' says more",
            )
        return f"linked with {_counted(connected, 'other node')}"

    async def _path(self) -> str:
        identity = identities.one(self._node, None)
        exits = self._node.connector.exit_count(identity.name)
        if not exits:
            reason = identities.no_path(self._node, identity.name, "exit")
            raise _Stopped("no_path", reason, _LOOK_AT_STATUS)
        return f"{_counted(exits, 'exit path')} ready"

    async def _own_paths(self, own: ApIdentity) -> str:
        entries = self._node.connector.entry_count(own.name)
        if not entries:
            reason = identities.no_path(self._node, own.name, "entry")
            raise _Stopped("no_path", reason, _LOOK_AT_STATUS)
        return f"{_counted(entries, 'entry path')} ready"

    # --- the address ----------------------------------------------------------------------------

    async def _record(self) -> str:
        address = self._address
        if not is_ap_address(self._node.network, address):
            raise _Stopped(
                "not_an_ap_address", probing.no_ap_address(self._node, address), "check the address"
            )
        name = identities.one(self._node, None).name
        try:
            resolved = await self._node.directory.resolve(name, address)
        except PinChanged as error:
            raise _Stopped(
                "owner_changed",
                "its owner isn't the one that is pinned",
                f"ask its owner for the fingerprint; 'phantom-tun pins list' shows both keys, "
                f"'phantom-tun pins accept {address}' trusts the new one",
                str(error),
            ) from error
        except NotPublished as error:
            raise _Stopped(
                "not_published",
                probing.not_published(address),
                "check the address with its owner, whose node may also have been away for long",
            ) from error
        except Unreachable as error:
            raise _Stopped(
                "no_way_in",
                str(error),
                "its owner's node is away or has no paths at the moment: ask its owner",
            ) from error
        self._ways = len(resolved.routes)
        return f"published, {_counted(self._ways, 'way')} in"

    async def _own_record(self, own: ApIdentity) -> str:
        try:
            found = await self._node.directory.ask(own.name, self._address)
        except (PeerError, WorldError) as error:
            raise _Stopped(
                "other", f"the network database gave no answer ({error})", _OWN_PATHS
            ) from error
        if found is None or not found.routes:
            what = "it isn't" if found is None else "no way in is"
            raise _Stopped(
                "not_published" if found is None else "no_way_in",
                f"{what} published at the moment",
                f"it is published within a minute after a path stands; {_LOOK_AT_STATUS}",
            )
        if found.record.public_key != own.public_key:
            raise _Stopped(
                "owner_changed",
                "the network database names another owner of it",
                f"another identity may have claimed it while this node was away; {_LOOK_AT_STATUS}",
            )
        return f"published, {_counted(len(found.routes), 'way')} in"

    async def _handshake(self) -> str:
        source = self._source()
        try:
            async with probing.echo_exchange(self._node, source, self._address) as echo:
                rtt = await probing.echo_once(echo, 1, _PING_SIZE)
        except (NoAnswer, StreamReset) as error:
            raise _Stopped(
                "no_answer", f"its node is found, but doesn't answer ({error})", _GONE
            ) from error
        except Filtered:
            return "reached; it doesn't answer pings"
        except Unreachable as error:
            ways = _counted(self._ways, "way")
            raise _Stopped(
                "no_way_in", f"{ways} in published, and none of them works", _GONE
            ) from error
        return f"answers in {rtt:.1f} ms"

    def _source(self) -> Endpoint:
        try:
            return probing.source_for(self._node, self._address)
        except ControlError as error:
            raise _Stopped("no_ipv4_yet", str(error), _LOOK_AT_STATUS) from error

    # --- the service ----------------------------------------------------------------------------

    async def _service(self, port: int) -> str:
        source = self._source()
        try:
            stream = await self._node.sessions.open_stream(source, Endpoint(self._address, port))
        except Refused as error:
            raise _Stopped(
                "refused",
                f"port {port} is exposed, but nothing listens there",
                "its owner has to start the service",
            ) from error
        except NoAnswer as error:
            raise _Stopped("no_answer", f"port {port} doesn't answer", _GONE) from error
        except Filtered as error:
            raise _Stopped(
                "not_exposed",
                f"port {port} isn't exposed, or not to {source.address}",
                f"its owner has to expose it: 'phantom-tun expose {port}', with '--to "
                f"{source.address}' if only for you",
            ) from error
        except Unreachable as error:
            raise _Stopped("no_way_in", f"port {port} can't be reached ({error})", _GONE) from error
        self._stream = stream
        return f"port {port} accepts connections"

    async def _own_service(self, own: ApIdentity, port: int) -> str:
        rule = self._node.rules.find(own.name, "tcp", port)
        if rule is None:
            raise _Stopped(
                "not_exposed",
                f"port {port} isn't exposed",
                f"'phantom-tun expose {port} --identity {own.name}' lets others reach it",
            )
        who = "" if not rule.to else f" to {_counted(len(rule.to), 'address', 'addresses')} only"
        try:
            with trio.fail_after(LOCAL_WITHIN):
                stream = await trio.open_tcp_stream(str(self._address), rule.target_port)
        except (OSError, trio.TooSlowError) as error:
            refused = isinstance(error, OSError) and errno.ECONNREFUSED in _numbers(error)
            what = "nothing listens there" if refused else "it can't be reached on this machine"
            raise _Stopped(
                "refused" if refused else "no_answer",
                f"port {port} is exposed{who}, but {what} (local port {rule.target_port})",
                "start the service, and let it listen at this address or at all of them",
            ) from error
        await stream.aclose()
        return f"port {port} is exposed{who} and accepts connections"


async def _leave(stream: ByteStream) -> None:
    """End in order a connection that has served: a reset looks like trouble to a service."""
    try:
        with trio.move_on_after(FAREWELL, shield=True):
            await stream.send_end()
            while await stream.receive():
                pass
    except StreamReset:
        pass
    finally:
        with trio.CancelScope(shield=True):
            await stream.aclose()


def _counted(count: int, noun: str, plural: str = "") -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {plural or noun + 's'}"


def _numbers(error: OSError) -> set[int | None]:
    """The numbers of all errors that :func:`trio.open_tcp_stream` sums up in one."""
    numbers: set[int | None] = {error.errno}
    for cause in (error.__cause__, *getattr(error.__cause__, "exceptions", ())):
        if isinstance(cause, OSError):
            numbers.add(cause.errno)
    return numbers
