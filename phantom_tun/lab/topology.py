"""The lab's network: one namespace per node, and a switch that joins their ``eth0``.

Without delay the switch is a kernel bridge in a namespace of its own, with one veth pair per node
and, if a rate is asked for, a token bucket at both ends of it::

    ┌─ n1 ─────┐          ┌─ sw ────────────┐          ┌─ n2 ─────┐
    │ 10.1.0.1 │ eth0──p1 │ bridge br0      │ p2──eth0 │ 10.2.0.1 │
    └──────────┘          └─────────────────┘          └──────────┘

With delay, each ``eth0`` is a TAP device and one process carries the frames
(:mod:`~phantom_tun.lab.switch_process`), since kernels may lack netem. There is no default route:
a node reaches the other nodes and nothing else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from phantom_tun.lab import namespaces
from phantom_tun.lab.errors import LabFailed
from phantom_tun.lab.plan import (
    UNDERLAY4_PREFIX_LENGTH,
    UNDERLAY6_PREFIX_LENGTH,
    LabPlan,
    NodePlan,
)
from phantom_tun.lab.processes import ProcessRef, is_alive, spawn
from phantom_tun.lab.switch import queue_bytes
from phantom_tun.lab.switch_process import SwitchPort, SwitchSpec

UNDERLAY_INTERFACE = "eth0"

_SWITCH_START_SECONDS = 20.0
_TBF_BURST_BYTES = 128 * 1024

_ALLOWED_CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")


def build(plan: LabPlan, holders: Mapping[str, Path]) -> None:
    """Make all namespaces and, without delay, the kernel's switch.

    :param holders: the file that holds each namespace, by namespace name.
    :raises LabFailed: the kernel or a tool refused.
    """
    namespaces.create(holders.values())
    if not plan.delay_ms:
        _connect_bridge(plan, holders)
    for node in plan.nodes:
        namespaces.set_sysctls(holders[plan.namespace(node)], _sysctls(node))


def start_switch(plan: LabPlan, holders: Mapping[str, Path], directory: Path) -> ProcessRef:
    """Start the process that delays frames, and wait until the nodes' ``eth0`` exist.

    :raises LabFailed: it died or took too long; with the last line it wrote.
    """
    ready, log = directory / "switch.ready", directory / "switch.log"
    spec = SwitchSpec(
        ports=[SwitchPort(str(holders[plan.namespace(node)]), node.mac) for node in plan.nodes],
        home=str(holders[plan.switch_namespace]),
        interface=UNDERLAY_INTERFACE,
        delay=plan.delay_ms / 1000,
        rate=plan.rate,
        ready=str(ready),
    )
    argument = msgspec.json.encode(spec).decode()
    process = spawn(
        [sys.executable, "-m", "phantom_tun.lab.switch_process", argument], os.environ, log
    )
    deadline = time.monotonic() + _SWITCH_START_SECONDS
    while not ready.exists():
        if not is_alive(process) or time.monotonic() > deadline:
            last = log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise LabFailed(f"the delaying switch did not start: {last or 'no reason given'}")
        time.sleep(0.02)
    return process


def bring_up(plan: LabPlan, holders: Mapping[str, Path]) -> None:
    """Give every node its addresses and set all interfaces up.

    :raises LabFailed: ``ip`` or ``tc`` refused.
    """
    for node in plan.nodes:
        holder = holders[plan.namespace(node)]
        batch(holder, "ip", [*_addresses(node), *neighbours(plan, node)])
        if plan.rate is not None and not plan.delay_ms:
            batch(holder, "tc", [_bucket(UNDERLAY_INTERFACE, plan.rate)])
    if plan.rate is not None and not plan.delay_ms:
        buckets = [_bucket(f"p{node.index}", plan.rate) for node in plan.nodes]
        batch(holders[plan.switch_namespace], "tc", buckets)


def _connect_bridge(plan: LabPlan, holders: Mapping[str, Path]) -> None:
    lines = ["link add name br0 type bridge mcast_snooping 0", "link set br0 up"]
    for node in plan.nodes:
        cable = f"p{node.index}"
        lines += [
            f"link add name {cable} type veth peer name {UNDERLAY_INTERFACE} "
            f"address {node.mac} netns {holders[plan.namespace(node)]}",
            f"link set {cable} master br0",
            f"link set {cable} up",
        ]
    batch(holders[plan.switch_namespace], "ip", lines)


def _addresses(node: NodePlan) -> list[str]:
    eth0 = UNDERLAY_INTERFACE
    return [
        "link set lo up",
        f"link set {eth0} address {node.mac}",
        f"link set {eth0} up",
        f"addr add {node.underlay}/{UNDERLAY4_PREFIX_LENGTH} dev {eth0}",
        f"addr add {node.underlay6}/{UNDERLAY6_PREFIX_LENGTH} dev {eth0} nodad",
    ]


def neighbours(plan: LabPlan, node: NodePlan) -> list[str]:
    """Commands that tell a node where all others are, so that it never has to ask. What is learned
    is bounded by the kernel: by default to 1,024 entries for all namespaces of the machine, fewer
    than two labs of 32 nodes need, and beyond that packets are lost. What is told is not."""
    return [
        f"neigh replace {address} lladdr {other.mac} dev {UNDERLAY_INTERFACE} nud permanent"
        for other in plan.nodes
        if other is not node
        for address in (other.underlay, other.underlay6)
    ]


def _bucket(device: str, rate: float) -> str:
    return (
        f"qdisc add dev {device} root tbf rate {rate:.0f}bit "
        f"burst {_TBF_BURST_BYTES} limit {_TBF_BURST_BYTES + queue_bytes(rate)}"
    )


def _sysctls(node: NodePlan) -> dict[str, str]:
    values = {
        "net.ipv4.tcp_congestion_control": _congestion_control(),
        "net.ipv6.conf.all.disable_ipv6": "0",
        "net.ipv6.conf.default.disable_ipv6": "0",
        # Addresses are unique by construction; waiting to find that out costs a second.
        "net.ipv6.conf.default.accept_dad": "0",
    }
    if node.relay_only:
        # Runs as an ordinary user without capabilities, and still on the usual port.
        values["net.ipv4.ip_unprivileged_port_start"] = "1"
    return values


def _congestion_control() -> str:
    """bbr, the default of some machines, is slower here; a namespace may use what the machine
    allows, which always includes reno."""
    allowed = _ALLOWED_CONGESTION_CONTROL.read_text().split()
    return "cubic" if "cubic" in allowed else "reno"


def batch(holder: Path, tool: str, lines: list[str]) -> None:
    """Run lines of ``ip`` or ``tc`` inside a namespace.

    :raises LabFailed: the tool refused.
    """
    done = subprocess.run(
        ["nsenter", f"--net={holder}", "--", tool, "-batch", "-"],
        input="\n".join(lines) + "\n",
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        raise LabFailed(f"{tool} refused in namespace {holder.name}: {done.stdout.strip()}")
