"""I2P (i2pd): a private network with a server tunnel and a client tunnel.

The first hosts are routers, some of them floodfills; then the service's router, then the client's.
What goes to the service passes three relays of the client's outbound tunnel and three of the
service's inbound tunnel; the other direction has tunnels of its own. Routers know each other from
the start, as after a reseed: each has run before, and their records are in everybody's database.

i2pd refuses peers with private addresses, so these hosts have public-looking ones besides. They
exist in the benchmark's namespaces only, which have no way out.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from phantom_tun.lab import processes
from phantom_tun.lab.bench.hosts import Hosts, quote
from phantom_tun.lab.bench.load_wire import Target
from phantom_tun.lab.bench.systems import SERVICE_PORT, Place, Running, load_server
from phantom_tun.lab.errors import LabFailed
from phantom_tun.lab.processes import ProcessRef

PREFIX = IPv4Network("44.77.0.0/24")
PEER_PORT, NETWORK_ID = 4567, 77
HOPS, TUNNELS = 3, 5
RECORD_SECONDS = 20.0
MEET_SECONDS = 8.0
"""How long routers have before the two sides come."""
_IDENTITY_LEN, _CERTIFICATE_LEN_AT = 387, 385
_OFF = (
    "ssu2", "http", "httpproxy", "socksproxy", "sam", "bob", "i2cp", "i2pcontrol", "upnp",
    "nettime", "addressbook",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class I2pd:
    """As shipped, except for the network it is in."""

    routers: int = 12
    floodfills: int = 4

    @property
    def key(self) -> str:
        """Its name in options."""
        return "i2pd"

    @property
    def title(self) -> str:
        """With the hops of each tunnel."""
        return f"i2pd {HOPS}+{HOPS}"

    @property
    def programs(self) -> Mapping[str, str]:
        """Only itself."""
        return {"i2pd": "i2pd"}

    def version(self) -> str:
        """As i2pd says."""
        done = subprocess.run(["i2pd", "--version"], text=True, capture_output=True, check=False)
        return (done.stdout.splitlines() or ["i2pd ?"])[0]

    def start(self, place: Place) -> Running:
        """Start routers, then both sides.

        :raises LabFailed: a router doesn't start.
        """
        hosts = place.undo.enter_context(
            Hosts(place.name, self._client, place.condition, place.directory)
        )
        addresses = hosts.add_addresses(PREFIX)
        homes = [place.directory / f"n{number}" for number in range(1, self._client + 1)]
        for number, (home, address) in enumerate(zip(homes, addresses, strict=True), start=1):
            home.mkdir(mode=0o700)
            text = configuration(home, address, floodfill=number <= self.floodfills)
            (home / "i2pd.conf").write_text(text)
            (home / "tunnels.conf").touch()
        self._introduce(hosts, homes)
        service_home, client_home = homes[-2:]
        (service_home / "tunnels.conf").write_text(server_tunnel())
        hosts.spawn(self._service, load_server(), place.directory / "server.log")
        began = time.monotonic()
        routers = [_start(hosts, number, homes) for number in range(1, self.routers + 1)]
        time.sleep(MEET_SECONDS)
        service = _start(hosts, self._service, homes)
        destination = _wait_record(service_home / "bench.dat", service, service_home)
        (client_home / "tunnels.conf").write_text(client_tunnel(address_of(destination)))
        client = _start(hosts, self._client, homes)
        return Running(
            client=hosts.inside(self._client),
            target=Target("127.0.0.1", SERVICE_PORT),
            roles={
                "client": (client.pid,),
                "relay": tuple(router.pid for router in routers),
                "service": (service.pid,),
            },
            began=began,
            relays_on_way=2 * HOPS,
        )

    @property
    def _service(self) -> int:
        return self.routers + 1

    @property
    def _client(self) -> int:
        return self.routers + 2

    def _introduce(self, hosts: Hosts, homes: list[Path]) -> None:
        """Let everybody make keys, and put the records of all routers into every database."""
        first = [_start(hosts, number, homes) for number in range(1, len(homes) + 1)]
        for router, home in zip(first, homes, strict=True):
            _wait_record(home / "router.info", router, home)
        if left := processes.kill(first):
            raise LabFailed(f"{len(left)} routers would not die")
        records = [(home / "router.info").read_bytes() for home in homes[: self.routers]]
        for own, home in enumerate(homes):
            for number, record in enumerate(records):
                if number != own:
                    _file_record(home / "netDb", record)


def identity_hash(record: bytes) -> bytes:
    """The hash of the identity that a record or a key file begins with."""
    extra = int.from_bytes(record[_CERTIFICATE_LEN_AT:_IDENTITY_LEN], "big")
    return hashlib.sha256(record[: _IDENTITY_LEN + extra]).digest()


def address_of(destination: bytes) -> str:
    """Where a destination is found, from its key file."""
    name = base64.b32encode(identity_hash(destination)).decode().lower().rstrip("=")
    return f"{name}.b32.i2p"


def configuration(home: Path, address: str, *, floodfill: bool) -> str:
    """``i2pd.conf``: nothing but the router, which talks to its own network only."""
    lines = [
        "log = file",
        f"logfile = {home}/log",
        "loglevel = warn",
        "ipv4 = true",
        "ipv6 = false",
        f"netid = {NETWORK_ID}",
        "nat = false",
        f"host = {address}",
        f"address4 = {address}",
        f"port = {PEER_PORT}",
        "reservedrange = false",
        f"floodfill = {'true' if floodfill else 'false'}",
        "bandwidth = X",
        "share = 100",
        "[ntcp2]",
        "enabled = true",
        "published = true",
        f"port = {PEER_PORT}",
        "[reseed]",
        "urls =",
        "yggurls =",
        "threshold = 0",
        "verify = false",
        "[limits]",
        "transittunnels = 10000",
    ]
    return _lines([*lines, *(line for each in _OFF for line in (f"[{each}]", "enabled = false"))])


def server_tunnel() -> str:
    """``tunnels.conf`` of the service's side."""
    head = ["[bench]", "type = server", "host = 127.0.0.1", f"port = {SERVICE_PORT}"]
    return _lines([*head, "keys = bench.dat", *_tunnel_options()])


