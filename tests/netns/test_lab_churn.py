"""A network whose nodes keep dying: one of 24 daemons is killed every five seconds and started
again five seconds later, and meanwhile addresses are looked up from all of them. Left out of the
ordinary run: ``pytest -m slow --timeout 3600 tests/netns/test_lab_churn.py``."""

from __future__ import annotations

import os
import random
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from labs import Lab, Node, lab_of, wait_until

from phantom_tun.control.schema import (
    ControlError,
    GetNetdb,
    GetStatus,
    ListAddresses,
    NewAddress,
    RemoveAddress,
)

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(3600)]

NODES = 24
EVERY = 5.0
SECONDS = 300.0
ASKERS = 3
PAUSE = 0.3
"""Seconds between two questions of one asker."""
ENOUGH = 0.99
LAST_WORD = 60.0
"""Seconds after the last start within which every address is found from everywhere."""


@dataclass
class Tally:
    """What the askers saw."""

    took: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    void: int = 0
    """The asking daemon itself was killed meanwhile."""

    @property
    def share(self) -> float:
        """Part of the questions that were answered with the record."""
        return len(self.took) / (len(self.took) + len(self.failed))


class Churn:
    """One network and who of it is up."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._rng = random.Random(1)
        self.nodes = list(lab.nodes.values())
        self.pids = {node.name: node.pid for node in self.nodes}
        self.tally = Tally()
        self.targets: dict[str, str] = {}
        """Every AP address, and which node has it; empty: its owner is gone."""
        self.over = threading.Event()

    def orphan(self, node: Node, name: str) -> None:
        """An identity that nobody publishes again: only its storers keep its records."""
        info = node.ask(NewAddress(name))
        assert info.ap4 is not None
        node.ask(RemoveAddress(name))
        self.targets |= {info.ap4: "", info.ap6: ""}

    def own(self, node: Node) -> None:
        """The addresses of a node's identities."""
        for info in node.ask(ListAddresses()):
            assert info.ap4 is not None
            self.targets |= {info.ap4: node.name, info.ap6: node.name}

    def run(self) -> int:
        """Kill and start; returns how often."""
        began = time.monotonic()
        kills = 0
        down: Node | None = None
        while time.monotonic() < began + SECONDS:
            for node in self.nodes:
                if not self.pids[node.name] and node is not down:
                    self.ready(node)
            victim = self._rng.choice([node for node in self.nodes if self.pids[node.name]])
            pid, self.pids[victim.name] = self.pids[victim.name], 0
            os.kill(pid, signal.SIGKILL)
            kills += 1
            if down is not None:
                self._start(down)
            down = victim
            time.sleep(max(0.0, began + kills * EVERY - time.monotonic()))
        assert down is not None
        self._start(down)
        return kills

    def ready(self, node: Node) -> int:
        """The process id of a node that says it is ready; 0 of another."""
        with suppress(ControlError):
            status = node.ask(GetStatus())
            if status.state == "ready":
                self.pids[node.name] = status.pid
                return status.pid
        return 0

    def ask_around(self, seed: int) -> None:
        """Ask nodes about addresses until it is over."""
        rng = random.Random(seed)
        while not self.over.wait(PAUSE):
            node = rng.choice(self.nodes)
            address = rng.choice([a for a, owner in self.targets.items() if owner != node.name])
            if self.ready(node):
                self._ask(node, address)

    def found(self, node: Node, address: str) -> bool:
        """Whether a node finds an address now."""
        with suppress(ControlError):
            return bool(node.ask(GetNetdb(address)).records)
        return False

    def _ask(self, node: Node, address: str) -> None:
        pid = self.pids[node.name]
        began = time.monotonic()
        try:
            node.ask(GetNetdb(address))
        except ControlError as error:
            if self.pids[node.name] == pid and error.code != "no_daemon":
                self.tally.failed.append(f"{error.code}: {error}"[:120])
            else:
                self.tally.void += 1
        else:
            self.tally.took.append(time.monotonic() - began)

    def _start(self, node: Node) -> None:
        self._lab.command("start", node.name, "--timeout", "0")


def test_nothing_is_lost_while_nodes_die(figures: Callable[[str], None]) -> None:
    options = ("--nodes", str(NODES), "--exit-hops", "1", "--entry-hops", "1")
    with lab_of(*options, seconds=600.0) as lab:
        churn = Churn(lab)
        for number, node in enumerate(churn.nodes[3:6]):
            churn.orphan(node, f"gone{number}")
        for node in churn.nodes:
            churn.own(node)
        askers = [
            threading.Thread(target=churn.ask_around, args=(number,), daemon=True)
            for number in range(ASKERS)
        ]
        for asker in askers:
            asker.start()
        kills = churn.run()
        churn.over.set()
        for asker in askers:
            asker.join()

        tally = churn.tally
        took = sorted(tally.took)
        figures(
            f"{kills} kills in {SECONDS:.0f} s: {len(took)} of {len(took) + len(tally.failed)} "
            f"resolutions right ({tally.share:.2%}; {tally.void} void), median "
            f"{statistics.median(took) * 1e3:.0f} ms, 99th percentile "
            f"{took[int(0.99 * len(took))] * 1e3:.0f} ms; failures: {dict(Counter(tally.failed))}"
        )
        wait_until(lambda: all(map(churn.ready, churn.nodes)))
        began = time.monotonic()
        lost = dict(churn.targets)
        while lost and time.monotonic() < began + LAST_WORD:
            for address in list(lost):
                asked = [node for node in churn.nodes if node.name != lost[address]][::7]
                if all(churn.found(node, address) for node in asked):
                    del lost[address]
        figures(
            f"all {len(churn.targets)} addresses found by {len(asked)} nodes each "
            f"{time.monotonic() - began:.0f} s after the last start; lost: {sorted(lost)}"
        )
        assert not lost
        assert tally.share >= ENOUGH
