"""The schemas that the mirror was last built with, and what was registered at run time.

Both are kept as JSON beside the mirror. What was registered is of the pipeline, and so outlives the
mirror; the rest is of one mirror.
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.coverage import Coverage
from rhei_pipeline.model.report import counted
from rhei_pipeline.model.schema import Mode, Table, TableSchema, spelled
from rhei_pipeline.model.schema_log import Followed, SchemaChange
from rhei_pipeline.model.stored_format import too_new

_log = logging.getLogger(__name__)

#: What this version writes where tables were registered at run time.
FORMAT = 2
#: What it writes where none were: versions of before can read that.
WITHOUT_REGISTERED = 1
_NOT_FOLLOWED, _LEFT, _REGISTERED = "not_followed_since", "left_at", "registered"
_CHECKED, _SCHEMA_LOG, _STORAGE = "checked", "schema_log", "storage"
_OWES_COPY, _OWES_SYNC = "owes_copy", "owes_sync"
#: Older schema changes are forgotten.
_MOST_CHANGES = 1_000


_NOTHING: Mapping[str, Mapping[str, Any]] = MappingProxyType({})


class Registrations(Protocol):
    """Where it stands what was registered at run time."""

    @property
    def registered(self) -> Mapping[str, Mapping[str, Any]]:
        """What was said of tables at run time, by name; another object after each change."""


class Registry:
    """Table schemas by name, each with a version that grows by one at every change.

    Args:
        path: The JSON file; None keeps the schemas for the life of the process only.
        mirror_id: The mirror these schemas are of. Those of another mirror count as unknown.
        is_new: Whether the mirror holds nothing yet, and may take the place of one that was; asked
            only where the file is of another mirror.

    Raises:
        SchemaError: The file is no registry, or a newer version of this package wrote it; or the
            mirror is not new, and another one has written it since.
    """

    def __init__(
        self, path: Path | None, mirror_id: str, is_new: Callable[[], bool] = lambda: True
    ) -> None:
        self._path = path
        self._mirror_id = mirror_id
        self._tables: dict[str, Table] = {}
        self._versions: dict[str, int] = {}
        self._not_followed: dict[str, datetime] = {}
        self._left: dict[str, datetime] = {}
        self._coverage: dict[str, Coverage] = {}
        self._owing: set[str] = set()
        self._due: frozenset[str] = frozenset()
        self._schema_log: list[SchemaChange] = []
        self._registered = _NOTHING
        self._is_unwritten = False
        if path is not None and _stands(path):
            form = _load(path)
            self._registered = MappingProxyType(dict(form.get(_REGISTERED, {})))
            if form["mirror"] == mirror_id:
                self._take_over(form, path)
            elif form["tables"] and not is_new():
                raise SchemaError(
                    f"registry {str(path)!r} was written for another mirror since: two declarations"
                    " share it",
                    hint="give each a registry.path of its own; where only this mirror is in use,"
                    " delete the registry, and its tables are copied again; then register again"
                    " what was registered at run time, with its masks; where 'rhei adopt' was cut"
                    " off, run it again",
                )
            elif form["tables"]:
                _log.warning(
                    "registry %r is of another mirror than this one, which holds nothing: where"
                    " that one was deleted or moved, put it back before the next sync, which copies"
                    " every table again, and histories begin with that; where another declaration"
                    " shares the registry, give each a registry.path of its own",
                    str(path),
                )

    def _take_over(self, form: Mapping[str, Any], path: Path) -> None:
        try:
            self._schema_log = [SchemaChange.from_json(each) for each in form.get(_SCHEMA_LOG, ())]
            for name, entry in form["tables"].items():
                schema = TableSchema.from_json(entry["schema"])
                schema = replace(schema, storage=entry.get(_STORAGE, ""))
                self._tables[name] = Table(schema, Mode(entry["mode"]))
                self._versions[name] = int(entry["version"])
                if _CHECKED in entry:
                    self._coverage[name] = Coverage.from_json(entry[_CHECKED])
                self._owing |= {name} if entry.get(_OWES_COPY) else set()
                self._due |= {name} if entry.get(_OWES_SYNC) else set()
                for key, known in ((_NOT_FOLLOWED, self._not_followed), (_LEFT, self._left)):
                    if key in entry:
                        known[name] = datetime.fromisoformat(entry[key])
        except (ValueError, KeyError, TypeError, AttributeError, SchemaError) as error:
            raise _unreadable(path) from error

    def table(self, name: str) -> Table | None:
        """Return the table as it was last saved; None when it never was.

        One whose name had another case then, where its source ignores case, is the same table;
        so is one that is named with its namespace.
        """
        found = self._tables.get(name)
        if found is None:
            found = next((t for t in self._tables.values() if t.schema.full_name == name), None)
        if found is None:
            found = self._tables.get(spelled(name, self._tables))
            found = found if found is not None and found.schema.namespace is None else None
        return found

    def version(self, name: str) -> int:
        """Return how often the table has been saved with a change."""
        return self._versions.get(name, 0)

    @property
    def tables(self) -> Mapping[str, Table]:
        """All tables as they were last saved, by name."""
        return MappingProxyType(self._tables)

    @property
    def not_followed(self) -> Mapping[str, datetime]:
        """The tables that no sync brings up to date any more, and since when."""
        return MappingProxyType(self._not_followed)

    @property
    def left_at(self) -> Mapping[str, datetime]:
        """The tables that are not to be mirrored any more, and when that was first seen."""
        return MappingProxyType(self._left)

    @property
    def registered(self) -> Mapping[str, Mapping[str, Any]]:
        """What was said of tables at run time, by name; another object after each change."""
        return self._registered

    def register(self, name: str, form: Mapping[str, Any] | None) -> None:
        """Keep what was said of a table at run time; None: nothing is."""
        if self._registered.get(name) != form:
            rest = {known: of for known, of in self._registered.items() if known != name}
            self._registered = MappingProxyType(rest if form is None else {**rest, name: form})
            self._save()

    def save(self, *tables: Table, followed: Callable[[str], Followed] | None = None) -> None:
        """Keep tables; written to disk at once, whole and atomically, before this returns.

        Where the file cannot be written, that is logged, and tried again at the next call.
        `followed` says of a table how a change of its schema was followed.
        """
        news = [table for table in tables if self._take_in(table, followed)]
        if news or self._is_unwritten or self._is_deleted():
            self._save()

    def _is_deleted(self) -> bool:
        return self._path is not None and bool(self._tables) and not self._path.exists()

    def _take_in(self, table: Table, followed: Callable[[str], Followed] | None) -> bool:
        """Take a table over; return whether anything about it is new."""
        name = table.name
        if self._tables.get(name) is table and name not in self._not_followed:
            return False
        known = self.table(name)
        if known == table and name not in self._not_followed:
            self._tables[known.name] = table
            return _beside(known.schema) != _beside(table.schema)
        if known != table:
            former = table.name if known is None else known.name
            self._versions[table.name] = self.version(former) + 1
            if known is not None and followed is not None:
                self._note_change(known.schema, table, followed(table.name))
            self._tables.pop(former, None)
        self._tables[table.name] = table
        self._not_followed.pop(table.name, None)
        self._left.pop(table.name, None)
        return True

    def _note_change(self, before: TableSchema, table: Table, followed: Followed) -> None:
        version = self._versions[table.name]
        change = SchemaChange.between(before, table, version, followed)
        if change is not None:
            self._schema_log = [*self._schema_log, change][-_MOST_CHANGES:]

    def note_forgotten(self, table: Table, keys: int, at: datetime) -> None:
        """Record that keys were forgotten, and how many; never which."""
        what = f"forgot {counted(keys, 'key')} with all their past"
        version = self.version(table.name)
        change = SchemaChange(table.name, version, what, (), (), at, None, 0, 0.0)
        self._schema_log = [*self._schema_log, change][-_MOST_CHANGES:]
        self._save()

    @property
    def schema_log(self) -> Sequence[SchemaChange]:
        """The schema changes that were followed, the oldest first."""
        return tuple(self._schema_log)

    def note_not_followed(self, names: Mapping[str, datetime]) -> None:
        """Keep which of the tables are not followed any more."""
        known = {name: since for name, since in names.items() if name in self._tables}
        if known != self._not_followed:
            self._not_followed = known
            self._save()

    def note_left(self, names: Collection[str], now: datetime) -> None:
        """Keep which of the tables are not to be mirrored any more, and since when."""
        known = {name: self._left.get(name, now) for name in names if name in self._tables}
        if known != self._left:
            self._left = known
            self._save()

    @property
    def owing(self) -> Collection[str]:
        """The tables that are to be copied though they are as they were last saved."""
        return frozenset(self._owing)

    def note_owing(self, names: Collection[str], *, owe: bool) -> None:
        """Keep that tables are to be copied whatever they look like then, or are no more."""
        known = self._owing.union(names) if owe else self._owing.difference(names)
        if known != self._owing:
            self._owing = known
            self._save()

    def note_due(self, names: Collection[str]) -> None:
        """Keep that a sync has to see to tables though nothing of them is pending, until it did."""
        self._keep_due(self._due.union(names).intersection(self._tables))

    def note_synced(self) -> None:
        """Keep that a sync has seen to all tables, and named those that it could not follow."""
        self._keep_due(frozenset())

    def _keep_due(self, names: frozenset[str]) -> None:
        if names != self._due:
            self._due = names
            self._save()

    def coverage(self, table: Table) -> Coverage:
        """Return what of a table was compared, by the key that it has now."""
        known, key = self._coverage.get(table.name), table.schema.primary_key
        return known if known is not None and known.key == key else Coverage(key)

    def note_coverage(self, name: str, coverage: Coverage) -> None:
        """Keep what of a table was compared."""
        self._coverage[name] = coverage
        self._save()

    def forget(self, name: str) -> None:
        """Forget a table, as if it had never been saved."""
        if self._tables.pop(name, None) is not None:
            self._not_followed.pop(name, None)
            self._left.pop(name, None)
            self._coverage.pop(name, None)
            self._owing.discard(name)
            self._due -= {name}
            self._save()

    def _save(self) -> None:
        if self._path is None:
            return
        entries = {name: self._entry(name) for name in sorted(self._tables)}
        was_unwritten, self._is_unwritten = self._is_unwritten, True
        try:
            _write(self._path, self._form(entries))
        except OSError as error:
            if not was_unwritten:
                _log.error(
                    "registry %r cannot be written: %s; the rows are in the mirror, and every sync"
                    " tries again: give this user write access there, or correct registry.path",
                    str(self._path),
                    error.strerror or error,
                )
            return
        self._is_unwritten = False

    def _form(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        form = {"format": WITHOUT_REGISTERED, "mirror": self._mirror_id, "tables": entries}
        if self._schema_log:
            form[_SCHEMA_LOG] = [change.to_json() for change in self._schema_log]
        if self._registered:
            said = {name: dict(of) for name, of in self._registered.items()}
            form |= {"format": FORMAT, _REGISTERED: said}
        return form

    def _entry(self, name: str) -> dict[str, Any]:
        table, since = self._tables[name], self._not_followed.get(name)
        entry = {
            "version": self._versions[name],
            "mode": table.mode.value,
            "schema": table.schema.to_json(),
        }
        left, checked = self._left.get(name), self._coverage.get(name)
        entry |= {} if checked is None else {_CHECKED: checked.to_json()}
        entry |= {} if since is None else {_NOT_FOLLOWED: since.isoformat()}
        entry |= {_OWES_COPY: True} if name in self._owing else {}
        entry |= {_OWES_SYNC: True} if name in self._due else {}
        entry |= {_STORAGE: table.schema.storage} if table.schema.storage else {}
        return entry | ({} if left is None else {_LEFT: left.isoformat()})


class StoredRegistrations:
    """What was registered at run time, as the file has it, for whoever does not open the mirror.

    Args:
        path: The registry's file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def registered(self) -> Mapping[str, Mapping[str, Any]]:
        """What was said of tables; nothing where the file is missing or cannot be read."""
        try:
            found = self._path.stat()
            return _registered_in(self._path, found.st_mtime_ns, found.st_ino)
        except (OSError, SchemaError):
            return _NOTHING


