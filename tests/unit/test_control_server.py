"""The control server with its own client and with hostile ones, over real Unix sockets."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from phantom_tun.control import schema, server
from phantom_tun.control.client import ControlClient
from phantom_tun.control.dispatch import code_of
from phantom_tun.control.listener import Access, bind_control_socket, peer_credentials
from phantom_tun.control.model import PingReply, Progress
from phantom_tun.control.schema import ControlError
from phantom_tun.control.server import ControlServer
from phantom_tun.errors import (
    CapacityExceeded,
    ConfigError,
    DeadlineExpired,
    LinkBroken,
    PathUnavailable,
    PhantomError,
    Unreachable,
    UsageError,
)
from phantom_tun.testing.fake_backend import FAR4, NODE_IDS, FakeBackend

OWN = Access(os.geteuid())


class Serving:
    """A control server in this process."""

    def __init__(self, path: Path, access: Access) -> None:
        self.path = path
        self.backend = FakeBackend()
        self.stopped = 0
        self.server = ControlServer(self.backend, access, self._stop)

    def _stop(self) -> None:
        self.stopped += 1

    async def call(self, request: Any, on_event: Any = None) -> Any:
        return await trio.to_thread.run_sync(
            partial(ControlClient(self.path).call, request, on_event)
        )

    async def send(self, data: bytes) -> schema.Reply:
        """What the server says to raw bytes."""
        stream = await trio.open_unix_socket(self.path)
        answer = bytearray()
        # A server that refuses closes before it read everything, which resets the connection.
        with suppress(trio.BrokenResourceError):
            async with stream:
                await stream.send_all(data)
                while chunk := await stream.receive_some():
                    answer += chunk
        return schema.decode_reply(bytes(answer))


@asynccontextmanager
async def serving(tmp_path: Path, access: Access = OWN) -> AsyncIterator[Serving]:
    made = Serving(tmp_path / "control.sock", access)
    listener = bind_control_socket(made.path, access)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.server.serve, listener)
        yield made
        nursery.cancel_scope.cancel()


async def wait_until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.005)


async def test_each_request_gets_its_typed_answer(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        status = await node.call(schema.GetStatus())
        assert (status.state, status.links.bulk_idle) == ("ready", 4)
        assert (await node.call(schema.GetStatistics())).groups["links"] == {"opened": 12}
        assert (await node.call(schema.NewAddress("web"))).ap4 == "241.0.0.2"
        assert [pin.change is None for pin in await node.call(schema.ListPins())] == [False, True]
        assert (await node.call(schema.AcceptPin("250.6.6.6"))).change is None
        await node.call(schema.RemovePin("250.6.6.6"))
        assert len(await node.call(schema.ListPins())) == 1
        assert len((await node.call(schema.GetNetdb(str(FAR4), votes=True))).polls) == 3
        assert [info.name for info in await node.call(schema.ListAddresses())] == ["default", "web"]
        rule = await node.call(schema.Expose(53, "udp", (str(FAR4),), 5353, "web"))
        assert (rule.to, rule.target_port) == ((str(FAR4),), 5353)
        assert (await node.call(schema.Expose(80))).target_port == 80
        assert len(await node.call(schema.ListExposed())) == 2
        assert (await node.call(schema.Unexpose(80))).to == ("any",)
        await node.call(schema.RemoveAddress("web"))
        assert [path.kind for path in await node.call(schema.ListPaths())] == ["exit", "entry"]
        (tunnel,) = await node.call(schema.ListTunnels())
        await node.call(schema.CloseTunnel(tunnel.id))
        assert await node.call(schema.ListTunnels()) == ()
        assert [peer.guard for peer in await node.call(schema.ListPeers())] == [True, False]
        assert (await node.call(schema.GetNetdb(str(FAR4)))).asked == 4
        assert (await node.call(schema.GetNetdb(NODE_IDS[0].upper()))).key == NODE_IDS[0]
        assert (await node.call(schema.Why(str(FAR4), 80))).reachable
        assert node.stopped == 0
        await node.call(schema.Shutdown())
        assert node.stopped == 1
        await wait_until(lambda: node.server.statistics()["clients"] == 0)
        assert node.server.statistics() == {
            "answered": 23,
            "refused": 0,
            "denied": 0,
            "busy": 0,
            "gone": 0,
            "internal_errors": 0,
            "clients": 0,
        }


async def test_events_come_before_the_result(tmp_path: Path) -> None:
    events: list[Any] = []
    async with serving(tmp_path) as node:
        built = await node.call(schema.RebuildPaths(), events.append)
        assert [event.done for event in events] == [1, 2]
        assert isinstance(events[0], Progress)
        assert len(built) == 2
        events.clear()
        await node.call(schema.NewAddress("web"), events.append)
        assert [event.message.split()[0] for event in events] == ["waiting", "waiting"]
        events.clear()
        summary = await node.call(schema.Ping(str(FAR4), 3, interval_s=0.01), events.append)
        assert events == [PingReply(1, 64, 12.5), PingReply(2, 64, 12.5), PingReply(3, 0, None)]
        assert (summary.sent, summary.received) == (3, 2)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (schema.Why("nonsense"), "invalid"),
        (schema.Why("fe80::1%eth0"), "invalid"),
        (schema.Ping("1.2.3"), "invalid"),
        (schema.Ping("2001:2f::5%eth0"), "invalid"),
        (schema.GetNetdb("2001:2f::5%eth0"), "invalid"),
        (schema.Expose(80, to=("2001:2f::5%eth0",)), "invalid"),
        (schema.GetNetdb("zz"), "invalid"),
        (schema.Expose(80, to=("nonsense",)), "invalid"),
        (schema.Ping("250.9.9.9"), "not_found"),
        (schema.GetNetdb("250.9.9.9"), "not_found"),
        (schema.GetNetdb("ff" * 32), "not_found"),
        (schema.CloseTunnel("t9"), "not_found"),
        (schema.RebuildPaths("p9"), "not_found"),
        (schema.Unexpose(80), "not_found"),
        (schema.Expose(80, identity="nobody"), "not_found"),
        (schema.AcceptPin("2001:2f::5"), "invalid"),
        (schema.AcceptPin("250.9.9.9"), "not_found"),
        (schema.RemovePin("nonsense"), "invalid"),
        (schema.RemovePin("250.9.9.9"), "not_found"),
        (schema.NewAddress("default"), "conflict"),
        (schema.RemoveAddress("default"), "conflict"),
    ],
)
async def test_refusals_have_their_codes(tmp_path: Path, request_: Any, code: str) -> None:
    async with serving(tmp_path) as node:
        with pytest.raises(ControlError) as refusal:
            await node.call(request_)
        assert refusal.value.code == code
        assert node.server.statistics()["refused"] == 1


async def test_a_failed_build_is_unavailable(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        node.backend.fail_builds = True
        with pytest.raises(ControlError, match="none of 3") as failure:
            await node.call(schema.RebuildPaths())
        assert failure.value.code == "unavailable"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), "invalid"),
        (ConfigError("x"), "failed"),
        (Unreachable("x"), "not_found"),
        (DeadlineExpired("x"), "timeout"),
        (PathUnavailable("x"), "unavailable"),
        (CapacityExceeded("x"), "busy"),
        (LinkBroken("x"), "failed"),
        (PhantomError("x"), "failed"),
    ],
)
def test_every_error_has_a_code(error: PhantomError, code: str) -> None:
    assert code_of(error) == code


async def test_a_client_that_goes_away_cancels_its_request(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        stream = await trio.open_unix_socket(node.path)
        await stream.send_all(schema.encode_request(schema.Ping(str(FAR4))))
        assert b"event" in await stream.receive_some()
        await stream.aclose()
        await wait_until(lambda: node.backend.cancelled == ["ping"])
        await wait_until(lambda: node.server.statistics()["clients"] == 0)
        assert node.server.statistics()["gone"] == 1


async def test_a_request_that_takes_too_long_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema.RebuildPaths, "deadline_s", 0.05)
    async with serving(tmp_path) as node:
        node.backend.stuck = True
        with pytest.raises(ControlError, match="did not finish") as failure:
            await node.call(schema.RebuildPaths())
        assert failure.value.code == "timeout"
        assert node.backend.cancelled == ["rebuild_paths"]


class Mistaken(FakeBackend):
    """Its ``peers`` fails in a way that nobody has thought of; so does its ``ping``, on the way."""

    error: Exception = ZeroDivisionError("a mistake of ours")

    async def peers(self) -> Any:
        raise self.error

    async def ping(self, address: Any, *, report: Any, **_: Any) -> Any:
        async with trio.open_nursery() as nursery:
            await report(PingReply(1, 64, 1.0))
            nursery.start_soon(self.peers)


@pytest.mark.parametrize("request_", [schema.ListPeers(), schema.Ping(str(FAR4), 1)])
async def test_a_mistake_of_the_node_costs_one_answer_and_not_the_daemon(
    tmp_path: Path, request_: Any
) -> None:
    async with serving(tmp_path) as node:
        node.server.backend = Mistaken()
        for _attempt in range(2):
            with pytest.raises(ControlError, match="made a mistake") as failure:
                await node.call(request_)
            assert failure.value.code == "failed"
        assert (await node.call(schema.GetStatus())).state == "ready"
        await wait_until(lambda: node.server.statistics()["clients"] == 0)
        counts = node.server.statistics()
        assert (counts["internal_errors"], counts["refused"], counts["clients"]) == (2, 2, 0)


async def test_a_mistake_elsewhere_in_serving_a_client_ends_only_that_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as node:
        monkeypatch.setattr(server, "decode_request", lambda _line: 1 / 0)
        with pytest.raises(ControlError) as failure:
            await node.call(schema.GetStatus())
        assert failure.value.code == "no_daemon"
        monkeypatch.undo()
        assert (await node.call(schema.GetStatus())).state == "ready"
        assert node.server.statistics()["internal_errors"] == 1


@pytest.mark.parametrize(
    ("request_", "error", "code"),
    [
        (schema.ListPeers(), trio.TooSlowError(), "timeout"),
        (schema.Ping(str(FAR4), 1), PathUnavailable("no path"), "unavailable"),
        (schema.Ping(str(FAR4), 1), ControlError("conflict", "no"), "conflict"),
    ],
)
async def test_errors_keep_their_codes_through_the_nurseries_of_a_backend(
    tmp_path: Path, request_: Any, error: Exception, code: str
) -> None:
    async with serving(tmp_path) as node:
        node.server.backend = Mistaken()
        node.server.backend.error = error  # type: ignore[attr-defined]
        with pytest.raises(ControlError) as failure:
            await node.call(request_)
        assert failure.value.code == code


async def test_several_clients_are_answered_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        waiting = await trio.open_unix_socket(node.path)
        await waiting.send_all(schema.encode_request(schema.Ping(str(FAR4))))
        assert (await node.call(schema.GetStatus())).state == "ready"
        await waiting.aclose()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"nonsense\n", "isn't valid"),
        (b"x" * schema.MAX_REQUEST_BYTES, "has at most"),
        (b"x" * schema.MAX_REQUEST_BYTES + b"\n", "has at most"),
        (schema.encode_request(schema.GetStatus()) * 2, "carries one request"),
    ],
)
async def test_malformed_requests_are_refused(tmp_path: Path, data: bytes, said: str) -> None:
    async with serving(tmp_path) as node:
        reply = await node.send(data)
        assert isinstance(reply, schema.Failure)
        assert reply.code == "invalid"
        assert said in reply.message


async def test_a_request_cut_off_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as node, await trio.open_unix_socket(node.path) as stream:
        await stream.send_all(b'{"version": 1')
        await stream.send_eof()
        assert b"before its newline" in await stream.receive_some()


async def test_a_silent_client_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_LINE_DEADLINE_S", 0.05)
    async with serving(tmp_path) as node:
        reply = await node.send(b'{"version":')
        assert isinstance(reply, schema.Failure)
        assert "no request came" in reply.message


async def test_too_many_clients_are_turned_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CLIENTS", 2)
    async with serving(tmp_path) as node:
        streams = [await trio.open_unix_socket(node.path) for _ in range(2)]
        await wait_until(lambda: node.server.statistics()["clients"] == 2)
        with pytest.raises(ControlError) as refusal:
            await node.call(schema.GetStatus())
        assert refusal.value.code == "busy"
        for stream in streams:
            await stream.aclose()
        await wait_until(lambda: node.server.statistics()["clients"] == 0)
        assert (await node.call(schema.GetStatus())).state == "ready"
        assert node.server.statistics()["busy"] == 1


async def test_another_user_is_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "peer_credentials", lambda _socket: (1, 12345, 12345))
    async with serving(tmp_path) as node:
        with pytest.raises(ControlError, match="uid 12345") as refusal:
            await node.call(schema.GetStatus())
        assert refusal.value.code == "denied"
        assert node.server.statistics()["denied"] == 1


def test_access_is_for_root_the_node_and_the_group() -> None:
    assert Access(990).allows(0, 0)
    assert Access(990).allows(990, 990)
    assert not Access(990).allows(1000, 990)
    assert Access(990, 27).allows(1000, 27)
    assert not Access(990, 27).allows(1000, 1000)


def test_access_counts_members_of_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    users = {1000: "ann", 1001: "bob"}

    def user(uid: int) -> Any:
        return type("User", (), {"pw_name": users[uid]})

    monkeypatch.setattr("pwd.getpwuid", user)
    monkeypatch.setattr("grp.getgrgid", lambda _gid: type("Group", (), {"gr_mem": ["ann"]}))
    assert Access(990, 27).allows(1000, 1000)
    assert not Access(990, 27).allows(1001, 1001)
    assert not Access(990, 27).allows(1002, 1002)


def test_peer_credentials_are_the_kernels() -> None:
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        assert peer_credentials(left) == (os.getpid(), os.geteuid(), os.getegid())


def test_the_socket_is_private_or_the_groups(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    bind_control_socket(path, OWN).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    bind_control_socket(path, Access(os.geteuid(), os.getegid())).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    bind_control_socket(path, OWN).close()
    with bind_control_socket(path, OWN):
        with pytest.raises(ConfigError, match="another daemon answers"):
            bind_control_socket(path, OWN)
        assert path.exists()


def test_other_files_are_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="isn't a socket"):
        bind_control_socket(path, OWN)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["none/control.sock", "x" * 150])
def test_an_impossible_place_is_explained(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="can't make the control socket"):
        bind_control_socket(tmp_path / name, OWN)


def test_a_client_without_daemon_says_so(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    for _attempt in ("missing", "stale"):
        with pytest.raises(ControlError, match="phantom-tun up") as failure:
            ControlClient(path).call(schema.GetStatus())
        assert failure.value.code == "no_daemon"
        if not path.exists():
            bind_control_socket(path, OWN).close()


Answering = Callable[[socket.socket], None]


def answering(path: Path, answer: Answering) -> threading.Thread:
    """A node of a few lines, for one connection."""
    listener = bind_control_socket(path, OWN)

    def serve() -> None:
        with listener:
            connection, _address = listener.accept()
            with connection:
                answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", "no_daemon"),
        (b"nonsense\n", "failed"),
        (b'{"type": "result", "value": 3}\n', "failed"),
        (b'{"type": "event", "value": 3}\n', "failed"),
        (b'{"type": "error", "code": "busy", "message": "later"}\n', "busy"),
    ],
)
def test_a_client_bears_any_answer(tmp_path: Path, answer: bytes, code: str) -> None:
    def reply(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    thread = answering(tmp_path / "s", reply)
    with pytest.raises(ControlError) as failure:
        ControlClient(tmp_path / "s").call(schema.GetStatus())
    thread.join()
    assert failure.value.code == code


def test_a_client_bounds_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phantom_tun.control.client.MAX_REPLY_BYTES", 1000)
    thread = answering(tmp_path / "s", lambda connection: connection.sendall(b"x" * 2000))
    with pytest.raises(ControlError, match="too long"):
        ControlClient(tmp_path / "s").call(schema.GetStatus())
    thread.join()


def test_a_client_gives_up_on_a_node_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema.GetStatus, "deadline_s", 0.05)
    monkeypatch.setattr("phantom_tun.control.client.GRACE_S", 0.0)
    with bind_control_socket(tmp_path / "s", OWN):
        with pytest.raises(ControlError, match="doesn't answer in time") as failure:
            ControlClient(tmp_path / "s").call(schema.GetStatus())
        assert failure.value.code == "timeout"
        assert ControlClient(tmp_path / "s").daemon_pid() == os.getpid()
