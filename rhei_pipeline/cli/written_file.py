"""A file that a command writes: whole or not at all, and never one that the pipeline keeps."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import typer

from rhei_pipeline.errors import QueryError

if TYPE_CHECKING:
    from rhei_pipeline.settings.model import Settings

#: How the files end in which a reader notes its progress.
_NOTES = (".polled.json", ".slot.json", ".read.json")
#: What SQLite, DuckDB and this package keep beside a file, by the end of its name.
_BESIDE = (
    *("", "-wal", "-shm", "-journal", ".wal", ".last", ".lock", ".lock.turn"),
    ".confirmed.json",
)
#: Where Linux has the files that a process has open, by which one without a name gets one.
_OPEN_FILES = Path("/proc/self/fd")


@contextmanager
def usable(place: Path) -> Iterator[None]:
    """Refuse a place that the system does not let the block look at, or write.

    Raises:
        BadParameter: Says why.
    """
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise typer.BadParameter(
            f"{str(place)!r} cannot be used, {reason}: give a place that you may write into"
        ) from error


def refuse_own(file: Path, settings: "Settings") -> None:
    """Refuse to overwrite a file that the declaration names, or one that is kept beside it.

    Of a declaration with shards, those of all shards.

    Raises:
        QueryError: It is one; names what it is.
    """
    for what, place in (kept for each in _together(settings) for kept in own_places(each)):
        with usable(file):
            is_own = _is_of(file.resolve(), place.resolve())
        if is_own:
            raise QueryError(
                f"file {str(file)!r} belongs to the {what} of this pipeline, and is"
                " not overwritten",
                hint="give a file of another name, outside its folders",
            )


def _together(settings: "Settings") -> "list[Settings]":
    """Return the pipelines of one declaration."""
    if settings.shard is None or settings.file is None:
        return [settings]
    from rhei_pipeline.settings.model import Settings

    return Settings.load(settings.file).pipelines()


def own_places(settings: "Settings") -> Iterator[tuple[str, Path]]:
    """Yield what a declaration names on this machine, each with what it is."""
    source, mirror = settings.source, settings.mirror
    if source.kind != "postgres":
        yield "source", source.path
    if settings.local is not None:
        yield "local database", settings.local.path
    if not (mirror.in_memory or mirror.url):
        yield "mirror", mirror.path
    if mirror.published is not None:
        yield "published copy", mirror.published.path
    yield "registry", settings.registry.path
    notes = settings.registry.path.parent.glob("*.json")
    yield from (("progress", file) for file in sorted(notes) if file.name.endswith(_NOTES))
    if settings.capture.buffer is not None:
        yield "buffer", settings.capture.buffer.path
    if settings.file is not None:
        yield "declaration", settings.file


def beside(place: Path) -> list[Path]:
    """Return a place itself, and the files that may be kept beside it."""
    return [place.with_name(place.name + end) for end in _BESIDE]


def _is_of(file: Path, place: Path) -> bool:
    """Return whether a file is a place's, lies in it, or is kept beside it."""
    if place.is_dir() and place in file.parents:
        return True
    # A file system may know one file by several names, such as in another case.
    there = [kept for kept in beside(place) if file.exists() and kept.exists()]
    return file in beside(place) or any(kept.samefile(file) for kept in there)


@contextmanager
def whole_file(file: Path) -> Iterator[IO[bytes]]:
    """Open a file to write; it takes its name once the block is done, and is gone if it fails.

    Raises:
        QueryError: It cannot be written.
    """
    try:
        # What is no file, such as a pipe, cannot be replaced by one.
        is_plain = file.is_file() or not file.exists()
        with _replacing(file.resolve()) if is_plain else file.open("wb") as opened:
            yield opened
    except OSError as error:
        raise QueryError(
            f"file {str(file)!r} cannot be written: {error.strerror or error}",
            hint="give a file in a folder that exists, that you may write into, and that has room",
        ) from error


@contextmanager
def _replacing(file: Path) -> Iterator[IO[bytes]]:
    partial = file.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        unnamed = _unnamed(file.parent)
        with unnamed or partial.open("xb") as opened:
            yield opened
            opened.flush()
            if unnamed is not None:
                _name(unnamed, partial)
        if file.exists():
            partial.chmod(file.stat().st_mode & 0o7777)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _unnamed(folder: Path) -> IO[bytes] | None:
    """Open a file that has no name yet, so that a killed process leaves none; None without such."""
    if not _OPEN_FILES.exists():
        return None
    try:
        return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666), "wb")
    except (AttributeError, OSError):  # another system, or a file system without such files
        return None


def _name(opened: IO[bytes], file: Path) -> None:
    there = _OPEN_FILES / str(opened.fileno())
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        # With a folder the link is followed to the file itself; what is given is absolute.
        os.link(there, file, src_dir_fd=folder)
    finally:
        os.close(folder)
