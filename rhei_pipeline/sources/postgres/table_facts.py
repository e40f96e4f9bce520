"""What PostgreSQL's catalogue says of tables: many cost as many statements as one."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import psycopg

from rhei_pipeline.sources.postgres.connection import Connection
from rhei_pipeline.sources.postgres.marks import Marks, read_marks

DEFAULT_NAMESPACE = "public"

#: Of a row `named` of pg_class: no replica identity names its rows. The server refuses updates and
#: deletes of such a table while it is published. Keep docs/postgres.md alike.
NAMELESS = """
named.relkind = 'r' and named.relreplident <> 'f' and not exists (
    select from pg_index i where i.indrelid = named.oid and i.indimmediate and case
        named.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident end)
"""

#: The tables that hold the rows of a row `c` of pg_class.
HOLDING = """
(select c.oid, c.relkind, c.relfilenode where c.relkind = 'r' union all
    select part.oid, part.relkind, part.relfilenode from pg_partition_tree(c.oid) tree
    join pg_class part on part.oid = tree.relid where c.relkind = 'p' and tree.isleaf)
"""
#: Of a row `c` of pg_class: where its rows are, and the greatest number that a column of it ever
#: had. Numbers are not used again.
STORAGE = f"""
case when c.relkind in ('r', 'p') then coalesce((select md5(string_agg(
    concat_ws(' ', held.oid, held.relfilenode), ',' order by held.oid)) from {HOLDING} held
), '-') || ':' || c.relnatts else '' end
"""

_RELATIONS = f"""
select t.place, n.nspname, c.relname, c.oid::bigint, c.relkind::text, c.relpersistence::text,
    c.relreplident::text, row_security_active(c.oid),
    c.relkind = 'r' and exists (select from pg_inherits i where i.inhparent = c.oid), {STORAGE}
from unnest(%s::text[], %s::text[]) with ordinality as t(namespace, relation, place)
join pg_namespace n on n.nspname = t.namespace
join pg_class c on c.relnamespace = n.oid and c.relname = t.relation
where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
"""
#: Of a row `a` of pg_attribute: no row has a null there. PostgreSQL 18 has constraints that hold
#: for rows to come alone, and marks their columns like others.
_NOT_NULL = """
a.attnotnull and (a.attrelid, a.attnum) not in (
    select v.conrelid, k.attnum from pg_constraint v cross join unnest(v.conkey) k(attnum)
    where v.contype = 'n' and not v.convalidated)
"""
#: Of a row `a` of pg_attribute and an index's class `used` of operators: they are those of the
#: column's own type, if it has some. So citext is not unique as text is, where case counts.
_BY_OWN_TYPE = """
(used.opcintype = a.atttypid or not exists (
    select from pg_type t join pg_opclass own on own.opcintype in (t.oid, t.typbasetype)
    where t.oid = a.atttypid and own.opcdefault and own.opcmethod = used.opcmethod
        and own.opcintype <> used.opcintype))
"""
_COLUMNS = f"""
with recursive base(relation, attnum, oid, modifier) as (
    select a.attrelid, a.attnum, a.atttypid, a.atttypmod from pg_attribute a
    where a.attrelid = any(%s::oid[]) and a.attnum > 0 and not a.attisdropped
    union all
    select b.relation, b.attnum, t.typbasetype, t.typtypmod
    from base b join pg_type t on t.oid = b.oid where t.typtype = 'd'
)
select a.attrelid::bigint, a.attname, {_NOT_NULL}, a.attgenerated::text, b.oid::bigint,
    b.modifier, a.attnum
from base b join pg_attribute a on a.attrelid = b.relation and a.attnum = b.attnum
join pg_type t on t.oid = b.oid and t.typtype <> 'd'
order by a.attrelid, a.attnum
"""
_INDEXES = f"""
select i.indrelid::bigint, case when i.indpred is null and i.indisvalid then (
        select a.attname from pg_attribute a
        where a.attrelid = i.indrelid and a.attnum = i.indkey[0]) end,
    i.indisunique, key.names, i.indisprimary, i.indimmediate, i.indisreplident,
    i.indisvalid and i.indpred is null and i.indexprs is null and key.is_whole,
    array(select i.indexrelid::bigint union all select c.oid::bigint from pg_constraint c
        where c.conrelid = i.indrelid and c.conindid = i.indexrelid and c.contype in ('p', 'u'))
from pg_index i cross join lateral (
    select array_agg(a.attname::text order by k.place), bool_and({_NOT_NULL}
        and (k.compared = a.attcollation or l.collisdeterministic is not false)
        and {_BY_OWN_TYPE})
    from unnest(i.indkey::int2[], i.indcollation::oid[], i.indclass::oid[])
        with ordinality as k(attnum, compared, class, place)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
    join pg_opclass used on used.oid = k.class
    left join pg_collation l on l.oid = a.attcollation
    where k.place <= i.indnkeyatts
) key(names, is_whole)
where i.indrelid = any(%s::oid[])
order by i.indexrelid
"""
_UNFIT_PARTS = f"""
select root::bigint, min(named.oid::regclass::text) filter (where {NAMELESS}),
    min(named.oid::regclass::text) filter (where named.relpersistence <> 'p')
