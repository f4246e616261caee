"""The ``phantom-tun`` command; ``python -m phantom_tun`` is the same."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import NoReturn

from phantom_tun.cli.running import parse_plainly, run, run_and_exit


def main() -> NoReturn:
    """Be the daemon, or any other command."""
    options = parse_plainly(sys.argv[1:])
    if options is None:
        from phantom_tun.cli.main import main as command_line  # noqa: PLC0415 - see `running`

        command_line()
    _import_logs_alone()
    run_and_exit(lambda: run(options))


def _import_logs_alone() -> None:
    """Import the log library without two that it would bring and no daemon needs: 6 MB."""
    # It colours exceptions with this one where it finds it.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    # And has loggers for programs of this one; it only names it as it is imported.
    sys.modules["asyncio"] = ModuleType("asyncio")
    try:
        import_module("structlog")
    finally:
        del sys.modules["asyncio"]


if __name__ == "__main__":
    main()
