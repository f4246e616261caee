"""What a shell is told to complete commands with."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest
from cli_helpers import Shell

from phantom_tun.cli import completing
from phantom_tun.control.client import ControlClient
from phantom_tun.lab.record import LabRecord, LabStore, NodeRecord
from phantom_tun.testing.fake_backend import FakeBackend

# --- completion --------------------------------------------------------------------------------


class Completing(Shell):
    """Where Tab is pressed."""

    def offered(self, line: str) -> list[str]:
        """What bash offers after ``phantom-tun`` and this."""
        words = f"phantom-tun --socket {self.socket} {line}"
        place = str(len(words.split(" ")) - 1)
        asked = {"COMP_WORDS": words, "COMP_CWORD": place, "_PHANTOM_TUN_COMPLETE": "complete_bash"}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in asked.items():
                patch.setenv(name, value)
            return self.bare().out.split()


@pytest.fixture
def tab(shell: Shell) -> Completing:
    return Completing(shell.capture, shell.socket)


def test_names_of_addresses_are_completed(
    tab: Completing, node: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab.run("address", "new", "web")
    monkeypatch.setattr(completing, "WITHIN_S", 10.0)
    assert tab.offered("address show ") == ["default", "web"]
    assert tab.offered("expose 80 --identity w") == ["web"]


def test_who_does_not_answer_at_once_completes_nothing(
    tab: Completing, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tab.offered("address show ") == []
    over = threading.Event()
    monkeypatch.setattr(ControlClient, "call", lambda *_arguments: over.wait() and ())
    monkeypatch.setattr(completing, "WITHIN_S", 0.0)
    assert tab.offered("address show ") == []
    over.set()


def test_what_can_be_signed_is_completed(tab: Completing) -> None:
    assert tab.offered("override sign ") == ["ban", "delete", "pin", "unban"]


def test_labs_and_their_nodes_are_completed(
    tab: Completing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "labs"
    root.mkdir()
    monkeypatch.setattr("phantom_tun.lab.record.default_root", lambda: root)
    monkeypatch.setattr("phantom_tun.lab.lifecycle.default_root", lambda: root)
    assert tab.offered("lab kill ") == []
    node = NodeRecord("n1", (), "", "", "", "", None, "", "", "", ())
    nodes = (node, msgspec.structs.replace(node, name="m2"))
    record = LabRecord("lab", "", False, 0, 0, "", "", nodes)
    store = LabStore(root, "lab")
    store.create()
    store.write(record)
    assert tab.offered("lab kill n") == ["n1"]
    assert tab.offered("lab status --name ") == ["lab"]
    assert tab.offered("lab kill --name other ") == []
