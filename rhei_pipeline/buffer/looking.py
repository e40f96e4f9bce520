"""Looks whether a buffer can be opened; nothing is changed there, and nobody kept from it."""

import time
from contextlib import closing
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

from rhei_pipeline.buffer.confirmation import refuse_directory
from rhei_pipeline.buffer.log import refuse_newer
from rhei_pipeline.buffer.rocksdb import FIRST, RocksDirectory
from rhei_pipeline.buffer.writer import refuse_full_disk
from rhei_pipeline.errors import BufferDamagedError, RheiError
from rhei_pipeline.model.held_place import HeldPlace

#: A process that has the buffer open may delete a file while it is looked at: damage stays.
_LOOKS, _PAUSE_SECONDS = 3, 0.1
#: Files that a sync opens, and RocksDB does not where it only reads.
_OPENED = ("LOCK", FIRST)


def refuse_unreadable(buffer: Path) -> None:
    """Refuse a buffer that the next sync could not open; one that is not there yet can be.

    Raises:
        BufferDamagedError: Its files are damaged, or are not a buffer's.
        BufferFullError: Its disk has no room for it to work.
        CaptureError: This user may not read it, or a newer version of this package wrote it.
    """
    refuse_directory(buffer)
    if buffer.is_dir():
        refuse_full_disk(buffer)
    for look in range(_LOOKS if buffer.exists() else 0):
        try:
            return _look_at(buffer)
        except BufferDamagedError:
            if look == _LOOKS - 1:
                raise
        time.sleep(_PAUSE_SECONDS)
    return None


def _look_at(buffer: Path) -> None:
    with TemporaryDirectory() as links, closing(_Linked(buffer, Path(links))) as linked:
        refuse_newer(linked)


class _Linked(RocksDirectory):
    """A buffer that is read by links to its files: RocksDB's package writes where it only reads.

    Args:
        path: The buffer.
        links: An empty directory.
    """

    def __init__(self, path: Path, links: Path) -> None:
        self._links = links
        super().__init__(path)

    def _open(self) -> Any:  # noqa: ANN401
        self._refuse_unusable()
        for name in _OPENED:
            if (self.path / name).is_dir():
                raise self.damaged(f"its file {name} is a directory")
        for file in self.path.iterdir():
            if file.name == FIRST:
                copyfile(file, self._links / FIRST)
            else:
                (self._links / file.name).symlink_to(file.absolute())
        self._place, rocks = HeldPlace(self._links), self._rocks
        reading = rocks.AccessType.read_only()
        return rocks.Rdict(str(self._links), rocks.Options(raw_mode=True), access_type=reading)

    def _translate(self, text: str) -> RheiError:
        return super()._translate(text.replace(str(self._links), str(self.path)))
