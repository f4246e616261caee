"""The demonstration behind ``scripts/demo``: a network, a web server in it, and what relays saw.

Every step says what it does, as the command one would type where there is one. Whatever happens,
the lab is removed in the end.
"""

from __future__ import annotations

import argparse
import ipaddress
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TypeVar

import msgspec
from rich.console import Console
from rich.text import Text

from phantom_tun.control.client import ControlClient
from phantom_tun.control.model import PathInfo, TunnelInfo
from phantom_tun.control.schema import GetStatus, ListPaths
from phantom_tun.errors import PhantomError
from phantom_tun.lab import evidence, lifecycle
from phantom_tun.lab.capture import (
    IpAddress,
    bytes_by_peer,
    count_containing,
    start_captures,
    stop_captures,
)
from phantom_tun.lab.errors import LabFailed
from phantom_tun.lab.evidence import Ends
from phantom_tun.lab.lifecycle import NodeStatus
from phantom_tun.lab.plan import nodes_needed, plan_lab
from phantom_tun.lab.record import LabStore

AnswerT = TypeVar("AnswerT")

PORT = 8000
RECORDED_BYTES = 8 << 20
MEASURED_BYTES = 64 << 20
RECORDED_RATE = "4M"
"""Slow enough to look at the tunnels while the file is on its way."""

_FIELDS = "%{http_code} %{time_connect} %{time_starttransfer} %{time_total} %{speed_download}"


@dataclass(frozen=True, slots=True)
class Fetched:
    """What curl measured."""

    connect: float
    """Seconds until the connection stood."""
    first_byte: float
    total: float
    speed: float
    """Bytes a second."""


