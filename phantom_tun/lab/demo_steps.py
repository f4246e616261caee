"""The steps of the demonstration, each of which says what it does: as the command that one would
type, where there is one."""

from __future__ import annotations

import filecmp
import ipaddress
import secrets
import subprocess
import textwrap
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

from phantom_tun.control.client import ControlClient
from phantom_tun.control.model import Kind, PathInfo
from phantom_tun.control.schema import ListPaths, ListTunnels, RebuildPaths
from phantom_tun.lab import evidence
from phantom_tun.lab import nodes as lab_nodes
from phantom_tun.lab.capture import (
    Capture,
    IpAddress,
    bytes_by_peer,
    count_containing,
    start_captures,
)
from phantom_tun.lab.errors import LabFailed
from phantom_tun.lab.evidence import Ends, Way
from phantom_tun.lab.nodes import NodeStatus
from phantom_tun.lab.record import LabStore

PORT = 8000
RECORDED_BYTES = 8 << 20
RECORDED_RATES = ("4M", "2M", "1M")
"""Bytes per second, as curl takes them; a slower one if the machine couldn't record it all."""
MEASURED_BYTES = 64 << 20
OUTLIVING_RATE = "16M"
"""Bytes per second, as curl takes them."""
BEGIN_WITHIN = 30.0
CHOICES = 4
"""How often to look for two nodes that suit; their paths are rebuilt in between."""

_WIDTH = 80
"""Columns that an ordinary terminal has."""
_FIELDS = "%{http_code} %{time_connect} %{time_total} %{speed_download}"


@dataclass(frozen=True, slots=True)
class Fetched:
    """What curl measured."""

    connect: float
    """Seconds until the connection stood."""
    total: float
    speed: float
    """Bytes a second."""


