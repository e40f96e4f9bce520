"""Reads the rows of large tables as Arrow, in a process of its own beside this one.

The values never become Python's, which is most of what a copy costs. The process begins a read
transaction of its own, so its rows are of the state that this process reads, or of a later one:
enough for a copy, which catches up from its position in the log. A comparison has it read that very
state, or not at all.
"""

import importlib.util
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.model.changes import RowBatch
from rhei_pipeline.model.portions import PORTION_BYTES
from rhei_pipeline.model.schema import Column
from rhei_pipeline.sources.sqlite.admission import key_first
from rhei_pipeline.sources.sqlite.database import FileId
from rhei_pipeline.sources.sqlite.prefetched import PrefetchedStream
from rhei_pipeline.sources.sqlite.rows import SqliteRowReader
from rhei_pipeline.sources.sqlite.types import encode_key, from_raw, raw_type
from rhei_pipeline.sql.text import conjunction, quote

_log = logging.getLogger(__name__)

#: Never imported: its driver brings a second SQLite library, and is not installed everywhere.
_PROGRAM = Path(__file__).with_name("arrow_program.py")
#: Fewer are read sooner than a process starts, which takes as long as reading some ten thousand.
LEAST_ROWS = 100_000
#: Of a batch of the driver's, about: it counts rows alone.
_BATCH_BYTES, _BATCH_ROWS = 4 * 2**20, 1024
#: What the pipe holds, so that the process need not wait for each few rows to be taken.
_PIPE_BYTES = 2**20

#: A library that the program does not need starts a thread for each processor otherwise.
_SINGLE_THREADED = {"OPENBLAS_NUM_THREADS": "1"}

#: The driver takes a column's type from the first values it meets. These come first.
_FIRST_VALUES = {pa.int64(): "1", pa.float64(): "0.5", pa.string(): "'a'", pa.binary(): "x'00'"}
#: Values of other classes that the driver would convert without a word.
_CLASSES = {pa.string(): "text", pa.binary(): "blob"}
#: Integers from here on may have lost digits as a double, up to the largest that there is.
_DOUBTFUL_FROM, _DOUBTFUL_UNTIL = 2.0**53, 2.0**63


class _NotReadableError(Exception):
    """The rows are to be read in this process; says why, without a value."""


@dataclass(frozen=True, slots=True)
class StateProof:
    """What tells the state of a table's rows from later ones.

    Attributes:
        sql: Returns one value.
        text: That value in the state that this process reads.
    """

    sql: str
    text: str


