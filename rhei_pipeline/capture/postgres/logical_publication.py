"""A mirror's publication: which tables the server's log tells of, and that it tells all of them."""

from collections.abc import Callable

from rhei_pipeline.oltp.postgres_identity import BEGUN_WITH
from rhei_pipeline.oltp.postgres_schema import (
    Connection,
    PostgresTable,
    qualified,
)
from rhei_pipeline.oltp.postgres_versions import Since, has
from rhei_pipeline.sql import literal, quote

#: The tables that are published whole. A table that is dropped and made again, or leaves the
#: publication and returns, has other oids; a publication that was altered has another `xmin`. Read
#: as JSON: servers before 15 know of no filters, and those before 18 of no generated columns.
_MEMBERS = """
select r.prrelid::bigint, concat_ws('.', r.oid, p.oid, p.xmin) from pg_publication_rel r
join pg_publication p on p.oid = r.prpubid
where p.pubname = %s and p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate
    and p.pubviaroot and coalesce(to_jsonb(p) ->> 'pubgencols', 's') = 's'
    and coalesce(to_jsonb(r) ->> 'prqual', to_jsonb(r) ->> 'prattrs') is null
"""
_PUBLISHED = """
select p.puballtables, exists (
    select from pg_publication_rel r where r.prpubid = p.oid and r.prrelid = %s)
from pg_publication p where p.pubname = %s
"""


class Publication:
    """One publication, owned by its mirror; others may alter it, and that shows.

    Args:
        connection: Returns an open connection.
        name: Its name.
    """

    def __init__(self, connection: Callable[[], Connection], name: str) -> None:
        self._connection = connection
        self._name = name

    def members(self) -> dict[int, str]:
        """Return the tables that are published whole; the text changes once one was not."""
        return dict(self._connection().execute(_MEMBERS.encode(), (self._name,)).fetchall())

    def add(self, table: PostgresTable) -> None:
        """Publish every change of a table, also where somebody else altered the publication."""
        name, shown = quote(self._name), qualified(table.schema)
        options = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true"
        if has(self._connection(), Since.GENERATED_PUBLISHED):
            options += ", publish_generated_columns = stored"
        is_there, of_all, names_it = self._stands(table)
        if of_all:  # then no table can be added to it
            self.drop()
        if of_all or not is_there:
            self._run(f"create publication {name} with ({options})")
        elif table.oid not in self.members():
            self._run(f"alter publication {name} set ({options})")
            if names_it and table.oid not in self.members():
                self._run(f"alter publication {name} drop table {shown}")
        if table.oid not in self.members():
            self._run(f"alter publication {name} add table {shown}")

    def note_begun(self) -> None:
        """Note at it that its slot was made just now: older servers need to know."""
        if not has(self._connection(), Since.PUBLICATIONS_MISSED):
            self._run(f"comment on publication {quote(self._name)} is {literal(BEGUN_WITH)}")

    def drop(self) -> None:
        """Drop it; safe to repeat."""
        self._run(f"drop publication if exists {quote(self._name)}")

    def _stands(self, table: PostgresTable) -> tuple[bool, bool, bool]:
        """Tell whether it is there, is of all tables, and names this one."""
        found = self._connection().execute(_PUBLISHED.encode(), (table.oid, self._name)).fetchone()
        return (False, False, False) if found is None else (True, bool(found[0]), bool(found[1]))

    def _run(self, sql: str) -> None:
        self._connection().execute(sql.encode())
