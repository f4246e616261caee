"""Pins of AP4 addresses: kept across restarts, never replaced but by the owner."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from phantom_tun.errors import ConfigError, Unreachable, UsageError
from phantom_tun.ids import PublicKey
from phantom_tun.net.addresses import pins as pins_module
from phantom_tun.net.addresses.pins import PINS_FILE, PinChanged, Pins, fingerprint

NOW = 1_800_000_000.0
ADDRESS = ipaddress.IPv4Address("240.1.2.3")
OTHER = ipaddress.IPv4Address("241.1.2.3")
KEY, NEW_KEY = PublicKey(b"k" * 32), PublicKey(b"n" * 32)


def make(directory: Path, moment: float = NOW) -> Pins:
    return Pins(directory, lambda: moment)


def test_a_pin_survives_a_restart_and_is_private(tmp_path: Path) -> None:
    pin = make(tmp_path).confirm(ADDRESS, KEY, 3)
    assert (tmp_path / PINS_FILE).stat().st_mode & 0o777 == 0o600
    again = make(tmp_path, NOW + 100)
    assert again.get(ADDRESS) == pin
    assert pin.confirmations == 3
    assert again.confirm(ADDRESS, KEY, 1) == pin


def test_more_confirmations_are_kept(tmp_path: Path) -> None:
    make(tmp_path).confirm(ADDRESS, KEY, 1)
    make(tmp_path, NOW + 5).confirm(ADDRESS, KEY, 2)
    pin = make(tmp_path).get(ADDRESS)
    assert pin is not None
    assert (pin.confirmations, pin.since) == (2, NOW)


def test_a_changed_key_is_refused_explained_and_not_stored(tmp_path: Path) -> None:
    pins = make(tmp_path)
    pins.confirm(ADDRESS, KEY, 2)
    with pytest.raises(PinChanged) as caught:
        pins.confirm(ADDRESS, NEW_KEY, 3)
    text = str(caught.value)
    assert isinstance(caught.value, Unreachable)
    assert fingerprint(KEY) in text
    assert fingerprint(NEW_KEY) in text
    assert f"phantom-tun pins accept {ADDRESS}" in text
    kept = make(tmp_path).get(ADDRESS)
    assert kept is not None
    assert kept.public_key == KEY
    assert [change.offered for change in pins.changes()] == [NEW_KEY]


def test_the_owner_can_accept_a_change(tmp_path: Path) -> None:
    pins = make(tmp_path)
    pins.confirm(ADDRESS, KEY, 2)
    with pytest.raises(PinChanged):
        pins.confirm(ADDRESS, NEW_KEY, 3)
    pins.accept(ADDRESS)
    assert pins.changes() == []
    assert pins.confirm(ADDRESS, NEW_KEY, 1).confirmations == 3
    kept = make(tmp_path).get(ADDRESS)
    assert kept is not None
    assert kept.public_key == NEW_KEY


def test_the_old_key_coming_back_ends_the_question(tmp_path: Path) -> None:
    pins = make(tmp_path)
    pins.confirm(ADDRESS, KEY, 2)
    with pytest.raises(PinChanged):
        pins.confirm(ADDRESS, NEW_KEY, 3)
    pins.confirm(ADDRESS, KEY, 1)
    with pytest.raises(UsageError, match="no other key"):
        pins.accept(ADDRESS)


def test_nothing_to_accept_or_remove(tmp_path: Path) -> None:
    pins = make(tmp_path)
    with pytest.raises(UsageError, match="no other key"):
        pins.accept(ADDRESS)
    with pytest.raises(UsageError, match="isn't pinned"):
        pins.remove(ADDRESS)


def test_a_removed_pin_makes_the_next_contact_the_first(tmp_path: Path) -> None:
    pins = make(tmp_path)
    pins.confirm(ADDRESS, KEY, 2)
    pins.confirm(OTHER, KEY, 2)
    pins.remove(ADDRESS)
    assert make(tmp_path).get(ADDRESS) is None
    assert make(tmp_path).get(OTHER) is not None
    assert pins.confirm(ADDRESS, NEW_KEY, 1).public_key == NEW_KEY


def test_the_table_is_bounded_and_old_pins_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pins_module, "MAX_PINS", 3)
    monkeypatch.setattr(pins_module, "MAX_CHANGES", 1)
    times = iter(range(1, 100))
    pins = Pins(tmp_path, lambda: NOW + next(times))
    addresses = [ipaddress.IPv4Address("240.9.0.0") + n for n in range(5)]
    for address in addresses:
        pins.confirm(address, KEY, 1)
    kept = [*addresses[:2], addresses[4]]
    assert [pin.address for pin in pins.all()] == kept
    for address in kept:
        with pytest.raises(PinChanged):
            pins.confirm(address, NEW_KEY, 1)
    assert [change.pin.address for change in pins.changes()] == addresses[4:]
    assert pins.statistics() == {"pins": 3, "pins_changed": 1, "pins_evicted": 2}


@pytest.mark.parametrize(
    "line",
    [
        "240.1.2.3",
        f"2001:2f::1 {KEY.hex()} 2 2026-11-23T00:00:00+00:00",
        f"240.1.2.3 {KEY.hex()[:-2]} 2 2026-11-23T00:00:00+00:00",
        f"240.1.2.3 {KEY.hex()[:-2]}zz 2 2026-11-23T00:00:00+00:00",
        f"240.1.2.3 {KEY.hex()} 0 2026-11-23T00:00:00+00:00",
        f"240.1.2.3 {KEY.hex()} 2 yesterday",
        f"240.1.2.3 {KEY.hex()} 2 2026-11-23T00:00:00",
        f"240.1.2.3 {KEY.hex()} 2 2026-11-23T00:00:00+00:00 more",
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / PINS_FILE).write_text(f"# a comment\n\n{line}\n")
    with pytest.raises(ConfigError, match="line 3"):
        make(tmp_path)


@pytest.mark.parametrize("data", [b"\xff\xfe", b"#" * (4 * 1024 * 1024 + 1)])
def test_a_damaged_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / PINS_FILE).write_bytes(data)
    with pytest.raises(ConfigError, match="restore a backup"):
        make(tmp_path)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / PINS_FILE).mkdir()
    with pytest.raises(ConfigError, match="can't read the pins"):
        make(tmp_path)


def test_what_can_not_be_written_is_told_until_it_can(tmp_path: Path) -> None:
    pins = make(tmp_path / "none")
    with pytest.raises(ConfigError) as caught:
        pins.confirm(ADDRESS, KEY, 2)
    assert pins.problem == str(caught.value)
    assert pins.get(ADDRESS) is None
    (tmp_path / "none").mkdir()
    pins.confirm(ADDRESS, KEY, 2)
    assert pins.problem is None
