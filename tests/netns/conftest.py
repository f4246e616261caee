"""Labs for tests: every one has a name of its own and is gone afterwards, whatever happens."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from labs import Lab, lab_of

from phantom_tun.lab import lifecycle, provision
from phantom_tun.lab.errors import LabFailed, NotPrivileged
from phantom_tun.lab.plan import plan_lab
from phantom_tun.lab.record import LabStore

STUB = Path(__file__).parent / "stub_daemon.py"

StubLab = Callable[..., LabStore]
_counter = itertools.count(1)
_figures: list[str] = []


@pytest.fixture(scope="session", autouse=True)
def _privileged() -> None:
    """Without root, or a user namespace that grants as much, there is nothing to test."""
    try:
        lifecycle.check_machine()
    except (NotPrivileged, LabFailed) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def network() -> Iterator[Lab]:
    """A lab for everything that harms nobody: twelve nodes, three hops on each side, and the last
    two nodes are relays without privileges."""
    with lab_of(
        *("--nodes", "12", "--relay-only", "2", "--exit-hops", "3", "--entry-hops", "3")
    ) as lab:
        yield lab


@pytest.fixture(scope="session")
def figures() -> Callable[[str], None]:
    """Takes one line each about what was measured; they are shown after the tests."""
    return _figures.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what was measured."""
    if _figures:
        terminalreporter.section("measured")
        for line in _figures:
            terminalreporter.line(line)


@pytest.fixture
def lab_name() -> Iterator[str]:
    """A name that no other test run uses; the lab of that name is removed in the end."""
    name = f"t{os.getpid()}-{next(_counter)}"
    yield name
    lifecycle.down(name)


@pytest.fixture
def stub_lab(lab_name: str) -> StubLab:
    """Brings up a lab whose daemons are stubs: ``stub_lab(nodes=3, behaviour="ready", …)``."""

    def bring_up(
        *,
        behaviour: str = "ready",
        timeout: float = 60.0,
        directory: Path | None = None,
        **options: object,
    ) -> LabStore:
        options = {"nodes": 2, "exit_hops": 0, "entry_hops": 0, **options}
        plan = plan_lab(name=lab_name, **options)  # type: ignore[arg-type]
        wishes = lifecycle.Wishes(
            directory=directory, timeout=timeout, daemon=stub_command(behaviour)
        )
        lifecycle.up(plan, wishes, lambda _line: None)
        return lifecycle.open_lab(lab_name)

    return bring_up


def stub_command(behaviour: str) -> tuple[str, ...]:
    """What starts a stub daemon."""
    return (sys.executable, str(STUB), behaviour, "--config")


def cli_with_stubs(behaviour: str) -> list[str]:
    """``phantom-tun lab``, whose daemons are stubs."""
    program = (
        "import functools, sys\n"
        "from phantom_tun.cli.lab import app\n"
        "from phantom_tun.lab import lifecycle\n"
        f"daemon = {stub_command(behaviour)!r}\n"
        "lifecycle.Wishes = functools.partial(lifecycle.Wishes, daemon=daemon)\n"
        "app(sys.argv[1:])\n"
    )
    return [sys.executable, "-P", "-c", program]


def two_nodes(name: str) -> list[str]:
    """Arguments for the smallest lab."""
    return ["up", "--nodes", "2", "--exit-hops", "0", "--entry-hops", "0", "--name", name]


def run_lab(
    *arguments: str, stdin: str = "", privileged: bool = True
) -> subprocess.CompletedProcess[str]:
    """``phantom-tun lab …`` in a process of its own."""
    program = "from phantom_tun.cli.lab import app; app(prog_name='phantom-tun lab')"
    unprivileged = ["setpriv", "--bounding-set=-net_admin,-sys_admin"]
    return subprocess.run(
        [*([] if privileged else unprivileged), sys.executable, "-P", "-c", program, *arguments],
        input=stdin,
        text=True,
        capture_output=True,
        check=False,
        env=provision.daemon_environment(),
    )
