"""What a node waits for, read from its status."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from phantom_tun.control.model import (
    BuildStatus,
    IdentityStatus,
    LinkStatus,
    NetdbStatus,
    NetworkStatus,
    Status,
    TunnelStatus,
)
from phantom_tun.lab.readiness import stage

IDENTITY = IdentityStatus("main", "240.1.2.3", "held", "2001:2f::1:2", 1, 1)
READY = Status(
    version="1",
    state="ready",
    node_id="00",
    pid=1,
    uptime_s=0.0,
    network=NetworkStatus("n", "00", 0),
    dialable=True,
    relay_only=False,
    interface="phantom0",
    identities=(IDENTITY,),
    netdb=NetdbStatus(0, 0),
    links=LinkStatus(0, 0, 0),
    tunnels=TunnelStatus(0, 0, 0),
    builds=BuildStatus(0, 0, None),
    drops={},
)


def test_ready() -> None:
    assert stage(READY, relay_only=False) is None


def test_relay_only_nodes_need_no_identity() -> None:
    assert stage(replace(READY, identities=()), relay_only=True) is None
    assert stage(replace(READY, identities=()), relay_only=False) == "no AP address yet"


def test_silence() -> None:
    assert stage(None, relay_only=True) == "no control socket yet"


@pytest.mark.parametrize("state", ["starting", "joining", "stopping"])
def test_states_on_the_way(state: str) -> None:
    status = replace(READY, state=state)  # type: ignore[arg-type]
    assert stage(status, relay_only=False) == state


@pytest.mark.parametrize("state", ["building", "ready"])
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"exit_paths_ready": 0}, "no exit path yet"),
        ({"entry_paths_ready": 0}, "no entry path yet"),
        ({"ap4": None, "ap4_state": "claiming"}, "no AP4 address yet"),
    ],
)
def test_what_is_missing_is_named(state: str, change: dict[str, object], text: str) -> None:
    lame = replace(IDENTITY, **change)  # type: ignore[arg-type]
    status = replace(READY, state=state, identities=(IDENTITY, lame))  # type: ignore[arg-type]
    assert stage(status, relay_only=False) == text


def test_building_is_not_ready_even_if_nothing_seems_to_be_missing() -> None:
    assert stage(replace(READY, state="building"), relay_only=False) == "building"
    assert stage(replace(READY, state="building"), relay_only=True) == "building"
