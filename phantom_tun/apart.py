"""Work whose imports shall not stay in memory: it is done by a copy of this process that ends."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable

_FAILED = 1


def apart(needs: str, work: Callable[[], bytes]) -> bytes:
    """What ``work`` returns. It is done by a child process, unless ``needs``, the module that it
    would be spared for, is imported already; by this process if there are other threads, which a
    copy wouldn't have, if there can't be a child, or if ``work`` failed there: then it raises here
    what it raised there."""
    if needs not in sys.modules and threading.active_count() == 1:
        try:
            found = _in_child(work)
        except OSError:
            found = None
        if found is not None:
            return found
    return work()


def _in_child(work: Callable[[], bytes]) -> bytes | None:
    """``None`` if it failed."""
    reading, writing = os.pipe()
    try:
        child = os.fork()
        if not child:
            _answer(writing, work)
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    try:
        with os.fdopen(reading, "rb") as pipe:
            found = pipe.read()
    finally:
        _, status = os.waitpid(child, 0)
    return None if status else found


def _answer(writing: int, work: Callable[[], bytes]) -> None:
    """Never returns: what this process would do at its end is for the one it is a copy of."""
    code = _FAILED
    gc.disable()  # it would look at everything, and so have all of that copied
    try:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(work())
        code = 0
    finally:
        os._exit(code)
