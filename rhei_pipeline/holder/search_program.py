"""Counts how often files hold some bytes, as a separate program of the standard library alone.

A process must not open a database file that its own engine has open; see the program that copies
one. What is searched for comes by standard input, where no list of processes shows it.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PIECE_BYTES = 16 * 2**20


def main() -> None:
    """Read paths and texts as JSON; print of each file that holds one how often it holds each."""
    asked = json.load(sys.stdin)
    texts = [bytes.fromhex(text) for text in asked["texts"]]
    found = {}
    for file in sorted({file for path in asked["paths"] for file in _files(Path(path))}):
        # A file that went meanwhile holds nothing.
        with suppress(FileNotFoundError):
            counts = _counts(file, texts)
            if any(counts):
                found[str(file)] = counts
    json.dump(found, sys.stdout)


def _files(path: Path) -> Iterator[Path]:
    """Yield a file, or all files of a folder; beside a file, those whose names begin with its."""
    if path.is_dir():
        yield from (file for file in path.rglob("*") if file.is_file())
    elif path.parent.is_dir():
        beside = path.parent.iterdir()
        yield from (file for file in beside if file.name.startswith(path.name) and file.is_file())


def _counts(file: Path, texts: list[bytes]) -> list[int]:
    counts = [0] * len(texts)
    longest = max(map(len, texts), default=1)
    with file.open("rb") as opened:
        before = b""
        while piece := opened.read(_PIECE_BYTES):
            whole = before + piece
            before = whole[len(whole) - longest + 1 :] if longest > 1 else b""
            for number, text in enumerate(texts):
                # What stands in the part that is read again whole was counted already.
                seen = before.count(text)
                counts[number] += whole.count(text) - seen
    return counts


if __name__ == "__main__":
    main()
