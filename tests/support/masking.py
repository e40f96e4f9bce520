"""Masks by another reckoning than the product's, and a search of bytes on disk."""

import hashlib
import hmac
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

#: The key of all tests.
KEY = "a key of the tests, and of nothing else"


def hashed(value: object) -> str | None:
    """Return what `hash` makes of a value."""
    if value is None:
        return None
    return hmac.new(KEY.encode(), str(value).encode(), hashlib.sha256).hexdigest()[:32]


def partial(count: int) -> Callable[[Any], str | None]:
    """Return what `partial:n` does."""

    def ends(value: Any) -> str | None:
        if value is None:
            return None
        return "***" + (value[-count:] if len(value) > count else "")

    return ends


def masked(
    rows: Iterable[Mapping[str, Any]], masks: Mapping[str, Callable[[Any], Any]]
) -> list[tuple[Any, ...]]:
    """Return rows, in order, with some columns masked."""
    made = ({**row, **{name: mask(row[name]) for name, mask in masks.items()}} for row in rows)
    return sorted((tuple(row.values()) for row in made), key=repr)


def holding(directory: Path, wanted: str) -> list[str]:
    """Return the files that hold a text, also in hexadecimal; another process looks at them."""
    forms = [part for form in (wanted, wanted.encode().hex()) for part in ("-e", form)]
    command = ["grep", "-rlaF", "--exclude=app.db*", *forms, "."]
    found = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert found.returncode in {0, 1}, found.stderr
    return sorted(line.removeprefix("./") for line in found.stdout.splitlines())


def shouted(values: pa.Array) -> pa.Array:
    """Mask texts by their lengths alone; declared by its name."""
    return pa.array([f"{len(value)} characters" for value in values.to_pylist()], pa.string())


def quoting(values: pa.Array) -> pa.Array:
    """Fail as a careless function does: with a value in its message."""
    if len(values):
        raise ValueError(f"cannot mask {values[0].as_py()!r}")
    return values


def measured(values: pa.Array) -> pa.Array:
    """Return numbers where there are values, and texts where there are none."""
    return pa.array([len(v) for v in values.to_pylist()]) if len(values) else values
