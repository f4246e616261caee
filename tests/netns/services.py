"""What the nodes of a lab offer each other: small servers, each in threads of the test process with
sockets in a node's namespace."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from typing import Any

import dns.message
import dns.rrset
from labs import FAMILY, Node

GOODBYE = b"BYE"
DNS_NAME, DNS_ANSWER = "service.example.", "192.0.2.7"


class Echo(socketserver.BaseRequestHandler):
    """Says who is calling, repeats everything, says goodbye after the caller's end."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            address, port = self.client_address[:2]
            self.request.sendall(f"{address} {port}\n".encode())
            while piece := self.request.recv(1 << 16):
                self.request.sendall(piece)
            self.request.sendall(GOODBYE)


class KeyValue(socketserver.StreamRequestHandler):
    """Requests and responses in lines: ``SET key value`` → ``OK``, ``GET key`` → value."""

    stored: dict[bytes, bytes]

    def setup(self) -> None:
        super().setup()
        self.stored = {}

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            for line in self.rfile:
                verb, key, *rest = line.split()
                if verb == b"SET":
                    self.stored[key] = rest[0]
                answer = b"OK" if verb == b"SET" else self.stored.get(key, b"-")
                self.wfile.write(answer + b"\n")


class DatagramEcho(socketserver.BaseRequestHandler):
    """Repeats each datagram behind its sender's address."""

    def handle(self) -> None:
        data, sock = self.request
        sock.sendto(self.client_address[0].encode() + b" " + data, self.client_address)


class Dns(socketserver.BaseRequestHandler):
    """Knows one name."""

    def handle(self) -> None:
        data, sock = self.request
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        answer.answer.append(dns.rrset.from_text(DNS_NAME, 60, "IN", "A", DNS_ANSWER))
        sock.sendto(answer.to_wire(), self.client_address)


@contextlib.contextmanager
def serving(
    node: Node, port: int, handler: type[socketserver.BaseRequestHandler]
) -> Iterator[None]:
    """``handler`` at both AP addresses of ``node``, as TCP or UDP service as it is made for."""
    is_udp = handler in {DatagramEcho, Dns}
    base: Any = socketserver.ThreadingUDPServer if is_udp else socketserver.ThreadingTCPServer
    with contextlib.ExitStack() as stack:
        for version in (4, 6):

            class Server(base):  # type: ignore[misc]
                address_family = FAMILY[version]
                allow_reuse_address = True
                daemon_threads = True
                block_on_close = False
                request_queue_size = 512
                max_packet_size = 1 << 16

            address = (node.ap(version), port)
            server = node.inside(lambda at=address, kind=Server: kind(at, handler))
            stack.callback(server.server_close)
            thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
        yield
