"""The recorded progress of a DuckDB mirror: watermarks and copies under way.

A transaction reads it at its start and writes it at its end: however many tables make progress,
the ledger is read once and written by one statement.
"""

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

import duckdb

from rhei_pipeline.mirrors.duckdb.statements import Statements
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.instants import instant
from rhei_pipeline.model.progress import CopyProgress, Ledger, Watermark, refuse_lower

#: The given watermarks as rows.
_GIVEN = (
    "(select unnest($1::varchar[]) as table_name, unnest($2::bigint[]) as position,"
    " unnest($3::varchar[]) as proof, unnest($4::timestamptz[]) as recorded_at)"
)
#: Watermarks that are written one by one.
_FEW = 2


class ProgressRecords:
    """The recorded progress, as one transaction sees it.

    Args:
        statements: In that transaction.
        begun_with: What was recorded when it began; None if it must be read.
    """

    def __init__(self, statements: Statements, begun_with: Ledger | None = None) -> None:
        self._statements = statements
        self._connection = statements.connection
        self._ledger: Ledger | None = None
        self._marks: dict[str, Watermark] = {}
        self._copies: dict[str, CopyProgress] = {}
        self._written: dict[str, Watermark] = {}
        self._unwritten: dict[str, Watermark] = {}
        self._unwritten_copies: dict[str, CopyProgress] = {}
        self._recorded: set[str] = set()
        self._ended: set[str] = set()
        self._is_known = False
        if begun_with is not None:
            self._take(begun_with)

    def ledger(self) -> Ledger:
        """Return all of it, as one state."""
        self._read()
        if self._ledger is None:
            self._ledger = Ledger(
                MappingProxyType(dict(self._marks)), MappingProxyType(dict(self._copies))
            )
        return self._ledger

    def move(self, mark: Watermark) -> None:
        """Replace the table's watermark; a lower one is refused."""
        self._read()
        refuse_lower(mark, self._marks.get(mark.table))
        self._marks[mark.table] = self._unwritten[mark.table] = mark
        self._ledger = None

    def note_copy(self, progress: CopyProgress) -> None:
        """Replace the progress of the table's copy."""
        self._read()
        self._copies[progress.table] = self._unwritten_copies[progress.table] = progress
        self._ledger = None

    def forget_copy(self, table: str) -> None:
        """Delete the record of a running copy, with the others before the commit."""
        self._read()
        self._copies.pop(table, None)
        self._unwritten_copies.pop(table, None)
        if table in self._recorded:
            self._ended.add(table)
        self._ledger = None

    def _read(self) -> None:
        if not self._is_known:
            self._take(read_ledger(self._connection))

    def _take(self, ledger: Ledger) -> None:
        self._ledger, self._is_known = ledger, True
        self._marks, self._copies = dict(ledger.watermarks), dict(ledger.copies)
        self._written = dict(ledger.watermarks)
        self._recorded = set(ledger.copies)

    def write(self) -> None:
        """Write the changed progress; it commits with the rows."""
        self._write_copies()
        if self._unwritten:
            write_watermarks(self._statements, self._unwritten.values(), self._written)
            self._written |= self._unwritten
            self._unwritten.clear()

    def _write_copies(self) -> None:
        replaced = self._ended | (self._recorded & self._unwritten_copies.keys())
        if replaced:
            forget_copies(self._connection, replaced)
        for progress in self._unwritten_copies.values():
            write_copy(self._connection, progress)
        self._recorded = self._recorded - replaced | self._unwritten_copies.keys()
        self._ended.clear()
        self._unwritten_copies.clear()

    def read_anew(self) -> None:
        """Read the records again at the next access: something else is about to write them."""
        self.write()
        self._is_known, self._ledger = False, None


