"""What may be used: thin factories of connections. Nothing is open until a step opens it.

Every field may be overridden where the definitions are built, or in a run's configuration; the
whole declaration is then validated with it, before anything is opened. Dagster takes a field that
such a configuration leaves out from the class, not from the object: so that is "as declared".
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import dagster as dg
import pyarrow as pa
from pydantic import Field, PrivateAttr, SecretStr

from rhei_pipeline.dagster.heartbeat import Heartbeat
from rhei_pipeline.dagster.names import Names
from rhei_pipeline.dagster.pool import limit_to_one_writer
from rhei_pipeline.errors import needs_extra
from rhei_pipeline.htap import HTAP
from rhei_pipeline.model.standing import SourceStanding
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sql.read_only import of_log
from rhei_pipeline.wiring.engine import bridge, unbridged_events, unseen_events
from rhei_pipeline.wiring.preload import preload
from rhei_pipeline.wiring.source import SourceDatabase, open_database
from rhei_pipeline.wiring.standing import source_standing

if TYPE_CHECKING:
    import psycopg


_ELSE = "Left out: as declared."


class OltpResource(dg.ConfigurableResource[Any]):
    """The operational database, where the facts are written. Any field may be a `dg.EnvVar`."""

    declared: dg.ResourceDependency[Settings]
    kind: str | None = Field(None, description=f"What kind of database it is. {_ELSE}")
    path: str | None = Field(None, description=f"The SQLite file. {_ELSE}")
    dsn: str = Field("", description=f"PostgreSQL's connection string. {_ELSE}")

    @classmethod
    def of(cls, settings: Settings) -> "OltpResource":
        """Take the fields from the declaration."""
        source = settings.source
        # A connection string holds a secret: it stays where it was declared.
        path = getattr(source, "path", None)
        return cls(declared=settings, kind=source.kind, path=path and str(path), dsn="")

    def settings(self) -> Settings:
        """Return the declaration with this resource's fields in it.

        Raises:
            SettingsError: The fields do not make sense together.
        """
        return self.declared.with_fields({"source": self.section()})

    def section(self) -> dict[str, Any]:
        """Return the fields that stand above the declaration's `source`."""
        path, dsn = self.path and Path(self.path), self.dsn and SecretStr(self.dsn)
        return _given(kind=self.kind, path=path or None, dsn=dsn or None)

    def query(self, sql: str, params: Sequence[Any] = ()) -> pa.Table:
        """Run one read-only statement in the operational database; the mirror is not opened."""
        with self._database() as database:
            return database.query(sql, params)

    def execute(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Run one write in the operational database and commit it; return the rows affected.

        Raises:
            QueryError: The source is only polled, and so never written.
        """
        with self._database() as database:
            return database.execute(sql, params)

    def connect(self) -> Union[sqlite3.Connection, "psycopg.Connection[Any]"]:
        """Return a DB-API connection of the source's own driver; the caller closes it."""
        source = self.settings().source
        if source.kind == "sqlite":
            return sqlite3.connect(source.path, timeout=source.busy_timeout_seconds)
        if source.kind == "log":
            raise of_log()
        with needs_extra("postgres", "a PostgreSQL source"):
            import psycopg

            from rhei_pipeline.sources.postgres.connection_string import with_keepalives
        return psycopg.connect(with_keepalives(source.dsn.get_secret_value()))

    @contextmanager
    def _database(self) -> Iterator[SourceDatabase]:
        with closing(open_database(self.settings())) as database:
            yield database


class CdcResource(dg.ConfigurableResource[Any]):
    """The source of changes: how changes of the operational database are captured."""

    oltp: OltpResource
    method: str | None = Field(None, description=f"How changes are captured. {_ELSE}")
    batch_rows: int | None = Field(
        None, description=f"About how many rows are in memory at once. {_ELSE}"
    )
    prune: bool | None = Field(
        None, description=f"Delete changes from the source once no mirror needs them. {_ELSE}"
    )

    @classmethod
    def of(cls, settings: Settings, oltp: OltpResource) -> "CdcResource":
        """Take the fields from the declaration."""
        return cls(
            oltp=oltp,
            method=settings.capture_method,
            batch_rows=settings.sync.batch_rows,
            prune=settings.sync.prune,
        )

    def settings(self) -> Settings:
        """Return the declaration with the fields of this resource and of the source in it.

        Raises:
            SettingsError: The fields do not make sense together.
        """
        return self.oltp.declared.with_fields(self.sections())

    def sections(self) -> dict[str, dict[str, Any]]:
        """Return the fields as the declaration's `source`, `capture` and `sync`."""
        is_log = self.oltp.declared.source.kind == "log"
        return {
            "source": self.oltp.section(),
            "capture": _given(method=None if is_log else self.method),
            "sync": _given(batch_rows=self.batch_rows, prune=self.prune),
        }

    def pending(self) -> int | None:
        """Count the events that the mirror has not acknowledged; opens the source only.

        None when nothing was ever synced.
        """
        return unseen_events(self.settings())

    def standing(self) -> SourceStanding:
        """Return what is pending and since when, where the logs end, and what they hold."""
        return source_standing(self.settings())

    def head(self) -> int:
        """Return a number that grows with every change that capture sees; opens the source only.

        0 where the source is polled: only a poll tells.
        """
        return sum(self.standing().heads.values())

    @property
    def counts_exactly(self) -> bool:
        """Whether `pending` counts all events; of a server's log it only looks for the first."""
        return self.settings().capture_method != "logical"

    def unbridged(self) -> int | None:
        """Count the events that are not in the buffer yet; None where nothing was buffered."""
        return unbridged_events(self.settings())

    def bridge(self) -> int:
        """Take what is pending into the buffer; the mirror is not opened.

        Returns:
            How many events were taken.

        Raises:
            SettingsError: The declaration has no buffer.
        """
        return bridge(self.settings())


class OlapResource(dg.ConfigurableResource[Any]):
    """The mirror, and whose changes it follows.

    A mirror has one writing process. So it is opened inside a step, which holds the pool's slot by
    then, and never when resources are set up.
    """

    cdc: CdcResource
    kind: str | None = Field(None, description=f"Which engine holds the mirror. {_ELSE}")
    storage: str | None = Field(None, description=f"How a DataFusion mirror is stored. {_ELSE}")
    path: str | None = Field(
        None, description=f"The DuckDB file, or the DataFusion mirror's directory. {_ELSE}"
    )
    lock_timeout_seconds: float | None = Field(
        None, description=f"How long to wait for another process. {_ELSE}"
    )
    _heartbeat: Heartbeat | None = PrivateAttr(None)

    @classmethod
    def of(cls, settings: Settings, cdc: CdcResource) -> "OlapResource":
        """Take the fields from the declaration."""
        mirror = settings.mirror
        return cls(
            cdc=cdc,
            kind=mirror.kind,
            storage=mirror.storage,
            path=str(mirror.path),
            lock_timeout_seconds=mirror.lock_timeout_seconds,
        )

    def settings(self) -> Settings:
        """Return the declaration with the fields of all three resources in it.

        Raises:
            SettingsError: The fields do not make sense together.
        """
        mirror = _given(
            kind=self.kind,
            storage=self.storage,
            path=self.path and Path(self.path),
            lock_timeout_seconds=self.lock_timeout_seconds,
        )
        declared = self.cdc.oltp.declared
        if self.kind not in (None, declared.mirror.kind):  # another engine, stored its own way
            mirror = {"storage": None, **mirror}
        return declared.with_fields({**self.cdc.sections(), "mirror": mirror})

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Prepare a run, before its first step asks for the mirror: nothing is opened yet.

        The run's step then waits in the pool with everything imported, and the pool has its limit,
        whoever started the run.
        """
        names = Names.of(self.cdc.oltp.declared)
        preload(self.settings())
        if context.instance is None:
            return
        limit_to_one_writer(context.instance, names.pool)
        if context.run is not None:
            self._heartbeat = Heartbeat(context.instance, context.run.run_id).__enter__()

    def teardown_after_execution(self, _context: dg.InitResourceContext) -> None:
        """End what the preparation began."""
        if self._heartbeat is not None:
            self._heartbeat.__exit__()

    @property
    def is_given_up(self) -> bool:
        """Whether somebody ended the run while its process worked: another may be in its place."""
        return self._heartbeat is not None and self._heartbeat.is_given_up

    @contextmanager
    def open(self) -> Iterator[HTAP]:
        """Open source, capture and mirror for the length of a block."""
        with HTAP(self.settings()) as htap:
            yield htap

    @contextmanager
    def reader(self) -> Iterator[HTAP]:
        """Open the mirror to query it, also while another process keeps it."""
        with HTAP(self.settings(), hold=False) as htap:
            yield htap


def _given(**fields: Any) -> dict[str, Any]:  # noqa: ANN401  (of any section)
    """Return the fields that have a value: the others are as declared."""
    return {name: value for name, value in fields.items() if value is not None}


def pipeline_resources(settings: Settings) -> dict[str, dg.ConfigurableResource[Any]]:
    """Make the three resources of a pipeline, by the keys that its assets ask for."""
    names = Names.of(settings)
    oltp = OltpResource.of(settings)
    cdc = CdcResource.of(settings, oltp)
    return {names.oltp: oltp, names.cdc: cdc, names.olap: OlapResource.of(settings, cdc)}
