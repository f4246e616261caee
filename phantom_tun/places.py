"""Where things are by default, for the system's node (root) and for a user's own node.

The environment overrides two of them: ``PHANTOM_TUN_CONFIG`` (the configuration file) and
``PHANTOM_TUN_SOCKET`` (the control socket). ``PHANTOM_TUN_START`` is the command that messages say
starts the node, where that isn't ``phantom-tun up``: a lab sets it. A service manager names the
directories it made for us in ``CONFIGURATION_DIRECTORY``, ``STATE_DIRECTORY`` and
``RUNTIME_DIRECTORY``.
"""

from __future__ import annotations

import os
from pathlib import Path

CONFIG_VARIABLE = "PHANTOM_TUN_CONFIG"
SOCKET_VARIABLE = "PHANTOM_TUN_SOCKET"
START_VARIABLE = "PHANTOM_TUN_START"

SYSTEM_CONFIG = Path("/etc/phantom-tun")
SYSTEM_STATE = Path("/var/lib/phantom-tun")
SYSTEM_SOCKET = Path("/run/phantom-tun/control.sock")

NO_COLOUR_VARIABLE = "NO_COLOR"
"""What everybody's programs call it: https://no-color.org."""

CAP_NET_ADMIN = 12

_NAME = "phantom-tun"
_SOCKET_NAME = "control.sock"


def is_relay_only() -> bool:
    """Whether a node started by this process can't have an interface: no root, no CAP_NET_ADMIN."""
    return not _is_root() and not _effective_capabilities() & (1 << CAP_NET_ADMIN)


def config_from_environment() -> Path | None:
    """The configuration file that ``PHANTOM_TUN_CONFIG`` names, if any."""
    return _from_environment(CONFIG_VARIABLE)


def socket_from_environment() -> Path | None:
    """The control socket that ``PHANTOM_TUN_SOCKET`` names, if any."""
    return _from_environment(SOCKET_VARIABLE)


def start_command() -> str:
    """The command that starts the node, as messages name it."""
    return os.environ.get(START_VARIABLE) or "phantom-tun up"


def wants_colours() -> bool:
    """Whether the environment lets a terminal be written to in colours."""
    return not os.environ.get(NO_COLOUR_VARIABLE) and os.environ.get("TERM") != "dumb"


def config_file() -> Path:
    """The configuration file when none is named."""
    return _config_directory() / "config.toml"


def profile_file() -> Path:
    """The network profile when the configuration names none."""
    return _config_directory() / "network.toml"


def state_dir() -> Path:
    """The state directory when the configuration names none."""
    return (
        _from_environment("STATE_DIRECTORY")
        or (SYSTEM_STATE if _is_root() else None)
        or _below_home("XDG_STATE_HOME", ".local/state")
    )


def control_socket() -> Path:
    """The control socket when neither configuration nor environment names one."""
    if made := _from_environment("RUNTIME_DIRECTORY"):
        return made / _SOCKET_NAME
    if _is_root():
        return SYSTEM_SOCKET
    runtime = _from_environment("XDG_RUNTIME_DIR")
    return runtime / _NAME / _SOCKET_NAME if runtime else state_dir() / _SOCKET_NAME


def _config_directory() -> Path:
    return (
        _from_environment("CONFIGURATION_DIRECTORY")
        or (SYSTEM_CONFIG if _is_root() else None)
        or _below_home("XDG_CONFIG_HOME", ".config")
    )


def _below_home(variable: str, directory: str) -> Path:
    return (_from_environment(variable) or Path.home() / directory) / _NAME


def _from_environment(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


def _is_root() -> bool:
    return os.geteuid() == 0


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            return int(line.removeprefix("CapEff:"), 16)
    return 0
