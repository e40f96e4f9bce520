"""The schemas that the mirror was last built with, kept as JSON beside it."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.schema import Mode, Table, TableSchema

_FORMAT = 1


class Registry:
    """Table schemas by name, each with a version that grows by one at every change.

    Args:
        path: The JSON file; None keeps the schemas for the life of the process only.

    Raises:
        SchemaError: The file is no registry.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._tables: dict[str, Table] = {}
        self._versions: dict[str, int] = {}
        if path is not None and path.exists():
            self._tables, self._versions = _read(path)

    def table(self, name: str) -> Table | None:
        """Return the table as it was last saved; None when it never was."""
        return self._tables.get(name)

    def version(self, name: str) -> int:
        """Return how often the table has been saved with a change."""
        return self._versions.get(name, 0)

    def save(self, table: Table) -> None:
        """Keep a table; written to disk, whole and atomically, before this returns."""
        if self.table(table.name) == table:
            return
        self._tables[table.name] = table
        self._versions[table.name] = self.version(table.name) + 1
        if self._path is not None:
            _write(self._path, {name: self._entry(name) for name in sorted(self._tables)})

    def _entry(self, name: str) -> dict[str, Any]:
        table = self._tables[name]
        return {
            "version": self._versions[name],
            "mode": table.mode.value,
            "schema": table.schema.to_json(),
        }


def _read(path: Path) -> tuple[dict[str, Table], dict[str, int]]:
    try:
        form = json.loads(path.read_text("utf-8"))
        if form["format"] != _FORMAT:
            raise SchemaError(f"registry {str(path)!r} has a format this version does not know")
        entries = form["tables"]
        tables = {
            name: Table(TableSchema.from_json(entry["schema"]), Mode(entry["mode"]))
            for name, entry in entries.items()
        }
        return tables, {name: int(entry["version"]) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SchemaError(
            f"registry {str(path)!r} cannot be read",
            hint="restore it, or delete it: schemas are then read from the source again",
        ) from error


def _write(path: Path, entries: Mapping[str, dict[str, Any]]) -> None:
    """Write beside the file and rename over it: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    form = {"format": _FORMAT, "tables": entries}
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(form, file, indent=2, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
