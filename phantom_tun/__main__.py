"""The ``phantom-tun`` command; ``python -m phantom_tun`` is the same."""

from __future__ import annotations

import sys
from typing import NoReturn

from phantom_tun.cli.running import parse_plainly, run, run_and_exit


def main() -> NoReturn:
    """Be the daemon, or any other command."""
    options = parse_plainly(sys.argv[1:])
    if options is None:
        from phantom_tun.cli.main import main as command_line  # noqa: PLC0415 - see `running`

        command_line()
    # The log library imports this one where it finds it, for colours that no daemon needs: 4 MB.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    run_and_exit(lambda: run(options))


if __name__ == "__main__":
    main()
