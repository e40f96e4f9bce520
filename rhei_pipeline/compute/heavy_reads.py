"""Which queries the cluster answers unasked: those of many rows, where it is there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import pyarrow as pa

from rhei_pipeline.capabilities import Publishes
from rhei_pipeline.compute.spark_connect import SparkConnect
from rhei_pipeline.compute.spark_sql import SparkQuery, in_spark
from rhei_pipeline.errors import ComputeUnreachableError, RheiError
from rhei_pipeline.model.cancellation import Cancel
from rhei_pipeline.model.schema import Table
from rhei_pipeline.model.semantics import Translated
from rhei_pipeline.model.streaming import Begun

#: How long it is remembered whether the cluster is there.
REMEMBERED_SECONDS = 30.0
#: Two decimals of so many digits, whatever their scales, are compared in one that holds both.
_EXACT_DIGITS = 19


@dataclass(slots=True)
class HeavyReads:
    """Has the cluster answer queries of many rows, just as the mirror would.

    Attributes:
        engine: What is asked.
        root: Where the folders of published tables are.
        min_rows: From how many stored rows on.
    """

    engine: SparkConnect
    root: str
    min_rows: int
    _probed: float | None = None
    _away: str | None = field(default=None)

    def suits(
        self,
        sql: Translated,
        bound: Mapping[str, Any],
        mirror: Publishes,
        tables: Mapping[str, Table],
    ) -> tuple[SparkQuery | None, str]:
        """Return a query as the cluster is asked, and why; None where it is not to be asked.

        The reason is empty where nobody would expect the cluster to answer.
        """
        rows = mirror.stored_rows(sql.relations)
        if rows < self.min_rows:
            return None, ""
        query = in_spark(sql, bound)
        if query is None or not holds_alike(query, tables):
            return None, ""
        away = self._reason_away()
        if away is not None:
            return None, f"not by the cluster: {away}"
        return query, f"its tables have {rows:,} rows, and compute.min_rows is {self.min_rows:,}"

    def answer(self, query: SparkQuery, mirror: Publishes, begun: Begun) -> pa.Table | str:
        """Return the answer; or why the cluster does not give it."""
        names = list(query.views.values())
        shown = mirror.published(names)
        if shown is None:
            mirror.publish(wait=False)
            shown = mirror.published(names)
        if shown is None:
            return "its tables are not published as they are now"
        places = {
            view: (f"{self.root}/{table.folder}", table.version)
            for view, table in zip(query.views, shown, strict=True)
        }
        try:
            return self.engine.query(query.sql, (), places, Cancel.given(begun))
        except ComputeUnreachableError as error:
            self._probed, self._away = monotonic(), error.message
            return error.message
        except RheiError as error:
            return error.message

    def _reason_away(self) -> str | None:
        """Return why the cluster is not there; asked again after a while."""
        if self._probed is None or monotonic() - self._probed > REMEMBERED_SECONDS:
            try:
                self.engine.refuse_unreachable()
                self._away = None
            except ComputeUnreachableError as error:
                self._away = error.message
            self._probed = monotonic()
        return self._away


def holds_alike(query: SparkQuery, tables: Mapping[str, Table]) -> bool:
    """Return whether the columns read are of types that both engines compare alike."""
    kinds = [
        column.type
        for name in query.views.values()
        for column in tables[name].schema.columns
        if column.name in query.columns
    ]
    return all(map(_is_alike, kinds))


def _is_alike(kind: pa.DataType) -> bool:
    if pa.types.is_decimal(kind):
        return int(kind.precision) <= _EXACT_DIGITS
    return not (pa.types.is_floating(kind) or pa.types.is_binary(kind) or pa.types.is_time(kind))
