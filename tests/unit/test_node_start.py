"""What a node does first: nothing before AP addresses are guarded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import trio
from free_ports import free_ports

from phantom_tun import profile
from phantom_tun.config import Config, NodeConfig
from phantom_tun.errors import UsageError
from phantom_tun.net.netdb.service import NetdbService
from phantom_tun.net.tunnels.hub import TunnelHub
from phantom_tun.node import Node
from phantom_tun.testing.fake_tun import FakeHost, FakeTun
from phantom_tun.tun.interface import Interface
from phantom_tun.tun.settings import InterfaceConfig
from phantom_tun.wire.records import MAX_FAMILIES, NodeRecord, decode


class Start:
    """A node that will never join, and what it did, in order."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = FakeHost()
        self.tun = FakeTun()
        self.interface = Interface(InterfaceConfig(), self.tun, self.host)
        config = Config(node=NodeConfig(state_dir=place, listen=(), port=free_ports()))
        network = dataclasses.replace(profile.new("test", bytes(32)), pow_bits=1)
        self.node = Node(config, network, [], self.interface)
        run_hub = TunnelHub.run

        async def first_of_the_network(
            hub: TunnelHub, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
        ) -> None:
            self.host.steps.append("network")
            await run_hub(hub, task_status=task_status)

        async def never_join(*_arguments: object, **_options: object) -> None:
            self.host.steps.append("joining")
            await trio.sleep_forever()

        monkeypatch.setattr(TunnelHub, "run", first_of_the_network)
        monkeypatch.setattr(NetdbService, "run", never_join)

    def end(self) -> None:
        self.tun.hang_up()
        self.tun.close()


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = Start(tmp_path, monkeypatch)
    yield made
    made.end()


async def test_the_guard_comes_before_all_that_meets_a_network(start, autojump_clock) -> None:
    with trio.move_on_after(3600):
        await start.node.run()
    assert start.host.steps[0] == "guard"
    assert sorted(start.host.steps[1:]) == ["guard kept", "joining", "network"]
    assert start.node.state == "stopping"


async def test_what_is_missing_of_it_is_told_while_joining(start, autojump_clock) -> None:
    start.host.missing = ["others can find out"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(start.node.run)
        await trio.sleep(3600)
        assert start.node.state == "joining"
        status = await start.node.backend.status()
        assert status.warnings[0] == "others can find out"
        nursery.cancel_scope.cancel()


async def test_without_the_guard_nothing_is_begun(start, monkeypatch) -> None:
    async def fail() -> None:
        raise UsageError("the nft tool is missing")

    monkeypatch.setattr(start.host, "guard", fail)
    with pytest.raises(UsageError, match="nft"):
        await start.node.run()
    assert start.host.steps == []


async def test_the_interface_makes_the_guard_only_if_nobody_has() -> None:
    tun, host = FakeTun(), FakeHost()
    interface = Interface(InterfaceConfig(), tun, host)
    await interface.guard()
    assert interface.warnings() == []
    host.missing = ["something"]
    assert interface.warnings() == ["something"]

    async def refuse() -> None:
        raise UsageError("not today")

    host.bring_up = refuse  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="not today"):
        await interface.run(None)  # type: ignore[arg-type]
    assert host.steps == ["guard"]
    tun.hang_up()


# --- what it says about itself -------------------------------------------------------------------


def families_of(place: Path, **settings: object) -> tuple[bytes, ...]:
    node = NodeConfig(state_dir=place, listen=(), port=free_ports(), **settings)  # type: ignore[arg-type]
    network = dataclasses.replace(profile.new("test", bytes(32)), pow_bits=1)
    record = Node(Config(node=node), network, [], None).netdb.own_record
    return decode(NodeRecord, record.encoded).families


def test_nodes_of_one_family_publish_the_same_tag(tmp_path: Path) -> None:
    names = ("mine", "ours", "a", "b")
    assert len(names) == MAX_FAMILIES
    one = families_of(tmp_path / "one", family_names=names)
    other = families_of(tmp_path / "other", family_names=("mine", "mine"))
    assert len(one) == 4
    assert set(other) < set(one)
    assert len(other) == 1
    assert families_of(tmp_path / "third", families=("ab" * 32,)) == (), "ids are told to nobody"