def read_ledger(connection: duckdb.DuckDBPyConnection) -> Ledger:
    """Read everything recorded, as one state."""
    # Microseconds, since fetching an instant as Python's would need one more package.
    watermarks = connection.execute(
        "select table_name, position, proof, epoch_us(recorded_at) from _rhei_watermark"
    ).fetchall()
    copies = connection.execute(
        "select table_name, position, proof, shape, resume, complete from _rhei_copies"
    ).fetchall()
    return Ledger(
        MappingProxyType({row[0]: _watermark(*row) for row in watermarks}),
        MappingProxyType(
            {row[0]: CopyProgress(row[0], Position(row[1], row[2]), *row[3:]) for row in copies}
        ),
    )


def _watermark(table: str, order: int, proof: str, recorded_at: int) -> Watermark:
    recorded = instant(recorded_at)
    return Watermark(table, Position(order, proof), recorded)


def write_watermarks(
    statements: Statements,
    marks: Collection[Watermark],
    written: Mapping[str, Watermark],
) -> None:
    """Replace the watermarks of their tables; `written` is what is recorded of all tables."""
    if len(marks) > _FEW:
        marks = _move_together(statements, marks, written)
    if len(marks) <= _FEW:
        for mark in marks:
            _write_watermark(statements, mark)
        return
    rows = [
        list(values) for values in zip(*(_mark_row(mark).values() for mark in marks), strict=True)
    ]
    moved = statements.changed(
        "update _rhei_watermark w set position = m.position, proof = m.proof,"
        f" recorded_at = m.recorded_at from {_GIVEN} m where w.table_name = m.table_name",
        rows,
    )
    if moved < len(marks) or any(mark.table not in written for mark in marks):
        statements.run(
            f"insert into _rhei_watermark from {_GIVEN} m"
            " anti join _rhei_watermark w on w.table_name = m.table_name",
            rows,
        )


def _move_together(
    statements: Statements,
    marks: Collection[Watermark],
    written: Mapping[str, Watermark],
) -> Collection[Watermark]:
    """Move those that only follow one log's head by one statement; return the others.

    A table costs a fraction of what it takes to write its watermark from values of its own.
    """
    following = {mark.table: mark for mark in marks if _proves_alike(mark, written.get(mark.table))}
    places = {(mark.position.order, mark.recorded_at) for mark in following.values()}
    staying = written.keys() - following.keys()
    if len(places) != 1 or len(staying) > len(following):
        return marks
    # Where there are rows that are not known of, none is moved.
    moved = statements.changed(
        "update _rhei_watermark set position = $1, recorded_at = $2"
        " where not list_contains($3::varchar[], table_name)"
        " and (select count(*) from _rhei_watermark) = $4",
        [*places.pop(), list(staying), len(written)],
    )
    return [mark for mark in marks if mark.table not in following] if moved else marks


def _proves_alike(mark: Watermark, written: Watermark | None) -> bool:
    return written is not None and written.position.proof == mark.position.proof


def _write_watermark(statements: Statements, mark: Watermark) -> None:
    """Replace the watermark of one table, for half of what a statement for many takes."""
    values = list(_mark_row(mark).values())
    found = statements.changed(
        "update _rhei_watermark set position = $2, proof = $3, recorded_at = $4"
        " where table_name = $1",
        values,
    )
    if not found:
        statements.run("insert into _rhei_watermark values ($1, $2, $3, $4)", values)


def _mark_row(mark: Watermark) -> dict[str, object]:
    return {
        "table_name": mark.table,
        "position": mark.position.order,
        "proof": mark.position.proof,
        "recorded_at": mark.recorded_at,
    }


def write_copy(connection: duckdb.DuckDBPyConnection, progress: CopyProgress) -> None:
    """Record the progress of a table's copy that has no record."""
    connection.execute(
        "insert into _rhei_copies values (?, ?, ?, ?, ?, ?)",
        [
            progress.table,
            progress.position.order,
            progress.position.proof,
            progress.shape,
            progress.resume,
            progress.complete,
        ],
    )


def forget_copies(connection: duckdb.DuckDBPyConnection, tables: Iterable[str]) -> None:
    """Delete the records of running copies."""
    connection.execute(
        "delete from _rhei_copies where list_contains(?::varchar[], table_name)", [list(tables)]
    )
