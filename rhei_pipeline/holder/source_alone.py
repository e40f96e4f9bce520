"""What is answered where the mirror cannot be opened: all that the source can answer alone."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rhei_pipeline.errors import MirrorError
from rhei_pipeline.model.streaming import Begun
from rhei_pipeline.protocols import Database
from rhei_pipeline.query import results
from rhei_pipeline.query.masked_tables import only_mirror
from rhei_pipeline.query.planner import catalog_of
from rhei_pipeline.query.router import Plan, Route, Router
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sync.schema_registry import Registry, mirror_id_of
from rhei_pipeline.wiring.engine import query_clock
from rhei_pipeline.wiring.table_options import table_options


class SourceAlone:
    """Answers queries from the source, and says of others what is wrong with the mirror.

    Args:
        settings: The declaration.
        source, oltp: The database that is mirrored, and where `oltp` is answered.
        fault: Why the mirror cannot be opened.
    """

    def __init__(
        self, settings: Settings, source: Database, oltp: Database | None, fault: MirrorError
    ) -> None:
        self._settings, self._source, self._oltp, self._fault = settings, source, oltp, fault
        self._clock = query_clock(settings)

    def query(self, sql: str, params: Sequence[Any], hint: str, begun: Begun | None) -> pa.Table:
        """Answer a query that the source may answer.

        Raises:
            MirrorError: Only the mirror may: why it cannot be opened.
        """
        is_sidecar = self._oltp is not self._source
        oltp, is_chosen = self._oltp, hint == "oltp"
        if oltp is None or not (is_chosen or (hint == "auto" and not is_sidecar)):
            raise self._fault
        plan = self._plan(sql, params)
        if (plan.history or plan.masked is not None) and not is_chosen:
            raise self._fault
        columns = None if is_sidecar else plan.columns
        with self._clock.timing(begun) as timed:
            found = oltp.query(sql, params, columns, timed.begun)
        return results.labelled(found, Route("oltp", "asked for" if is_chosen else self.why), None)

    def route(self, sql: str, params: Sequence[Any]) -> Route:
        """Return which side answers a statement now.

        Raises:
            MirrorError: None does.
        """
        plan = None if self._oltp is not self._source else self._plan(sql, params)
        if plan is None or plan.history or plan.masked is not None:
            raise self._fault
        return Route("oltp", self.why)

    @property
    def why(self) -> str:
        """Why the source answers."""
        return f"the mirror cannot be opened: {self._fault}"

    def _plan(self, sql: str, params: Sequence[Any]) -> Plan:
        path = self._settings.registry.path
        mirror_id = mirror_id_of(path)
        # The tables as they were mirrored last: answers keep the types that they had.
        registry = Registry(path if mirror_id else None, mirror_id or "")
        kinds = (self._settings.source.kind, self._settings.mirror.kind)
        options = table_options(self._settings, registry)
        tables, masked = list(registry.tables.values()), self._settings.queries.masked
        catalog = catalog_of(self._source, tables, options, kinds, masked)
        return Router(catalog, finish=only_mirror).plan(sql, params)