from unnest(%s::oid[]) root cross join lateral pg_partition_tree(root) part
join pg_class named on named.oid = part.relid group by root
"""


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """A column as the server stores it, mirrored or not.

    Attributes:
        generated: How it is generated; empty if it is not.
        oid, modifier: Its type's; for a domain, those of its base type.
        number: No other column of the table ever has it.
    """

    name: str
    not_null: bool
    generated: str
    oid: int
    modifier: int
    number: int


@dataclass(frozen=True, slots=True)
class IndexFacts:
    """A unique index: the columns of its key, in order.

    Attributes:
        oids: Its own number, and its constraint's, which it keeps while it is built again. No
            other one ever has them.
        is_key: It is one of all rows, also those of before; no column of it is null, or holds
            values equal that are several to the index.
    """

    names: tuple[str, ...]
    oids: tuple[int, ...]
    is_primary: bool
    is_immediate: bool
    is_identity: bool
    is_key: bool


@dataclass(slots=True)
class TableFacts:
    """What the catalogue says of one table, view or sequence.

    Attributes:
        kind, persistence, identity: As pg_class has them.
        hides_rows: Row security hides some from this user.
        has_heirs: Tables inherit from it.
        storage: See `STORAGE`.
        led_by: The columns with which indexes of all its rows begin.
        nameless_part: The first of its parts whose rows no replica identity names.
        unlogged_part: The first of its parts whose changes the server does not log.
    """

    namespace: str
    relation: str
    oid: int
    kind: str
    persistence: str
    identity: str
    hides_rows: bool
    has_heirs: bool
    storage: str = ""
    marks: Marks = field(default_factory=lambda: Marks("", {}))
    columns: list[ColumnFacts] = field(default_factory=list)
    indexes: list[IndexFacts] = field(default_factory=list)
    led_by: set[str | None] = field(default_factory=set)
    nameless_part: str | None = None
    unlogged_part: str | None = None


def candidates(name: str) -> list[tuple[str, str]]:
    """Return the tables, as schema and relation, that a name may mean, the likeliest first."""
    parts = name.split(".")
    cuts = range(1, len(parts))
    return [
        *((".".join(parts[:cut]), ".".join(parts[cut:])) for cut in cuts),
        (DEFAULT_NAMESPACE, name),
    ]


def read_facts(connection: Connection, names: Collection[str]) -> dict[str, TableFacts]:
    """Read what the catalogue says of the tables of these names; those it lacks are left out."""
    found = _relations(connection, names)
    known = {facts.oid: facts for facts in found.values() if facts.kind in {"r", "p"}}
    if not known:
        return found
    oids = sorted(known)
    # Read first: what changes while the columns are read has the marks be others next time.
    for oid, marks in read_marks(connection, oids).items():
        known[oid].marks = marks
    for oid, *column in connection.execute(_COLUMNS, (oids,)):
        known[oid].columns.append(ColumnFacts(*column))
    for oid, first, is_unique, keyed, *kinds, numbers in connection.execute(_INDEXES, (oids,)):
        known[oid].led_by.add(first)
        if is_unique and keyed:
            known[oid].indexes.append(IndexFacts(tuple(keyed), tuple(numbers), *kinds))
    for oid, nameless, unlogged in connection.execute(_UNFIT_PARTS.encode(), (oids,)):
        known[oid].nameless_part, known[oid].unlogged_part = nameless, unlogged
    return found


def read_ahead(connection: Connection, names: Collection[str]) -> dict[str, TableFacts]:
    """Read what the catalogue says of many tables; nothing where that fails.

    Whoever needs one then reads it alone, and an error is its own.
    """
    try:
        return read_facts(connection, names)
    except psycopg.Error:
        if connection.closed:
            raise
        return {}


class FactsOfState:
    """Reads what the catalogue says of many tables, again only once something was committed."""

    def __init__(self) -> None:
        self._state: object = None
        self._names: frozenset[str] = frozenset()
        self._facts: Mapping[str, TableFacts] = {}

    def read(
        self, connection: Connection, names: Collection[str], state: object
    ) -> Mapping[str, TableFacts]:
        """Return what it says of these tables, and maybe of others; see `read_ahead`.

        Args:
            connection: Where to read it.
            names: The tables.
            state: What changes with every commit, as it is now; see `SourceCatalog.state`.
        """
        if self._state != state or not self._names.issuperset(names):
            self._facts = read_ahead(connection, names)
            # It may have failed for now, with none found.
            self._state = state if self._facts else None
            self._names = frozenset(names)
        return self._facts

    def forget(self) -> None:
        """Read all again, on another connection."""
        self._state = None


def _relations(connection: Connection, names: Iterable[str]) -> dict[str, TableFacts]:
    asked = [(name, *candidate) for name in names for candidate in candidates(name)]
    if not asked:
        return {}
    _, namespaces, relations = map(list, zip(*asked, strict=True))
    rows = connection.execute(_RELATIONS, (namespaces, relations)).fetchall()
    found: dict[str, TableFacts] = {}
    for place, *facts in sorted(rows, key=lambda row: int(row[0])):
        found.setdefault(asked[place - 1][0], TableFacts(*facts))
    return found
