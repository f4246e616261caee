"""``drops`` of ``status`` has everything that was refused or dropped, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import phantom_tun
from phantom_tun.cli.drops import WORDS, in_words
from phantom_tun.errors import CapacityExceeded, ProtocolViolation
from phantom_tun.path.member import Reason
from phantom_tun.view.drops import drops, reason

NO_DROPS = {"answered_refused", "registrations_refused"}
"""What others refused."""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("drop_answer_late", "answer late"),
        ("drop_neighbour_network", "neighbour network"),
        ("dropped_source_not_ours", "interface source not ours"),
        ("refused_rate", "refused rate"),
        ("request_dropped_ProtocolViolation", "request ProtocolViolation"),
        ("entry_unknown_entry", "entry unknown entry"),
        ("entry_requests_broken", "entry requests broken"),
        ("calls_over_limit", "calls over limit"),
        ("calls_of_banned_nodes", "calls of banned nodes"),
    ],
)
def test_what_was_refused_or_dropped_has_a_reason(name: str, said: str) -> None:
    assert reason(name) == said


@pytest.mark.parametrize("name", ["neighbours", "entry_requests", "signals_sent", "calls_served"])
def test_other_counters_have_none(name: str) -> None:
    assert reason(name) is None


def test_reasons_are_added_up_over_all_parts() -> None:
    groups = [
        {"drop_ask": 1, "drop_bulk_limit": 0, "neighbours": 7},
        {"drop_ask": 2, "dropped_fragment": 4},
    ]
    assert drops(groups) == {"ask": 3, "interface fragment": 4}


def counter_names() -> set[str]:
    root = Path(phantom_tun.__file__).parent
    counted = re.compile(r'(?:counts|counters)(?:\[|\.add\()\s*f?"([a-zA-Z_]+)')
    return {
        name
        for part in ("net", "netdb", "tun")
        for file in (root / part).rglob("*.py")
        for name in counted.findall(file.read_text())
    }


def test_no_counter_with_such_a_name_is_forgotten() -> None:
    telling = {
        name
        for name in counter_names() - NO_DROPS
        if re.search(r"drop|refuse|over_limit|banned", name)
    }
    assert len(telling) > 50
    assert not {name for name in telling if reason(name) is None}


def test_people_read_words_for_reasons_that_there_are() -> None:
    put_together = {f"drop_array_{refused.value}" for refused in Reason}
    put_together.add("dropped_destination_reserved")
    put_together |= {f"drop_{frame}_network_rate" for frame in ("call", "signal")}
    put_together |= {
        f"further_dropped_{error.__name__}" for error in (CapacityExceeded, ProtocolViolation)
    }
    assert set(WORDS) <= {reason(name) for name in counter_names() | put_together}
    assert in_words("link of banned", 37) == "37 links of banned nodes"
    assert in_words("something rare", 1) == "1 something rare"
    assert in_words("neighbour banned", 1) == "1 link to banned nodes"
    assert in_words("array broken", 1) == "1 path build that was no good"
    for each, words in WORDS.items():
        assert in_words(each, 2) == f"2 {words}"
        assert len(words) - len(in_words(each, 1)) in {-1, 0, 1, 2}  # "s", and "were" or "was"
        assert in_words(each, 1) != f"1 {words}"
