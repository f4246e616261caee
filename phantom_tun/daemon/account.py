"""Whom the daemon becomes after its privileged start."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass

from phantom_tun.errors import ConfigError

_HIGHEST_UID = 2**32 - 2


@dataclass(frozen=True, slots=True)
class Account:
    """A user with the groups its process will have."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def current_account() -> Account:
    """The one this process runs as."""
    return Account(os.geteuid(), os.getegid(), tuple(os.getgroups()))


def resolve_account(user: str, control_gid: int | None = None) -> Account:
    """The account to run as: ``user`` (name or number) if we are root, else who we are.

    :param control_gid: a group that the process must have too.
    :raises ConfigError: no such user; says how to make one.
    """
    if not user or os.geteuid() != 0:
        return current_account()
    groups = () if control_gid is None else (control_gid,)
    number = int(user) if user.isascii() and user.isdigit() else None
    if number is not None and number > _HIGHEST_UID:
        raise ConfigError(f"node.user: {number} is no user id")
    try:
        entry = pwd.getpwnam(user) if number is None else pwd.getpwuid(number)
    except KeyError as error:
        if number is not None:
            return Account(number, number, groups)
        raise ConfigError(
            f"there is no user {user!r} on this machine: make it with 'useradd --system "
            f"--user-group --no-create-home --shell /usr/sbin/nologin {user}', "
            "or set node.user to another one"
        ) from error
    return Account(entry.pw_uid, entry.pw_gid, groups)


def resolve_group(name: str) -> int | None:
    """The id of ``control.group``; ``None`` for no group.

    :raises ConfigError: there is no such group.
    """
    if not name:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise ConfigError(
            f"control.group: there is no group {name!r} on this machine: groupadd --system {name}"
        ) from error
