"""The order of a daemon's start: everything that needs privilege, then none left, then the node."""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import msgspec
import structlog
import trio

import phantom_tun
from phantom_tun import __version__
from phantom_tun.config import Config
from phantom_tun.control.listener import Access, bind_control_socket
from phantom_tun.crypto.streams import use_fastest_keystream
from phantom_tun.daemon import logs
from phantom_tun.daemon.account import Account, resolve_account, resolve_group
from phantom_tun.daemon.listeners import open_listeners
from phantom_tun.daemon.lock import StateLock
from phantom_tun.daemon.privileges import (
    INTERFACE_CAPABILITIES,
    drop_privileges,
    raise_open_files,
)
from phantom_tun.daemon.service import serve
from phantom_tun.daemon.underlay import advertised_addresses
from phantom_tun.daemon.whereabouts import Whereabouts
from phantom_tun.daemon.wiring import InterfaceOpener, NodeFactory, load_node, open_interface
from phantom_tun.errors import ConfigError, PhantomError
from phantom_tun.files import ensure_private_directory
from phantom_tun.profile import Profile

_log = structlog.get_logger(__name__)


def run_daemon(
    config: Config,
    profile: Profile,
    *,
    node_factory: NodeFactory | None = None,
    interface_opener: InterfaceOpener = open_interface,
) -> None:
    """Be the daemon in this process; returns after an ordered stop.

    :param node_factory: makes the node; this package's own unless given.
    :param interface_opener: makes the interface, if there is to be one.

    :raises PhantomError: it can't start, or failed; the message says what to do.
    """
    logs.configure(config.log)
    new_node = load_node() if node_factory is None else node_factory
    whereabouts = Whereabouts(config.node)
    config = _with_addresses(config)
    control_gid = resolve_group(config.control.group)
    account = resolve_account(config.node.user, control_gid)
    access = Access(account.uid, control_gid)
    with ExitStack() as stack:
        ensure_private_directory(config.node.state_dir, uid=account.uid, gid=account.gid)
        lock = StateLock(config.node.state_dir)
        stack.callback(lock.release)
        control = stack.enter_context(_open_control(config.control.socket, access, account))
        stack.callback(_forget, config.control.socket)
        open_files = raise_open_files()
        listeners = open_listeners(config.node.listen_addresses, config.node.port)
        for listener in listeners:
            stack.enter_context(listener)
        interface = interface_opener(config, profile) if config.wants_interface else None
        os.chdir("/")  # not to keep somebody's directory in use
        drop_privileges(account, INTERFACE_CAPABILITIES if config.wants_interface else ())
        check_program()
        lock.write_pid()
        use_fastest_keystream(time.perf_counter)
        node = new_node(config, profile, listeners, interface)
        _log.info(
            "started",
            version=__version__,
            network=profile.name,
            port=config.node.port,
            uid=os.geteuid(),
            interface=config.interface.name if interface is not None else None,
            open_files=open_files,
        )
        try:
            trio.run(serve, node, control, access, whereabouts)
        except ExceptionGroup as group:
            known, unknown = group.split(PhantomError)
            if known is None or unknown is not None:
                raise
            raise _first(known) from group
        _log.info("stopped")


def check_program() -> None:
    """See whether the account we have become can still read the program: not everything is
    imported yet.

    :raises ConfigError: it can't; says what to do.
    """
    for module in (os, trio, phantom_tun):
        file = module.__file__
        if file is None or not os.access(file, os.R_OK):
            raise ConfigError(
                f"uid {os.geteuid()} can't read {file}, a part of this program: install "
                'phantom-tun where every user can read it, or set node.user = ""'
            )


def _with_addresses(config: Config) -> Config:
    addresses = tuple(str(address) for address in advertised_addresses(config.node))
    node = msgspec.structs.replace(config.node, advertise=addresses)
    return msgspec.structs.replace(config, node=node)


def _open_control(path: Path, access: Access, account: Account) -> socket.socket:
    """Listen on the control socket, in a directory that is made if there is none.

    The directory may be entered by all: the socket itself says who may use it.
    """
    try:
        path.parent.mkdir(parents=True, mode=0o755)
        os.chown(path.parent, account.uid, account.gid, follow_symlinks=False)
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigError(
            f"can't make the directory {path.parent} for the control socket: {error.strerror}; "
            "set control.socket to another place"
        ) from error
    return bind_control_socket(path, access)


def _forget(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        # The directory is root's and we are not root any more; the next start replaces the file.
        _log.debug("the control socket stays behind", reason=error.strerror)


def _first(group: ExceptionGroup[PhantomError]) -> PhantomError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error
