"""A program of its own, run under fakeroot: runs several programs one after the other in the one session.

fakeroot keeps owners in its database, but extended attributes only while it runs; so who sets them and who reads them must share it.

    run_in_turn.py TABLE      TABLE is JSON: a list of command lines, each a list of words
"""

from __future__ import annotations

import json
import os
import sys


def main(argv: list[str]) -> None:
    """Runs the commands; ends with the status of the first that fails."""
    with open(argv[1], encoding="utf-8", errors="surrogateescape") as handle:
        commands: list[list[str]] = json.load(handle)
    for words in commands:
        status = os.spawnv(os.P_WAIT, words[0], words)  # noqa: S606 - the gate started us to run these, absolute paths
        if status:
            sys.exit(abs(status))


if __name__ == "__main__":
    main(sys.argv)
