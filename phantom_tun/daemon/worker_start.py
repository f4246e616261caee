"""What a worker process runs: :mod:`phantom_tun.daemon.worker_process`, imported with care."""

from __future__ import annotations

import sys

from phantom_tun.daemon.interpreter import start_quickly
from phantom_tun.daemon.lean import import_decoder_alone, import_logs_alone


def main() -> int:
    """Returns the exit code."""
    start_quickly()
    import_decoder_alone()
    import_logs_alone()
    from phantom_tun.daemon.worker_process import main as work  # noqa: PLC0415 - after that

    return work()


if __name__ == "__main__":
    sys.exit(main())
