"""Keep an analytical mirror of an operational database by change data capture.

Everything that users, Dagster projects and tests of others need is importable from here; what lies
deeper may move between any two versions.
"""

from importlib.metadata import version

from rhei_pipeline.buffer.log import ChangeLog
from rhei_pipeline.errors import (
    BufferBusyError,
    BufferDamagedError,
    BufferFullError,
    CaptureError,
    ChangesLostError,
    HiddenRowsError,
    MirrorBusyError,
    MirrorDamagedError,
    MirrorError,
    MirrorMemoryError,
    MirrorUnreachableError,
    MissingExtraError,
    PermanentError,
    PositionLostError,
    QueriesBusyError,
    QueryError,
    QueryLimitError,
    RheiError,
    SchemaDriftError,
    SchemaError,
    SettingsError,
    SourceBusyError,
    SourceError,
    SourceUnreachableError,
    TableFailedError,
    TransientError,
)
from rhei_pipeline.holder.reader import OpenReader, reader
from rhei_pipeline.htap import HTAP, open  # noqa: A004  (rhei.open is the public name)
from rhei_pipeline.model.change_feed import ChangePosition, ChangeStream, TableChanges
from rhei_pipeline.model.changes import (
    ChangeBatch,
    DeadLetter,
    Operation,
    Position,
    RowBatch,
    event_schema,
)
from rhei_pipeline.model.progress import TableState, Watermark
from rhei_pipeline.model.reports import (
    CopyReport,
    CopyStatus,
    DamagedFile,
    DropReport,
    Finding,
    MaintenanceReport,
    RepairReport,
    RowParity,
    Severity,
    Standing,
    SyncReport,
    SyncStatus,
    TableReport,
    TableStatus,
    TableVerification,
    VerifyReport,
)
from rhei_pipeline.model.schema import HISTORY_FIELDS, Column, Mode, Table, TableSchema, parse_type
from rhei_pipeline.model.streaming import Streamed
from rhei_pipeline.protocols import ChangeSource, Mirror, Rescan, SourceSnapshot
from rhei_pipeline.query.planner import Prepared
from rhei_pipeline.query.router import Route
from rhei_pipeline.query.service import Written
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.settings.sections import (
    BufferSettings,
    CaptureSettings,
    DeltaSettings,
    LocalSettings,
    MirrorSettings,
    ObjectStoreSettings,
    PollingSettings,
    PostgresSettings,
    PublishedSettings,
    QuerySettings,
    RegistrySettings,
    ScheduleSettings,
    SqliteSettings,
    SyncSettings,
    TableSettings,
)
from rhei_pipeline.sql.text import duckdb_type
from rhei_pipeline.sync.background import BackgroundSync
from rhei_pipeline.sync.pipeline import Pipeline
from rhei_pipeline.wiring.adapters import open_with
from rhei_pipeline.wiring.declared_schemas import DeclaredSchemas, declared_schemas
from rhei_pipeline.wiring.engine import unseen_events
from rhei_pipeline.wiring.mirror import open_mirror
from rhei_pipeline.wiring.source import validate

__version__ = version("rhei-pipeline")

__all__ = [
    "HISTORY_FIELDS",
    "HTAP",
    "BackgroundSync",
    "BufferBusyError",
    "BufferDamagedError",
    "BufferFullError",
    "BufferSettings",
    "CaptureError",
    "CaptureSettings",
    "ChangeBatch",
    "ChangeLog",
    "ChangePosition",
    "ChangeSource",
    "ChangeStream",
    "ChangesLostError",
    "Column",
    "CopyReport",
    "CopyStatus",
    "DamagedFile",
    "DeadLetter",
    "DeclaredSchemas",
    "DeltaSettings",
    "DropReport",
    "Finding",
    "HiddenRowsError",
    "LocalSettings",
    "MaintenanceReport",
    "Mirror",
    "MirrorBusyError",
    "MirrorDamagedError",
    "MirrorError",
    "MirrorMemoryError",
    "MirrorSettings",
    "MirrorUnreachableError",
    "MissingExtraError",
    "Mode",
    "ObjectStoreSettings",
    "OpenReader",
    "Operation",
    "PermanentError",
    "Pipeline",
    "PollingSettings",
    "Position",
    "PositionLostError",
    "PostgresSettings",
    "Prepared",
    "PublishedSettings",
    "QueriesBusyError",
    "QueryError",
    "QueryLimitError",
    "QuerySettings",
    "RegistrySettings",
    "RepairReport",
    "Rescan",
    "RheiError",
    "Route",
    "RowBatch",
    "RowParity",
    "ScheduleSettings",
    "SchemaDriftError",
    "SchemaError",
    "Settings",
    "SettingsError",
    "Severity",
    "SourceBusyError",
    "SourceError",
    "SourceSnapshot",
    "SourceUnreachableError",
    "SqliteSettings",
    "Standing",
    "Streamed",
    "SyncReport",
    "SyncSettings",
    "SyncStatus",
    "Table",
    "TableChanges",
    "TableFailedError",
    "TableReport",
    "TableSchema",
    "TableSettings",
    "TableState",
    "TableStatus",
    "TableVerification",
    "TransientError",
    "VerifyReport",
    "Watermark",
    "Written",
    "__version__",
    "declared_schemas",
    "duckdb_type",
    "event_schema",
    "open",
    "open_mirror",
    "open_with",
    "parse_type",
    "reader",
    "unseen_events",
    "validate",
]
