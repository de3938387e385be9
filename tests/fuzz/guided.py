"""`python -m tests.fuzz.guided TARGET LIBFUZZER-WORDS…`: fuzzes one target in this process; what the package does is what guides it."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["ipe_build"]):
    from tests.fuzz.targets import BY_NAME, run

if __name__ == "__main__":
    target = BY_NAME[sys.argv[1]]
    atheris.Setup([sys.argv[0], *sys.argv[2:]], lambda data: run(target, data))
    atheris.Fuzz()
