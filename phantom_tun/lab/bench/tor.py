"""Tor: a private network with one onion service (version 3).

The first hosts are directory authorities, which relay too; then relays, the service, the client.
Circuits are as on the public network: three relays on either side, and congestion control. What a
test network needs is set; so are equal bandwidth weights, without which a fresh network sends
every circuit through the two or three relays that served directories.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from phantom_tun.lab import processes
from phantom_tun.lab.bench.hosts import Hosts, quote
from phantom_tun.lab.bench.load_wire import Target
from phantom_tun.lab.bench.systems import SERVICE_PORT, Place, Running, load_server
from phantom_tun.lab.errors import LabFailed
from phantom_tun.lab.processes import ProcessRef

OR_PORT, DIRECTORY_PORT, SOCKS_PORT = 5000, 7100, 9050
SERVICE_NAME_SECONDS = 30.0

_FINGERPRINT = re.compile(r"^fingerprint ([0-9A-F]{40})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Keys:
    """Who a relay is."""

    fingerprint: str
    authority: str | None
    """The fingerprint of its authority key, if it is one."""


@dataclass(frozen=True, slots=True)
class Tor:
    """As shipped, or with another scheduler for cells (by default each waits up to 10 ms)."""

    scheduler: str | None = None
    authorities: int = 3
    relays: int = 9
    """Besides the authorities."""

    @property
    def key(self) -> str:
        """Its name in options."""
        return f"tor-{self.scheduler.lower()}" if self.scheduler else "tor"

    @property
    def title(self) -> str:
        """With the scheduler, if it isn't the usual one."""
        return f"Tor onion, {self.scheduler}" if self.scheduler else "Tor onion"

    @property
    def programs(self) -> Mapping[str, str]:
        """Both are in one package."""
        return {"tor": "tor", "tor-gencert": "tor"}

    def version(self) -> str:
        """As tor says."""
        return _run(["tor", "--version"]).splitlines()[0].rstrip(".")

    def start(self, place: Place) -> Running:
        """Start all of it; the first consensus takes about 20 s.

        :raises LabFailed: keys could not be made, or a tor doesn't start.
        """
        hosts = place.undo.enter_context(
            Hosts(place.name, self._client, place.condition, place.directory)
        )
        homes = {host: place.directory / f"n{host}" for host in range(1, self._client + 1)}
        for home in homes.values():
            home.mkdir(mode=0o700)
        keys = self._make_keys(hosts, homes)
        (place.directory / "bandwidths").write_text(bandwidths(keys, int(time.time())))
        directories = directory_lines(keys, hosts)
        for host, home in homes.items():
            lines = self._torrc(host, hosts.address(host), home)
            (home / "torrc").write_text("\n".join([*lines, *directories]) + "\n")
        hosts.spawn(self._service, load_server(), place.directory / "server.log")
        began = time.monotonic()
        started = {
            host: hosts.spawn(host, ["tor", "-f", str(home / "torrc")], home / "out")
            for host, home in homes.items()
        }
        onion = _service_name(homes[self._service], started[self._service])
        self._check(started, homes)
        relays = range(1, self._service)
        return Running(
            client=hosts.inside(self._client),
            target=Target(onion, SERVICE_PORT, socks_port=SOCKS_PORT, isolated=True),
            roles={
                "client": (started[self._client].pid,),
                "relay": tuple(started[host].pid for host in relays),
                "service": (started[self._service].pid,),
            },
            began=began,
            relays_on_way=6,
        )

    @property
    def _service(self) -> int:
        return self.authorities + self.relays + 1

    @property
    def _client(self) -> int:
        return self._service + 1

    def _make_keys(self, hosts: Hosts, homes: Mapping[int, Path]) -> dict[int, Keys]:
        def make(host: int) -> Keys:
            home, address = homes[host], hosts.address(host)
            authority = _authority_key(home, address) if host <= self.authorities else None
            lines = [f"DataDirectory {home}", f"Nickname n{host}", f"Address {address}"]
            lines += [f"ORPort {address}:{OR_PORT} IPv4Only", "AssumeReachable 1", "ExitRelay 0"]
            file = home / "torrc.keys"
            file.write_text("\n".join(lines) + "\n")
            printed = _run(["tor", "--quiet", "-f", str(file), "--list-fingerprint"])
            return Keys(printed.split(None, 1)[1].replace(" ", "").strip(), authority)

        wanted = range(1, self._service)
        with ThreadPoolExecutor(2) as pool:
            return dict(zip(wanted, pool.map(make, wanted), strict=True))

    def _torrc(self, host: int, address: str, home: Path) -> list[str]:
        lines = [
            "TestingTorNetwork 1",
            f"DataDirectory {home}",
            f"Nickname n{host}",
            f"Address {address}",
            f"OutboundBindAddress {address}",
            f"Log notice file {home}/log",
            "ShutdownWaitLength 0",
            "NumCPUs 1",
        ]
        if self.scheduler:
            lines.append(f"Schedulers {self.scheduler}")
        if host < self._service:
            lines += relay_lines(address)
        if host <= self.authorities:
            lines += authority_lines(address, home.parent / "bandwidths")
        if host == self._service:
            lines += ["SocksPort 0", f"HiddenServiceDir {home}/service"]
            lines.append(f"HiddenServicePort {SERVICE_PORT} 127.0.0.1:{SERVICE_PORT}")
        if host == self._client:
            lines.append(f"SocksPort 127.0.0.1:{SOCKS_PORT}")
        return lines

    def _check(self, started: Mapping[int, ProcessRef], homes: Mapping[int, Path]) -> None:
        for host, process in started.items():
            if not processes.is_alive(process):
                raise LabFailed(f"tor of host {host} ended: {quote(homes[host] / 'out')}")


