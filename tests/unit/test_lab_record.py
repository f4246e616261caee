"""What a lab remembers of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from phantom_tun.lab import record as record_module
from phantom_tun.lab.errors import DuplicateLab, LabFailed, NotPrivileged, UnknownLab, UnknownNode
from phantom_tun.lab.processes import ProcessRef
from phantom_tun.lab.record import LabRecord, LabStore, NodeRecord, default_root, lab_command


def a_record(name: str = "one") -> LabRecord:
    nodes = tuple(
        NodeRecord(
            name=f"n{i}",
            roles=("owner",),
            namespace=f"phantom.{name}.n{i}",
            holder=f"/run/netns/phantom.{name}.n{i}",
            underlay=f"10.{i}.0.1",
            underlay6=f"fd50:{i}::1",
            interface="phantom0",
            state_dir="/s",
            control_socket="/c",
            log="/l",
            command=("true",),
        )
        for i in (1, 2)
    )
    return LabRecord(
        name=name,
        directory="/d",
        made_directory=False,
        exit_hops=3,
        entry_hops=3,
        switch_namespace=f"phantom.{name}.sw",
        switch_holder=f"/run/netns/phantom.{name}.sw",
        nodes=nodes,
    )


@pytest.fixture
def store(tmp_path: Path) -> LabStore:
    store = LabStore(tmp_path / "labs", "one")
    store.create()
    return store


def test_what_is_written_is_read(store: LabStore) -> None:
    record = a_record().with_process("n2", ProcessRef(7, 8))
    store.write(record)
    assert store.read() == record
    assert record.node("n1").process is None
    assert record.node("n2").process == ProcessRef(7, 8)


def test_ids_are_kept_until_others_are_told() -> None:
    record = a_record().with_ids({"n1": "aa"}).with_ids({"n2": "bb"})
    assert [node.node_id for node in record.nodes] == ["aa", "bb"]


@pytest.mark.parametrize(
    ("lab", "said"),
    [("lab", "phantom-tun lab start n1"), ("one", "phantom-tun lab start n1 --name one")],
)
def test_commands_as_one_types_them(lab: str, said: str) -> None:
    assert lab_command("start", lab, "n1") == said


def test_who_has_no_labs_is_told_of_those_of_root(
    store: LabStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_module, "SYSTEM_ROOT", store.root)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(UnknownLab, match="running labs: none; with sudo: one"):
        LabStore(tmp_path / "mine", "two").read()
    with pytest.raises(NotPrivileged, match="lab 'one' is root's: use sudo"):
        LabStore(tmp_path / "mine", "one").read()


def test_holders_are_all_of_them() -> None:
    assert [path.name for path in a_record().holders] == [
        "phantom.one.sw",
        "phantom.one.n1",
        "phantom.one.n2",
    ]


def test_unknown_node() -> None:
    with pytest.raises(UnknownNode, match="n1 to n2"):
        a_record().node("n3")


def test_a_name_is_taken_once(store: LabStore) -> None:
    with pytest.raises(DuplicateLab, match="choose another --name"):
        LabStore(store.root, "one").create()
    LabStore(store.root, "two").create()


def test_unknown_lab_lists_the_others(store: LabStore) -> None:
    other = LabStore(store.root, "two")
    with pytest.raises(UnknownLab, match="running labs: one"):
        other.read()
    with pytest.raises(UnknownLab), other.lock():
        pass
    with pytest.raises(UnknownLab, match="none"):
        LabStore(store.root / "nowhere", "x").read()


def test_damaged_record(store: LabStore) -> None:
    (store.place / "lab.json").write_text('{"name": 1}')
    with pytest.raises(UnknownLab, match="damaged"):
        store.read()


def test_forgetting_leaves_nothing(store: LabStore) -> None:
    store.write(a_record())
    with store.lock():
        store.forget()
    assert not store.root.exists()


def test_forgetting_one_keeps_the_other(store: LabStore) -> None:
    other = LabStore(store.root, "two")
    other.create()
    store.forget()
    assert not store.exists()
    assert other.exists()


def test_one_at_a_time(store: LabStore) -> None:
    with store.lock(), pytest.raises(LabFailed, match="another command"), store.lock(0.0):
        pass
    with store.lock(0.0):
        pass


def test_a_lock_on_a_lab_that_was_removed_is_none(
    store: LabStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder removes the lab and somebody takes its name again while we wait."""
    flock = record_module.fcntl.flock

    def replaced(fd: int, how: int) -> None:
        flock(fd, how)
        monkeypatch.undo()
        store.forget()
        store.create()

    monkeypatch.setattr(record_module.fcntl, "flock", replaced)
    with store.lock(), pytest.raises(LabFailed), store.lock(0.0):
        pass


def test_the_root_is_ours_or_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(record_module, "SYSTEM_ROOT", Path("/proc/no-such-place/labs"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_root() == tmp_path / "labs"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(record_module.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(record_module.os, "geteuid", lambda: 4711)
    root = default_root()
    assert root == tmp_path / "labs-4711"
    root.mkdir()
    with pytest.raises(LabFailed, match="somebody else"):
        default_root()


def test_what_a_killed_writer_left_goes_with_the_record(store: LabStore) -> None:
    store.write(a_record())
    (store.place / ".lab.json.x7f2").write_text("{")
    store.forget()
    assert not store.exists()


def test_files_of_others_stay(store: LabStore) -> None:
    store.write(a_record())
    (store.place / "notes").write_text("mine")
    store.forget()
    assert [path.name for path in store.place.iterdir()] == ["notes"]
