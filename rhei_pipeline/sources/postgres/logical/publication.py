"""A mirror's publication: which tables it contains, and whether with all their changes."""

import logging
from collections.abc import Callable

from rhei_pipeline.errors import CaptureError
from rhei_pipeline.sources.postgres.catalog import Connection, PostgresTable, qualified
from rhei_pipeline.sources.postgres.identity import BEGUN_WITH, one
from rhei_pipeline.sources.postgres.table_facts import NAMELESS, candidates
from rhei_pipeline.sources.postgres.versions import Since, has, where
from rhei_pipeline.sql.text import literal, quote

_log = logging.getLogger(__name__)

#: The tables that are published whole. A table that is dropped and made again, or leaves the
#: publication and returns, has other oids; a publication that was altered has another `xmin`.
_MEMBERS = """
select c.oid::bigint, concat_ws('.', r.oid, p.oid, p.xmin) from pg_publication_rel r
join pg_publication p on p.oid = r.prpubid join pg_class c on c.oid = r.prrelid
where p.pubname = %(name)s and {whole} {unfiltered}
"""
#: The same of one that somebody else keeps: it may be of schemas, or of all tables.
_FOREIGN_MEMBERS = """
select c.oid::bigint, concat_ws('.', r.oid, {of_schema} p.oid, p.xmin)
from pg_publication_tables t join pg_publication p on p.pubname = t.pubname
join pg_namespace n on n.nspname = t.schemaname
join pg_class c on c.relnamespace = n.oid and c.relname = t.tablename
left join pg_publication_rel r on r.prpubid = p.oid and r.prrelid = c.oid
where t.pubname = %(name)s and {whole} {unfiltered}
"""
_WHOLE = (
    "p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate"
    " and (p.pubviaroot or c.relkind <> 'p')"
)
_WITH_GENERATED = (
    " and (p.pubgencols = 's' or not exists (select from pg_attribute a"
    " where a.attrelid = c.oid and a.attgenerated = 's' and not a.attisdropped))"
)
_ALL_COLUMNS = """
and t.rowfilter is null and not exists (
    select from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    and a.attgenerated = '' and a.attname <> all(t.attnames))
"""
_OF_SCHEMA = """
(select s.oid from pg_publication_namespace s where s.pnpubid = p.oid and s.pnnspid = n.oid),
"""
_STANDS = """
select p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate and p.pubviaroot, exists (
    select from pg_publication_rel r where r.prpubid = p.oid and r.prrelid = %s)
from pg_publication p where p.pubname = %s
"""
_PUBLISHED = """
select p.puballtables,
    p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate and p.pubviaroot {generated},
    exists (select from pg_publication_rel r where r.prpubid = p.oid and r.prrelid = %s)
from pg_publication p where p.pubname = %s
"""
_ANY = """
select exists (select from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
               where p.pubname = %s)
"""
_OID = "select oid from pg_publication where pubname = %s"
_NAMED = """
select from pg_publication p
join pg_publication_rel r on r.prpubid = p.oid join pg_class c on c.oid = r.prrelid
join pg_namespace n on n.oid = c.relnamespace
where p.pubname = %s and n.nspname = %s and c.relname = %s
"""
#: Of our own: the tables that the server lets nobody update while they are published, by name. Each
#: relation of the catalogue is read once, however many tables there are.
_VAGUE = f"""
with ours(oid) as (
    select r.prrelid from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
    where p.pubname = %(name)s
), part(root, oid) as (
    select ours.oid, ours.oid from ours union all
    select c.oid, tree.relid from ours join pg_class c using (oid)
    cross join lateral pg_partition_tree(c.oid) tree where c.relkind = 'p'
)
select distinct null::bigint, quote_ident(n.nspname) || '.' || quote_ident(c.relname)
from part join pg_class named on named.oid = part.oid
join pg_class c on c.oid = part.root join pg_namespace n on n.oid = c.relnamespace
where {NAMELESS}
"""


