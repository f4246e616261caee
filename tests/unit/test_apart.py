"""Work in a process that ends."""

import os
import threading
from pathlib import Path

import pytest
from fresh_python import printed_by

from phantom_tun import apart as module
from phantom_tun.apart import apart

NOT_IMPORTED = "phantom_tun.nothing"


def test_what_a_child_found_comes_back_and_its_imports_do_not() -> None:
    program = (
        "import sys\n"
        "from phantom_tun.apart import apart\n"
        "def work():\n"
        "    import fractions\n"
        "    return b'x' * 200_000\n"
        "print(len(apart('fractions', work)), 'fractions' in sys.modules)\n"
    )
    assert printed_by(program) == "200000 False\n"


def whose() -> bytes:
    return str(os.getpid()).encode()


def test_what_is_imported_already_needs_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    assert apart("os", whose) == whose()
    assert apart(NOT_IMPORTED, whose) != whose()


def test_a_process_with_threads_does_it_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert apart(NOT_IMPORTED, whose) == whose()


def test_what_fails_in_the_child_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 1)

    def work() -> bytes:
        raise LookupError(os.getpid())

    with pytest.raises(LookupError) as caught:
        apart(NOT_IMPORTED, work)
    assert caught.value.args == (os.getpid(),)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # nobody is left


def test_where_there_can_be_no_child_it_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError

    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setattr(module.os, "fork", fork)
    handles = len(list(Path("/proc/self/fd").iterdir()))
    assert apart(NOT_IMPORTED, whose) == whose()
    assert len(list(Path("/proc/self/fd").iterdir())) == handles
