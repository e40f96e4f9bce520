"""What is replaced in DuckDB, beside rows that the same transaction has written, is there once."""

from contextlib import closing
from dataclasses import replace

import duckdb
import pyarrow as pa
import pytest

from rhei_pipeline.mirrors.duckdb import mirror as duckdb_mirror
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.mirrors.duckdb.tables import read_tables
from rhei_pipeline.model.changes import NetChanges, Position
from rhei_pipeline.model.progress import CopyProgress
from rhei_pipeline.model.schema import Column, Table, TableSchema
from rhei_pipeline.testing import mirror_work
from rhei_pipeline.testing.mirror_work import HISTORY, NOW, copy

#: In some of a hundred transactions DuckDB left a row there that was deleted.
_ROUNDS = 60


def table(name: str, *columns: str) -> Table:
    """Return a table of integers, the first of which is its key."""
    kinds = tuple(Column(column, pa.int32()) for column in columns)
    return Table(TableSchema(name, kinds, columns[:1]))


def rows(of: Table, *given: tuple[int, ...]) -> pa.Table:
    """Return rows of a table."""
    return pa.table(list(map(list, zip(*given, strict=True))), schema=of.schema.arrow)


@pytest.mark.long
def test_rows_that_are_written_beside_an_added_column_are_there_once() -> None:
    with closing(DuckDBMirror(":memory:")) as mirror:
        for number in range(_ROUNDS):
            name = f"t{number}"
            before, after = table(name, "k", "a", "b"), table(name, "k", "a", "b", "c")
            copy(mirror, before, rows(before, (1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4)))
            gone = rows(after, (4, 0, 0, 0)).select(["k"])
            with mirror.transaction() as transaction:
                transaction.add_columns(after, {"c": pa.scalar(9, pa.int32())})
                for written in ([(1, 0, 0, 0)], [(2, 0, 0, 0)], [(1, 2, 0, 0), (3, 0, 0, 0)]):
                    transaction.merge(after, NetChanges(rows(after, *written), gone))
            found = mirror.query(f"select k from {name} order by k")["k"].to_pylist()
            assert found == [1, 2, 3]


@pytest.mark.long
def test_rows_of_this_transaction_and_of_earlier_ones_are_replaced_together() -> None:
    with closing(DuckDBMirror(":memory:")) as mirror:
        for number in range(_ROUNDS):
            name = f"t{number}"
            of = table(name, "k", "a", "b")
            copy(mirror, of, rows(of, (1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4)))
            gone = rows(of, (4, 0, 0)).select(["k"])
            with mirror.transaction() as transaction:
                written = ([(1, 0, 0)], [(2, 0, 0)], [(5, 0, 0), (1, 2, 0), (3, 0, 0), (2, 0, 0)])
                for some in written:
                    transaction.merge(of, NetChanges(rows(of, *some), gone))
            found = mirror.query(f"select k from {name} order by k")["k"].to_pylist()
            assert found == [1, 2, 3, 5]


@pytest.mark.long
def test_versions_of_this_transaction_and_of_earlier_ones_are_closed_together() -> None:
    """Also after rows were deleted, as when a key is forgotten."""
    with closing(DuckDBMirror(":memory:")) as mirror:
        for number in range(_ROUNDS):
            history = Table(replace(HISTORY.schema, name=f"h{number}"), HISTORY.mode)
            copy(mirror, history, mirror_work.rows(a=1.0, b=2.0, c=3.0, d=4.0))
            with mirror.transaction() as transaction:
                mirror._connection.execute(f"delete from h{number} where k in ('a', 'b', 'd')")
                mirror_work.apply(transaction, history, ("a", 0.0, 1), ("b", 0.0, 1))
                mirror_work.apply(transaction, history, ("a", 5.0, 2), ("c", 5.0, 2))
            told = [
                (key, value, end) for key, value, _, end, _ in mirror_work.versions(mirror, history)
            ]
            assert told == [
                ("a", 0.0, 2),
                ("a", 5.0, None),
                ("b", 0.0, None),
                ("c", 3.0, 2),
                ("c", 5.0, None),
            ]


@pytest.mark.long
def test_rows_of_a_copy_that_was_healed_in_this_transaction_are_found_together() -> None:
    progress = CopyProgress("", Position(3, "p"), "shape", complete=True)
    with closing(DuckDBMirror(":memory:")) as mirror:
        for number in range(_ROUNDS):
            name = f"c{number}"
            of, progress = table(name, "k", "a"), replace(progress, table=name)
            copy(mirror, of, rows(of, (1, 9), (2, 9), (3, 9), (9, 9)))
            with mirror.transaction() as transaction:
                transaction.begin_copy(of, progress)
                transaction.append_copy(of, rows(of, (1, 1), (2, 2), (3, 3), (4, 4)), progress)
            gone = rows(of, (4, 0)).select(["k"])
            with mirror.transaction() as transaction:
                for written in ([(1, 0)], [(2, 0)], [(5, 0)]):
                    transaction.heal_copy(of, NetChanges(rows(of, *written), gone))
                assert transaction.adopt_copy(of, NOW) is None
                for changes in transaction.copy_differences(of, 100):
                    transaction.merge(of, changes)
            found = mirror.query(f"select k, a from {name} order by k").to_pylist()
            assert [tuple(row.values()) for row in found] == [(1, 0), (2, 0), (3, 3), (5, 0)]


def test_tables_are_read_once_after_each_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def counted(connection: duckdb.DuckDBPyConnection) -> dict[str, Table]:
        asked.append(connection)
        return read_tables(connection)

    monkeypatch.setattr(duckdb_mirror, "read_tables", counted)
    before, after = table("t", "k", "a"), table("t", "k", "a", "b")
    with closing(DuckDBMirror(":memory:")) as mirror:
        assert mirror.tables() == {}
        copy(mirror, before, rows(before, (1, 1)))
        found = mirror.tables()
        assert found['"t"'].schema.names == ("k", "a")
        found.clear()  # whoever asks may change what is theirs
        assert mirror.tables()['"t"'].schema.names == ("k", "a")
        assert len(asked) == 1  # a new mirror has none: that is known
        with mirror.transaction() as transaction:
            transaction.add_columns(after, {"b": pa.scalar(9, pa.int32())})
            assert mirror.tables()['"t"'].schema.names == ("k", "a")
        assert mirror.tables()['"t"'].schema.names == ("k", "a", "b")
        with mirror.transaction(trial=True) as transaction:
            transaction.drop_table(after)
        with pytest.raises(RuntimeError, match="as it dropped"), mirror.transaction() as dropping:
            dropping.drop_table(after)
            raise RuntimeError("as it dropped")
        assert mirror.tables()['"t"'].schema.names == ("k", "a", "b")
        with mirror.transaction() as transaction:
            transaction.drop_table(after)
        assert mirror.tables() == {}
