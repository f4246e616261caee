"""The ``phantom-tun`` command; ``python -m phantom_tun`` is the same."""

from __future__ import annotations

import sys
from typing import NoReturn

from phantom_tun.cli.plain import plain_run
from phantom_tun.daemon.interpreter import start_quickly
from phantom_tun.daemon.lean import import_decoder_alone, import_logs_alone
from phantom_tun.daemon.slim import become_slim


def main() -> NoReturn:
    """Be the daemon, or any other command."""
    arguments = sys.argv[1:]
    if plain_run(arguments) is not None:
        become_slim(arguments)
        start_quickly()
        import_decoder_alone()
    from phantom_tun.cli.running import parse_plainly, run, run_and_exit  # noqa: PLC0415

    options = parse_plainly(arguments)
    if options is None:
        from phantom_tun.cli.main import main as command_line  # noqa: PLC0415 - see `running`

        command_line()
    import_logs_alone()
    run_and_exit(lambda: run(options))


if __name__ == "__main__":
    main()
