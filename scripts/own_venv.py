"""Runs the script that imports this in the project's virtual environment, unless it is there.

Imported first by scripts that need what phantom-tun depends on. ``scripts/setup`` makes the
environment if it is missing; a script that is only asked for help makes nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def enter() -> None:
    """Become the same script in the virtual environment."""
    if all(find_spec(name) is not None for name in ("cryptography", "msgspec", "trio")):
        return
    python = Path(os.environ.get("PHANTOM_TUN_VENV", ROOT / ".venv")) / "bin" / "python"
    if {"-h", "--help"}.isdisjoint(sys.argv[1:]):
        made = subprocess.run([str(ROOT / "scripts" / "setup")], check=False)
        if made.returncode:
            sys.exit(made.returncode)
    elif not python.exists():
        print((sys.modules["__main__"].__doc__ or "").strip())
        print("\nIts options are listed once scripts/setup has run.")
        sys.exit(0)
    if Path(sys.prefix).resolve() == python.parent.parent.resolve():
        sys.exit(f"{Path(sys.argv[0]).name}: {sys.prefix} lacks packages: scripts/setup")
    os.execv(python, [str(python), *sys.argv])  # noqa: S606 - that is its purpose


enter()
