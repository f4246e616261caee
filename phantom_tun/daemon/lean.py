"""Importing the log library without what it would bring and no daemon needs: 6 MB."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module
from types import ModuleType

LIBRARY = "structlog"


def import_logs_alone() -> None:
    """To be called before anything else imports the library."""
    # It draws exceptions with this one where it finds it; we never let it.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    # It also has loggers for programs of this one, which it only names as it is imported.
    stand_in = ModuleType("asyncio")
    if sys.modules.setdefault("asyncio", stand_in) is not stand_in:
        return
    try:
        # A version that needs more than the name is imported by whoever needs it, as usual.
        with suppress(AttributeError, ImportError):
            import_module(LIBRARY)
    finally:
        del sys.modules["asyncio"]
