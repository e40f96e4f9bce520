"""Detects rows that were changed by DDL alone, which no log contains, from the catalogue.

A column that is rewritten, or dropped and added again, keeps its name and type; an enum's value
is renamed, a composite type gets an attribute, a partition is detached: the rows change, but
neither the server's log nor a trigger shows it. A mark is a text that changes whenever that may
have happened.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from rhei_pipeline.sources.postgres.connection import Connection
from rhei_pipeline.sources.postgres.versions import Since, where

#: Types that come with the server have oids below this, and never change.
FIRST_OWN_OID = 16_384


#: `whole`: each table and all tables whose rows it shows. `needed`: each type of an application,
#: and all that its text is made of. `kinds`: a digest of each.
def _parts(connection: Connection) -> str:
    of_multirange = "select r.rngtypid from pg_range r where r.rngmultitypid = t.oid"
    more = where(connection, Since.MULTIRANGES, f"union all {of_multirange}")
    return f"""
with recursive whole(root, oid, link) as (
    select c.oid, c.oid, ''::text from pg_class c where c.oid = any(%(oids)s::oid[])
    union all
    select w.root, i.inhrelid, i.xmin::text from whole w join pg_inherits i on i.inhparent = w.oid
), needed(root, oid) as (
    select a.atttypid, a.atttypid from pg_attribute a
    where a.attrelid = any(%(oids)s::oid[]) and a.attnum > 0 and a.atttypid >= {FIRST_OWN_OID}
    union
    select n.root, part.oid from needed n join pg_type t on t.oid = n.oid cross join lateral (
        select t.typbasetype union all select t.typelem
        union all select r.rngsubtype from pg_range r where r.rngtypid = t.oid
        {more}
        union all select b.atttypid from pg_attribute b
        where b.attrelid = t.typrelid and b.attnum > 0 and not b.attisdropped
    ) part(oid) where part.oid >= {FIRST_OWN_OID}
), kinds(oid, mark) as (
    select n.root, md5(string_agg(concat_ws(' ', n.oid,
        (select string_agg(e.oid || ':' || e.enumlabel, ',' order by e.oid)
         from pg_enum e where e.enumtypid = n.oid),
        (select string_agg(concat_ws(':', b.attnum, b.atttypid, b.atttypmod), ',' order by b.attnum)
         from pg_attribute b where b.attrelid = t.typrelid and b.attnum > 0 and not b.attisdropped)
        ), ';' order by n.oid))
    from needed n join pg_type t on t.oid = n.oid group by n.root
)
"""


#: A row of the catalogue is rewritten by whatever changes it, and `xmin` says by which
#: transaction. Of the parts of a table, also where their rows are: TRUNCATE of a single part is
#: told to nobody who follows the whole.
_TABLE_MARK = """
select md5(string_agg(concat_ws(' ', w.oid, w.link, case when w.oid <> w.root then c.relfilenode
    end), ',' order by w.oid, w.link)) from whole w join pg_class c on c.oid = w.oid
"""
_MARKS = f"""
select asked.oid::bigint, null, ({_TABLE_MARK} where w.root = asked.oid)
from unnest(%(oids)s::oid[]) as asked(oid)
union all
select a.attrelid::bigint, a.attname::text, md5(concat_ws(' ', a.attnum, a.xmin, k.mark))
from pg_attribute a left join kinds k on k.oid = a.atttypid
where a.attrelid = any(%(oids)s::oid[]) and a.attnum > 0 and not a.attisdropped
"""
_SHAPES = f"""
select md5(concat_ws(';', ({_TABLE_MARK}), (select string_agg(mark, ',' order by oid) from kinds), (
    select string_agg(concat_ws(' ', a.attrelid, a.attnum, a.xmin), ',' order by attrelid, attnum)
    from pg_attribute a where a.attrelid = any(%(oids)s::oid[]) and a.attnum > 0
), (
    select string_agg(concat_ws(' ', c.oid, c.relname, c.relnamespace::regnamespace, c.relkind,
        c.relpersistence, c.relreplident, row_security_active(c.oid)), ',' order by c.oid)
    from pg_class c where c.oid = any(%(oids)s::oid[])
), (
    select string_agg(concat_ws(' ', i.indexrelid, i.indkey, i.indisprimary, i.indisreplident,
        i.indisvalid), ',' order by i.indexrelid)
    from pg_index i where i.indrelid = any(%(oids)s::oid[]) and i.indisunique
)))
"""
#: While it is the same, nothing was committed; a replica does not number what runs at its primary.
STATE = "pg_current_snapshot()::text || coalesce(pg_last_wal_replay_lsn()::text, '')"


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks of a table and of its columns by name, and the tables whose rows it shows."""

    table: str
    columns: Mapping[str, str]


def read_marks(connection: Connection, oids: Collection[int]) -> dict[int, Marks]:
    """Read the marks of some tables, by their oids."""
    statement = f"{_parts(connection)}{_MARKS}".encode()
    tables: dict[int, str] = {}
    columns: dict[int, dict[str, str]] = {oid: {} for oid in oids}
    for oid, column, mark in connection.execute(statement, {"oids": list(oids)}):
        if column is None:
            tables[oid] = mark
        else:
            columns[oid][column] = mark
    return {oid: Marks(mark, columns[oid]) for oid, mark in tables.items()}


def shapes(connection: Connection, oids: Collection[int]) -> str:
    """Return a text that changes whenever the catalogue's entries of these tables change."""
    found = connection.execute(
        f"{_parts(connection)}{_SHAPES}".encode(), {"oids": f"{{{','.join(map(str, oids))}}}"}
    ).fetchone()
    return str(found[0]) if found else ""
