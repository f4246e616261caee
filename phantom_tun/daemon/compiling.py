"""Compiles what a daemon imports; to be run with the flags of :mod:`phantom_tun.daemon.slim`, by
``scripts/setup``."""

from __future__ import annotations

import compileall
import sys
from importlib import import_module
from pathlib import Path

import phantom_tun
from phantom_tun.daemon.lean import import_decoder_alone, import_logs_alone
from phantom_tun.packet.layers import load_layers

ENTRIES = (
    "cli.running",
    "daemon.start",
    "daemon.worker_process",
    "node",
    "owner",
    "crypto.x509",
    "tun.device",
    "tun.interface",
    "packet.layers",
)


def main() -> int:
    """Returns the exit code."""
    import_decoder_alone()
    import_logs_alone()
    for name in ENTRIES:
        import_module(f"phantom_tun.{name}")
    import_module("runpy")  # what ``python -m`` begins with
    load_layers()
    # And what they import later.
    own = Path(phantom_tun.__file__).parent
    return 0 if compileall.compile_dir(own, quiet=1) else 1


if __name__ == "__main__":
    sys.exit(main())
