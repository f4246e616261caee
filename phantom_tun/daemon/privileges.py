"""Giving up root: what remains is at most CAP_NET_ADMIN, for the interface and the ``ip`` tool.

The kept capabilities are made ambient, so that programs started later have them as well. All of it
is verified against what the kernel says afterwards. Linux keeps these settings per thread: it must
happen before a second thread exists.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from collections.abc import Iterable
from pathlib import Path

from phantom_tun.daemon.account import Account
from phantom_tun.errors import UsageError
from phantom_tun.places import CAP_NET_ADMIN

CAP_SETPCAP = 8
INTERFACE_CAPABILITIES = frozenset({CAP_NET_ADMIN})
OPEN_FILES = 1 << 16

_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_HIGHEST_CAPABILITY = 63

_libc = ctypes.CDLL(None, use_errno=True)


def raise_open_files() -> int:
    """Allow as many open files as we need or, if less, as we may; returns the limit."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
        except (OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            return hard
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, hard))
    return OPEN_FILES


def drop_privileges(account: Account, keep: Iterable[int]) -> None:
    """Become ``account`` with no capabilities but those in ``keep`` that we have.

    Afterwards no program this process starts can gain more, and no other process of the same user
    can read its memory.

    :raises UsageError: the kernel refuses, or something is left that should not be.
    """
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        raise UsageError("privileges must be dropped before the process has a second thread")
    kept = _mask(keep) & _capabilities("CapPrm")
    try:
        _shrink_bounding_set(kept)
        if os.geteuid() == 0:
            _change_user(account)
        _set_capabilities(kept)
        _set_ambient(kept)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _prctl(_PR_SET_DUMPABLE, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except OSError as error:
        raise UsageError(
            f"can't give up privileges for uid {account.uid}: {error.strerror}; "
            'inside a container or user namespace set node.user = ""'
        ) from error
    _verify(account, kept)


def _shrink_bounding_set(kept: int) -> None:
    if not _capabilities("CapEff") & 1 << CAP_SETPCAP:
        return
    for capability in range(_HIGHEST_CAPABILITY + 1):
        known = _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0)
        if known < 0:
            return
        if known and not kept & 1 << capability:
            _prctl(_PR_CAPBSET_DROP, capability)


def _change_user(account: Account) -> None:
    _prctl(_PR_SET_KEEPCAPS, 1)
    if (account.uid, account.gid) != (os.geteuid(), os.getegid()) or account.groups:
        os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    _prctl(_PR_SET_KEEPCAPS, 0)


def _set_capabilities(mask: int) -> None:
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    sets = struct.pack("=6I", low, low, low, high, high, high)
    if _libc.capset(header, sets) != 0:
        raise _last_error()


def _set_ambient(mask: int) -> None:
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(_HIGHEST_CAPABILITY + 1):
        if mask & 1 << capability:
            _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)


def _verify(account: Account, kept: int) -> None:
    users = os.getresuid(), os.getresgid()
    expected = (account.uid,) * 3, (account.gid,) * 3
    sets = [_capabilities(name) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")]
    if users != expected or sets != [kept] * 4:
        raise UsageError("the kernel left more privileges than it was told to; not starting")


def _prctl(option: int, *arguments: int) -> None:
    padded = (*arguments, *(0 for _ in range(4 - len(arguments))))
    if _libc.prctl(option, *(ctypes.c_ulong(value) for value in padded)) != 0:
        raise _last_error()


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def _mask(capabilities: Iterable[int]) -> int:
    mask = 0
    for capability in capabilities:
        mask |= 1 << capability
    return mask


def _capabilities(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1], 16)
    raise UsageError(f"this kernel doesn't report {name}; it is too old")
