"""Which directories keep others out."""

from __future__ import annotations

from pathlib import Path

import pytest

from phantom_tun.lab.passable import barriers


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """``…/home`` lets only its owner pass; so do ``…/home/inner`` and pytest's own directories."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_mode & 0o001 == 0:
            directory.chmod(0o755)
    home = tmp_path / "home"
    (home / "inner" / "deep").mkdir(parents=True)
    (tmp_path / "open").mkdir()
    home.chmod(0o700)
    (home / "inner").chmod(0o700)
    return home


def test_the_outermost_barrier_counts(home: Path) -> None:
    assert barriers([home / "inner" / "deep"]) == {home: [home / "inner" / "deep"]}


def test_what_is_named_is_no_barrier_itself(home: Path) -> None:
    assert barriers([home]) == {}


def test_open_directories_have_none(home: Path) -> None:
    assert barriers([home.parent / "open", Path("/")]) == {}


def test_many_behind_one_and_links_are_followed(home: Path) -> None:
    link = home.parent / "open" / "link"
    link.symlink_to(home / "inner")
    assert barriers([link, home / "inner" / "deep", home / "inner"]) == {
        home: [home / "inner", home / "inner" / "deep"]
    }
