"""Which adapter has which capability: one that loses a method would get the neutral answer."""

import pytest

from rhei_pipeline import capabilities as can
from rhei_pipeline.buffer.snapshot import BufferedSnapshot
from rhei_pipeline.buffer.source import BufferedSource
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.sources.postgres.database import PostgresDatabase
from rhei_pipeline.sources.postgres.logical.snapshot import LogicalSnapshot
from rhei_pipeline.sources.postgres.logical.source import LogicalSource
from rhei_pipeline.sources.postgres.polling.snapshot import PostgresPollingSnapshot
from rhei_pipeline.sources.postgres.polling.source import PostgresPollingSource
from rhei_pipeline.sources.postgres.triggers.snapshot import PostgresTriggerSnapshot
from rhei_pipeline.sources.postgres.triggers.source import PostgresTriggerSource
from rhei_pipeline.sources.sqlite.database import SqliteDatabase
from rhei_pipeline.sources.sqlite.polling.snapshot import SqlitePollingSnapshot
from rhei_pipeline.sources.sqlite.polling.source import SqlitePollingSource
from rhei_pipeline.sources.sqlite.triggers.snapshot import SqliteTriggerSnapshot
from rhei_pipeline.sources.sqlite.triggers.source import SqliteTriggerSource

ADAPTERS = {
    PostgresDatabase,
    SqliteDatabase,
    BufferedSnapshot,
    BufferedSource,
    DataFusionMirror,
    DuckDBMirror,
    LogicalSnapshot,
    LogicalSource,
    PostgresPollingSnapshot,
    PostgresPollingSource,
    PostgresTriggerSnapshot,
    PostgresTriggerSource,
    SqlitePollingSnapshot,
    SqlitePollingSource,
    SqliteTriggerSnapshot,
    SqliteTriggerSource,
}

# The types hold the signatures, the test that there are no others.
RESCANS: list[type[can.Rescans]] = [
    BufferedSnapshot,
    PostgresPollingSnapshot,
    SqlitePollingSnapshot,
    SqliteTriggerSnapshot,
]
DOUBTS: list[type[can.Doubts]] = [
    BufferedSnapshot,
    PostgresPollingSnapshot,
    SqlitePollingSnapshot,
]
RETAINS: list[type[can.Retains]] = [LogicalSnapshot, PostgresTriggerSnapshot]
CHANGES_SHAPE: list[type[can.ChangesShape]] = [BufferedSnapshot, SqliteTriggerSnapshot]
HAS_KEYLESS_ROWS: list[type[can.HasKeylessRows]] = [
    BufferedSnapshot,
    SqlitePollingSnapshot,
    SqliteTriggerSnapshot,
]
COUNTS_CHOSEN: list[type[can.CountsChosen]] = [
    LogicalSnapshot,
    PostgresPollingSnapshot,
    PostgresTriggerSnapshot,
    SqlitePollingSnapshot,
    SqliteTriggerSnapshot,
]
HOLDS_ROWS_APART: list[type[can.HoldsRowsApart]] = [BufferedSource, LogicalSource]
ORDERS_KEYS: list[type[can.OrdersKeys]] = [
    BufferedSnapshot,
    LogicalSnapshot,
    PostgresPollingSnapshot,
    PostgresTriggerSnapshot,
    SqlitePollingSnapshot,
    SqliteTriggerSnapshot,
]
FINDS_KEYS: list[type[can.FindsKeys]] = [
    BufferedSnapshot,
    LogicalSnapshot,
    PostgresPollingSnapshot,
    PostgresTriggerSnapshot,
    SqlitePollingSnapshot,
    SqliteTriggerSnapshot,
]
DRAWS_ROWS: list[type[can.DrawsRows]] = [
    BufferedSnapshot,
    LogicalSnapshot,
    PostgresPollingSnapshot,
    PostgresTriggerSnapshot,
    SqlitePollingSnapshot,
    SqliteTriggerSnapshot,
]
READS_FOR_COPIES: list[type[can.ReadsForCopies]] = [
    BufferedSource,
    SqlitePollingSource,
    SqliteTriggerSource,
]
HOLDS_BYTES: list[type[can.HoldsBytes]] = [
    BufferedSource,
    LogicalSource,
    PostgresTriggerSource,
    SqliteTriggerSource,
]
READS_TOGETHER: list[type[can.ReadsTogether]] = [
    BufferedSource,
    LogicalSource,
    PostgresPollingSource,
    PostgresTriggerSource,
]
HAS_VIEWS: list[type[can.HasViews]] = [PostgresDatabase, SqliteDatabase]
KNOWS_ADDED: list[type[can.KnowsAdded]] = [
    LogicalSource,
    PostgresTriggerSource,
    SqlitePollingSource,
    SqliteTriggerSource,
]
KNOWS_KEPT: list[type[can.KnowsKept]] = [
    LogicalSource,
    PostgresPollingSource,
    SqlitePollingSource,
    SqliteTriggerSource,
]
KNOWS_UNSEEN: list[type[can.KnowsUnseen]] = [BufferedSource, SqliteTriggerSource]
READS_WIDER: list[type[can.ReadsWider]] = [LogicalSource]
ERASES_PRUNED: list[type[can.ErasesPruned]] = [BufferedSource]
EXPIRES: list[type[can.Expires]] = [DataFusionMirror, DuckDBMirror]
FORGETS: list[type[can.Forgets]] = [DataFusionMirror, DuckDBMirror]
REPAIRS_FILES: list[type[can.RepairsFiles]] = [DataFusionMirror]


@pytest.mark.parametrize(
    ("capability", "having"),
    [
        (can.Rescans, RESCANS),
        (can.Doubts, DOUBTS),
        (can.Retains, RETAINS),
        (can.ChangesShape, CHANGES_SHAPE),
        (can.HasKeylessRows, HAS_KEYLESS_ROWS),
        (can.CountsChosen, COUNTS_CHOSEN),
        (can.HoldsRowsApart, HOLDS_ROWS_APART),
        (can.OrdersKeys, ORDERS_KEYS),
        (can.FindsKeys, FINDS_KEYS),
        (can.DrawsRows, DRAWS_ROWS),
        (can.ReadsForCopies, READS_FOR_COPIES),
        (can.HoldsBytes, HOLDS_BYTES),
        (can.ReadsTogether, READS_TOGETHER),
        (can.HasViews, HAS_VIEWS),
        (can.KnowsAdded, KNOWS_ADDED),
        (can.KnowsKept, KNOWS_KEPT),
        (can.KnowsUnseen, KNOWS_UNSEEN),
        (can.ReadsWider, READS_WIDER),
        (can.ErasesPruned, ERASES_PRUNED),
        (can.Expires, EXPIRES),
        (can.Forgets, FORGETS),
        (can.RepairsFiles, REPAIRS_FILES),
    ],
)
def test_an_adapter_has_the_capabilities_that_apply(capability: type, having: list[type]) -> None:
    assert {adapter for adapter in ADAPTERS if issubclass(adapter, capability)} == set(having)
