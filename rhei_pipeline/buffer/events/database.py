"""A log in the place of a source's database: it has tables and an identity, and answers nothing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from rhei_pipeline.buffer.events.declared import declared_schema
from rhei_pipeline.buffer.log import ChangeLog, refuse_buffer
from rhei_pipeline.model.ownership import SourceIdentity
from rhei_pipeline.model.schema import Column, Table, TableOptions, TableSchema
from rhei_pipeline.model.semantics import MirroredTable
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.sql.read_only import of_log


class EventLogDatabase:
    """What a pipeline asks its source's database, answered for a log.

    Args:
        path: The log's directory; it is opened when it is first needed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def log(self) -> ChangeLog:
        """The log, held by this process alone.

        Raises:
            CaptureError: It is the buffer of a pipeline.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opened:
            log = opened.enter_context(ChangeLog(self.path))
            refuse_buffer(log)
            opened.pop_all()
        return log

    def identity(self) -> SourceIdentity:
        """Return the identity of this log, which distinguishes it from all others."""
        name = self.log.log_id
        return SourceIdentity("log", f"{self.path.resolve()} ({name[:8]})", name)

    def marked_identity(self) -> SourceIdentity:
        """Return the same: a log has its name from the beginning."""
        return self.identity()

    def table_names(self) -> list[str]:
        """Return nothing: only declared tables have events."""
        return []

    def other_names(self) -> Mapping[str, str]:
        """Return nothing."""
        return {}

    def read_schema(
        self, name: str, options: TableOptions, _known: TableSchema | None
    ) -> TableSchema:
        """Return a table's schema as declared."""
        return declared_schema(name, {name: options})

    def meanings(
        self, _tables: Iterable[Table], _options: Callable[[str], TableOptions]
    ) -> list[MirroredTable]:
        """Return nothing: queries are written for the mirror."""
        return []

    def finds_public(self) -> bool:
        """Return True: names have no schema here."""
        return True

    def execute(self, _sql: str, _params: Sequence[Any] = ()) -> int:
        """Refuse a statement."""
        raise of_log()

    def execute_returning(self, _sql: str, _params: Sequence[Any] = ()) -> pa.Table:
        """Refuse a statement."""
        raise of_log()

    def execute_batch(self, _statements: Sequence[tuple[str, Sequence[Any]]]) -> int:
        """Refuse statements."""
        raise of_log()

    def query(
        self,
        _sql: str,
        _params: Sequence[Any] = (),
        _columns: Sequence[Column | None] | None = None,
        _begun: Begun | None = None,
    ) -> pa.Table:
        """Refuse a query."""
        raise of_log()

    def stream(
        self,
        _sql: str,
        _params: Sequence[Any],
        _columns: Sequence[Column | None] | None,
        _rows: int,
        _begun: Begun | None = None,
    ) -> Streamed | None:
        """Refuse a query."""
        raise of_log()

    def add_column(self, _table: TableSchema, _column: str, _arrow_type: pa.DataType) -> None:
        """Refuse: columns are declared."""
        raise of_log()

    def drop_column(self, _table: TableSchema, _column: str) -> None:
        """Refuse: columns are declared."""
        raise of_log()

    def close(self) -> None:
        """Close the log; safe to repeat."""
        if "log" in self.__dict__:
            self.log.close()
