"""What the nodes of a lab find on disk: keys, the network profile, configuration, commands.

::

    <directory>/network.toml              the profile, with n1 to n3 as bootstrap nodes
    <directory>/override.key              who has it may give the lab's nodes override commands
    <directory>/nodes/n1/config.toml
                         state/           keys, identities, known nodes
                         control.sock
                         log              what the daemon wrote, all starts
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

import phantom_tun
from phantom_tun import config, profile
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.daemon import slim
from phantom_tun.errors import ConfigError
from phantom_tun.files import atomic_write
from phantom_tun.lab.errors import BadLabOption, LabFailed
from phantom_tun.lab.plan import LabPlan, NodePlan, TomlValue
from phantom_tun.lab.processes import ProcessRef, spawn
from phantom_tun.lab.record import NodeRecord
from phantom_tun.node_keys import create_node_keys

INTERFACE = "phantom0"
OVERRIDE_KEY = "override.key"
PORT = 443
ORDINARY_USER = 65534
"""nobody, on every distribution."""

PROGRAMS = Path(sys.executable).parent
"""Where ``phantom-tun`` is installed, beside the Python it was installed for."""

PACKAGE_ROOT = Path(phantom_tun.__file__).parent.parent

_SOCKET_PATH_LIMIT = 107
_PRIVATE_VARIABLES = (
    "PHANTOM_TUN_SOCKET",
    "PHANTOM_TUN_CONFIG",
    "PHANTOM_TUN_START",
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "CONFIGURATION_DIRECTORY",
    "STATE_DIRECTORY",
    "RUNTIME_DIRECTORY",
)
"""They would lead a daemon away from its configuration file."""

DAEMON = (sys.executable, *slim.flags(), "-P", "-m", "phantom_tun", "run", "--config")
"""What starts a daemon, but for the configuration file's path. ``-P``: never import from the
directory somebody happens to stand in."""


_AS_NOBODY = (
    "setpriv",
    f"--reuid={ORDINARY_USER}",
    f"--regid={ORDINARY_USER}",
    "--clear-groups",
    "--no-new-privs",
)


@dataclass(frozen=True, slots=True)
class Users:
    """Whom the daemons of a lab run as."""

    user: int | None
    """Whom ordinary nodes become once their devices are open, and relay-only nodes are from the
    start. ``None``: all stay what we are; then there are no relay-only nodes."""
    prefix: tuple[str, ...] = ()
    """The command that makes the program readable for that user."""


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """Where one node's files are."""

    directory: Path

    @property
    def config(self) -> Path:
        """The configuration."""
        return self.directory / "config.toml"

    @property
    def state(self) -> Path:
        """Keys and everything the node remembers."""
        return self.directory / "state"

    @property
    def socket(self) -> Path:
        """The control socket."""
        return self.directory / "control.sock"

    @property
    def log(self) -> Path:
        """What the daemon writes."""
        return self.directory / "log"


def node_files(directory: Path, node: NodePlan) -> NodeFiles:
    """The files of ``node`` in a lab's directory.

    :raises BadLabOption: the directory's path is too long for Unix sockets.
    """
    files = NodeFiles(directory / "nodes" / node.name)
    if len(os.fsencode(files.socket)) > _SOCKET_PATH_LIMIT:
        raise BadLabOption(
            f"{directory} is too long a path for the nodes' control sockets; choose a shorter --dir"
        )
    return files


def daemon_environment() -> dict[str, str]:
    """The environment daemons start with."""
    environment = {k: v for k, v in os.environ.items() if k not in _PRIVATE_VARIABLES}
    environment["PYTHONPATH"] = str(PACKAGE_ROOT)
    return environment


def daemon_command(
    node: NodePlan, holder: Path, files: NodeFiles, users: Users, daemon: tuple[str, ...]
) -> tuple[str, ...]:
    """What runs ``daemon`` with the node's configuration inside its namespace."""
    become = (*users.prefix, *(_AS_NOBODY if node.relay_only else ()))
    return ("nsenter", f"--net={holder}", "--wd=/", "--", *become, *daemon, str(files.config))


def settings(
    plan: LabPlan, node: NodePlan, files: NodeFiles, users: Users
) -> dict[str, dict[str, TomlValue]]:
    """The configuration of one node: what differs from the defaults, then the overrides."""
    sections: dict[str, dict[str, TomlValue]] = {
        "node": {
            "state_dir": str(files.state),
            "port": PORT,
            "advertise": [str(node.underlay), str(node.underlay6)],
            "relay_only": node.relay_only,
            "user": "" if node.relay_only or users.user is None else str(users.user),
        },
        "network": {"profile": str(files.directory.parent.parent / "network.toml")},
        "interface": {"name": INTERFACE},
        "paths": {"exit_hops": plan.exit_hops, "entry_hops": plan.entry_hops},
        "control": {"socket": str(files.socket)},
    }
    for override in plan.overrides:
        if override.node in (None, node.name):
            sections.setdefault(override.section, {})[override.key] = override.value
    return sections


