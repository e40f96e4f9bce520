"""The storages of a mirror of files: where its files are, and how rows are written."""

from pathlib import Path
from typing import TYPE_CHECKING

from rhei_pipeline.mirrors.datafusion.files import Files, MemoryFiles
from rhei_pipeline.mirrors.datafusion.formats import Format, Ipc, Parquet
from rhei_pipeline.mirrors.datafusion.local_files import LocalFiles

if TYPE_CHECKING:
    from rhei_pipeline.mirrors.datafusion.object_store import StoreAccess

MEMORY = ":memory:"
#: How the URLs of object stores begin.
URL_SCHEMES = ("s3://", "gs://")
#: How rows are written, by storage.
FORMATS: dict[str, type[Format]] = {
    "memory": Ipc,
    "ipc": Ipc,
    "parquet": Parquet,
    "delta": Parquet,
}


def open_files(
    storage: str,
    path: Path | str,
    access: "StoreAccess | None" = None,
    timeout: float | None = None,
) -> Files:
    """Open a mirror's files: for writing if a lock timeout is given, else for reading."""
    if storage == "memory":
        return MemoryFiles()
    if str(path).startswith(URL_SCHEMES):
        from rhei_pipeline.mirrors.datafusion.object_store import (  # noqa: PLC0415  (its package is optional)
            ObjectFiles,
            StoreAccess,
        )

        return ObjectFiles(str(path), access or StoreAccess())
    writing = timeout is not None
    return LocalFiles(Path(path), writing=writing, lock_timeout_seconds=timeout or 0)
