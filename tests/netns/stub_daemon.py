"""Stands in for ``phantom-tun run`` where a test is about the lab, not about the node.

``stub_daemon.py BEHAVIOUR --config FILE``: answers the control socket that the configuration
names, as a node would that is

``ready``        at once, with paths;
``die:NODE``     ready, but NODE ends with a complaint instead;
``pathless``     up, but never gets an entry path;
``stubborn``     ready, and ignores SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

from phantom_tun import config
from phantom_tun.control.listener import Access, bind_control_socket
from phantom_tun.control.model import (
    BuildStatus,
    IdentityStatus,
    LinkStatus,
    NetdbStatus,
    NetworkStatus,
    Status,
    TunnelStatus,
)
from phantom_tun.control.schema import encode_result


def status(settings: config.Config, behaviour: str) -> Status:
    identity = IdentityStatus(
        name="main",
        ap4="240.1.2.3",
        ap4_state="held",
        ap6="2001:2f::1:2",
        exit_paths_ready=1,
        entry_paths_ready=0 if behaviour == "pathless" else 1,
    )
    return Status(
        version="stub",
        state="building" if behaviour == "pathless" else "ready",
        node_id="00" * 32,
        pid=os.getpid(),
        uptime_s=0.0,
        network=NetworkStatus("stub", "00" * 32, 0),
        dialable=True,
        relay_only=settings.node.relay_only,
        interface=None if settings.node.relay_only else settings.interface.name,
        identities=() if settings.node.relay_only else (identity,),
        netdb=NetdbStatus(0, 0),
        links=LinkStatus(0, 0, 0),
        tunnels=TunnelStatus(0, 0, 0),
        builds=BuildStatus(0, 0, None),
        drops={},
    )


def serve(listener: socket.socket, line: bytes) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(BrokenPipeError):  # asked for nothing but its pid
            connection.recv(65536)
            connection.sendall(line)


def main(behaviour: str, path: Path) -> None:
    settings = config.load(path)
    node = path.parent.name
    print(f"stub of {node}, uid {os.geteuid()}", file=sys.stderr, flush=True)
    if behaviour == f"die:{node}":
        sys.exit("the stub was told to die")
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    settings.node.state_dir.mkdir(exist_ok=True)
    listener = bind_control_socket(settings.control.socket, Access(os.geteuid()))
    serve(listener, encode_result(status(settings, behaviour)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[3]))
