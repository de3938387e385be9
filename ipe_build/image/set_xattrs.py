"""A program of its own, run under fakeroot: sets extended attributes, then becomes the program that makes the filesystem.

fakeroot keeps attributes only while it runs (its database holds none), so they must be set in the maker's own session; there
no privilege is needed, and the attributes of the machine the build runs on are not seen.

    set_xattrs.py TABLE PROGRAM ARGUMENT...      TABLE is JSON: a list of [path, name, value in hex]
"""

from __future__ import annotations

import json
import os
import sys


def main(argv: list[str]) -> None:
    """Sets the attributes that the table names and runs the program instead of this one."""
    with open(argv[1], encoding="utf-8", errors="surrogateescape") as handle:
        rows: list[tuple[str, str, str]] = json.load(handle)
    for path, name, value in rows:
        os.setxattr(path, name, bytes.fromhex(value), follow_symlinks=False)
    os.execv(argv[2], argv[2:])  # noqa: S606 - the gate started us to become this program


if __name__ == "__main__":
    main(sys.argv)
