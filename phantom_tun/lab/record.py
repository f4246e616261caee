"""What a lab is, on disk, so that any later command finds it again.

``<root>/<name>/lab.json`` is written before anything else is made and holds the name of everything
that will be, so that ``lab down`` can clean up after a crash at any point. One lock per lab keeps
two commands from changing it at once.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from phantom_tun.decoding import UNREADABLE
from phantom_tun.files import atomic_write
from phantom_tun.lab.errors import DuplicateLab, LabFailed, NotPrivileged, UnknownLab, UnknownNode
from phantom_tun.lab.plan import DEFAULT_NAME
from phantom_tun.lab.processes import ProcessRef

SYSTEM_ROOT = Path("/run/phantom-tun-lab")
LOCK_SECONDS = 20.0

_RECORD, _LOCK = "lab.json", "lock"


class NodeRecord(msgspec.Struct, frozen=True):
    """One node."""

    name: str
    roles: tuple[str, ...]
    namespace: str
    holder: str
    """The file that holds the namespace."""
    underlay: str
    underlay6: str
    interface: str | None
    """``None``: relay-only."""
    state_dir: str
    control_socket: str
    log: str
    command: tuple[str, ...]
    """What starts its daemon, the way into the namespace included."""
    process: ProcessRef | None = None
    """The daemon, if one was started; it may have died since."""
    node_id: str | None = None
    """Its id in hex, once it has told it."""


class LabRecord(msgspec.Struct, frozen=True):
    """A whole lab."""

    name: str
    directory: str
    """Where the nodes' files are."""
    made_directory: bool
    """Did the lab make it, so that it goes with the lab?"""
    exit_hops: int
    entry_hops: int
    switch_namespace: str
    switch_holder: str
    nodes: tuple[NodeRecord, ...]

    def node(self, name: str) -> NodeRecord:
        """The node called ``name``.

        :raises UnknownNode: naming those there are.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        raise UnknownNode(
            f"lab {self.name!r} has no node {name!r}: it has n1 to n{len(self.nodes)}"
        )

    def with_process(self, name: str, process: ProcessRef | None) -> LabRecord:
        """The same lab with another daemon at node ``name``."""
        nodes = tuple(
            msgspec.structs.replace(node, process=process) if node.name == name else node
            for node in self.nodes
        )
        return msgspec.structs.replace(self, nodes=nodes)

    def with_ids(self, ids: Mapping[str, str]) -> LabRecord:
        """The same lab with the node ids that are known, by node name."""
        nodes = tuple(
            msgspec.structs.replace(node, node_id=ids.get(node.name, node.node_id))
            for node in self.nodes
        )
        return msgspec.structs.replace(self, nodes=nodes)

    @property
    def holders(self) -> list[Path]:
        """All files that hold its namespaces."""
        return [Path(self.switch_holder), *(Path(node.holder) for node in self.nodes)]


def default_root() -> Path:
    """Where labs are kept: ``/run/phantom-tun-lab``, or a place of one's own if that may not be
    written to.

    :raises LabFailed: the only place there is belongs to somebody else.
    """
    if os.access(SYSTEM_ROOT if SYSTEM_ROOT.exists() else SYSTEM_ROOT.parent, os.W_OK):
        return SYSTEM_ROOT
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime, SYSTEM_ROOT.name)
    root = Path(tempfile.gettempdir(), f"{SYSTEM_ROOT.name}-{os.geteuid()}")
    if root.exists() and root.lstat().st_uid != os.geteuid():
        raise LabFailed(f"{root} belongs to somebody else; set XDG_RUNTIME_DIR or TMPDIR")
    return root


def labs_of_root() -> list[str]:
    """The names of the labs in the place that only root may write to."""
    return sorted(entry.name for entry in SYSTEM_ROOT.glob("*/"))


def check_not_of_root(name: str) -> None:
    """For who has no lab of that name.

    :raises NotPrivileged: root has one, and this isn't root.
    """
    if os.geteuid() != 0 and name in labs_of_root():
        raise NotPrivileged(f"lab {name!r} is root's: use sudo")


def not_ours(name: str) -> NotPrivileged:
    """That the kernel lets this process do nothing with a lab."""
    return NotPrivileged(
        f"lab {name!r} is root's, or of another user namespace: use sudo, or do it where the lab "
        "was made"
    )


def elsewhere(name: str) -> NotPrivileged:
    """That a lab can't be seen from here."""
    return NotPrivileged(
        f"lab {name!r} was made in another mount namespace, and its nodes can't be seen from here: "
        "do it where the lab was made"
    )


