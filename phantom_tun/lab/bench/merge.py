"""Several runs put together: a long one can be done in pieces."""

from __future__ import annotations

import copy
from pathlib import Path

import msgspec

from phantom_tun.decoding import UNREADABLE
from phantom_tun.lab.bench.model import ConditionResult, GrowthResult, Report, SystemResult
from phantom_tun.lab.errors import BadLabOption


def read(file: Path) -> Report | None:
    """An earlier report; ``None``: there is none.

    :raises BadLabOption: it can't be read as one.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=Report)
    except FileNotFoundError:
        return None
    except (*UNREADABLE, OSError) as error:
        raise BadLabOption(f"{file} can't be added to: {error}; choose another --label") from error


def merged(earlier: Report, later: Report) -> Report:
    """Repetitions of the same figure add up; what only one of them has is kept.

    :raises BadLabOption: they come from different machines.
    """
    if (earlier.machine.cpus, earlier.machine.model) != (later.machine.cpus, later.machine.model):
        raise BadLabOption("results of different machines can't be put together: use another --out")
    earlier, later = copy.deepcopy(earlier), copy.deepcopy(later)
    return Report(
        when=later.when,
        machine=later.machine,
        settings=later.settings,
        conditions=_conditions(earlier.conditions, later.conditions),
        growth=_growth(earlier.growth, later.growth),
    )


def _conditions(
    earlier: list[ConditionResult], later: list[ConditionResult]
) -> list[ConditionResult]:
    found = {each.condition: each for each in earlier}
    for each in later:
        known = found.get(each.condition)
        if known is None:
            found[each.condition] = each
        else:
            known.busy_before = max(known.busy_before, each.busy_before)
            known.systems = _systems(known.systems, each.systems)
    return list(found.values())


def _systems(earlier: list[SystemResult], later: list[SystemResult]) -> list[SystemResult]:
    """In the order of the earlier; repetitions of all systems stay side by side."""
    done = max((len(v) for each in earlier for v in each.samples.values()), default=0)
    found = {each.key: each for each in earlier}
    for each in later:
        known = found.get(each.key)
        if known is None:
            known = found[each.key] = SystemResult(each.key, each.title, each.version)
        known.version = each.version
        known.errors += each.errors
        known.remarks += each.remarks
        for key, values in each.samples.items():
            for repetition, value in enumerate(values):
                known.add(done + repetition, key, value)
    return list(found.values())


def _growth(earlier: list[GrowthResult], later: list[GrowthResult]) -> list[GrowthResult]:
    found = {each.key: each for each in earlier}
    for each in later:
        known = found.setdefault(each.key, each)
        if known is not each:
            known.busy_before = max(known.busy_before, each.busy_before)
            known.errors += each.errors
            for point in each.points:
                for key, values in point.samples.items():
                    known.at(point.x).samples.setdefault(key, []).extend(values)
    return list(found.values())