class ArrowRows:
    """Reads rows in a process beside this one, where that is quicker and gives the same.

    Args:
        path: The database file.

    It reads one table at a time, from where the reader's last batch ended. Not for several threads
    at once. Whatever keeps the process from reading a table has it read in this process instead:
    values of several classes in one column, of which some may not fit, above all.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_installed = importlib.util.find_spec("adbc_driver_sqlite") is not None
        self._state: tuple[FileId, int] = (None, 0)
        self._process: _Process | None = None
        self._unreadable: set[str] = set()
        self._read_here: set[str] = set()
        self._rows_read: Counter[str] = Counter()
        self._bytes_read: Counter[str] = Counter()

    @contextmanager
    def of(self, file: FileId, schema_version: int) -> Iterator[None]:
        """Within the block, read rows of this file, as long as it has this schema."""
        self._state = file, schema_version
        for of_tables in (self._read_here, self._rows_read, self._bytes_read):
            of_tables.clear()
        try:
            yield
        finally:
            self._end()

    def rows(
        self,
        reader: SqliteRowReader,
        resume: str | None,
        limit: int,
        proof: StateProof | None = None,
    ) -> RowBatch | None:
        """Read the next rows in key order; None when there are no more.

        With a proof they are of the state that this process reads. How many are wanted is not known
        then: only after many were read does a process begin.
        """
        name = reader.source.schema.name
        if resume is None:
            self._unreadable.discard(name)
        try:
            if self._process is None or not self._process.is_at(name, resume, limit):
                self._end()
                self._process = self._begun(reader, resume, limit, proof)
            if self._process is not None:
                return self._process.next()
        except (_NotReadableError, pa.ArrowException, OSError) as error:
            self._end()
            self._unreadable.add(name)
            _log.info("table %r: its rows are read without a process beside: %s", name, error)
        batch = reader.rows(resume, limit)
        if batch is not None:
            self._rows_read[name] += batch.rows.num_rows
            self._bytes_read[name] += batch.rows.nbytes
        return batch

    def _end(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def _begun(
        self,
        reader: SqliteRowReader,
        resume: str | None,
        limit: int,
        proof: StateProof | None,
    ) -> "_Process | None":
        file, schema_version = self._state
        table = reader.source.schema
        unfit = self._unreadable | self._read_here
        if not self._is_installed or file is None or table.name in unfit:
            return None
        at_once = self._rows_at_once(reader, resume, is_copy=proof is None)
        if not at_once:
            return None
        sql, values = _statement(reader, resume)
        request = {
            "path": str(self._path),
            "uri": f"{self._path.resolve().as_uri()}?mode=ro",
            "file": f"{file[0]}:{file[1]}",
            "schema_version": str(schema_version),
            "proof_sql": proof.sql if proof else "select ''",
            "proof": proof.text if proof else "",
            "sql": sql,
            "batch_rows": str(min(at_once, limit)),
            "portion_rows": str(limit),
            "portion_bytes": str(PORTION_BYTES),
        }
        return _Process(reader, resume, limit, _bound(values).replace_schema_metadata(request))

    def _rows_at_once(self, reader: SqliteRowReader, resume: str | None, *, is_copy: bool) -> int:
        """Return how many rows to take at once; 0 where a process would not be worth its while."""
        name = reader.source.schema.name
        if is_copy:
            # As if the whole file were of this table's rows.
            count, size = reader.count(), _file_bytes(reader)
            is_large = count >= LEAST_ROWS
        else:
            count, size = self._rows_read[name], self._bytes_read[name]
            if count < LEAST_ROWS:
                return 0
            is_large = reader.has_behind(resume, LEAST_ROWS)
        if not is_large or _computes(reader):
            self._read_here.add(name)
            return 0
        return max(1, min(_BATCH_ROWS, _BATCH_BYTES * count // max(1, size)))


class _Process:
    """A process that reads the rows of one table, from one place on to their end."""

    def __init__(
        self, reader: SqliteRowReader, resume: str | None, limit: int, request: pa.RecordBatch
    ) -> None:
        self._schema = reader.source.schema
        self._columns = key_first(self._schema)
        self._resume, self._limit = resume, limit
        self._is_by_rowid = reader.source.rowid_key
        # Files, since a pipe that nobody reads or writes in time can block either process.
        self._said = TemporaryFile()  # noqa: SIM115  (closed with the process)
        with TemporaryFile() as asked:
            with pa.ipc.new_stream(asked, request.schema) as stream:
                stream.write_batch(request)
            asked.seek(0)
            self._running = subprocess.Popen(  # noqa: S603  (a program of ours)
                [sys.executable, "-P", str(_PROGRAM)],
                stdin=asked,
                stdout=subprocess.PIPE,
                stderr=self._said,
                pipesize=_PIPE_BYTES,
                # A Ctrl-C reaches this process alone, which then ends it.
                start_new_session=True,
                env=os.environ | _SINGLE_THREADED,
            )
        self._found = PrefetchedStream(lambda: pa.ipc.open_stream(self._running.stdout))

    def is_at(self, name: str, resume: str | None, limit: int) -> bool:
        """Return whether what it reads next are these rows."""
        return (name, resume, limit) == (self._schema.name, self._resume, self._limit)

    def next(self) -> RowBatch | None:
        """Return the next rows; None at their end."""
        try:
            raw = self._found.next()
        except pa.ArrowException:
            self._refuse_failure()
            raise
        if raw is None:
            # A stream that was cut off between two batches looks as if it had ended.
            self._refuse_failure()
            return None
        batch = self._admitted(raw)
        self._resume = batch.resume
        return batch

    def close(self) -> None:
        """End the process, and wait until it has ended; safe to repeat."""
        with self._said, self._running:
            self._running.kill()
            self._found.close()

    def _refuse_failure(self) -> None:
        status = self._running.wait()
        if status != 0:
            self._said.seek(0)
            said = self._said.read().decode(errors="replace").strip()
            raise _NotReadableError(said.rpartition("\n")[2] or f"it ended with status {status}")

    def _admitted(self, raw: pa.RecordBatch) -> RowBatch:
        first, expected = raw.column(0), [raw_type(column) for column in self._columns]
        if raw.schema.types != expected or first.null_count:
            raise _NotReadableError("a column holds values of several classes")
        # A scan goes by the rowid. If it ever went by anything else, its first rows would show it.
        if self._is_by_rowid and pc.any(pc.greater_equal(first[:-1], first[1:])).as_py():
            raise _NotReadableError("rows are not stored in the order of their keys")
        try:
            arrays = [_admitted(*each) for each in zip(raw.columns, self._columns, strict=True)]
        except pa.ArrowInvalid:  # its text has the value
            raise _NotReadableError("a value does not fit its column") from None
        found = pa.table(arrays, [column.name for column in self._columns])
        key = [part[-1].as_py() for part in raw.columns[: len(self._schema.primary_key)]]
        return RowBatch(found.select(list(self._schema.names)), encode_key(key))


def _admitted(raw: pa.Array, column: Column) -> pa.Array:
    if pa.types.is_float64(raw.type):
        size = pc.abs(raw)
        doubtful = pc.and_(
            pc.greater_equal(size, _DOUBTFUL_FROM), pc.less_equal(size, _DOUBTFUL_UNTIL)
        )
        if pc.any(doubtful).as_py():
            raise _NotReadableError("a real may be an integer that lost digits")
    raw.validate(full=True)  # the driver takes text as it is, UTF-8 or not
    return from_raw(raw, column)


def _statement(reader: SqliteRowReader, resume: str | None) -> tuple[str, list[Any]]:
    """Write the statement: a row that types the columns, then the rows.

    The first column of the key is null in rows that have a value of another class.
    """
    columns = key_first(reader.source.schema)
    names, kinds = [quote(c.name) for c in columns], [raw_type(c) for c in columns]
    first = ", ".join(_FIRST_VALUES[kind] for kind in kinds)
    of_one_class = conjunction(
        f"(typeof({name}) = '{_CLASSES[kind]}' or {name} is null)"
        for name, kind in zip(names, kinds, strict=True)
        if kind in _CLASSES
    )
    if of_one_class:
        names[0] = f"iif({of_one_class}, {names[0]}, null)"
    chosen = f"select {', '.join(names)}"
    if reader.source.rowid_key:
        rows, values = reader.stored(resume)
        return f"select {first} union all {chosen}{rows}", values
    # The limit, which is none, keeps SQLite from dropping the order.
    rows, values = reader.ordered(resume)
    return f"select {first} union all select * from ({chosen}{rows} limit -1)", values


def _bound(values: Sequence[Any]) -> pa.RecordBatch:
    """Return values to bind as one row."""
    return pa.record_batch([pa.array([value]) for value in values], [*map(str, range(len(values)))])


def _computes(reader: SqliteRowReader) -> bool:
    """Return whether a column is computed as it is read: another SQLite may compute otherwise."""
    found = reader.connection.execute(
        "select 1 from temp.pragma_table_xinfo(?) where hidden = 2", (reader.source.schema.name,)
    )
    return found.fetchone() is not None


def _file_bytes(reader: SqliteRowReader) -> int:
    (size,) = reader.connection.execute(
        "select page_count * page_size from temp.pragma_page_count, temp.pragma_page_size"
    ).fetchone()
    return int(size)
