"""A lab from its beginning to its end, and what can be done to its nodes meanwhile.

Everything that a lab makes is named in its record before it is made; :func:`remove` therefore
works at any point, whoever calls it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from phantom_tun.lab import namespaces, provision, readiness, signals, topology
from phantom_tun.lab.errors import (
    BadLabOption,
    DuplicateLab,
    LabFailed,
    NotPrivileged,
    UnknownLab,
)
from phantom_tun.lab.plan import LabPlan, namespace_prefix, parse_name
from phantom_tun.lab.processes import ProcessRef, is_alive, kill, reference, started_as
from phantom_tun.lab.record import LabRecord, LabStore, default_root, elsewhere, not_ours

_TOOLS = ("ip", "tc", "nsenter", "setpriv")
_NEEDED_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
_REMOVE_SECONDS = 10.0
_FILES_OF_A_LAB = ("nodes", "netns", "network.toml", "override.key", "switch.log", "switch.ready")


@dataclass(frozen=True, slots=True)
class Wishes:
    """How :func:`up` shall go about it."""

    directory: Path | None = None
    """Where the nodes' files go; ``None``: beside the record."""
    timeout: float = 120.0
    keep: bool = False
    """Leave a lab that didn't become ready for somebody to look at."""
    daemon: tuple[str, ...] = provision.DAEMON


def up(plan: LabPlan, wishes: Wishes, report: readiness.Report, root: Path | None = None) -> None:
    """Bring a whole lab up; return when all nodes are ready. On any failure nothing is left.

    :raises NotPrivileged: not root, or no ``/dev/net/tun``.
    :raises DuplicateLab: the name is taken.
    :raises NotReady: naming nodes and stages.
    :raises LabFailed: a tool or the kernel refused.
    :raises ConfigError: an override is no setting of a node.
    """
    store = LabStore(root or default_root(), plan.name)
    directory = (wishes.directory or store.place).absolute()
    provision.check_settings(plan, directory)
    makes_directory = directory != store.place and _check_directory(directory)
    check_machine()
    if _stray_holders(plan.name) and not store.exists():
        raise DuplicateLab(
            f"namespaces of a lab {plan.name!r} are left over: "
            f"'phantom-tun lab down --name {plan.name}' removes them"
        )
    with ExitStack() as undo, _everybody_may_read():
        store.create()
        undo.callback(remove, store)
        with store.lock():
            began = time.monotonic()
            record = _build(plan, store, directory, makes_directory, wishes.daemon)
            report(
                f"{len(record.nodes)} namespaces joined in {time.monotonic() - began:.1f} s; "
                f"waiting for {plan.exit_hops} + {plan.entry_hops} hops"
            )
            for node in record.nodes:
                record = record.with_process(node.name, provision.launch(node))
            store.write(record)
        if wishes.keep:
            undo.pop_all()
        ids = readiness.wait_ready(record.nodes, wishes.timeout, report)
        with store.lock():
            store.write(record.with_ids(ids))
        undo.pop_all()


def open_lab(name: str, root: Path | None = None) -> LabStore:
    """The lab called ``name``, as later commands find it.

    :raises UnknownLab: there is none.
    """
    return LabStore(root or default_root(), parse_name(name))


def down(name: str, root: Path | None = None) -> bool:
    """End a lab, whatever state it is in. ``False``: there was none of this name.

    :raises LabFailed: another command is working on it, or something would not go.
    :raises NotPrivileged: the kernel lets this process do nothing with it.
    """
    store = LabStore(root or default_root(), parse_name(name))
    if not store.exists():
        # What others have left behind, or are using, is only root's to take away.
        if os.geteuid() != 0 or not _stray_holders(name):
            return False
        remove(store)
        return True
    with store.lock():
        remove(store)
    return True


def remove(store: LabStore) -> None:
    """Take away every process, namespace and file of a lab. Not to be interrupted.

    :raises LabFailed: a process would not die, or a file would not go.
    """
    with signals.held_back():
        try:
            record = store.read()
        except UnknownLab:  # crashed before or while the record was written
            record = None
        holders = _stray_holders(store.name)
        if record is not None:
            holders |= set(record.holders)
        if not all(map(namespaces.may_enter, holders)):
            raise not_ours(store.name)
        # After a crash there may be nothing but files.
        if any(map(namespaces.is_hidden, holders)) and record is not None and _is_up(record):
            raise elsewhere(store.name)
        left = _end_processes(record, holders)
        for holder in holders:
            namespaces.remove(holder)
        directory = Path(record.directory) if record is not None else store.place
        for name in _FILES_OF_A_LAB:
            _delete(directory / name)
        if record is not None and record.made_directory:
            with suppress(OSError):  # somebody may have put something there
                directory.rmdir()
        store.forget()
    if left:
        raise LabFailed(f"processes would not die: {', '.join(str(p.pid) for p in left)}")


