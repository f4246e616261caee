"""What a netdb service keeps on disk: the nodes it knows, the AP records it holds, the override
commands it knows (docs/spec/netdb.md, "Known nodes", "Storage rules", "Override commands"). None is
a secret; losing one costs time, never correctness, so every problem with them is a warning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from phantom_tun.clock import MINUTE, Rng
from phantom_tun.errors import ConfigError, WireError
from phantom_tun.files import atomic_write, read_plain
from phantom_tun.ids import NetworkId
from phantom_tun.netdb import cachefile, holdings, override_file
from phantom_tun.netdb.book import NodeBook
from phantom_tun.netdb.overrides import Overrides
from phantom_tun.netdb.store import ApStore
from phantom_tun.netdb.verifier import Verifier
from phantom_tun.wire.records import NodeRecord

FIRST_SAVE = 10.0
SAVE_NODES_EVERY = 3 * MINUTE
"""Seconds between writing the node cache; the first time soon, in case of an early crash."""
SAVE_HOLDINGS_EVERY = 2.0
"""Seconds between writing what is held, if it changed."""
SAVE_RATE = 100_000.0
"""Bytes per second of holdings that are written at most, on average."""

LARGEST = 64 << 20
"""Bytes that any of these files can have, with room to spare."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class NetdbFiles:
    """Where they are; None keeps nothing."""

    nodes: Path | None = None
    holdings: Path | None = None
    overrides: Path | None = None


class Keeper:
    """Reads and writes the files of one service."""

    def __init__(
        self,
        files: NetdbFiles,
        network_id: NetworkId,
        book: NodeBook,
        store: ApStore,
        *,
        overrides: Overrides,
        rng: Rng,
    ) -> None:
        self._overrides = overrides
        self._saved_commands = 0
        self._files = files
        self._network_id = network_id
        self._book = book
        self._store = store
        self._rng = rng
        self._saved_changes = 0
        self._unwritten: dict[Path, str] = {}

    @property
    def unwritten(self) -> dict[Path, str]:
        """Files that couldn't be written the last time, and why."""
        return dict(self._unwritten)

    def load(self, verifier: Verifier, now: float) -> list[NodeRecord]:
        """Bring back what earlier runs left; returns nodes that can be asked, also some that were
        there before their record expired."""
        nodes: list[NodeRecord] = []

        def load_nodes(data: bytes) -> None:
            for node in cachefile.load(data, verifier, now):
                if node.record.expires > now and node.path_key is not None:
                    self._book.restore(node.record, node.path_key, node.last_ok, drawn=node.drawn)
                else:
                    self._book.recall(node.record, now)
                if node.record.dialable and node.last_ok:
                    nodes.append(node.record)

        _read(self._files.nodes, load_nodes)
        _read(self._files.holdings, lambda data: holdings.load(data, verifier, self._store, now))
        self._saved_changes = self._store.changes
        return nodes

    def load_overrides(self) -> list[bytes]:
        """The override commands that earlier runs left; nothing about them is checked yet."""
        commands: list[bytes] = []
        _read(
            self._files.overrides,
            lambda data: commands.extend(override_file.load(data, self._network_id)),
        )
        return commands

    async def save_nodes(self) -> None:
        """Write the node cache now and then, for ever."""
        await trio.sleep(FIRST_SAVE)
        while True:
            if self._files.nodes is not None:
                await trio.to_thread.run_sync(self._write, self._files.nodes, self._nodes())
            await trio.sleep(SAVE_NODES_EVERY * self._rng.uniform(0.75, 1.25))

    async def save_holdings(self) -> None:
        """Write what is held whenever it changed, for ever."""
        while True:
            await trio.sleep(SAVE_HOLDINGS_EVERY * self._rng.uniform(0.75, 1.25))
            if self._files.overrides is not None and self._commands_due:
                await trio.to_thread.run_sync(self._write, self._files.overrides, self._commands())
            if self._files.holdings is None or not self._holdings_due:
                continue
            content = self._holdings()
            await trio.to_thread.run_sync(self._write, self._files.holdings, content)
            await trio.sleep(len(content) / SAVE_RATE)

    def save(self) -> None:
        """Write everything once more, at the end."""
        if self._files.overrides is not None and self._commands_due:
            self._write(self._files.overrides, self._commands())
        if self._files.nodes is not None and len(self._book):
            self._write(self._files.nodes, self._nodes())
        if self._files.holdings is not None and self._holdings_due:
            self._write(self._files.holdings, self._holdings())

    def _nodes(self) -> bytes:
        return cachefile.dump(self._network_id, self._book.remembered())

    @property
    def _commands_due(self) -> bool:
        changed = self._overrides.changes != self._saved_commands
        return changed or self._files.overrides in self._unwritten

    @property
    def _holdings_due(self) -> bool:
        changed = self._store.changes != self._saved_changes
        return changed or self._files.holdings in self._unwritten

    def _commands(self) -> bytes:
        self._saved_commands = self._overrides.changes
        return override_file.dump(self._network_id, self._overrides)

    def _holdings(self) -> bytes:
        self._saved_changes = self._store.changes
        return holdings.dump(self._network_id, self._store)

    def _write(self, path: Path, content: bytes) -> None:
        try:
            atomic_write(path, content)
        except ConfigError as error:
            if path not in self._unwritten:
                _log.warning("netdb file not written", reason=str(error))
            self._unwritten[path] = str(error)
        else:
            if self._unwritten.pop(path, None) is not None:
                _log.info("netdb file written again", file=str(path))


def _read(path: Path | None, use: Callable[[bytes], None]) -> None:
    if path is None:
        return
    try:
        use(read_plain(path, LARGEST))
    except FileNotFoundError:
        return
    except (OSError, WireError) as error:
        _log.warning("netdb file ignored", file=str(path), reason=str(error))
