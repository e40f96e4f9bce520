"""How far the logs are ahead of a mirror, which is not opened."""

from datetime import datetime

from rhei_pipeline.model.standing import SourceStanding
from rhei_pipeline.sources.postgres.catalog import Connection
from rhei_pipeline.sources.postgres.database import PostgresDatabase
from rhei_pipeline.sources.postgres.identity import one
from rhei_pipeline.sources.postgres.triggers import registry
from rhei_pipeline.sources.postgres.triggers.ddl import BEGUN, log_name
from rhei_pipeline.sources.postgres.triggers.position import outside

_NAME = """
select case n.nspname when 'public' then '' else n.nspname || '.' end || c.relname
from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = %s
"""


def standing(database: PostgresDatabase, mirror_id: str, pending: int | None) -> SourceStanding:
    """Return where each log ends, since when something waits in it, and the logs' bytes."""
    heads, waiting = dict[str, int](), dict[str, datetime]()
    with database.translated(), database.connect() as connection:
        positions = registry.positions(connection, mirror_id)
        logs = registry.standing(connection) & positions.keys()
        for relation in logs:
            name = _name(connection, relation)
            head, oldest = one(connection, _looks(relation, positions[relation].snapshot))
            heads[name] = head
            if oldest is not None:
                waiting[name] = oldest
        held = {"log": registry.log_bytes(connection, list(logs))} if logs else {}
    return SourceStanding(pending, heads=heads, waiting=waiting, held_bytes=held)


def _name(connection: Connection, relation: int) -> str:
    found = connection.execute(_NAME.encode(), (relation,)).fetchone()
    return str(relation) if found is None else str(found[0])


def _looks(relation: int, snapshot: str) -> str:
    log = log_name(relation)
    return (
        f"select coalesce((select max(seq) from {log}), 0),"
        f" (select min(at) from {log} where {outside(snapshot)} and kind <> '{BEGUN}')"
    )
