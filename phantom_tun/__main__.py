"""The ``phantom-tun`` command; ``python -m phantom_tun`` is the same."""

from __future__ import annotations

import sys
from typing import NoReturn

from phantom_tun.daemon.interpreter import start_quickly
from phantom_tun.daemon.lean import import_decoder_alone, import_logs_alone


def main() -> NoReturn:
    """Be the daemon, or any other command."""
    if "run" in sys.argv:  # perhaps the daemon
        import_decoder_alone()
    from phantom_tun.cli.running import parse_plainly, run, run_and_exit  # noqa: PLC0415

    options = parse_plainly(sys.argv[1:])
    if options is None:
        from phantom_tun.cli.main import main as command_line  # noqa: PLC0415 - see `running`

        command_line()
    start_quickly()
    import_logs_alone()
    run_and_exit(lambda: run(options))


if __name__ == "__main__":
    main()
