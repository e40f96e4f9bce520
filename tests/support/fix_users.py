"""A user whom permissions bind, and a place that every user may enter."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65_534


@pytest.fixture
def shared_place() -> Iterator[Path]:
    """Make a directory that every user may enter; pytest's own is the user's who runs the tests."""
    place = Path(tempfile.mkdtemp(prefix="rhei-ways-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@contextmanager
def ordinary_user(*given: Path) -> Iterator[None]:
    """Be a user whom permissions bind, and who owns what is given."""
    if os.geteuid() != 0:
        yield
        return
    for path in given:
        for each in (path, *path.rglob("*")):
            os.chown(each, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
