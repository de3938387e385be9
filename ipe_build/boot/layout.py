"""Where the probe program and its fixtures lie on the verity root. The same places in every image, so an image needs no description."""

from __future__ import annotations

FOLDER = "/usr/lib/ipe-build"
PROBE = f"{FOLDER}/ipe-probe"
FIXTURES = f"{FOLDER}/probes"
APPLICATION = f"{FIXTURES}/probe-app"
"""A dynamically linked program: it needs `LOADER`, `C_LIBRARY` and `LIBRARY`."""
LIBRARY = f"{FIXTURES}/libipe-probe.so"
LOADER = f"{FIXTURES}/ld.so"
C_LIBRARY = f"{FIXTURES}/libc.so.6"
SIGNED_MODULE = f"{FIXTURES}/module-signed.ko"
UNSIGNED_MODULE = f"{FIXTURES}/module-unsigned.ko"
FOREIGN_MODULE = f"{FIXTURES}/module-foreign.ko"
