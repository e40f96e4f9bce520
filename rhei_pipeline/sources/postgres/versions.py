"""The differences between PostgreSQL's versions: the only module that knows versions.

Every other statement of ours uses only what all versions from the oldest on have. Source: the
catalogues, views and release notes in postgresql.org/docs/13 to /docs/18.
"""

from enum import IntEnum

from rhei_pipeline.errors import SourceError
from rhei_pipeline.sources.postgres.connection import Connection

#: The first one that numbers transactions in 64 bits for SQL, and publishes partitions as a whole.
OLDEST = 13


class Since(IntEnum):
    """What came with a later version than the oldest: catalogue columns, functions, statements."""

    # Members of one value would be one member: the tens name the version.
    EXACT_PARTS = 14_02  # extract() is numeric
    MULTIRANGES = 14_01  # pg_range.rngmultitypid
    IDLE_SESSION_TIMEOUT = 14_04  # the setting
    TRIGGERS_REPLACED = 14_03  # create or replace trigger
    FILTERED_PUBLICATIONS = 15_02  # of rows and columns, and publications of schemas
    LOCALE_PROVIDERS = 15_01  # pg_database.datlocprovider
    SNAPSHOTS_LOGGED = 16_01  # pg_log_standby_snapshot()
    TRANSACTION_TIMEOUT = 17_02  # the setting
    INVALIDATION_REASON = 17_01  # pg_replication_slots.invalidation_reason
    FAILOVER_SLOTS = 17_03  # pg_replication_slots.failover, synchronized_standby_slots
    GENERATED_PUBLISHED = 18_01  # publish_generated_columns, of stored ones
    IDLE_SLOTS_DROPPED = 18_03  # idle_replication_slot_timeout
    PUBLICATIONS_MISSED = 18_02  # a log is decoded though its publication was dropped


def version(connection: Connection) -> int:
    """Return the server's major version."""
    return connection.info.server_version // 10_000


def has(connection: Connection, what: Since) -> bool:
    """Return whether the server has it."""
    return version(connection) >= what // 100


def where(connection: Connection, what: Since, sql: str, otherwise: str = "") -> str:
    """Return SQL for a server that has it, or for one that does not."""
    return sql if has(connection, what) else otherwise


def never_idle(connection: Connection) -> dict[str, str]:
    """Return the setting by which the server ends no session that waits for work."""
    return {"idle_session_timeout": "0"} if has(connection, Since.IDLE_SESSION_TIMEOUT) else {}


def refuse_older(connection: Connection) -> None:
    """Refuse a server that is older than any we know.

    Raises:
        SourceError: It is.
    """
    if version(connection) < OLDEST:
        raise SourceError(
            f"the source's server is PostgreSQL {version(connection)}",
            hint=f"upgrade it to {OLDEST} or a later one",
        )
