"""Run the tests, and end where their summary does: `python -m tests`.

Ended in the ordinary way, the interpreter lets DuckDB's bindings print a list of what its modules
still held, long after the last word that counts.
"""

import os
import sys

import pytest

status = pytest.main(sys.argv[1:])
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
