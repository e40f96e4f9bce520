"""What a mirror promises whose engine answers queries while it is written to."""

from collections.abc import Sequence
from threading import Timer

import pyarrow as pa
import pytest

from rhei_pipeline.errors import QueryError
from rhei_pipeline.protocols import Mirror
from rhei_pipeline.testing.mirror_work import held, keys, merge, rows

#: What a query may not do.
REFUSED: Sequence[str] = (
    "delete from t",
    "with gone as (delete from t returning *) select * from gone",
    "create table x(a int)",
    "drop table t",
    "copy t to 'out.csv'",
    "select * from read_csv('pyproject.toml')",
    "select * from 'pyproject.toml'",
    "attach 'other.duckdb' as other",
    "install httpfs",
    "set threads = 1",
    "select 1; select 2",
    "",
    "select * from nowhere",
    "selec 1",
)


class MirrorQueryContract:
    """Queries and streams beside writes; `MirrorContract` makes the fixture `mirror`."""

    @pytest.mark.parametrize("sql", REFUSED)
    def test_a_query_only_reads_tables(self, mirror: Mirror, sql: str) -> None:
        merge(mirror, rows(a=1.0), keys())
        with pytest.raises(QueryError):
            mirror.query(sql)
        assert held(mirror) == {"a": 1.0}

    @pytest.mark.parametrize(
        ("sql", "params"),
        [
            ("select v from t where v > ?", [0.0, 1.0]),
            ("select v from t", [0.0]),
            ("select v from t where v > $least", {"least": 0.0, "most": 1.0}),
        ],
    )
    def test_a_value_that_the_query_has_no_place_for_is_refused(
        self, mirror: Mirror, sql: str, params: list[float] | dict[str, float]
    ) -> None:
        merge(mirror, rows(a=1.0), keys())
        with pytest.raises(QueryError):
            mirror.query(sql, params)
        with pytest.raises(QueryError):
            next(mirror.stream(sql, params, 100).batches)

    @pytest.mark.parametrize(
        ("condition", "params"),
        [
            ("v > ?::double and v < ? ::double", [1.0, 3.0]),
            ("v > ?1 and v <> ?1 + 2 and v < ?2", [1.0, 4.0]),
            ("v < $2 and v > $1", [1.0, 3.0]),
            ("v > $1+$2 and v<$1+$2+$2", [0.5, 0.9]),
            ("v in ($1,$2)and $t$a$t$ = 'a'", [2.0, 9.0]),
            ("v >?and v <?or v >?2and v < 0", [1.0, 3.0]),
        ],
    )
    def test_values_are_bound_however_a_placeholder_is_written(
        self, mirror: Mirror, condition: str, params: list[float]
    ) -> None:
        merge(mirror, rows(a=1.0, b=2.0, c=3.0), keys())
        assert mirror.query(f"select k from t where {condition}", params)["k"].to_pylist() == ["b"]

    def test_streamed_rows_are_of_the_state_they_began_with(self, mirror: Mirror) -> None:
        merge(mirror, rows(**{f"k{number}": float(number) for number in range(1000)}), keys())
        streamed = mirror.stream("select k, v from t where v >= $least", {"least": 10.0}, 100)
        for _ in range(5):  # more commits than states are retained
            merge(mirror, rows(k500=-1.0), keys("k20"))
            merge(mirror, rows(k500=-2.0, k20=-3.0), keys("k30"))
        batches = list(streamed.batches)
        assert {batch.schema for batch in batches} == {streamed.schema}
        found = pa.Table.from_batches(batches).sort_by("v")
        assert found["v"].to_pylist() == [float(number) for number in range(10, 1000)]

    def test_a_stream_that_is_cancelled_ends_in_an_error(self, mirror: Mirror) -> None:
        many = 300_000
        values = pa.array(range(many), pa.float64())
        merge(mirror, pa.table({"k": values.cast(pa.string()), "v": values}), keys())
        streamed = mirror.stream("select a.k from t a cross join t b", {}, 100)
        next(streamed.batches)
        streamed.cancel()
        with pytest.raises(QueryError):
            list(streamed.batches)

    def test_a_stream_is_cancelled_before_its_first_row(self, mirror: Mirror) -> None:
        values = pa.array(range(5000), pa.float64())
        merge(mirror, pa.table({"k": values.cast(pa.string()), "v": values}), keys())
        sql = "select max(a.v * b.v - c.v) as n from t a cross join t b cross join t c"
        with pytest.raises(QueryError):
            # The timer's thread ends what this one waits for.
            next(mirror.stream(sql, {}, 100, lambda cancel: Timer(0.3, cancel).start()).batches)
        assert mirror.query("select count(*) as n from t")["n"].to_pylist() == [5000]

    def test_a_stream_that_was_cancelled_before_it_began_is_an_error(self, mirror: Mirror) -> None:
        merge(mirror, rows(a=1.0), keys())
        with pytest.raises(QueryError, match="cancelled"):
            next(mirror.stream("select k from t", {}, 100, lambda cancel: cancel()).batches)
        assert mirror.query("select count(*) as n from t")["n"].to_pylist() == [1]

    def test_a_stream_only_reads(self, mirror: Mirror) -> None:
        with pytest.raises(QueryError, match="DELETE"):
            mirror.stream("delete from t", {}, 100)
