"""Replication slots of a reader; their names are unique on a server, across its databases."""

from rhei_pipeline.sources.postgres.catalog import slot_name
from rhei_pipeline.sources.postgres.database import PostgresDatabase

_ELSEWHERE = (
    "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
    " where slot_name = %s and database <> current_database() and not active"
)


def drop_elsewhere(database: PostgresDatabase, reader: str) -> None:
    """Drop a reader's slot in another database of the server: it is no longer used."""
    with database.translated(), database.connect() as connection:
        connection.execute(_ELSEWHERE, (slot_name(reader),))
