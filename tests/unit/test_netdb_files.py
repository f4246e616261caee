"""The files of a netdb service: whatever is in their place, and when they can't be written."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trio

from phantom_tun.files import read_plain
from phantom_tun.ids import NetworkId
from phantom_tun.net.netdb.files import LARGEST, SAVE_HOLDINGS_EVERY, Keeper, NetdbFiles
from phantom_tun.net.paths.guard_file import GuardFile
from phantom_tun.netdb.book import NodeBook
from phantom_tun.netdb.overrides import Overrides
from phantom_tun.netdb.store import ApStore
from phantom_tun.netdb.verifier import Verifier
from phantom_tun.view import health

NETWORK = NetworkId(b"n" * 32)


class Store:
    """Holds nothing, but has changed."""

    changes = 1

    def entries(self) -> list[object]:
        return []


def keeper(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    monkeypatch.setattr("phantom_tun.netdb.holdings.dump", lambda *_: b"held")
    return Keeper(
        NetdbFiles(holdings=directory / "records.held"),
        NETWORK,
        cast(NodeBook, None),
        cast(ApStore, Store()),
        overrides=cast(Overrides, None),
        rng=random.Random(1),
    )


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "nodes.cache")
    with pytest.raises(OSError, match="no plain file"):
        read_plain(tmp_path / "nodes.cache", 10)


def test_neither_directories_nor_links_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_plain(tmp_path / "file", 7) == b"content"
    for name in (".", "link", "none"):
        with pytest.raises(OSError):
            read_plain(tmp_path / name, 10)


def test_what_is_too_long_is_not_read_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(LARGEST * 100)
    with pytest.raises(OSError, match="longer than"):
        read_plain(tmp_path / "file", LARGEST)


def test_a_keeper_starts_without_what_it_can_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "records.held")
    verifier = cast(Verifier, SimpleNamespace(network=None))
    assert keeper(tmp_path, monkeypatch).load(verifier, 0.0) == []


async def test_what_could_not_be_written_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def at_once(work: Callable[..., object], *args: object) -> object:
        await trio.lowlevel.checkpoint()
        return work(*args)

    # Virtual time waits for no thread.
    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)
    directory = tmp_path / "state"
    kept = keeper(directory, monkeypatch)
    node = SimpleNamespace(
        netdb=kept, guard_file=GuardFile(tmp_path), pins=SimpleNamespace(problem=None)
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kept.save_holdings)
        await trio.sleep(2 * SAVE_HOLDINGS_EVERY)
        (warning,) = health._files(cast("health.Node", node))
        assert str(directory / "records.held") in warning
        directory.mkdir(mode=0o700)
        await trio.sleep(2 * SAVE_HOLDINGS_EVERY)
        assert (directory / "records.held").read_bytes() == b"held"
        assert health._files(cast("health.Node", node)) == []
        nursery.cancel_scope.cancel()
