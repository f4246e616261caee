"""The demonstration behind ``scripts/demo``: a network, a web server in it, and what relays saw.

Whatever happens, the lab is removed in the end.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from phantom_tun.errors import PhantomError
from phantom_tun.lab import lifecycle
from phantom_tun.lab import nodes as lab_nodes
from phantom_tun.lab.capture import RecordingIncomplete, stop_captures
from phantom_tun.lab.demo_steps import RECORDED_BYTES, RECORDED_RATES, Demonstration
from phantom_tun.lab.errors import LabFailed, LabUsageError
from phantom_tun.lab.evidence import carriers, possible_ways, travelled
from phantom_tun.lab.nodes import NodeStatus
from phantom_tun.lab.plan import plan_lab
from phantom_tun.lab.signals import ending_in_order


def show(demo: Demonstration) -> bool:
    """All steps in a running lab; ``False``: a claim does not hold.

    :raises PhantomError: a step failed.
    """
    nodes = lab_nodes.status(demo.store)
    by_name = {node.name: node for node in nodes}
    ends, names = demo.choose(nodes)
    client, server = by_name[ends.client], by_name[ends.server]

    demo.step(f"A web server at {server.name}, exposed; inbound is denied otherwise")
    demo.serve(server)

    _record(demo, nodes, client, server)
    exits, entries = demo.own_paths(client, "exit"), demo.own_paths(server, "entry")
    traffic = demo.traffic(nodes)
    carried = carriers(traffic, RECORDED_BYTES)
    way = travelled(possible_ways(ends, exits, entries, names), carried)
    if way is None:
        raise LabFailed("the recordings show the file on none of the owners' paths")
    demo.draw(way)

    demo.step("What was recorded, and what it shows")
    demo.say(f"'{demo.marker}' is")
    hidden = demo.weigh_text(ends, nodes)
    apart = demo.weigh_traffic(way, traffic)

    demo.step("Timings")
    demo.measure(client, server)

    demo.step("A relay dies in the middle of a transfer")
    return demo.outlive(client, server, names) and hidden and apart


def _record(
    demo: Demonstration, nodes: list[NodeStatus], client: NodeStatus, server: NodeStatus
) -> None:
    """Have everything recorded while a page and a file are fetched; more slowly and once more if
    the machine couldn't keep up with that.

    :raises PhantomError: a step failed.
    """
    timed = len(demo.timings)
    for rate in RECORDED_RATES:
        del demo.timings[timed:]
        demo.step(f"curl at {client.name} knows nothing but the address")
        captures = demo.record(nodes)
        demo.first_contact(client, server)
        demo.step(f"A file of {RECORDED_BYTES >> 20} MiB, and the paths that the two owners see")
        demo.recorded_transfer(client, server, rate)
        try:
            stop_captures(captures)
        except RecordingIncomplete:
            if rate == RECORDED_RATES[-1]:
                raise
            demo.say("the machine is too busy to record all of it: once more, slower")
        else:
            return


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstration; the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument(
        "--nodes",
        type=int,
        default=12,
        help="how many nodes (12); H hops need 3 H + 1, and with few more there may be no two "
        "without a common relay beside them, which the demonstration needs",
    )
    parser.add_argument("--hops", type=int, default=3, help="hops on each side (3)")
    parser.add_argument("--keep", action="store_true", help="leave the lab running")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    try:
        with ending_in_order(), ExitStack() as undo:
            holds = _run(options.nodes, options.hops, options.keep, undo)
    except PhantomError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, LabUsageError) else 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    if not holds:
        print("\ndemo: not as it should be, see ✘ above", file=sys.stderr)
        return 1
    rest = "the lab goes on" if options.keep else "nothing is left behind"
    print(f"\nIt works; done in {time.monotonic() - began:.0f} s, {rest}.")
    return 0


def _run(nodes: int, hops: int, keep: bool, undo: ExitStack) -> bool:
    """Bring the lab up and show; ``undo`` gets what has to be done in the end."""
    began = time.monotonic()
    name = f"demo-{secrets.token_hex(3)}"
    plan = plan_lab(name=name, nodes=nodes, exit_hops=hops, entry_hops=hops)
    scratch = undo.enter_context(tempfile.TemporaryDirectory(prefix="phantom-demo-"))
    demo = Demonstration(lifecycle.open_lab(name), Path(scratch))
    demo.step("A whole anonymous network in namespaces of this machine")
    demo.typed(f"lab up --name {name} --nodes {nodes} --exit-hops {hops} --entry-hops {hops}")
    lifecycle.up(plan, lifecycle.Wishes(), demo.say)
    if not keep:
        undo.callback(_clean_up, demo)
    demo.timings.append(("from nothing to all paths", f"{time.monotonic() - began:.1f} s"))
    holds = show(demo)
    if keep:
        demo.step(f"The lab goes on: lab status --name {name} shows it, lab down ends it")
    return holds


def _clean_up(demo: Demonstration) -> None:
    demo.step("Cleaning up")
    demo.typed(f"lab down --name {demo.store.name}")
    lifecycle.down(demo.store.name)


if __name__ == "__main__":
    sys.exit(main())
