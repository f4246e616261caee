"""Files a node must be able to trust: written whole or not at all, secrets readable by nobody else.

Everything below one state directory goes through here. Errors are :class:`ConfigError` with a
sentence that says what to do, because a person has to do it.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from phantom_tun.errors import ConfigError

SECRET_MAX_BYTES = 64 * 1024
_PRIVATE_FILE = 0o600
_PRIVATE_DIRECTORY = 0o700
_OTHERS = 0o077
_AS_IT_IS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""No link is followed, and a FIFO in a file's place is reported, not waited for."""


def atomic_write(path: Path, data: bytes, *, mode: int = _PRIVATE_FILE) -> None:
    """Replace ``path`` by ``data`` so that a crash leaves the old or the new content, never a part.

    :raises ConfigError: the directory is missing, full or not writable.
    """
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise ConfigError(
            f"can't write {path}: {error.strerror}; make sure that {path.parent} exists, "
            f"has space and is writable by uid {os.geteuid()}"
        ) from error


def read_plain(path: Path, at_most: int) -> bytes:
    """What is in a file of the node's own, whatever somebody has put in its place: it is neither
    waited for nor read without end.

    :param at_most: bytes it can have.
    :raises OSError: there is none, it can't be read, is no plain file, or is longer.
    """
    handle = os.open(path, _AS_IT_IS)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file")
        with os.fdopen(handle, "rb", closefd=False) as file:
            data = file.read(at_most + 1)
    finally:
        os.close(handle)
    if len(data) > at_most:
        raise OSError(errno.EFBIG, f"it is longer than {at_most} bytes")
    return data


def load_secret(path: Path, *, size: int | None = None) -> bytes | None:
    """Read a secret, or return ``None`` when there is no such file.

    :param size: the exact length it must have; ``None`` allows 1 to 64 KiB.
    :raises ConfigError: unreadable, not a plain file, not ours, open to others, or of wrong length.
    """
    try:
        handle = os.open(path, _AS_IT_IS)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(
            f"can't read the file {path}: {error.strerror}; it must be a plain file that "
            f"uid {os.geteuid()} can read (chown {os.geteuid()} {path}; chmod 600 {path})"
        ) from error
    try:
        # Before it becomes a file object, which a directory can't.
        _check_private(path, os.fstat(handle))
        data = os.read(handle, SECRET_MAX_BYTES + 1)
    finally:
        os.close(handle)
    expected = f"{size} bytes" if size is not None else f"1 to {SECRET_MAX_BYTES} bytes"
    if (size is not None and len(data) != size) or not 0 < len(data) <= SECRET_MAX_BYTES:
        raise ConfigError(
            f"the file {path} doesn't hold {expected}: it is damaged; restore it from a backup, or "
            "move it away and a new one is made at the next start (a key: another identity)"
        )
    return data


def load_or_create_secret(
    path: Path, factory: Callable[[], bytes], *, size: int | None = None
) -> bytes:
    """Read the secret at ``path``; if there is none yet, store what ``factory`` makes, mode 0600.

    :raises ConfigError: as :func:`load_secret` and :func:`atomic_write`.
    """
    secret = load_secret(path, size=size)
    if secret is None:
        secret = factory()
        atomic_write(path, secret)
    return secret


def ensure_private_directory(path: Path, *, uid: int, gid: int) -> None:
    """Make ``path`` a directory of mode 0700 that belongs to ``uid``, or say why it can't be.

    Only a directory made by this call is given away: one that exists and belongs to somebody else
    is refused, since changing the owner of what others may have prepared would hand them files.

    :raises ConfigError: with the command that mends it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir(mode=_PRIVATE_DIRECTORY)
        except FileExistsError:
            pass
        else:
            os.chown(path, uid, gid, follow_symlinks=False)
        status = path.lstat()
    except OSError as error:
        raise ConfigError(
            f"can't use the directory {path}: {error.strerror}; create it for uid {uid}, "
            "or choose another one in the configuration"
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{path} isn't a directory; move it away or choose another place")
    if status.st_uid != uid:
        raise ConfigError(
            f"{path} belongs to uid {status.st_uid}, the node runs as uid {uid}: "
            f"chown -R {uid} {path}, or set node.user to its owner"
        )
    if status.st_mode & _OTHERS:
        raise ConfigError(f"{path} holds keys but is open to other users: chmod 700 {path}")


def _check_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"the file {path} isn't a plain file; move it away")
    if status.st_uid != os.geteuid():
        raise ConfigError(
            f"the file {path} belongs to uid {status.st_uid}, not to the node's uid "
            f"{os.geteuid()}: chown {os.geteuid()} {path}"
        )
    if status.st_mode & _OTHERS:
        raise ConfigError(
            f"the file {path} can be read by other users (mode {status.st_mode & 0o777:o}): "
            f"chmod 600 {path}, and treat what it holds as known to whoever could read it"
        )


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
