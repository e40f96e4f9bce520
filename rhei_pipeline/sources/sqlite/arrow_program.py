"""Reads rows of a SQLite database as Arrow, as a separate program: `arrow_rows` starts it.

The driver brings a SQLite library of its own, and two of them in one process break each other's
locks (sqlite.org/howtocorrupt.html, section 2.2.1).
"""

import gc
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# Arrow does without, and the program starts in two thirds of the time.
sys.modules["numpy"] = None  # type: ignore[assignment]

import adbc_driver_manager as adbc  # noqa: E402
import adbc_driver_sqlite  # noqa: E402
import pyarrow as pa  # noqa: E402


def main() -> None:
    """Read a request from standard input, and write the rows to standard output.

    The request's metadata says what to read; its one row holds the values that the statement
    binds. Ends with a line on standard error, and no success, where the rows are not to be had.
    """
    gc.disable()  # nothing here refers to itself, and there is an object for each thousand rows
    with pa.ipc.open_stream(sys.stdin.buffer) as request:
        asked = {name.decode(): value.decode() for name, value in request.schema.metadata.items()}
        bound = request.read_next_batch()
    with (
        adbc_driver_sqlite.connect(asked["uri"]) as database,
        adbc.AdbcConnection(database) as connection,
    ):
        with _run(connection, "begin"):
            pass
        with _run(connection, "pragma schema_version") as version:
            _refuse_another(asked, str(version.read_all().column(0)[0]))
        with _run(connection, asked["proof_sql"]) as proof:
            if proof.read_all().column(0).to_pylist() != [asked["proof"]]:
                sys.exit("the rows are of a later state by now")
        with _run(connection, asked["sql"], asked["batch_rows"], bound) as rows:
            _write(rows, int(asked["portion_rows"]), int(asked["portion_bytes"]))


def _refuse_another(asked: Mapping[str, str], version: str) -> None:
    """End unless this is the file, with the schema, that the rows were asked of."""
    found = Path(asked["path"]).stat()
    if asked["file"] != f"{found.st_dev}:{found.st_ino}":
        sys.exit("another file is there by now")
    if asked["schema_version"] != version:
        sys.exit("the schema is another by now")


@contextmanager
def _run(
    connection: adbc.AdbcConnection, sql: str, batch_rows: str = "1", bound: pa.RecordBatch = None
) -> Iterator[pa.RecordBatchReader]:
    """Run a statement; yield its rows."""
    with adbc.AdbcStatement(connection) as statement:
        statement.set_options(**{"adbc.sqlite.query.batch_rows": batch_rows})
        statement.set_sql_query(sql)
        if bound is not None and bound.num_columns:
            statement.bind(bound)
        with pa.RecordBatchReader.from_stream(statement.execute_query()[0]) as rows:
            yield rows


def _write(rows: pa.RecordBatchReader, most_rows: int, most_bytes: int) -> None:
    with pa.ipc.new_stream(sys.stdout.buffer, rows.schema) as stream:
        for portion in _portions(_without_first_row(rows), most_rows, most_bytes):
            stream.write_batch(portion)


def _without_first_row(rows: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """Leave out the row from which the driver takes the columns' types."""
    yield rows.read_next_batch().slice(1)
    yield from rows


def _portions(
    batches: Iterable[pa.RecordBatch], most_rows: int, most_bytes: int
) -> Iterator[pa.RecordBatch]:
    """Join batches, none larger than a portion, into portions of bounded size."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        now = batch.slice(0, most_rows - rows)
        held.append(now)
        rows, size = rows + now.num_rows, size + now.nbytes
        if rows == most_rows or size >= most_bytes:
            yield pa.concat_batches(held)
            held = [batch.slice(now.num_rows)]
            rows, size = held[0].num_rows, held[0].nbytes
    if rows:
        yield pa.concat_batches(held)


if __name__ == "__main__":
    main()
