"""What can be done to the nodes of a running lab, and how they are."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from phantom_tun.control.client import ControlClient
from phantom_tun.control.schema import ControlError
from phantom_tun.lab import namespaces, provision, readiness
from phantom_tun.lab.errors import LabFailed, NodeStateError
from phantom_tun.lab.processes import (
    ProcessRef,
    is_alive,
    is_paused,
    kill,
    reference,
    send_signal,
    wait_gone,
    wait_paused,
)
from phantom_tun.lab.record import (
    LabRecord,
    LabStore,
    NodeRecord,
    elsewhere,
    lab_command,
    not_ours,
)
from phantom_tun.places import CONFIG_VARIABLE, SOCKET_VARIABLE, START_VARIABLE

STOP_SECONDS = 30.0
PAUSE_SECONDS = 10.0


class NodeStatus(msgspec.Struct, frozen=True):
    """One node of ``lab status``."""

    name: str
    namespace: str
    """Its name below ``/run/netns``; the whole path where it is held elsewhere."""
    interface: str | None
    ap4: str | None
    ap6: str | None
    underlay: str
    underlay6: str
    control_socket: str
    state_dir: str
    pid: int | None
    """``None``: down."""
    state: str
    """down, paused, silent (no answer), or what the daemon says of itself."""
    roles: tuple[str, ...]
    log: str
    node_id: str | None
    """In hex, as ``paths list`` and ``peers`` show it; ``None`` until the daemon has told it."""


def status(store: LabStore) -> list[NodeStatus]:
    """How all nodes are right now.

    :raises UnknownLab: there is no such lab.
    """
    with ThreadPoolExecutor(readiness.ASKED_AT_ONCE) as pool:
        return list(pool.map(_node_status, store.read().nodes))


def inside(store: LabStore, name: str) -> tuple[list[str], dict[str, str]]:
    """What goes in front of a command to run it at a node, and the environment for it.

    :raises UnknownNode: there is no such node.
    :raises NotPrivileged: it may not be entered.
    """
    record = store.read()
    node = record.node(name)
    if not namespaces.may_enter(Path(node.holder)):
        raise not_ours(record.name)
    if namespaces.is_hidden(Path(node.holder)):
        raise elsewhere(record.name)
    files = provision.NodeFiles(Path(node.control_socket).parent)
    environment = dict(os.environ) | {
        SOCKET_VARIABLE: node.control_socket,
        CONFIG_VARIABLE: str(files.config),
        START_VARIABLE: lab_command("start", record.name, name),
    }
    environment["RES_OPTIONS"] = "timeout:1 attempts:1"  # no lab has a name service
    environment["PATH"] = f"{provision.PROGRAMS}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return ["nsenter", f"--net={node.holder}", "--"], environment


def kill_node(store: LabStore, name: str) -> None:
    """SIGKILL, and wait until it is gone.

    :raises NodeStateError: it is down already.
    :raises LabFailed: it would not die.
    """
    with store.lock():
        process = _running(store.read(), name)
        if kill([process]):
            raise LabFailed(f"{name} would not die")


def stop_node(store: LabStore, name: str, seconds: float = STOP_SECONDS) -> None:
    """SIGTERM, and wait until it has shut down in order.

    :raises NodeStateError: it is down already.
    :raises LabFailed: it takes longer than ``seconds``.
    """
    with store.lock():
        process = _running(store.read(), name)
        send_signal(process, signal.SIGTERM)
        if wait_gone([process], seconds):
            raise LabFailed(
                f"{name} has not stopped after {seconds:.0f} s; "
                f"'{lab_command('kill', store.name, name)}' ends it"
            )


def start_node(store: LabStore, name: str, timeout: float, report: readiness.Report) -> None:
    """Start a node that is down, with the keys it had; return when it is ready (``timeout`` 0:
    at once).

    :raises NodeStateError: it is up.
    :raises NotReady: it isn't ready in time; it is left as it is.
    """
    with store.lock():
        record = store.read()
        node = record.node(name)
        if (process := _process(node)) is not None:
            raise NodeStateError(f"{name} is up already, as process {process.pid}")
        record = record.with_process(name, provision.launch(node))
        store.write(record)
    if timeout:
        readiness.wait_ready([record.node(name)], timeout, report)


def pause_node(store: LabStore, name: str) -> bool:
    """SIGSTOP, and wait until it stands still. ``False``: it did already.

    :raises NodeStateError: it is down.
    :raises LabFailed: it goes on.
    """
    with store.lock():
        process = _running(store.read(), name)
        if is_paused(process):
            return False
        send_signal(process, signal.SIGSTOP)
        if not wait_paused(process, PAUSE_SECONDS):
            raise LabFailed(f"{name} can't be paused")
    return True


def resume_node(store: LabStore, name: str) -> bool:
    """SIGCONT. ``False``: it wasn't paused.

    :raises NodeStateError: it is down.
    """
    with store.lock():
        process = _running(store.read(), name)
        paused = is_paused(process)
        send_signal(process, signal.SIGCONT)
    return paused


def _running(record: LabRecord, name: str) -> ProcessRef:
    process = _process(record.node(name))
    if process is None:
        raise NodeStateError(
            f"{name} is down; '{lab_command('start', record.name, name)}' starts it"
        )
    return process


def _process(node: NodeRecord) -> ProcessRef | None:
    """The node's daemon: the one that the lab started, or one that somebody has started since with
    ``phantom-tun up``; ``None``: it is down."""
    if node.process is not None and is_alive(node.process):
        return node.process
    try:
        process = reference(ControlClient(Path(node.control_socket)).daemon_pid())
    except ControlError:
        return None
    # A killed daemon's socket answers until its last thread is gone.
    return process if process is not None and is_alive(process) else None


def _node_status(node: NodeRecord) -> NodeStatus:
    process = _process(node)
    paused = process is not None and is_paused(process)
    answer = readiness.ask(node) if process is not None and not paused else None
    identity = answer.identities[0] if answer is not None and answer.identities else None
    if process is None:
        state = "down"
    elif paused:
        state = "paused"
    else:
        state = answer.state if answer is not None else "silent"
    held = Path(node.holder).parent == namespaces.SYSTEM_DIRECTORY
    return NodeStatus(
        name=node.name,
        namespace=node.namespace if held else node.holder,
        interface=node.interface,
        ap4=identity.ap4 if identity is not None else None,
        ap6=identity.ap6 if identity is not None else None,
        underlay=node.underlay,
        underlay6=node.underlay6,
        control_socket=node.control_socket,
        state_dir=node.state_dir,
        pid=process.pid if process is not None else None,
        state=state,
        roles=node.roles,
        log=node.log,
        node_id=answer.node_id if answer is not None else node.node_id,
    )
