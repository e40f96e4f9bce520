"""Files of databases, copied and read by another process: this one may have them open."""

import subprocess
import sys
from pathlib import Path

_COPY = """
import pathlib, shutil, sys
copy = shutil.copytree if pathlib.Path(sys.argv[1]).is_dir() else shutil.copyfile
copy(sys.argv[1], sys.argv[2])
"""
_DIGEST = """
import hashlib, pathlib, sys
print(hashlib.sha256(pathlib.Path(sys.argv[1]).read_bytes()).hexdigest())
"""


def copy(source: Path, target: Path) -> None:
    """Copy a file over another, or a whole directory."""
    subprocess.run([sys.executable, "-S", "-c", _COPY, str(source), str(target)], check=True)


def digest(file: Path) -> str:
    """Return a digest of a file's bytes."""
    return subprocess.run(
        [sys.executable, "-S", "-c", _DIGEST, str(file)], capture_output=True, text=True, check=True
    ).stdout
