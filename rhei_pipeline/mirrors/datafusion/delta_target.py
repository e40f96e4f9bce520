"""One Delta table, as its log says that it is, and the commits that change it.

To open a table is to read its log. Who has committed last knows what it left; it looks whether the
log's newest entry is still its own, and reads no more.
"""

import math
import time
from collections.abc import Iterator, Mapping

import pyarrow as pa
from deltalake import DeltaTable, Schema
from deltalake.exceptions import TableNotFoundError
from deltalake.transaction import (
    AddAction,
    CommitProperties,
    RemoveAction,
    create_table_with_add_actions,
)

from rhei_pipeline.mirrors.datafusion.files import Files, Mark

#: The folder of a table's log.
LOG = "_delta_log"
#: Files are looked for that nobody reads any more so often, for each hour that they are kept.
_VACUUM_SECONDS = 900.0


class DeltaTarget:
    """A Delta table as it is, and what it holds.

    Attributes:
        held: The files that its version names, and their bytes.
    """

    def __init__(self, files: Files, folder: str) -> None:
        self.folder = folder
        self._files = files
        self._options = files.storage_options
        self._uri = f"{files.root}/{folder}"
        self._table = self._load()
        self.held = dict(_active(self._table)) if self._table else {}
        self._mark: Mark | None = None
        self._vacuumed_at = -math.inf

    def _load(self) -> DeltaTable | None:
        # Asking first whether there is one would hold all threads up while a store answers.
        try:
            return DeltaTable(self._uri, storage_options=self._options)
        except TableNotFoundError:
            return None

    @property
    def version(self) -> int:
        """The version of the table as it was read or committed last."""
        if self._table is None:
            self._table = DeltaTable(self._uri, storage_options=self._options)
        return int(self._table.version())

    def leave(self) -> None:
        """Note by what the newest entry of the log is known again."""
        self._mark = self._files.mark(self._entry(self.version))

    def is_as_left(self) -> bool:
        """Return whether the log's newest entry is still the one that was left."""
        if self._mark is None or self._files.mark(self._entry(self.version)) != self._mark:
            return False
        return self._files.mark(self._entry(self.version + 1)) is None

    def _entry(self, version: int) -> str:
        return f"{self.folder}/{LOG}/{version:020}.json"

    def held_in(self, schema: Schema) -> Mapping[str, int]:
        """Return the files held, and their bytes; none where the schema is another one."""
        fits = self._table is not None and self._table.schema() == schema
        return self.held if fits else {}

    def shows(self, wanted: set[str], schema: Schema) -> bool:
        """Return whether the table has just these files, and this schema."""
        if self._table is None or self._table.schema() != schema:
            return False
        return self.held.keys() == wanted

    def version_of(self, application: str) -> int | None:
        """Return the version that an application has noted in the table; this reads the log.

        A table that is as it was left needs no question: no later version was noted there.
        """
        if self._table is None or self._mark is not None:
            return None
        return self._table.transaction_version(application)

    def commit(
        self,
        added: list[AddAction],
        wanted: set[str],
        schema: Schema,
        properties: CommitProperties,
        configuration: Mapping[str, str],
    ) -> None:
        """Commit one version of the table that names exactly the wanted files."""
        held = dict(self.held_in(schema))
        if self._table is None or self._table.schema() != schema:
            # Replaces the schema, what readers must be able to do, and all files at once.
            create_table_with_add_actions(
                self._uri,
                schema,
                added,
                mode="overwrite",
                configuration=configuration,
                storage_options=self._options,
                commit_properties=properties,
            )
            self._table = self._load()
        else:
            gone = [
                RemoveAction(name, data_change=True, deletion_timestamp=now(), size=size)
                for name, size in held.items()
                if name not in wanted
            ]
            self._table.create_write_transaction(
                [*added, *gone], "append", schema, commit_properties=properties
            )
            self._table.update_incremental()
        new = {action.path: action.size for action in added}
        self.held = {name: size for name, size in (held | new).items() if name in wanted}

    def vacuum(self, retention_hours: int, *, full: bool) -> None:
        """Delete files that no version younger than these hours names; `full`: unknown ones too.

        To look for them is to read the log: not for every commit.
        """
        waited = time.monotonic() - self._vacuumed_at
        if self._table is not None and (full or waited >= retention_hours * _VACUUM_SECONDS):
            self._table.vacuum(
                retention_hours, dry_run=False, enforce_retention_duration=False, full=full
            )
            self._table.update_incremental()
            self._vacuumed_at = time.monotonic()


def _active(table: DeltaTable) -> Iterator[tuple[str, int]]:
    actions = pa.table(table.get_add_actions(flatten=True))
    yield from zip(actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True)


def now() -> int:
    """Return the present instant as Delta's log has it, in milliseconds."""
    return int(time.time() * 1000)