@dataclass(slots=True)
class Demonstration:
    """One run: the running lab and what was found."""

    store: LabStore
    scratch: Path
    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    marker: str = field(default_factory=lambda: f"marker-{secrets.token_hex(16)}")
    timings: list[tuple[str, str]] = field(default_factory=list)

    def say(self, text: str) -> None:
        """One line for the person who watches."""
        for line in textwrap.wrap(text, _WIDTH - 3, break_long_words=False):
            self.console.print(Text(f"   {line}"))

    def step(self, title: str) -> None:
        """The heading of what comes now."""
        self.console.print(Text(f"\n== {title}", style="bold"))

    # --- commands at nodes ----------------------------------------------------------------------

    def typed(self, command: str) -> None:
        """Print a phantom-tun command as one would type it."""
        self.console.print(Text(f"   $ phantom-tun {command}", style="cyan"))

    def typed_at(self, node: str, command: Sequence[str]) -> None:
        """The same for a command at a node."""
        self.typed(f"lab exec {node} -- {' '.join(command)}")

    def run(self, node: str, *command: str) -> str:
        """Run a command at a node and return what it wrote.

        :raises LabFailed: it failed; quotes it.
        """
        prefix, environment = lab_nodes.inside(self.store, node)
        done = subprocess.run(
            [*prefix, *command], env=environment, text=True, capture_output=True, check=False
        )
        if done.returncode:
            raise LabFailed(
                f"'{' '.join(command)}' failed at {node} with {done.returncode}: "
                f"{(done.stderr or done.stdout).strip()}"
            )
        return done.stdout

    def start(self, node: str, *command: str) -> subprocess.Popen[str]:
        """Start a command at a node; removing the lab ends it."""
        prefix, environment = lab_nodes.inside(self.store, node)
        return subprocess.Popen(
            [*prefix, *command],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    # --- steps ----------------------------------------------------------------------------------

    def choose(self, nodes: list[NodeStatus]) -> tuple[Ends, dict[str, str]]:
        """Who shall be client and server; and the names of all node ids.

        :raises LabFailed: no two nodes will do.
        """
        clients = {node.name: ControlClient(Path(node.control_socket)) for node in nodes}
        names = {node.node_id or "": node.name for node in nodes}
        for attempt in range(CHOICES):
            if attempt:
                self.say("(every two nodes share a relay beside them: rebuilding all paths)")
                for client in clients.values():
                    client.call(RebuildPaths())
            paths = {name: client.call(ListPaths()) for name, client in clients.items()}
            if (ends := evidence.choose_ends(paths, names)) is not None:
                return ends, names
        raise LabFailed(
            "the nodes of this small lab share their guards, so no two of them can show that a "
            "relay sees one end only: give it more nodes (the default of 12 is enough)"
        )

    def serve(self, server: NodeStatus) -> None:
        """Start a web server at a node and expose it to everybody.

        :raises LabFailed: it doesn't start, or can't be exposed.
        """
        web = self.scratch / "web"
        web.mkdir()
        line = f"{self.marker}\n"
        (web / "index.html").write_text(line * 100)
        (web / "recorded").write_text(line * (RECORDED_BYTES // len(line)))
        (web / "measured").write_bytes(secrets.token_bytes(MEASURED_BYTES))
        command = ["python3", "-m", "http.server", str(PORT), "--bind", "::"]
        self.typed_at(server.name, command)
        self.start(server.name, *command, "--directory", str(web))
        patience = ["--retry", "40", "--retry-delay", "1", "--retry-connrefused"]
        self.run(server.name, *curl("::1"), *patience, "-o", "/dev/null")
        expose = ["phantom-tun", "expose", str(PORT)]
        self.typed_at(server.name, expose)
        self.run(server.name, *expose)

    def record(self, nodes: list[NodeStatus]) -> list[Capture]:
        """Begin to record every packet of every interface of all nodes.

        :raises LabFailed: tcpdump doesn't start.
        """
        directory = self.scratch / "captures"
        directory.mkdir(exist_ok=True)
        pairs = [(node.name, interface) for node in nodes for interface in interfaces_of(node)]
        self.say(f"(tcpdump records {len(pairs)} interfaces: eth0 and phantom0 of all nodes)")
        return start_captures(self.store, pairs, directory)

    def fetch(
        self, client: NodeStatus, address: str, file: str = "", options: Sequence[str] = ()
    ) -> Fetched:
        """curl at a node; compares what came with what should.

        :raises LabFailed: it failed, or something else came.
        """
        got = self.scratch / "got"
        done = self.run(client.name, *curl(address, file), *options, "-o", str(got), "-w", _FIELDS)
        code, *numbers = done.split()
        wanted = self.scratch / "web" / (file or "index.html")
        if code != "200" or got.read_bytes() != wanted.read_bytes():
            raise LabFailed(f"{address}/{file} came with status {code} or not as it should be")
        return Fetched(*map(float, numbers))

    def first_contact(self, client: NodeStatus, server: NodeStatus) -> None:
        """The page over both address families, the second time with everything warm."""
        for version, address in (("AP4", server.ap4), ("AP6", server.ap6)):
            self.typed_at(client.name, curl(str(address)))
            for which in ("first", "second"):
                took = self.fetch(client, str(address))
                figure = f"{took.connect * 1e3:.0f} ms to connect, {took.total * 1e3:.0f} ms in all"
                self.say(f"the page came, byte for byte: {figure}")
                self.timings.append((f"curl {version}, {which} time", figure))

    def recorded_transfer(self, client: NodeStatus, server: NodeStatus, rate: str) -> None:
        """Fetch the file whose way shall be found, at most so fast: tcpdump has to keep up with
        every node of the lab.

        :raises LabFailed: it doesn't come, or not as it should be.
        """
        options = ["--limit-rate", rate]
        self.typed_at(client.name, [*curl(str(server.ap4), "recorded"), *options])
        took = self.fetch(client, str(server.ap4), "recorded", options)
        self.say(f"{RECORDED_BYTES >> 20} MiB came, byte for byte, in {took.total:.1f} s")

    def own_paths(self, node: NodeStatus, kind: Kind) -> list[PathInfo]:
        """The paths of a node as their owner, and nobody else, sees them."""
        asked = ["phantom-tun", "paths", "list", "--json"]
        self.typed_at(node.name, asked)
        paths = msgspec.json.decode(self.run(node.name, *asked), type=list[PathInfo])
        return [path for path in paths if path.kind == kind]

    def traffic(self, nodes: list[NodeStatus]) -> dict[str, dict[str, int]]:
        """Bytes that each node exchanged with each other one, from the recordings of eth0."""
        name_of = {address: node.name for node in nodes for address in underlay_of(node)}
        found: dict[str, dict[str, int]] = {}
        for node in nodes:
            counted = found[node.name] = {}
            own = set(underlay_of(node))
            for address, count in bytes_by_peer(self.recording(node.name, "eth0"), own).items():
                if (name := name_of.get(address)) is not None:
                    counted[name] = counted.get(name, 0) + count
        return found

    def draw(self, way: Way) -> None:
        """The path as a picture."""
        client, server = way.ends.client, way.ends.server
        parts = ((" ──▶ ", way.out, "green", client), (" ━━▶ ", way.into, "blue", server))
        picture, braces = Text("\n   ").append(client, "bold"), Text(" " * (3 + len(client)))
        for (arrow, members, style, owner), kind in zip(parts, ("exit", "entry"), strict=True):
            if members:
                part = " ──▶ ".join(f"● {name}" for name in members)
                picture.append(arrow, "bright_black").append(part, style)
                braces.append(" " * len(arrow))
                braces.append(brace(len(part), f"{kind} path of {owner}"), style)
        picture.append(" ──▶ " if way.into else " ━━▶ ", "bright_black").append(server, "bold")
        self.console.print(picture)
        self.console.print(braces)
        self.say(f"{client} knows {names_of(way.out)} of it, {server} knows {names_of(way.into)};")
        self.say("of the others each knows those beside it, and nobody knows it all")

    def weigh_text(self, ends: Ends, nodes: list[NodeStatus]) -> bool:
        """Where the marker was seen; ``False``: not where it should be, or elsewhere."""
        found = {
            (node.name, interface): count_containing(
                self.recording(node.name, interface), self.marker.encode()
            )
            for node in nodes
            for interface in interfaces_of(node)
        }
        seen = {place: count for place, count in found.items() if count}
        for (name, interface), count in seen.items():
            self.say(f"in {count} packets on {interface} of {name}")
        self.say(f"in no packet on the other {len(found) - len(seen)} interfaces")
        return self.verdict(
            set(seen) == {(ends.client, "phantom0"), (ends.server, "phantom0")},
            "the text is readable where the two programs are, and on no eth0 at all",
        )

    def weigh_traffic(self, way: Way, traffic: dict[str, dict[str, int]]) -> bool:
        """Who moved the file for whom; ``False``: a relay did for both ends."""
        carried = evidence.carriers(traffic, RECORDED_BYTES)
        for name in dict.fromkeys(way.nodes):
            self.say(f"{name} moved the file's bytes from and to {names_of(carried[name])}")
        ends = way.ends
        knowing = evidence.seeing_both(carried, ends)
        chatting = evidence.seeing_both(traffic, ends)
        least = [min(traffic[node][ends.client], traffic[node][ends.server]) for node in chatting]
        self.say(
            f"Both ends also exchanged at most {max(least, default=0) >> 10} KiB with "
            f"{len(chatting)} other nodes: the database. Who is a node is no secret."
        )
        return self.verdict(
            not knowing,
            f"no relay moved the file's bytes for {ends.client} and for {ends.server} too",
        )

    def measure(self, client: NodeStatus, server: NodeStatus) -> None:
        """A file at full speed, then all timings."""
        fast = self.fetch(client, str(server.ap4), "measured")
        speed = f"{fast.speed / 1e6:.1f} MB/s through {client.name}'s and {server.name}'s path"
        self.timings.append((f"{MEASURED_BYTES >> 20} MiB at full speed", speed))
        for what, figure in self.timings:
            self.say(f"{what:<28} {figure}")

    def outlive(self, client: NodeStatus, server: NodeStatus, names: dict[str, str]) -> bool:
        """Kill a relay in the middle of a transfer; ``False``: that didn't survive it.

        :raises LabFailed: the transfer doesn't begin.
        """
        got = self.scratch / "outlived"
        command = curl(str(server.ap4), "measured")
        options = ["--limit-rate", OUTLIVING_RATE]
        self.typed_at(client.name, [*command, *options])
        fetching = self.start(client.name, *command, *options, "-o", str(got))
        try:
            victim = self.carrier(client, server, names, got)
            if victim is None:
                self.say("(there is no relay on its path but the two ends)")
                return True
            had = got.stat().st_size
            self.typed(f"lab kill {victim}")
            lab_nodes.kill_node(self.store, victim)
            pause = _longest_pause(got, fetching)
            code = fetching.wait()
        finally:
            fetching.kill()
            fetching.communicate()
        wanted = self.scratch / "web" / "measured"
        self.say(
            f"{victim} died when {had >> 20} of {MEASURED_BYTES >> 20} MiB were there; curl waited "
            f"{pause:.1f} s, and ended with {code}"
        )
        return self.verdict(
            code == 0 and filecmp.cmp(got, wanted, shallow=False),
            "its connection goes on over another path, and the file is whole",
        )

    def carrier(
        self, client: NodeStatus, server: NodeStatus, names: dict[str, str], got: Path
    ) -> str | None:
        """The middle node of the path that carries the transfer to ``got``, once some of it is
        there; none if only the two ends are left to choose from.

        :raises LabFailed: nothing comes.
        """
        control = ControlClient(Path(client.control_socket))
        deadline = time.monotonic() + BEGIN_WITHIN
        while not got.exists() or got.stat().st_size < MEASURED_BYTES >> 3:
            if time.monotonic() > deadline:
                raise LabFailed("the transfer doesn't begin")
            time.sleep(0.05)
        tunnels = {tunnel.path_id for tunnel in control.call(ListTunnels())}
        paths = [path for path in control.call(ListPaths()) if path.id in tunnels]
        nodes = [names.get(node, "") for path in paths for node in path.nodes]
        others = [name for name in nodes if name not in ("", client.name, server.name)]
        return others[len(others) // 2] if others else None

    def recording(self, node: str, interface: str) -> Path:
        """Where the packets of an interface are."""
        return self.scratch / "captures" / f"{node}-{interface}.pcap"

    def verdict(self, holds: bool, claim: str) -> bool:
        """Print one claim, and whether it holds; returns that."""
        mark, style = ("✔", "bold green") if holds else ("✘", "bold red")
        self.console.print(Text(f" {mark} {claim}", style=style))
        return holds


def _longest_pause(got: Path, fetching: subprocess.Popen[str]) -> float:
    """Seconds for which nothing came, at most, until it ends."""
    size, since, longest = 0, time.monotonic(), 0.0
    while fetching.poll() is None:
        time.sleep(0.01)
        now, there = time.monotonic(), got.stat().st_size
        if there > size:
            longest, size, since = max(longest, now - since), there, now
    return longest


def brace(width: int, label: str) -> str:
    """``╰─ label ─╯``, or a bare one where ``width`` has no room for the label."""
    if width < len(label) + 4:
        label = ""
    return f"╰{f' {label} ' if label else '':─^{width - 2}}╯"


def names_of(nodes: Iterable[str]) -> str:
    """Node names for people."""
    return ", ".join(nodes) or "nobody"


def curl(address: str, file: str = "") -> list[str]:
    """The command that fetches a file from the server."""
    host = f"[{address}]" if ":" in address else address
    return ["curl", "--silent", "--fail", "--max-time", "60", f"http://{host}:{PORT}/{file}"]


def underlay_of(node: NodeStatus) -> list[IpAddress]:
    """A node's addresses on the lab's network."""
    return [ipaddress.ip_address(node.underlay), ipaddress.ip_address(node.underlay6)]


def interfaces_of(node: NodeStatus) -> list[str]:
    """What is recorded at a node."""
    return ["eth0"] if node.interface is None else ["eth0", node.interface]
