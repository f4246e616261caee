"""Importing libraries without what they would bring and no daemon needs: 7 MB."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import ModuleType

LIBRARY = "structlog"
DECODER = "msgspec"


def import_decoder_alone() -> None:
    """To be called before anything else imports the library that decodes."""
    # It has the same from Python, and takes it from there where this one isn't installed.
    with _standing_in("typing_extensions", None):
        _try_import(DECODER)


def import_logs_alone() -> None:
    """To be called before anything else imports the log library."""
    # It draws exceptions with this one where it finds it; we never let it.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    # It also has loggers for programs of this one, which it only names as it is imported.
    with _standing_in("asyncio", ModuleType("asyncio")):
        _try_import(LIBRARY)


@contextmanager
def _standing_in(name: str, stand_in: ModuleType | None) -> Iterator[None]:
    """Have ``stand_in`` imported as ``name``, ``None`` as if it weren't there, unless it has been
    imported already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = stand_in  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


def _try_import(name: str) -> None:
    """A version that needs more is imported by whoever needs it, as usual."""
    with suppress(AttributeError, ImportError):
        import_module(name)
