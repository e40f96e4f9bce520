"""Whether a process still holds its databases, as the kernel and other processes see it."""

from pathlib import Path

from tests.support.forked import run

_OPEN = """
import duckdb, sys
try:
    duckdb.connect(sys.argv[1])
except duckdb.IOException as error:
    sys.exit(0 if "Could not set lock" in str(error) else f"another error: {error}")
sys.exit("it opened")
"""


def record_locks(file: Path) -> int:
    """Count the POSIX record locks on a file."""
    return _locks("POSIX", file)


def file_locks(file: Path) -> int:
    """Count the locks on a whole file by `flock`."""
    return _locks("FLOCK", file)


def _locks(kind: str, file: Path) -> int:
    inode = str(file.stat().st_ino)
    rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return sum(row[1] == kind and row[5].rpartition(":")[2] == inode for row in rows)


def assert_held(mirror: Path) -> None:
    """DuckDB's own lock stands, and another process is refused because of it."""
    assert record_locks(mirror), "DuckDB's lock is lost"
    done = run(_OPEN, str(mirror))
    assert done.returncode == 0, done.stderr
