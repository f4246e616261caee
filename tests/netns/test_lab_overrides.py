"""Override commands in a lab: a ban cuts a node from everybody within seconds, and nobody but the
holder of the key can do that."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
from labs import Lab, Node, lab_of, run_phantom_tun, wait_until

from phantom_tun.cli.exits import ExitCode
from phantom_tun.clock import DAY
from phantom_tun.control.model import OverrideInfo
from phantom_tun.control.schema import GetStatus, ListOverrides, ListPaths, ListPeers, SendOverride
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.netdb import override_text
from phantom_tun.netdb.signing import sign_override
from phantom_tun.profile import load
from phantom_tun.wire.records import OverrideAction

pytestmark = pytest.mark.netns

HOSTILE = "n12"
CUT_WITHIN = 5.0

T = TypeVar("T")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_of("--nodes", "12", "--exit-hops", "1", "--entry-hops", "1") as lab:
        yield lab


class Commander:
    """Who has the lab's override key, on a machine that no daemon runs on."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self._lab = lab
        self._files = lab["n1"].directory.parent.parent
        self._directory = directory
        self.ban = ""
        """The one that was sent."""
        self.profile = load(self._files / "network.toml")
        self.key = SigningKey(bytes.fromhex((self._files / "override.key").read_text()))

    def sign(self, *arguments: str, key: Path | None = None) -> str:
        """What ``override sign`` prints."""
        return run_phantom_tun(
            *("override", "sign", *arguments, "--key", str(key or self._files / "override.key")),
            *("--network", str(self._files / "network.toml")),
            check=True,
        ).stdout

    def send(self, node: str, text: str) -> int:
        """``override send`` at a node; returns its exit code."""
        file = self._directory / "command"
        file.write_text(text)
        socket = str(self._lab[node].control_socket)
        return run_phantom_tun("--socket", socket, "override", "send", str(file)).returncode


@pytest.fixture(scope="module")
def commander(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Commander:
    return Commander(lab, tmp_path_factory.mktemp("commander"))


def everywhere(lab: Lab, ask: Callable[[Node], T], *but: str) -> dict[str, T]:
    """What every daemon says, but for some."""
    nodes = {name: node for name, node in lab.nodes.items() if name not in but}
    with ThreadPoolExecutor(len(nodes)) as pool:
        return dict(zip(nodes, pool.map(ask, nodes.values()), strict=True))


def linked(node_id: str) -> Callable[[Node], bool]:
    """Whether a daemon has links with a node."""
    return lambda node: node_id in {peer.node_id for peer in node.ask(ListPeers())}


def commands(node: Node) -> list[OverrideInfo]:
    return list(node.ask(ListOverrides()).commands)


def knows(lab: Lab, number: int) -> Callable[[], bool]:
    """Whether every daemon but the hostile one knows a command."""

    def check() -> bool:
        found = everywhere(lab, commands, HOSTILE).values()
        return all(number in {each.number for each in known} for known in found)

    return check


def test_who_has_no_key_changes_nothing(lab: Lab, commander: Commander, tmp_path: Path) -> None:
    victim = lab["n5"].node_id
    run_phantom_tun("override", "keygen", str(tmp_path / "own.key"), check=True)
    forged = commander.sign("ban", victim, key=tmp_path / "own.key")
    now = time.time()
    expired = sign_override(
        commander.key,
        commander.profile.network_id,
        number=1,
        action=OverrideAction.BAN_NODE,
        subject=bytes.fromhex(victim),
        created=now - 2 * DAY,
        expires=now - DAY,
    )
    good = override_text.parse_command(commander.sign("ban", victim).splitlines()[-1])
    changed = good.encoded.replace(good.subject, bytes.fromhex(lab["n6"].node_id))
    for text in (forged, *map(override_text.to_line, (expired.encoded, changed))):
        assert commander.send("n2", text) == ExitCode.FAILED
    assert commander.send("n2", "bm9pc2U=") == ExitCode.USAGE
    time.sleep(1)
    assert not any(everywhere(lab, commands).values())


def test_a_ban_cuts_a_node_from_everybody(
    lab: Lab, commander: Commander, figures: Callable[[str], None]
) -> None:
    hostile = lab[HOSTILE].node_id
    everybody = [name for name in lab.nodes if name != HOSTILE]
    before = everywhere(lab, linked(hostile), HOSTILE)
    assert sum(before.values()) >= 3, "it is part of the network"
    lab.command("stop", "n4")
    commander.ban = commander.sign("ban", hostile)
    line = commander.ban.splitlines()[-1]
    number = override_text.parse_command(line).number
    began = time.monotonic()
    assert lab["n1"].ask(SendOverride(line)).standing == "in_force"
    wait_until(
        lambda: not any(everywhere(lab, linked(hostile), HOSTILE, "n4").values()), every=0.02
    )
    took = time.monotonic() - began
    figures(f"an override ban cut a node from {len(everybody) - 1} daemons in {took:.1f} s")
    assert took < CUT_WITHIN

    # Nobody tells it, but it can see that everybody is gone at once, and says what that may be.
    def said() -> str:
        return " ".join(lab[HOSTILE].ask(GetStatus()).warnings)

    wait_until(lambda: "or the network has banned this node" in said(), 30)
    verdict = lab[HOSTILE].phantom_tun("why", lab["n1"].ap(6))
    assert "banned this node" in verdict.stdout

    # It goes on trying, and who was away is told on joining.
    lab.command("start", "n4")
    lab.refresh()
    wait_until(knows(lab, number), 30)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        assert not any(everywhere(lab, linked(hostile), HOSTILE).values())
        time.sleep(0.5)
    for node in (lab[name] for name in everybody):
        assert not any(hostile in path.nodes for path in node.ask(ListPaths()))
    # What is known outlives the daemon.
    lab.command("kill", "n7")
    lab.command("start", "n7")
    lab.refresh()
    assert [each.number for each in commands(lab["n7"])] == [number]


def test_a_replayed_ban_changes_nothing(lab: Lab, commander: Commander) -> None:
    hostile = lab[HOSTILE].node_id
    older = commander.sign("ban", hostile, "--number", "17")
    unban = commander.sign("unban", hostile)
    (ban,) = [each for each in commands(lab["n1"]) if each.action == "ban node"]
    assert commander.send("n9", unban) == 0
    wait_until(lambda: sum(everywhere(lab, linked(hostile), HOSTILE).values()) >= 3, 30)
    assert commander.send("n2", commander.ban) == 0  # known, so nothing happens
    assert commander.send("n3", older) == 0  # it is genuine, but comes too late
    wait_until(knows(lab, 17), 30)
    standings = everywhere(lab, commands, HOSTILE)
    for known in standings.values():
        assert {each.number: each.standing for each in known if each.action == "ban node"} == {
            17: "replaced",
            ban.number: "replaced",
        }
    assert sum(everywhere(lab, linked(hostile), HOSTILE).values()) >= 3
