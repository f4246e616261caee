"""Key files and atomic writes: each refusal fires, and each says what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from phantom_tun import files
from phantom_tun.errors import ConfigError

SECRET = b"s" * 32


def unused_factory() -> bytes:
    raise AssertionError("the secret existed already")


def test_a_secret_is_created_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    assert files.load_or_create_secret(path, lambda: SECRET, size=32) == SECRET
    assert path.stat().st_mode & 0o777 == 0o600
    assert files.load_or_create_secret(path, unused_factory, size=32) == SECRET


def test_a_missing_secret_is_none(tmp_path: Path) -> None:
    assert files.load_secret(tmp_path / "none") is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_secret_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.key"
    path.write_bytes(SECRET)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=r"other users.*chmod 600"):
        files.load_or_create_secret(path, unused_factory, size=32)


@pytest.mark.parametrize("content", [b"", SECRET[:-1], SECRET + b"x"])
def test_a_secret_of_wrong_length_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "identity.key"
    files.atomic_write(path, content)
    with pytest.raises(ConfigError, match=r"doesn't hold 32 bytes.*backup"):
        files.load_secret(path, size=32)


def test_a_secret_without_fixed_length_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    files.atomic_write(path, bytes(files.SECRET_MAX_BYTES))
    assert files.load_secret(path) == bytes(files.SECRET_MAX_BYTES)
    files.atomic_write(path, bytes(files.SECRET_MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="damaged"):
        files.load_secret(path)


def test_a_symlink_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(SECRET)
    (tmp_path / "identity.key").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="plain file"):
        files.load_secret(tmp_path / "identity.key")


def test_a_fifo_is_no_secret_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "identity.key", 0o600)
    with pytest.raises(ConfigError, match="plain file"):
        files.load_secret(tmp_path / "identity.key")


def test_a_directory_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / "identity.key").mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="plain file"):
        files.load_secret(tmp_path / "identity.key")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_secret_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    files.atomic_write(path, SECRET)
    os.chown(path, 12345, 12345)
    with pytest.raises(ConfigError, match=r"belongs to uid 12345.*chown 0"):
        files.load_secret(path)


def test_an_atomic_write_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.atomic_write(path, b"old", mode=0o644)
    files.atomic_write(path, b"new", mode=0o644)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_failed_atomic_write_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    files.atomic_write(path, b"old")

    def no_space(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(ConfigError, match="No space left"):
        files.atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_writing_into_a_missing_directory_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't write"):
        files.atomic_write(tmp_path / "none" / "file", b"x")


def own(path: Path) -> None:
    files.ensure_private_directory(path, uid=os.geteuid(), gid=os.getegid())


def test_a_private_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "state"
    own(path)
    own(path)
    assert path.stat().st_mode & 0o777 == 0o700


def test_an_open_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.mkdir(mode=0o755)
    path.chmod(0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        own(path)


def test_a_symlink_is_no_private_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "state").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="isn't a directory"):
        own(tmp_path / "state")


def test_a_directory_of_another_user_is_never_given_away(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match=r"chown -R 54321"):
        files.ensure_private_directory(path, uid=54321, gid=54321)
    assert path.stat().st_uid == os.geteuid()


def test_a_directory_below_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="can't use the directory"):
        own(tmp_path / "file" / "state")
