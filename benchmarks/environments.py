"""Environments of their own for programs that are compared with this one: made once, then kept."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path("build/bench/environments")


class UnavailableError(Exception):
    """A program cannot be compared here; the text says why."""


def python_with(name: str, packages: Sequence[str], version: str = "") -> Path:
    """Return a Python that has these packages; without any, our own.

    Raises:
        UnavailableError: if there is no Python of that version, or a package cannot be installed.
    """
    if not packages:
        return Path(sys.executable)
    python = (ROOT / name / "bin" / "python").absolute()
    if not python.exists():
        try:
            _make(ROOT / name, packages, f"python{version}" if version else sys.executable)
        except (OSError, subprocess.CalledProcessError) as error:
            shutil.rmtree(ROOT / name, ignore_errors=True)
            wanted = f"Python {version}, {', '.join(packages)}" if version else ", ".join(packages)
            raise UnavailableError(f"cannot be installed here: {wanted}") from error
    return python


def _make(place: Path, packages: Sequence[str], python: str) -> None:
    pip = (str(place / "bin" / "python"), "-m", "pip", "install", "--quiet")
    for command in ((python, "-m", "venv", str(place)), (*pip, *packages)):
        subprocess.run(command, check=True, capture_output=True)
