"""Programs run by an interpreter of their own, to see what is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import phantom_tun

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(phantom_tun.__file__).parents[1])}


def printed_by(program: str) -> str:
    """What ``program`` prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    return done.stdout
