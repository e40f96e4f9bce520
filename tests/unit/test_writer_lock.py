"""The lock that makes one process, and one object in it, the only writer of a mirror."""

from pathlib import Path

import pytest

from rhei_pipeline.errors import MirrorBusyError, MirrorError
from rhei_pipeline.mirrors.locking import WriterLock, is_locked


def test_a_lock_is_held_by_one_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "mirror.lock"
    first = WriterLock(path, "mirror", 0)
    assert is_locked(path)
    with pytest.raises(MirrorBusyError, match="already open in this process"):
        WriterLock(path, "mirror", 0)
    first.release()
    first.release()
    assert not is_locked(path)
    WriterLock(path, "mirror", 0).release()


def test_a_file_of_somebody_else_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "mirror.lock"
    path.write_text("a letter to Grandmother")
    with pytest.raises(MirrorError, match="somebody else's file"):
        WriterLock(path, "mirror", 0)
    assert path.read_text() == "a letter to Grandmother"
    assert not is_locked(path)
