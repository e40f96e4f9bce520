"""Retired logs: kept until every mirror has read them."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from psycopg.errors import LockNotAvailable, UndefinedTable

from rhei_pipeline.sources.postgres.catalog import Connection
from rhei_pipeline.sources.postgres.identity import one
from rhei_pipeline.sources.postgres.triggers.ddl import SCHEMA
from rhei_pipeline.sources.postgres.triggers.logs import Generation

#: Only a log of rows has a place for those of a table that has changed.
_FORMERS = f"""
select relation::bigint, log::bigint, columns, key, attributes, types::bigint[], base, pruned,
    identity, ended, cut, leads_on, whole,
    exists (select from pg_attribute where attname = 'misfit'
            and attrelid = to_regclass('{SCHEMA}.former_' || log))
from {SCHEMA}.former
where relation = any(%s::oid[]) and to_regclass('{SCHEMA}.former_' || log) is not null
order by ended
"""
_RETIRE = f"""
insert into {SCHEMA}.former values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""
_IS_PASSED = f"""
select not exists (select from {SCHEMA}.consumer where relation = %s and position < %s)
"""


def former_name(log: int | None) -> str:
    """Return the name of a retired log, by its oid."""
    return f"{SCHEMA}.former_{log}"


def read_formers(
    connection: Connection, relations: Sequence[int]
) -> Mapping[int, tuple[Generation, ...]]:
    """Return the retired logs that are kept, the oldest first, by table."""
    found: dict[int, tuple[Generation, ...]] = {}
    for row in connection.execute(_FORMERS.encode(), (list(relations),)):
        relation, log, columns, key, attributes, types, base, pruned, identity, *end = row
        ended, cut, leads_on, whole, images = end
        former = Generation(
            relation,
            former_name(log),
            log,
            tuple(columns),
            tuple(key),
            tuple(attributes),
            tuple(types),
            base,
            pruned,
            identity,
            images=images,
            ended=ended,
            cut=cut,
            leads_on=leads_on,
            whole=whole,
        )
        found[relation] = (*found.get(relation, ()), former)
    return found


def note_former(connection: Connection, former: Generation) -> None:
    """Record a retired log."""
    values = (
        former.log,
        former.relation,
        list(former.columns),
        list(former.key),
        former.base,
        former.pruned,
        former.identity,
        list(former.attributes),
        list(former.types),
        former.ended,
        former.cut,
        former.leads_on,
        former.whole,
    )
    connection.execute(_RETIRE.encode(), values)


def drop_passed(connection: Connection, formers: Sequence[Generation]) -> None:
    """Drop the logs of a table that every mirror has read to their ends.

    A log that is being read, for example by a dump of the database, is kept until the next time.
    """
    for former in formers:
        if one(connection, _IS_PASSED, former.relation, former.ended)[0]:
            # Another mirror may have dropped it already.
            with suppress(LockNotAvailable, UndefinedTable), connection.transaction():
                connection.execute(
                    f"lock table {former.name} in access exclusive mode nowait".encode()
                )
                for statement in former_remains(former.log):
                    connection.execute(statement.encode())


def former_remains(log: int | None) -> tuple[str, str]:
    """Return the statements that remove a retired log."""
    return (
        f"drop table if exists {former_name(log)}",
        f"delete from {SCHEMA}.former where log = {log}",
    )
