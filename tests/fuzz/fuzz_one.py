"""Fuzzes one target: ``fuzz_one.py TARGET [libFuzzer options] DIRECTORY…``; run by scripts/fuzz.

Coverage is measured in this project's own code and in h11, which parses what dialed servers say.
"""

from __future__ import annotations

import contextlib
import sys
import warnings

import atheris

with atheris.instrument_imports(include=["phantom_tun", "h11"]):
    from targets import TARGETS


def main() -> None:
    warnings.simplefilter("ignore")
    target = TARGETS[sys.argv[1]]

    def run(data: bytes) -> None:
        with contextlib.suppress(*target.declared):
            target.run(data)

    limits = [f"-max_len={target.longest}", "-rss_limit_mb=512", "-timeout=10"]
    # For merging, libFuzzer starts itself again by its first argument.
    itself = f"{sys.executable} {' '.join(sys.argv[:2])}"
    atheris.Setup([itself, *limits, *sys.argv[2:]], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
