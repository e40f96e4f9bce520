"""Finds a table's rows as of an instant in a cluster."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.compute.spark_connect import SparkConnect
from rhei_pipeline.errors import RheiError
from rhei_pipeline.model.cancellation import Cancel
from rhei_pipeline.model.progress import AsOf
from rhei_pipeline.model.published_state import PublishedTable
from rhei_pipeline.model.query_limits import QueryClock
from rhei_pipeline.model.schema import VALID_FROM, VALID_TO

_HISTORY = "history"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TICK = timedelta(microseconds=1)
_A_DAY = "1970-01-01 "


@dataclass(slots=True)
class ClusterHistory:
    """Finds rows as of instants in a published table, until the cluster fails once.

    Attributes:
        engine: What is asked.
        root: Where the folders of published tables are.
        clock: Ends a search that takes too long.
        found: The days whose rows it has found.
        reason: Why it finds no more; None while it does.
    """

    engine: SparkConnect
    root: str
    clock: QueryClock
    found: list[date] = field(default_factory=list)
    reason: str | None = None

    def close(self) -> None:
        """End the session that is held for the next day."""
        self.engine.close()

    def finder(
        self, published: Sequence[PublishedTable] | None
    ) -> Callable[[date, AsOf, pa.Schema], pa.Table | None]:
        """Return what finds the rows of a day; None where the table is not published as it is."""
        table = published[0] if published else None
        if table is None:
            self.reason = "the table is not published as it is now"

        def find(day: date, then: AsOf, shape: pa.Schema) -> pa.Table | None:
            if table is None or self.reason is not None:
                return None
            try:
                rows = self._rows(table, then, shape)
            except RheiError as error:
                self.reason = error.message
            except pa.ArrowException as error:
                self.reason = f"the cluster gives values of other types ({type(error).__name__})"
            else:
                self.found.append(day)
                return rows
            return None

        return find

    def _rows(self, table: PublishedTable, then: AsOf, shape: pa.Schema) -> pa.Table:
        place = (f"{self.root}/{table.folder}", table.version)
        with self.clock.timing(None) as query:
            cancel = Cancel.given(query.begun)
            found = self.engine.query(rows_as_of(then), (), {_HISTORY: place}, cancel)
        columns = zip(found.columns, shape.types, strict=True)
        return pa.table([_as_stored(column, kind) for column, kind in columns], schema=shape)


def rows_as_of(then: AsOf) -> str:
    """Return the statement that reads the rows that were valid at an instant, in Spark's SQL."""
    at = f"timestamp_micros({(then.instant - _EPOCH) // _TICK})"
    return (
        f"select {', '.join(map(_quoted, then.columns))} from {_HISTORY}"
        f" where {VALID_FROM} <= {at} and ({VALID_TO} is null or {VALID_TO} > {at})"
    )


def _as_stored(values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return a column in the mirror's type; a time of day comes as text, as Delta has none."""
    if not pa.types.is_time(kind):
        return values.cast(kind)
    on_a_day = pc.binary_join_element_wise(_A_DAY, values.cast(pa.string()), "")
    return on_a_day.cast(pa.timestamp("us")).cast(kind)


def _quoted(name: str) -> str:
    return f"`{name.replace('`', '``')}`"