def _is_up(record: LabRecord) -> bool:
    processes = (node.process for node in record.nodes)
    return any(process is not None and is_alive(process) for process in processes)


def _end_processes(record: LabRecord | None, holders: set[Path]) -> list[ProcessRef]:
    """Kill everything that belongs to a lab; returns what would not die.

    Looks again until nobody is left: who was just being started, or started by those we killed,
    may not have been in the namespace yet.
    """
    nodes = record.nodes if record is not None else ()
    recorded = [node.process for node in nodes if node.process is not None]
    commands = [node.command for node in nodes]
    deadline = time.monotonic() + _REMOVE_SECONDS
    left = kill(recorded)
    while not left:
        pids = {*namespaces.processes_inside(holders), *started_as(commands)}
        found = [process for pid in pids if (process := reference(pid)) is not None]
        if not found:
            break
        left = kill(found) if time.monotonic() < deadline else found
    return left


def check_machine() -> None:
    """May this process make a lab here?

    :raises NotPrivileged: not root, or no ``/dev/net/tun``.
    :raises LabFailed: a tool is missing.
    """
    effective = _effective_capabilities()
    missing = [name for name, bit in _NEEDED_CAPABILITIES.items() if not effective >> bit & 1]
    if missing:
        raise NotPrivileged(
            f"a lab needs root ({' and '.join(missing)}): use sudo, or do it in a user "
            "namespace of your own: unshare --user --map-root-user --net --mount bash"
        )
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise NotPrivileged(f"/dev/net/tun can't be used here: {error.strerror}") from error
    if absent := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        raise LabFailed(f"a lab needs {', '.join(absent)}: install iproute2 and util-linux")


def _build(
    plan: LabPlan, store: LabStore, directory: Path, makes_directory: bool, daemon: tuple[str, ...]
) -> LabRecord:
    """Everything but the daemons."""
    at = namespaces.choose_directory(directory / "netns")
    names = [plan.switch_namespace, *(plan.namespace(node) for node in plan.nodes)]
    holders = {name: at / name for name in names}
    users = provision.choose_users(plan, directory.parent if makes_directory else directory)
    nodes = []
    for node in plan.nodes:
        holder, files = holders[plan.namespace(node)], provision.node_files(directory, node)
        command = provision.daemon_command(node, holder, files, users, daemon)
        nodes.append(provision.node_record(plan, node, holder=holder, files=files, command=command))
    record = LabRecord(
        name=plan.name,
        directory=str(directory),
        made_directory=makes_directory,
        exit_hops=plan.exit_hops,
        entry_hops=plan.entry_hops,
        switch_namespace=plan.switch_namespace,
        switch_holder=str(holders[plan.switch_namespace]),
        nodes=tuple(nodes),
    )
    store.write(record)
    if makes_directory:
        directory.mkdir()
    provision.provision(plan, directory, users)
    topology.build(plan, holders)
    if plan.delay_ms:
        topology.start_switch(plan, holders, directory)
    topology.bring_up(plan, holders)
    return record


def _check_directory(directory: Path) -> bool:
    """Can this be the lab's directory? ``True``: the lab has to make it.

    :raises BadLabOption: it exists and isn't empty, or there is nothing to make it in.
    """
    if not directory.exists():
        if not directory.parent.is_dir():
            raise BadLabOption(f"there is no directory {directory.parent} to make {directory} in")
        return True
    if not directory.is_dir() or any(directory.iterdir()):
        raise BadLabOption(f"{directory} is not an empty directory: choose another --dir")
    return False


def _stray_holders(name: str) -> set[Path]:
    """Namespaces that bear the lab's name, recorded or not."""
    return set(namespaces.SYSTEM_DIRECTORY.glob(f"{namespace_prefix(name)}*"))


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _delete(path: Path) -> None:
    """
    :raises LabFailed: it won't go, for instance because somebody keeps writing there.
    """
    deadline = time.monotonic() + _REMOVE_SECONDS
    while True:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            if time.monotonic() > deadline:
                raise LabFailed(f"can't remove {path}: {error.strerror}") from error
            time.sleep(0.05)
        else:
            return


@contextmanager
def _everybody_may_read() -> Iterator[None]:
    """Nodes run as other users than we do; what is secret gets its own stricter mode."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)