def render(sections: dict[str, dict[str, TomlValue]]) -> str:
    """TOML text of a configuration."""
    lines = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        # JSON's scalars and arrays are TOML's.
        lines += [f"{key} = {msgspec.json.encode(v).decode()}" for key, v in values.items()]
        lines.append("")
    return "\n".join(lines)


def check_settings(plan: LabPlan, directory: Path) -> None:
    """Would the daemons accept their configuration? Asked before anything is made.

    :raises BadLabOption: the path is too long.
    :raises ConfigError: a ``--set`` is not a setting; says which are.
    """
    for node in plan.nodes:
        files = node_files(directory, node)
        text = render(settings(plan, node, files, Users(None)))
        try:
            config.parse(text.encode(), source=files.config)
        except ConfigError as error:
            said = str(error).removeprefix(f"{files.config}: ")
            raise ConfigError(f"--set, at {node.name}: {said}") from error


def provision(plan: LabPlan, directory: Path, users: Users) -> None:
    """Write everything the daemons need."""
    bootstrap = []
    for node in plan.nodes:
        files = node_files(directory, node)
        files.directory.mkdir(mode=0o700, parents=True)
        if node.bootstrap:
            keys = create_node_keys(files.state)
            bootstrap.append(profile.Bootstrap(keys.node_id, node.underlay, PORT, keys.cert_hash))
        files.config.write_text(render(settings(plan, node, files, users)))
        if users.user is not None:
            _give(files.directory, users.user)
    override_key = SigningKey.generate()
    atomic_write(directory / OVERRIDE_KEY, f"{override_key.seed.hex()}\n".encode())
    network = profile.new(
        f"lab-{plan.name}",
        secrets.token_bytes(profile.NONCE_SIZE),
        override_keys=(override_key.public,),
        bootstrap=tuple(bootstrap),
        exit_hops=plan.exit_hops,
        entry_hops=plan.entry_hops,
    )
    (directory / "network.toml").write_text(profile.dump(network))


def choose_users(plan: LabPlan, directory: Path) -> Users:
    """Find out whom the daemons can run as on this machine, by trying.

    :param directory: the lab's, or the one it will be made in.
    :raises LabFailed: relay-only nodes were asked for and there is no ordinary user.
    """
    needed = [Path(sys.prefix), Path(sys.base_prefix), PACKAGE_ROOT, directory]
    passable = (sys.executable, "-P", "-m", "phantom_tun.lab.passable", *map(str, needed), "--")
    for prefix in ((), passable):
        if _works((*prefix, *_AS_NOBODY), directory):
            return Users(ORDINARY_USER, prefix)
    if any(node.relay_only for node in plan.nodes):
        raise LabFailed(
            f"relay-only nodes run as uid {ORDINARY_USER}, which can't read {sys.prefix}, "
            f"{PACKAGE_ROOT} or {directory}, or doesn't exist in this user namespace"
        )
    return Users(None)


def _works(prefix: tuple[str, ...], directory: Path) -> bool:
    """Can Python with this package be run so, and can it reach the lab's directory?"""
    probe = "import os, sys, phantom_tun; sys.exit(not os.access(sys.argv[1], os.X_OK))"
    done = subprocess.run(
        [*prefix, sys.executable, "-P", "-c", probe, str(directory)],
        env=daemon_environment(),
        cwd="/",
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def node_record(
    plan: LabPlan, node: NodePlan, *, holder: Path, files: NodeFiles, command: tuple[str, ...]
) -> NodeRecord:
    """What later commands need to know of a node."""
    return NodeRecord(
        name=node.name,
        roles=node.roles,
        namespace=plan.namespace(node),
        holder=str(holder),
        underlay=str(node.underlay),
        underlay6=str(node.underlay6),
        interface=None if node.relay_only else INTERFACE,
        state_dir=str(files.state),
        control_socket=str(files.socket),
        log=str(files.log),
        command=command,
    )


def launch(node: NodeRecord) -> ProcessRef:
    """Start a node's daemon.

    :raises OSError: nsenter isn't to be found.
    """
    return spawn(node.command, daemon_environment(), Path(node.log))


def _give(directory: Path, user: int) -> None:
    os.chown(directory, user, user)
    for path in directory.rglob("*"):
        os.chown(path, user, user)