@lru_cache(maxsize=8)
def _registered_in(path: Path, _changed_at: int, _file: int) -> Mapping[str, Mapping[str, Any]]:
    return MappingProxyType(dict(_load(path).get(_REGISTERED, {})))


def _beside(schema: TableSchema) -> tuple[Mapping[str, str], str]:
    """Return what is kept of a schema and makes it no other one."""
    return schema.logical, schema.storage


def mirror_id_of(path: Path) -> str | None:
    """Return the mirror that a registry is of; None where there is no registry."""
    return str(_load(path)["mirror"]) if _stands(path) else None


def give_to(path: Path, mirror_id: str, former: Collection[str]) -> None:
    """Record a mirror's new id in its registry; one of another mirror is left as it is.

    Args:
        path: The registry's file; it may be missing.
        mirror_id: The mirror's id now.
        former: The ids that it had.
    """
    if _stands(path):
        form = _load(path)
        if form["mirror"] in former:
            _write(path, form | {"mirror": mirror_id})


def due_tables(path: Path) -> int:
    """Return how many tables a sync has to see to though nothing of them is pending."""
    tables = _load(path)["tables"] if _stands(path) else {}
    return sum(bool(entry.get(_OWES_SYNC)) for entry in tables.values())


def not_followed_at_rest(path: Path, mirror_id: str) -> Mapping[str, datetime]:
    """Return which tables the last sync did not bring up to date any more, and since when.

    Empty where the registry is missing, cannot be read, or is another mirror's: rows are read
    without it, also on machines where it never was.
    """
    try:
        form = _load(path) if path.exists() else dict[str, Any](mirror="", tables={})
        tables = form["tables"] if form["mirror"] == mirror_id else {}
        since = {name: of.get(_NOT_FOLLOWED) for name, of in tables.items()}
        return {name: datetime.fromisoformat(at) for name, at in since.items() if at}
    except (OSError, ValueError, TypeError, AttributeError, SchemaError) as error:
        _log.warning("which tables are not followed any more is not known: %s", error)
        return {}


def _stands(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise _shut(path, error) from error


def _load(path: Path) -> dict[str, Any]:
    try:
        form: dict[str, Any] = json.loads(path.read_text("utf-8"))
        written = int(form["format"])
        if WITHOUT_REGISTERED <= written <= FORMAT and {"mirror", "tables"} <= set(form):
            return form
    except OSError as error:
        raise _shut(path, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(path) from error
    if written <= FORMAT:
        raise _unreadable(path)
    raise SchemaError(
        too_new(f"registry {str(path)!r}", written, FORMAT),
        hint="use the newer version of rhei-pipeline that wrote it, or delete it: schemas are then"
        " read from the source again",
    )


def _shut(path: Path, error: OSError) -> SchemaError:
    return SchemaError(
        f"registry {str(path)!r} cannot be read: {error.strerror}",
        hint="give this user read access to it and to its folder, or correct registry.path",
    )


def _unreadable(path: Path) -> SchemaError:
    return SchemaError(
        f"registry {str(path)!r} cannot be read",
        hint="correct registry.path if this is another file; else restore it, or delete it: schemas"
        " are then read from the source again",
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
