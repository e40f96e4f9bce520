"""The places that a declaration names: paths of this machine, or of an object store.

A path that is a URL would name a folder of this machine without a word: `s3a:` in the project's.
"""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

#: A path folds the two slashes of a URL into one.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_STORE = re.compile(r"(s3|gs):/+[^/]")
#: What engines do not take for a part of a name: of a path in a store, of a DuckDB file's, of a
#: directory's. They take it for the query of a URL, a pattern of files, or a separator.
IN_STORE = re.compile(r"[?#%\[\]\\\x00-\x1f\x7f]")
IN_DUCKDB = re.compile(r"[?\\]")
#: What file systems take for a file's name; fewer, for what is kept beside it ends otherwise.
_NAME_BYTES = 240
IN_DIRECTORY = re.compile(r"[\x00-\x1f\x7f]")


def _of_this_machine(path: object) -> object:
    """Return a path as it is given.

    Raises:
        ValueError: It is empty, or a URL.
    """
    found = _SCHEME.match(_filled(path))
    if found:
        raise ValueError(
            f"'{found[1]}://' begins a URL, and no path: give the path of a file or directory here"
        )
    return path


def _of_a_mirror(path: object) -> object:
    """Return a path as it is given.

    Raises:
        ValueError: It is empty, or the URL of something else than a store for mirrors.
    """
    found = _SCHEME.match(_filled(path))
    if found and not _STORE.match(str(path)):
        raise ValueError(
            f"no mirror can be at '{found[1]}://': give a path of this machine,"
            " s3://bucket/path or gs://bucket/path"
        )
    return path


def _filled(path: object) -> str:
    """Return a path as text.

    Raises:
        ValueError: It is empty, which would mean the directory that a process happens to be in; or
            no file can have this name.
    """
    if not isinstance(path, str | Path):
        raise ValueError("a path is text: write it in quotes")  # noqa: TRY004  (pydantic's)
    text = str(path)
    if "\0" in text or any(len(os.fsencode(name)) > _NAME_BYTES for name in text.split("/")):
        raise ValueError(
            f"no file can have this name: choose one without a null byte, of {_NAME_BYTES} bytes"
            " at most"
        )
    if not text.strip():
        raise ValueError("the path is empty: write the path of a file or directory")
    return text


LocalPath = Annotated[Path, BeforeValidator(_of_this_machine)]
MirrorPath = Annotated[Path, BeforeValidator(_of_a_mirror)]


def unfit(field: str, path: Path | str, signs: re.Pattern[str]) -> str | None:
    """Return why an engine does not take a path as it is; None if it does."""
    found = signs.search(str(path))
    return found and f"{field}: it cannot have {found[0]!r} in it: choose a path without"
