"""The base class of runtime cases: `target.run(command)` gives (exit status, output)."""

import unittest


class OERuntimeTestCase(unittest.TestCase):
    target = None
