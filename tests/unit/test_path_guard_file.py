"""Guards on disk."""

import random

import pytest

from phantom_tun.errors import ConfigError
from phantom_tun.ids import NodeId
from phantom_tun.net.paths.guard_file import FILE, GuardFile

NOW = 1_800_000_000.0


def test_there_are_no_guards_at_first_and_nothing_is_written_for_none(tmp_path):
    file = GuardFile(tmp_path)
    guards = file.load(frozenset())
    assert len(guards) == 0
    file.save(guards)
    assert list(tmp_path.iterdir()) == []


def test_guards_are_found_again_and_readable_by_nobody_else(tmp_path):
    file = GuardFile(tmp_path)
    guards = file.load(frozenset())
    guards.add(NodeId(b"g" * 32), NOW, random.Random(1))
    file.save(guards)
    assert not guards.changed
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    again = file.load(frozenset({NodeId(b"t" * 32)}))
    assert again.usable(NOW) == [b"g" * 32]
    assert again.is_trusted(NodeId(b"t" * 32))


def test_an_unchanged_set_is_not_written_again(tmp_path):
    file = GuardFile(tmp_path)
    guards = file.load(frozenset())
    guards.add(NodeId(b"g" * 32), NOW, random.Random(1))
    file.save(guards)
    (tmp_path / FILE).unlink()
    file.save(guards)
    assert not (tmp_path / FILE).exists()


def test_a_damaged_file_is_reported_with_what_to_do(tmp_path):
    (tmp_path / FILE).write_bytes(b"{}")
    (tmp_path / FILE).chmod(0o600)
    with pytest.raises(ConfigError, match="move it away"):
        GuardFile(tmp_path).load(frozenset())


def test_a_file_that_others_can_read_is_refused(tmp_path):
    (tmp_path / FILE).write_bytes(b'{"guards": []}')
    (tmp_path / FILE).chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        GuardFile(tmp_path).load(frozenset())


def test_a_directory_that_is_not_there_is_reported(tmp_path):
    file = GuardFile(tmp_path / "gone")
    guards = file.load(frozenset())
    guards.add(NodeId(b"g" * 32), NOW, random.Random(1))
    file.save(guards)
    assert file.problem is not None
    assert "can't write" in file.problem
    assert guards.changed
    (tmp_path / "gone").mkdir()
    file.save(guards)
    assert file.problem is None
    assert not guards.changed