@dataclass(slots=True)
class Demonstration:
    """One run: the running lab and what was found."""

    store: LabStore
    scratch: Path
    hops: int
    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    marker: str = field(default_factory=lambda: f"marker-{secrets.token_hex(16)}")
    timings: list[tuple[str, str]] = field(default_factory=list)

    def say(self, text: str) -> None:
        """One line for the person who watches."""
        self.console.print(Text(f"   {text}"))

    def step(self, title: str) -> None:
        """The heading of what comes now."""
        self.console.print(Text(f"\n== {title}", style="bold"))

    # --- commands at nodes ----------------------------------------------------------------------

    def shown(self, node: str, *command: str) -> None:
        """Print a command as one would type it."""
        self.console.print(
            Text(f"   $ phantom-tun lab exec {node} -- {' '.join(command)}", style="cyan")
        )

    def run(self, node: str, *command: str) -> str:
        """Run a command at a node and return what it wrote.

        :raises LabFailed: it failed; quotes it.
        """
        prefix, environment = lifecycle.inside(self.store, node)
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
        prefix, environment = lifecycle.inside(self.store, node)
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
        names = {client.call(GetStatus()).node_id: name for name, client in clients.items()}
        paths = {name: client.call(ListPaths()) for name, client in clients.items()}
        ends = evidence.choose_ends(paths, names)
        if ends is None:
            raise LabFailed(
                "by chance all nodes of this small lab share their guards; run it again"
            )
        return ends, names

    def serve(self, server: str) -> None:
        """A web server at node ``server``, exposed to everybody."""
        web = self.scratch / "web"
        web.mkdir()
        line = f"{self.marker}\n"
        (web / "index.html").write_text(line * 100)
        (web / "recorded").write_text(line * (RECORDED_BYTES // len(line)))
        (web / "measured").write_bytes(bytes(MEASURED_BYTES))
        command = ["python3", "-m", "http.server", str(PORT), "--bind", "::"]
        self.shown(server, *command)
        self.start(server, *command, "--directory", str(web))
        probe = ["curl", "--silent", "--output", "/dev/null", "--retry", "40", "--retry-delay", "1"]
        self.run(server, *probe, "--retry-connrefused", f"http://[::1]:{PORT}/")
        expose = ["phantom-tun", "expose", str(PORT)]
        self.shown(server, *expose)
        self.run(server, sys.executable, "-P", "-m", "phantom_tun", *expose[1:])

    def fetch(self, client: str, address: str, file: str = "", *options: str) -> Fetched:
        """curl at node ``client``; compares what came with what should.

        :raises LabFailed: it failed, or something else came.
        """
        got = self.scratch / "got"
        done = self.run(client, *curl(address, file), *options, "-o", str(got), "-w", _FIELDS)
        code, *numbers = done.split()
        wanted = self.scratch / "web" / (file or "index.html")
        if code != "200" or got.read_bytes() != wanted.read_bytes():
            raise LabFailed(f"{address}/{file} came with status {code} or not as it should be")
        return Fetched(*map(float, numbers))

    def first_contact(self, client: str, target: NodeStatus) -> None:
        """The page over both address families, the second time with everything warm."""
        for version, address in (("AP4", target.ap4), ("AP6", target.ap6)):
            if address is None:
                raise LabFailed(f"{target.name} has no {version} address")
            self.shown(client, *curl(address))
            for which in ("first", "second"):
                took = self.fetch(client, address)
                figure = (
                    f"{took.connect * 1000:.0f} ms to connect, {took.total * 1000:.0f} ms in all"
                )
                self.say(f"the page came, byte for byte: {figure}")
                self.timings.append((f"curl {version}, {which} time", figure))

    def recorded_transfer(self, ends: Ends, target: NodeStatus, names: dict[str, str]) -> list[str]:
        """Fetch a file and find the path it takes meanwhile; returns its nodes, client first.

        :raises LabFailed: the tunnels can't be found in the owners' views.
        """
        assert target.ap4 is not None  # noqa: S101 - first_contact was refused otherwise
        url = curl(target.ap4, "recorded")
        self.shown(ends.client, *url)
        options = ["--limit-rate", RECORDED_RATE, "-o", str(self.scratch / "got")]
        transfer = self.start(ends.client, *url, *options)
        time.sleep(0.5)
        out = self.path_of(ends.client, "out", target.ap4)
        into = self.path_of(ends.server, "in", None)
        transfer.communicate()
        if transfer.returncode:
            raise LabFailed(f"curl failed with {transfer.returncode}")
        return evidence.way(ends, out, into, names)

    def path_of(self, node: str, direction: str, remote: str | None) -> PathInfo:
        """The path of the busiest tunnel of ``node``, as `paths list --json` shows it there."""
        tunnels = self.ask_json(node, list[TunnelInfo], "tunnels", "list")
        paths = {path.id: path for path in self.ask_json(node, list[PathInfo], "paths", "list")}
        fitting = [
            t for t in tunnels
            if t.direction == direction and (remote is None or t.remote.startswith(remote))
        ]  # fmt: skip
        if not fitting:
            raise LabFailed(f"'tunnels list' at {node} doesn't show the transfer")
        busiest = max(fitting, key=lambda t: t.bytes_in + t.bytes_out)
        return paths[busiest.path_id]

    def ask_json(self, node: str, kind: type[AnswerT], *command: str) -> AnswerT:
        """The answer of a phantom-tun command with ``--json`` at a node."""
        self.shown(node, "phantom-tun", *command, "--json")
        text = self.run(node, sys.executable, "-P", "-m", "phantom_tun", *command, "--json")
        return msgspec.json.decode(text, type=kind)

    def draw(self, chain: list[str]) -> None:
        """The path as a picture."""
        hops = (len(chain) - 2) // 2
        picture = Text("   ")
        for place, name in enumerate(chain):
            if place:
                picture.append(" ━━ " if place == hops + 1 else " ── ", "bright_black")
            end = place in (0, len(chain) - 1)
            picture.append(name if end else f"● {name}", "bold" if end else "green")
        self.console.print(picture)
        out, into = chain[1 : hops + 1], chain[hops + 1 : -1]
        self.say(f"{chain[0]} knows {', '.join(out)}; {chain[-1]} knows {', '.join(into)}")
        self.say("no node knows the whole of it; only this demonstration asked both owners")

    def weigh(self, ends: Ends, chain: list[str], nodes: list[NodeStatus]) -> bool:
        """Say what the recordings show; ``False``: not what it should be."""
        found = {
            (node.name, interface): count_containing(
                self.recording(node.name, interface), self.marker.encode()
            )
            for node in nodes
            for interface in interfaces_of(node)
        }
        positive = {key: count for key, count in found.items() if count}
        for (name, interface), count in positive.items():
            self.say(f"found in {count:5} packets on {interface} of {name}")
        elsewhere = len(found) - len(positive)
        self.say(
            f"found in no packet on {elsewhere} other interfaces, all {len(nodes)} eth0 included"
        )
        expected = {(ends.client, "phantom0"), (ends.server, "phantom0")}
        hidden = set(positive) == expected
        self.verdict(hidden, "the text is readable where the two applications are, nowhere else")

        contacts = {node.name: self.contacts(node, nodes) for node in nodes}
        carried = evidence.carriers(contacts, RECORDED_BYTES)
        for name in chain:
            peers = ", ".join(sorted(carried.get(name, ()))) or "nobody"
            self.say(f"{name:>4} moved the file's bytes from and to {peers}")
        knowing = evidence.seeing_both(carried, ends)
        self.verdict(
            not knowing,
            f"no relay moved the file's bytes for {ends.client} and for {ends.server}"
            + (f": {', '.join(knowing)} did" if knowing else ""),
        )
        chatting = evidence.seeing_both(contacts, ends)
        most = max(
            (min(contacts[n][e] for e in (ends.client, ends.server)) for n in chatting), default=0
        )
        self.say(
            f"({len(chatting)} nodes exchanged up to {most >> 10} KiB with both ends, as members "
            "of the network database: from that they know that both are nodes)"
        )
        return hidden and not knowing

    def contacts(self, node: NodeStatus, nodes: list[NodeStatus]) -> dict[str, int]:
        """Bytes that ``node`` exchanged with each other node on the underlay."""
        name_of = {address: other.name for other in nodes for address in underlay_of(other)}
        counted: dict[str, int] = {}
        traffic = bytes_by_peer(self.recording(node.name, "eth0"), set(underlay_of(node)))
        for address, count in traffic.items():
            if (name := name_of.get(address)) is not None:
                counted[name] = counted.get(name, 0) + count
        return counted

    def recording(self, node: str, interface: str) -> Path:
        """Where the packets of an interface are."""
        return self.scratch / "captures" / f"{node}-{interface}.pcap"

    def verdict(self, holds: bool, claim: str) -> None:
        """One claim, and whether it holds."""
        mark, style = ("✔", "bold green") if holds else ("✘", "bold red")
        self.console.print(Text(f" {mark} {claim}", style=style))


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


def show(demo: Demonstration) -> bool:
    """All steps in a running lab; ``False``: a claim does not hold.

    :raises PhantomError: a step failed.
    """
    nodes = lifecycle.status(demo.store)
    ends, names = demo.choose(nodes)
    target = next(node for node in nodes if node.name == ends.server)

    demo.step(f"A web server at {ends.server}, exposed; inbound is denied otherwise")
    demo.serve(ends.server)

    demo.step(f"curl at {ends.client} knows nothing but the address")
    captures_directory = demo.scratch / "captures"
    captures_directory.mkdir()
    pairs = [(node.name, interface) for node in nodes for interface in interfaces_of(node)]
    captures = start_captures(demo.store, pairs, captures_directory)
    demo.say(f"(tcpdump records {len(pairs)} interfaces: eth0 and phantom0 of all nodes)")
    demo.first_contact(ends.client, target)

    demo.step(f"The way of a file of {RECORDED_BYTES >> 20} MiB, as its two owners see it")
    chain = demo.recorded_transfer(ends, target, names)
    stop_captures(captures)
    demo.draw(chain)

    demo.step(f"What the recordings show: '{demo.marker}'")
    holds = demo.weigh(ends, chain, nodes)

    demo.step("Timings")
    if target.ap4 is not None:
        fast = demo.fetch(ends.client, target.ap4, "measured")
        demo.timings.append(
            (f"{MEASURED_BYTES >> 20} MiB at full speed", f"{fast.speed / 1e6:.1f} MB/s")
        )
    for what, figure in demo.timings:
        demo.say(f"{what:<28} {figure}")
    return holds


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstration; the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--nodes", type=int, default=12, help="how many nodes (12)")
    parser.add_argument("--hops", type=int, default=3, help="X-nodes on each side (3)")
    parser.add_argument("--keep", action="store_true", help="leave the lab running")
    options = parser.parse_args(arguments)
    name = f"demo-{secrets.token_hex(3)}"
    began = time.monotonic()
    with _ending_in_order(), ExitStack() as undo:
        try:
            plan = plan_lab(
                name=name,
                nodes=max(options.nodes, nodes_needed(options.hops)),
                exit_hops=options.hops,
                entry_hops=options.hops,
            )
            scratch = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="phantom-demo-")))
            demo = Demonstration(lifecycle.open_lab(name), scratch, options.hops)
            hops = f"--exit-hops {options.hops} --entry-hops {options.hops}"
            demo.step("A whole anonymous network in namespaces of this machine")
            demo.console.print(
                Text(
                    f"   $ phantom-tun lab up --name {name} --nodes {len(plan.nodes)} {hops}",
                    style="cyan",
                )
            )
            lifecycle.up(plan, lifecycle.Wishes(), demo.say)
            if not options.keep:
                undo.callback(_clean_up, demo)
            demo.timings.append(("from nothing to all paths", f"{time.monotonic() - began:.1f} s"))
            holds = show(demo)
            if options.keep:
                demo.say(f"the lab stays: phantom-tun lab status --name {name}; lab down ends it")
        except PhantomError as error:
            print(f"demo: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("demo: interrupted", file=sys.stderr)
            return 130
    if holds:
        rest = "the lab goes on" if options.keep else "nothing is left behind"
        print(f"\nIt works; done in {time.monotonic() - began:.0f} s, {rest}.")
        return 0
    print("\ndemo: not as it should be, see ✘ above", file=sys.stderr)
    return 1


def _clean_up(demo: Demonstration) -> None:
    demo.step("Cleaning up")
    lifecycle.down(demo.store.name)


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demonstration as Ctrl-C does."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