def client_tunnel(destination: str) -> str:
    """``tunnels.conf`` of the client's side."""
    head = ["[bench]", "type = client", "address = 127.0.0.1", f"port = {SERVICE_PORT}"]
    return _lines([*head, f"destination = {destination}", "keys = transient", *_tunnel_options()])


def _tunnel_options() -> list[str]:
    return [
        line
        for way in ("inbound", "outbound")
        for line in (f"{way}.length = {HOPS}", f"{way}.quantity = {TUNNELS}")
    ]


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


def _start(hosts: Hosts, number: int, homes: list[Path]) -> ProcessRef:
    home = homes[number - 1]
    command = ["i2pd", f"--datadir={home}", f"--conf={home}/i2pd.conf"]
    command += [f"--tunconf={home}/tunnels.conf", f"--tunnelsdir={home}/none"]
    return hosts.spawn(number, command, home / "out")


def _wait_record(file: Path, router: ProcessRef, home: Path) -> bytes:
    """What a router writes when it has made its keys."""
    deadline = time.monotonic() + RECORD_SECONDS
    while not file.exists() or file.stat().st_size <= _IDENTITY_LEN:
        if not processes.is_alive(router) or time.monotonic() > deadline:
            raise LabFailed(f"i2pd did not start: {quote(home / 'log')}")
        time.sleep(0.05)
    return file.read_bytes()


def _file_record(database: Path, record: bytes) -> None:
    name = base64.b64encode(identity_hash(record), b"-~").decode()
    directory = database / f"r{name[0]}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"routerInfo-{name}.dat").write_bytes(record)
