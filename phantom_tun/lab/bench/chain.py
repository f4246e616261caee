"""A chain of TLS proxies written in C (socat): what relaying with TLS on every link costs when
nothing is layered, hidden or looked up."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from phantom_tun.lab.bench.hosts import Hosts
from phantom_tun.lab.bench.load_wire import Target
from phantom_tun.lab.bench.systems import (
    SERVICE_PORT,
    Place,
    Running,
    load_server,
    package_version,
)
from phantom_tun.lab.errors import LabFailed

_BUFFER_LEN = 131_072


@dataclass(frozen=True, slots=True)
class TlsChain:
    """Client, ``relays`` proxies, service; TLS at the ends is that of the load generator."""

    relays: int = 6

    @property
    def key(self) -> str:
        """Its name in options."""
        return "tls-chain"

    @property
    def title(self) -> str:
        """With the number of proxies."""
        return f"TLS chain of {self.relays}"

    @property
    def programs(self) -> Mapping[str, str]:
        """socat, and openssl for a certificate."""
        return {"socat": "socat", "openssl": "openssl"}

    def version(self) -> str:
        """Of socat."""
        return package_version("socat")

    def start(self, place: Place) -> Running:
        """Start proxies from the service on.

        :raises LabFailed: one of them doesn't start.
        """
        certificate = place.directory / "certificate.pem"
        _make_certificate(certificate)
        last = self.relays + 2
        hosts = place.undo.enter_context(Hosts(place.name, last, place.condition, place.directory))
        began = time.monotonic()
        log = place.directory / "server.log"
        server = hosts.spawn(last, load_server(certificate), log)
        hosts.wait_listening(last, SERVICE_PORT, server, log)
        pids = []
        for host in range(last - 1, 1, -1):
            log = place.directory / f"{host}.log"
            onward = f"{hosts.address(host + 1)}:{SERVICE_PORT}"
            proxy = hosts.spawn(host, proxy_command(str(certificate), onward), log)
            hosts.wait_listening(host, SERVICE_PORT, proxy, log)
            pids.append(proxy.pid)
        return Running(
            client=hosts.inside(1),
            target=Target(hosts.address(2), SERVICE_PORT, tls=True),
            roles={"relay": tuple(pids)},
            began=began,
            relays_on_way=self.relays,
        )


def proxy_command(certificate: str, onward: str) -> list[str]:
    """One proxy: a process for each connection."""
    listen = (
        f"openssl-listen:{SERVICE_PORT},reuseaddr,fork,backlog=256,verify=0,nodelay,"
        f"cert={certificate},key={certificate}"
    )
    return ["socat", "-b", str(_BUFFER_LEN), listen, f"openssl:{onward},verify=0,nodelay"]


def _make_certificate(file: Path) -> None:
    """Certificate and private key in one file."""
    certificate = file.with_suffix(".crt")
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=bench"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-keyout", str(file), "-out", str(certificate)]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    if done.returncode:
        raise LabFailed(f"openssl made no certificate: {done.stderr.strip()}")
    file.write_text(file.read_text() + certificate.read_text())