def relay_lines(address: str) -> list[str]:
    """What makes a tor relay for others."""
    return [
        f"ORPort {address}:{OR_PORT} IPv4Only",
        "SocksPort 0",
        "ExitRelay 0",
        "AssumeReachable 1",
        "BandwidthRate 1 GB",
        "BandwidthBurst 1 GB",
        "MaxAdvertisedBandwidth 1 GB",
        "ContactInfo bench@localhost",
    ]


def authority_lines(address: str, measured: Path) -> list[str]:
    """What makes a relay vote: the first time soon, then seldom enough to be out of the way."""
    return [
        "AuthoritativeDirectory 1",
        "V3AuthoritativeDirectory 1",
        f"DirPort {address}:{DIRECTORY_PORT}",
        "V3AuthVotingInterval 300",
        "V3AuthVoteDelay 4",
        "V3AuthDistDelay 4",
        "TestingV3AuthInitialVotingInterval 20",
        "TestingV3AuthInitialVoteDelay 4",
        "TestingV3AuthInitialDistDelay 4",
        "TestingAuthDirTimeToLearnReachability 0",
        "TestingMinExitFlagThreshold 0",
        "TestingDirAuthVoteGuard *",
        "TestingDirAuthVoteHSDir *",
        # Congestion control by Vegas, as on the public network.
        "ConsensusParams cc_alg=2",
        f"V3BandwidthsFile {measured}",
    ]


def directory_lines(keys: Mapping[int, Keys], hosts: Hosts) -> list[str]:
    """Where everybody finds the authorities."""
    return [
        f"DirAuthority n{host} orport={OR_PORT} no-v2 v3ident={who.authority} "
        f"{hosts.address(host)}:{DIRECTORY_PORT} {who.fingerprint}"
        for host, who in keys.items()
        if who.authority is not None
    ]


def bandwidths(keys: Mapping[int, Keys], when: int) -> str:
    """The file in which authorities find that all relays are equal."""
    lines = [f"node_id=${who.fingerprint} bw=10000 nick=n{host}" for host, who in keys.items()]
    return "\n".join([str(when), *lines]) + "\n"


def _authority_key(home: Path, address: str) -> str:
    (home / "keys").mkdir(mode=0o700)
    command = ["tor-gencert", "--create-identity-key", "-m", "12"]
    command += ["-a", f"{address}:{DIRECTORY_PORT}", "--passphrase-fd", "0"]
    for letter, file in (
        ("-i", "authority_identity_key"),
        ("-s", "authority_signing_key"),
        ("-c", "authority_certificate"),
    ):
        command += [letter, str(home / "keys" / file)]
    _run(command, "bench\n")
    found = _FINGERPRINT.search((home / "keys" / "authority_certificate").read_text())
    if found is None:
        raise LabFailed("tor-gencert made a certificate without a fingerprint")
    return found[1]


def _service_name(home: Path, process: ProcessRef) -> str:
    """The onion address, once the service has made it."""
    file = home / "service" / "hostname"
    deadline = time.monotonic() + SERVICE_NAME_SECONDS
    while not file.exists():
        if not processes.is_alive(process) or time.monotonic() > deadline:
            raise LabFailed(f"the onion service did not start: {quote(home / 'out')}")
        time.sleep(0.05)
    return file.read_text().strip()


def _run(command: Sequence[str], given: str = "") -> str:
    done = subprocess.run(command, input=given, text=True, capture_output=True, check=False)
    if done.returncode:
        raise LabFailed(f"{command[0]} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout
