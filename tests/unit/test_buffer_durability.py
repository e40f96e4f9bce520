"""What is promised of a buffer is on the disk, also after a power cut."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rhei_pipeline.buffer.confirmation import Confirmation, file_of
from rhei_pipeline.buffer.log import ChangeLog


def test_how_much_waits_is_synced_with_the_name_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source may delete what was buffered as soon as this returns."""
    synced: list[int] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    buffer = tmp_path / "buffer"
    Confirmation(buffer, "log").record(3)
    assert synced == [file_of(buffer).stat().st_ino, tmp_path.stat().st_ino]


class NotingWrites:
    """A RocksDB database, of which is noted whether each write waits for the disk."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self.synced: list[bool] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def write(self, batch: Any, options: Any) -> None:
        self.synced.append(options.sync)
        self._database.write(batch, options)


@pytest.mark.parametrize("durably", [True, False])
def test_a_write_waits_for_the_disk_where_it_is_promised(tmp_path: Path, *, durably: bool) -> None:
    with ChangeLog(tmp_path / "log") as log:
        database = log._rocks._database = NotingWrites(log._rocks._database)
        with log.writing(durably=durably) as writer:
            writer.put("t", pa.table({"v": [1]}), 1)
        assert database.synced == [durably]


def test_the_last_of_several_parts_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That makes those durable that were written before it."""
    monkeypatch.setattr("rhei_pipeline.buffer.writer.PART_BYTES", 1)
    with ChangeLog(tmp_path / "log") as log:
        database = log._rocks._database = NotingWrites(log._rocks._database)
        log.append(pa.table({"v": [1]}))
        assert database.synced == [False, True]
