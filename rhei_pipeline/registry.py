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
        mirror_id: The mirror these schemas are of. Those of another mirror count as unknown.

    Raises:
        SchemaError: The file is no registry.
    """

    def __init__(self, path: Path | None, mirror_id: str) -> None:
        self._path = path
        self._mirror_id = mirror_id
        self._tables: dict[str, Table] = {}
        self._versions: dict[str, int] = {}
        if path is not None and mirror_id_of(path) == mirror_id:
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
            entries = {name: self._entry(name) for name in sorted(self._tables)}
            _write(self._path, {"format": _FORMAT, "mirror": self._mirror_id, "tables": entries})

    def _entry(self, name: str) -> dict[str, Any]:
        table = self._tables[name]
        return {
            "version": self._versions[name],
            "mode": table.mode.value,
            "schema": table.schema.to_json(),
        }


def mirror_id_of(path: Path) -> str | None:
    """Return the mirror that a registry is of; None where there is no registry."""
    return str(_load(path)["mirror"]) if path.exists() else None


def _read(path: Path) -> tuple[dict[str, Table], dict[str, int]]:
    entries = _load(path)["tables"]
    try:
        tables = {
            name: Table(TableSchema.from_json(entry["schema"]), Mode(entry["mode"]))
            for name, entry in entries.items()
        }
        return tables, {name: int(entry["version"]) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, SchemaError) as error:
        raise _unreadable(path) from error


def _load(path: Path) -> dict[str, Any]:
    try:
        form: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if form["format"] == _FORMAT and {"mirror", "tables"} <= set(form):
            return form
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path) from error
    raise _unreadable(path)


def _unreadable(path: Path) -> SchemaError:
    return SchemaError(
        f"registry {str(path)!r} cannot be read",
        hint="restore it, or delete it: schemas are then read from the source again",
    )


def _write(path: Path, form: Mapping[str, Any]) -> None:
    """Write beside the file and rename over it: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
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
