"""Run the tests, and end where their summary does: `python -m tests`.

Ended in the ordinary way, the interpreter lets DuckDB's bindings print a list of what its modules
still held, long after the last word that counts.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest

#: Databases made for one test are made and deleted faster in memory, where there is plenty of it.
_MEMORY = Path("/dev/shm")  # noqa: S108  (each test makes a directory of its own there)
_PLENTY = 4 * 1024**3

if "TMPDIR" not in os.environ and _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _PLENTY:
    os.environ["TMPDIR"] = str(_MEMORY)
# Some environments keep no bytecode, so that each worker and each program under test would compile
# all that it imports; it is kept beside the environment, and nowhere in the tree.
if "PYTHONDONTWRITEBYTECODE" in os.environ and sys.prefix != sys.base_prefix:
    del os.environ["PYTHONDONTWRITEBYTECODE"]
    sys.dont_write_bytecode = False  # this process runs the tests, where there are no workers
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(Path(sys.prefix) / "bytecode")
status = pytest.main(sys.argv[1:])
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