def lab_command(verb: str, lab: str, *rest: str) -> str:
    """A ``lab`` command as one would type it."""
    name = [] if lab == DEFAULT_NAME else ["--name", lab]
    return " ".join(("phantom-tun", "lab", verb, *rest, *name))


class LabStore:
    """The place of one lab's record."""

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self.root = root
        self.place = root / name

    def exists(self) -> bool:
        """Is there a lab of this name, be it whole or what a crash left?"""
        return self.place.exists()

    def create(self) -> None:
        """Take the name.

        :raises DuplicateLab: it is taken.
        """
        self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            self.place.mkdir(mode=0o755)
        except FileExistsError:
            raise DuplicateLab(
                f"there is a lab {self.name!r} already: end it with "
                f"'phantom-tun lab down --name {self.name}', or choose another --name"
            ) from None

    @contextmanager
    def lock(self, seconds: float = LOCK_SECONDS) -> Iterator[None]:
        """Keep other commands from changing the lab meanwhile.

        :raises UnknownLab: there is none of this name.
        :raises LabFailed: another command is at it for too long.
        """
        deadline = time.monotonic() + seconds
        while (fd := self._try_lock()) is None:
            if time.monotonic() > deadline:
                raise LabFailed(f"lab {self.name!r} is being changed by another command")
            time.sleep(0.05)
        try:
            yield
        finally:
            os.close(fd)

    def read(self) -> LabRecord:
        """What the lab is.

        :raises UnknownLab: there is none of this name, or not yet, or only remains of one.
        """
        try:
            return msgspec.json.decode((self.place / _RECORD).read_bytes(), type=LabRecord)
        except (FileNotFoundError, NotADirectoryError):
            raise self._unknown() from None
        except UNREADABLE as error:
            raise UnknownLab(
                f"the record of lab {self.name!r} is damaged; "
                f"'phantom-tun lab down --name {self.name}' removes what is left of it"
            ) from error

    def write(self, record: LabRecord) -> None:
        """Replace what :meth:`read` returns."""
        data = msgspec.json.format(msgspec.json.encode(record), indent=1)
        atomic_write(self.place / _RECORD, data, mode=0o644)

    def forget(self) -> None:
        """Give the name free, and the root too if this was the last lab."""
        unfinished = self.place.glob(f".{_RECORD}.*")  # whoever wrote it was killed meanwhile
        for file in (*unfinished, self.place / _RECORD, self.place / _LOCK):
            file.unlink(missing_ok=True)
        for directory in (self.place, self.root):
            try:
                directory.rmdir()
            except OSError:
                return  # other labs, or files that somebody else put there

    def _try_lock(self) -> int | None:
        path = self.place / _LOCK
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise self._unknown() from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed the lab, and with it the file we locked.
            if path.stat().st_ino == os.fstat(fd).st_ino:
                return fd
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(fd)
        return None

    def _unknown(self) -> UnknownLab:
        if not self.exists():
            check_not_of_root(self.name)
        others = ", ".join(sorted(entry.name for entry in self.root.glob("*/"))) or "none"
        if os.geteuid() != 0 and (of_root := labs_of_root()):
            others += f"; with sudo: {', '.join(of_root)}"
        return UnknownLab(f"there is no lab {self.name!r}; running labs: {others}")
