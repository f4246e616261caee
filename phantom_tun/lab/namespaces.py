"""Network namespaces with a name: made, entered, emptied and removed.

A namespace lives as long as something holds it; here that is a bind mount of ``/proc/…/ns/net``
on a file, exactly what ``ip netns`` does. Where ``/run/netns`` is writable the files go there, so
that ``ip netns exec`` works too; else (an ordinary user's own user namespace) into the lab's
directory.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from phantom_tun.lab.errors import LabFailed

SYSTEM_DIRECTORY = Path("/run/netns")

_CLONE_NEWNET, _CLONE_NEWNS = 0x40000000, 0x00020000
_MS_NOSUID, _MS_NODEV = 0x2, 0x4
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_SHARED = 0x1000, 0x4000, 0x40000, 0x100000
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: int | bytes | None) -> None:
    """A system call that returns 0 or sets errno."""
    if getattr(_libc, name)(*args):
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _mount(source: str, target: Path, flags: int) -> None:
    _call("mount", source.encode(), os.fsencode(target), b"none", flags, None)


def _in_thread(work: Callable[[], None]) -> None:
    """Run ``work`` in a thread of its own: namespaces belong to threads, and ours must not move."""
    failure: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except (OSError, LabFailed) as error:
            failure.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def leave_mounts() -> None:
    """Give this process its own view of what is mounted; what it mounts stays in there.

    :raises OSError: no permission.
    """
    _call("unshare", _CLONE_NEWNS)
    _mount("", Path("/"), _MS_PRIVATE | _MS_REC)


def bind(source: str, target: Path) -> None:
    """Make ``source`` appear at ``target``, with everything mounted below it.

    :raises OSError: no permission, or there is nothing there.
    """
    _mount(source, target, _MS_BIND | _MS_REC)


def mount_passable(target: Path) -> None:
    """Cover a directory with an empty one that everybody may enter.

    :raises OSError: no permission.
    """
    _call("mount", b"tmpfs", os.fsencode(target), b"tmpfs", _MS_NOSUID | _MS_NODEV, b"mode=755")


def choose_directory(fallback: Path) -> Path:
    """Where this process can keep namespaces: ``/run/netns`` if it may, else ``fallback``."""
    try:
        SYSTEM_DIRECTORY.mkdir(mode=0o755, exist_ok=True)
        _share(SYSTEM_DIRECTORY)
    except OSError:
        return fallback
    return SYSTEM_DIRECTORY if os.access(SYSTEM_DIRECTORY, os.W_OK) else fallback


def _share(directory: Path) -> None:
    """Make ``directory`` a shared mount, as ``ip netns`` does before it first adds one.

    Left to ``ip``, it would later be mounted over ours, which could then never be unmounted.
    """
    try:
        _mount("", directory, _MS_SHARED | _MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: not a mount point yet
            raise
        bind(os.fspath(directory), directory)
        _mount("", directory, _MS_SHARED | _MS_REC)


def create(paths: Iterable[Path]) -> None:
    """Make one new network namespace for each path, held by that file.

    :raises LabFailed: a file exists already, or the kernel refused.
    """
    wanted = list(paths)

    def work() -> None:
        for path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY, 0o444))
            except FileExistsError:
                raise LabFailed(f"namespace {path.name} exists already ({path})") from None
            _call("unshare", _CLONE_NEWNET)
            _mount("/proc/thread-self/ns/net", path, _MS_BIND)

    try:
        _in_thread(work)
    except OSError as error:
        raise LabFailed(f"the kernel refused a network namespace: {error.strerror}") from error


def remove(path: Path) -> None:
    """Let go of a namespace; what still runs in it keeps it alive. Missing is fine."""
    with suppress(OSError):
        _call("umount2", os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW)
    path.unlink(missing_ok=True)


def enter(path: Path) -> None:
    """Move the calling thread into the namespace.

    :raises OSError: it doesn't exist or may not be entered.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("setns", fd, _CLONE_NEWNET)
    finally:
        os.close(fd)


def may_enter(path: Path) -> bool:
    """Whether this process is allowed to be in the namespace."""
    try:
        _in_thread(lambda: enter(path))
    except PermissionError:
        return False
    except OSError:
        return True  # it is broken in another way, which whoever enters is told
    return True


def is_hidden(path: Path) -> bool:
    """Whether a namespace may be held here that this process can't see: there is only the file, and
    what is mounted over it is so in another mount namespace, or nowhere any more."""
    try:
        return path.stat().st_dev != Path("/proc/self/ns/net").stat().st_dev
    except OSError:
        return False


@contextmanager
def inside(path: Path) -> Iterator[None]:
    """Be in the namespace for a while, with the calling thread."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(path)
        yield
    finally:
        _call("setns", home, _CLONE_NEWNET)
        os.close(home)


def set_sysctls(path: Path, values: dict[str, str]) -> None:
    """Write files under ``/proc/sys`` as seen from inside the namespace.

    :raises LabFailed: a value was refused; names it.
    """

    def work() -> None:
        enter(path)
        for key, value in values.items():
            try:
                Path("/proc/sys", *key.split(".")).write_text(value)
            except OSError as error:
                raise LabFailed(
                    f"{path.name}: can't set {key} = {value}: {error.strerror}"
                ) from error

    _in_thread(work)


def processes_inside(paths: Iterable[Path]) -> list[int]:
    """The process ids of all that runs in these namespaces, ours excepted."""
    wanted = {identity for path in paths if (identity := _identity(path)) is not None}
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            identity = _identity(Path(entry.path, "ns", "net"))
            if identity in wanted:
                found.append(int(entry.name))
    return found


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells namespaces apart; ``None`` if there is none here (any more)."""
    try:
        stat = path.stat()
    except OSError:
        return None
    # Before the mount and after the unmount the file is an ordinary one, on another device.
    return (stat.st_dev, stat.st_ino)
