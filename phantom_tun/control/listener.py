"""The control socket's file, and who may use it."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from phantom_tun.errors import ConfigError

_BACKLOG = 32
_CONNECT_TIMEOUT_S = 2.0
_UCRED = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use the control socket: root, the node's user and, if given, members of a group."""

    uid: int
    gid: int | None = None

    def allows(self, uid: int, gid: int) -> bool:
        """Whether a process with this user and primary group may."""
        if uid in {0, self.uid}:
            return True
        return self.gid is not None and (gid == self.gid or _is_member(uid, self.gid))


class UnixConnection(Protocol):
    """A connected Unix socket of the standard library or of trio."""

    def getsockopt(self, level: int, option: int, buflen: int, /) -> bytes:
        """As in :mod:`socket`."""
        ...


def peer_credentials(connection: UnixConnection) -> tuple[int, int, int]:
    """Process id, user id and group id at the other end of a connected Unix socket."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(raw)
    return pid, uid, gid


def bind_control_socket(path: Path, access: Access) -> socket.socket:
    """Listen at ``path``, mode 0600, or 0660 with a group; a stale socket there is replaced.

    :raises ConfigError: a live daemon answers there, something else is there, or no permission.
    """
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The mask makes the file private from its first moment on.
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise ConfigError(f"can't make the control socket {path}: {reason}") from error
    finally:
        os.umask(mask)
    os.chown(path, access.uid, -1 if access.gid is None else access.gid, follow_symlinks=False)
    if access.gid is not None:
        path.chmod(0o660)
    listener.listen(_BACKLOG)
    return listener


def _remove_stale(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"can't use the control socket {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(status.st_mode):
        raise ConfigError(
            f"{path} exists and isn't a socket; move it away or set control.socket to another place"
        )
    if _somebody_answers(path):
        raise ConfigError(
            f"another daemon answers at {path}: stop it with 'phantom-tun --socket {path} down', "
            "or set control.socket to another place"
        )
    path.unlink(missing_ok=True)


def _somebody_answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_TIMEOUT_S)
        code = probe.connect_ex(str(path))
    # A full queue or no permission also mean that somebody listens.
    return code not in {errno.ECONNREFUSED, errno.ENOENT}


def _is_member(uid: int, gid: int) -> bool:
    try:
        return pwd.getpwuid(uid).pw_name in grp.getgrgid(gid).gr_mem
    except KeyError:
        return False