class Publication:
    """One publication; changes made to it by others are detected.

    Args:
        connection: Returns an open connection.
        name: Its name.
        is_ours: Whether its mirror creates and repairs it; else somebody else maintains it.
    """

    def __init__(
        self, connection: Callable[[], Connection], name: str, *, is_ours: bool = True
    ) -> None:
        self._connection = connection
        self.name = name
        self._is_ours = is_ours

    def members(self) -> dict[int, str]:
        """Return the tables published with all changes, by oid; the text changes after a gap."""
        return published(self._connection(), self.name, is_ours=self._is_ours)

    def add(self, table: PostgresTable) -> None:
        """Publish every change of a table, even if somebody else changed the publication.

        Raises:
            CaptureError: Somebody else maintains it, and it lacks changes of the table.
        """
        if not self._is_ours:
            if table.oid not in self.members():
                raise CaptureError(
                    f"publication {self.name!r} does not publish all changes of it",
                    table=table.schema.name,
                    hint=f"have its owner run: {addition(self._connection(), self.name, table)}",
                )
            return
        name, shown = quote(self.name), qualified(table.schema)
        options = whole_options(self._connection())
        is_there, of_all, is_whole, names_it = self._stands(table)
        if of_all:  # then no table can be added to it
            self.drop()
        if of_all or not is_there:
            self._run(f"create publication {name} with ({options})")
            names_it = False
        elif not is_whole:
            self._run(f"alter publication {name} set ({options})")
        if names_it and table.oid not in self.members():
            self._run(f"alter publication {name} drop table {shown}")
            names_it = False
        if not names_it:
            self._run(f"alter publication {name} add table {shown}")

    def remove(self, name: str) -> None:
        """Publish a table of this name no more; one that somebody else keeps stays as it is."""
        if not self._is_ours:
            return
        for found in candidates(name):
            if self._connection().execute(_NAMED.encode(), (self.name, *found)).rowcount:
                shown = ".".join(map(quote, found))
                self._run(f"alter publication {quote(self.name)} drop table {shown}")
                return

    @property
    def is_empty(self) -> bool:
        """Whether it is ours and names no table, not even one that was renamed since."""
        found = self._connection().execute(_ANY.encode(), (self.name,)).fetchone()
        return self._is_ours and found is not None and not found[0]

    def look(self) -> dict[int, str]:
        """Return the members, once those are removed whose updates by the application would fail.

        Without a replica identity the server refuses updates of published tables. A table that
        gets one again is published again, and copied by its difference.
        """
        if not self._is_ours:
            return self.members()
        connection, members, vague = self._connection(), dict[int, str](), list[str]()
        statement = f"{_members(connection, is_ours=True)} union all ({_VAGUE})"
        for oid, text in connection.execute(statement.encode(), {"name": self.name}):
            if oid is None:
                vague.append(text)
            else:
                members[oid] = text
        for shown in vague:
            self._withdraw(shown)
        return self.members() if vague else members

    def _withdraw(self, shown: str) -> None:
        self._run(f"alter publication {quote(self.name)} drop table {shown}")
        _log.warning(
            "table %s has no replica identity: it is removed from the publication, so "
            "that the application can update it; until it has one, no log has its changes, "
            "and it is then copied by its difference, without the versions of that time",
            shown,
        )

    def note_begun(self) -> None:
        """Record at the publication that its slot was just created: older servers need that."""
        if self._is_ours and not has(self._connection(), Since.PUBLICATIONS_MISSED):
            (oid,) = one(self._connection(), _OID, self.name)
            begun = literal(f"{BEGUN_WITH} {oid}")
            self._run(f"comment on publication {quote(self.name)} is {begun}")

    def drop(self) -> None:
        """Drop it, if it is ours; safe to repeat."""
        if self._is_ours:
            self._run(f"drop publication if exists {quote(self.name)}")

    def _stands(self, table: PostgresTable) -> tuple[bool, bool, bool, bool]:
        """Return whether it exists, is for all tables, omits nothing, and contains this one."""
        connection = self._connection()
        whole = where(connection, Since.GENERATED_PUBLISHED, "and p.pubgencols = 's'")
        statement = _PUBLISHED.format(generated=whole).encode()
        found = connection.execute(statement, (table.oid, self.name)).fetchone()
        if found is None:
            return False, False, False, False
        of_all, is_whole, names_it = found
        return True, bool(of_all), bool(is_whole), bool(names_it)

    def _run(self, sql: str) -> None:
        self._connection().execute(sql.encode())


def published(connection: Connection, name: str, *, is_ours: bool) -> dict[int, str]:
    """Return the tables, by oid, that a publication publishes with all changes."""
    statement = _members(connection, is_ours=is_ours).encode()
    return dict(connection.execute(statement, {"name": name}).fetchall())


def _members(connection: Connection, *, is_ours: bool) -> str:
    generated = where(connection, Since.GENERATED_PUBLISHED, _WITH_GENERATED)
    filters = "and r.prqual is null and r.prattrs is null" if is_ours else _ALL_COLUMNS
    return (_MEMBERS if is_ours else _FOREIGN_MEMBERS).format(
        whole=f"{_WHOLE}{generated}",
        unfiltered=where(connection, Since.FILTERED_PUBLICATIONS, filters),
        of_schema=where(connection, Since.FILTERED_PUBLICATIONS, _OF_SCHEMA),
    )


def addition(connection: Connection, name: str, table: PostgresTable) -> str:
    """Return the statement by which the owner adds a table with all its changes."""
    found = connection.execute(_STANDS.encode(), (table.oid, name)).fetchone()
    shown, options = qualified(table.schema), whole_options(connection)
    if found is None:
        return f"create publication {quote(name)} for table {shown} with ({options})"
    is_whole, names_it = found
    if not is_whole:
        return f"alter publication {quote(name)} set ({options})"
    added = f"alter publication {quote(name)} add table {shown}"
    return f"alter publication {quote(name)} drop table {shown}; {added}" if names_it else added


def whole_options(connection: Connection) -> str:
    """Return the options of a publication that omits nothing."""
    options = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true"
    return options + where(
        connection, Since.GENERATED_PUBLISHED, ", publish_generated_columns = stored"
    )
