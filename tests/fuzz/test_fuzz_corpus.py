"""Every input that fuzzing found worth keeping, through the function it was found for: nothing but
what is declared may come out. And none of the good inputs to begin with may have gone bad."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

import pytest
from cryptography.utils import CryptographyDeprecationWarning
from targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


def inputs(name: str) -> list[bytes]:
    kept = sorted((CORPUS / name).glob("*"))
    return TARGETS[name].seeds() + [path.read_bytes() for path in kept]


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        yield


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_undeclared_comes_out(name):
    target = TARGETS[name]
    for data in [b"", *inputs(name)]:
        with contextlib.suppress(*target.declared):
            target.run(data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_good_input_to_begin_with_is_good(name):
    target = TARGETS[name]
    target.run(target.seeds()[0])


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_small(name):
    sizes = [path.stat().st_size for path in (CORPUS / name).glob("*")]
    assert max(sizes, default=0) <= TARGETS[name].longest
    assert sum(sizes) <= 100_000
