"""The one load generator for every system: a TCP (or TLS) and UDP server, and a client with few
jobs.

``python -m phantom_tun.lab.bench.load server PORT [CERTIFICATE]`` serves until it is killed. A
connection stays open for any number of requests:

=====================  ==========================================================================
``E`` byte             answers the byte
``D`` float64          sends chunks for that many seconds
``U`` chunks           answers with their length in all, as uint64
``T`` uint64           answers what has arrived of that flow of datagrams
                       (:mod:`~phantom_tun.lab.bench.load_udp`)
=====================  ==========================================================================

A chunk is 64 KiB long; its first byte says whether it is the last. So a transfer takes as long as
it should on a fast and on a slow system, ends cleanly, and leaves nothing on the way.

``python -m phantom_tun.lab.bench.load client JOB`` (a ``Job`` as JSON) connects, writes ``ready``,
waits for a line, does the job, writes an ``Outcome`` as JSON; both are in
:mod:`~phantom_tun.lab.bench.load_wire`.
"""

from __future__ import annotations

import resource
import socket
import sys
import threading

import msgspec

from phantom_tun.lab.bench import load_udp
from phantom_tun.lab.bench.load_client import Client
from phantom_tun.lab.bench.load_server import serve, server_context
from phantom_tun.lab.bench.load_wire import Job

LISTEN_BACKLOG = 512


def main(arguments: list[str]) -> None:
    """Be the server, or do a client's job."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    match arguments:
        case ["server", port, *certificate]:
            context = server_context(certificate[0]) if certificate else None
            tallies = load_udp.Tallies()
            datagrams = load_udp.receiver(int(port))
            threading.Thread(
                target=load_udp.receive, args=(datagrams, tallies), daemon=True
            ).start()
            listener = socket.create_server(
                ("::", int(port)),
                family=socket.AF_INET6,
                dualstack_ipv6=True,
                backlog=LISTEN_BACKLOG,
            )
            serve(listener, context, tallies)
        case ["client", text]:
            client = Client(msgspec.json.decode(text, type=Job))
            client.prepare()
            print("ready", flush=True)
            sys.stdin.readline()
            outcome = client.run()
            print(msgspec.json.encode(outcome).decode(), flush=True)
            client.close()
        case _:
            sys.exit(f"usage: {sys.argv[0]} server PORT [CERTIFICATE] | client JOB")


if __name__ == "__main__":
    main(sys.argv[1:])
