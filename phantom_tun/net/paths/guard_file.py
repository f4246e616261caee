"""The guard set on disk: ``guards.json`` in the state directory (docs/spec/path.md, "Guards")."""

from __future__ import annotations

from pathlib import Path

import structlog

from phantom_tun.errors import ConfigError
from phantom_tun.files import atomic_write, load_secret
from phantom_tun.ids import NodeId
from phantom_tun.path.guards import GuardSet

FILE = "guards.json"

_log = structlog.get_logger()


class GuardFile:
    """Where one node's guards are kept, mode 0600: who they are says who stands next to it."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE
        self.problem: str | None = None
        """Why it couldn't be written the last time, if it couldn't."""

    def load(self, trusted: frozenset[NodeId]) -> GuardSet:
        """The saved set, or an empty one if none was saved yet.

        :raises ConfigError: the file can't be used; says what to do.
        """
        data = load_secret(self._path)
        if data is None:
            return GuardSet(trusted)
        try:
            return GuardSet(trusted, GuardSet.decode(data))
        except ConfigError as error:
            raise ConfigError(
                f"{self._path} is damaged ({error}); restore it from a backup, or move it away "
                "and new guards are drawn, which others could notice"
            ) from error

    def save(self, guards: GuardSet) -> None:
        """Write the set if it has changed. If that can't be done, paths are built all the same, and
        it is tried again with the next one."""
        if not guards.changed:
            return
        try:
            atomic_write(self._path, guards.encode())
        except ConfigError as error:
            if self.problem is None:
                _log.warning("guards not written", reason=str(error))
            self.problem = str(error)
        else:
            guards.changed = False
            self.problem = None
