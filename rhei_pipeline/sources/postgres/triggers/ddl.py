"""The SQL of PostgreSQL capture: for each table a typed log and statement-level triggers.

Whatever happens to a table, its application's statements must not fail because of capture:
nothing here makes the server refuse to drop or alter a column or a type. A trigger that finds its
table changed records that in a table of ours, and logs the rows in another form.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.sources.postgres.catalog import (
    Connection,
    PostgresTable,
    qualified,
)
from rhei_pipeline.sources.postgres.table_facts import DEFAULT_NAMESPACE
from rhei_pipeline.sources.postgres.triggers.misfit import FUNCTIONS, log_misfit, note_misfit
from rhei_pipeline.sources.postgres.types import SESSION_SETTINGS
from rhei_pipeline.sql.text import listed, literal, quote

#: What the log says: a key was touched; a row as it is; a key without a row; the table was
#: truncated; and a first entry, which tells this log from one before it.
TOUCHED, ROW, GONE, TRUNCATED, BEGUN = "k", "r", "d", "t", "m"

#: When an entry was made: by its statement, or its commit if kept; of what was replicated, of both.
STATEMENT, COMMIT = "at", "least(greatest(pg_xact_commit_timestamp(xid::xid), at), now())"

SCHEMA = "_rhei"
#: What this version makes and reads, stated by a comment: nobody needs a grant to read that.
FORMAT = 1
FORMAT_PREFIX = "rhei: format "
#: What is captured, who reads it, which table was met otherwise than its trigger knows it, and the
#: logs that others took the place of while a mirror had yet to read them.
OWN_TABLES = (
    "create table if not exists _rhei.capture(relation oid primary key, columns text[] not null,"
    " key text[] not null, images boolean not null, wanted text not null, base bigint not null,"
    " pruned bigint not null, identity text)",
    "create table if not exists _rhei.consumer(mirror text not null, relation oid not null,"
    " snapshot pg_snapshot not null, position bigint not null, marker bigint not null,"
    " marked_by xid8, seen_at timestamptz not null default now(), primary key (mirror, relation))",
    "create table if not exists _rhei.broken(relation oid not null)",
    # Made by what came before this was known, the tables lack it.
    "alter table _rhei.broken add column if not exists lost boolean not null default true",
    "alter table _rhei.capture add column if not exists attributes smallint[],"
    " add column if not exists types oid[], add column if not exists log oid,"
    " add column if not exists whole boolean",
    *FUNCTIONS,
    "create table if not exists _rhei.former(log oid primary key, relation oid not null,"
    " columns text[] not null, key text[] not null, base bigint not null, pruned bigint not null,"
    " identity text not null, attributes smallint[] not null, types oid[] not null,"
    " ended bigint not null, cut bigint, leads_on boolean not null,"
    " whole boolean not null)",
    f"comment on table _rhei.capture is '{FORMAT_PREFIX}{FORMAT}'",
)

#: Built-in types, by oid, of which two equal values are one: true of few, false of 1.0 and 1.00.
_EXACT = {16, 17, 20, 21, 23, 25, 26, 1043, 1082, 1114, 1184, 2950}
#: real and double precision: 0.0 and -0.0 are one key to the mirror, as they are to the index.
_FLOATING = {700, 701}
#: character(n), and bpchar without a length, whose values are equal whatever blanks end them.
_BLANK_PADDED = 1042
_EVENTS = {
    "insert": "referencing new table as _rhei_new",
    "update": "referencing old table as _rhei_old new table as _rhei_new",
    "delete": "referencing old table as _rhei_old",
    "truncate": "",
}
#: A plan is made once a session, for one row or for a million: the way that suits both.
_BY_HASH = ("enable_nestloop = off", "enable_mergejoin = off")
_BY_INDEX = ("enable_hashjoin = off", "enable_mergejoin = off", "enable_seqscan = off")

_COLUMNS = """
with recursive base(relation, attnum, oid) as (
    select attrelid, attnum, atttypid from pg_attribute
    where attrelid = any(%(oids)s::oid[]) and attnum > 0 and not attisdropped
    union all
    select b.relation, b.attnum, t.typbasetype from base b join pg_type t on t.oid = b.oid
    where t.typtype = 'd'
), operator(relation, attnum, name) as (
    select i.indrelid, k.attnum, min(format('operator(%%I.%%s)', n.nspname, o.oprname))
    from pg_index i cross join unnest(i.indkey::int2[], i.indclass::oid[]) k(attnum, class)
    join pg_opclass c on c.oid = k.class
    join pg_am m on m.oid = c.opcmethod and m.amname = 'btree'
    join pg_amop p on p.amopfamily = c.opcfamily and p.amopstrategy = 3
        and p.amoplefttype = c.opcintype and p.amoprighttype = c.opcintype
    join pg_operator o on o.oid = p.amopopr join pg_namespace n on n.oid = o.oprnamespace
    where i.indrelid = any(%(oids)s::oid[]) and i.indisunique group by i.indrelid, k.attnum
)
select a.attrelid::bigint, a.attname::text, a.atttypid::bigint, b.oid::bigint,
    format_type(b.oid, -1),
    (select quote_ident(n.nspname) || '.' || quote_ident(l.collname) from pg_collation l
     join pg_namespace n on n.oid = l.collnamespace
     where l.oid = a.attcollation and l.collprovider <> 'd'),
    coalesce(o.name, 'operator(pg_catalog.=)'), a.attnum::int,
    case when t.typlen > 0 then (t.typlen + 7) / 8 * 8 when t.typstorage = 'p' then 8192 else 24 end
from base b join pg_attribute a on a.attrelid = b.relation and a.attnum = b.attnum
join pg_type t on t.oid = b.oid and t.typtype <> 'd'
left join operator o on o.relation = a.attrelid and o.attnum = a.attnum
order by a.attrelid, a.attnum
"""
_PRIMARY = """
select indrelid::bigint, indkey::text from pg_index
where indrelid = any(%s::oid[]) and indisprimary
"""
#: How many columns a table may have, and how many the log of a history has besides.
_MOST_COLUMNS, _OWN_COLUMNS = 1600, 5
#: What a row may take on a page, less its header, its map of nulls, and the log's own columns.
_ROW_BYTES = 8160 - 24 - 200 - 32
#: Types that come with the server have oids below this; no application can drop them.
_FIRST_OWN_OID = 16_384


@dataclass(frozen=True, slots=True)
class LoggedColumn:
    """A column of a table, and its form in the log.

    Attributes:
        declared: Its type's oid.
        base: The oid of a domain's base type, else the same.
        type: That type's name.
        collation: Its collation, if it is not the database's default.
        equals: The equality operator of the key's index.
        attribute: Its number, which no other column of the table ever gets; 0 if it was dropped.
        most_bytes: How much of a row a value takes at most; larger ones are stored beside the row.
    """

    name: str
    declared: int
    base: int
    type: str
    collation: str | None
    equals: str
    attribute: int
    most_bytes: int = 24

    @property
    def stored(self) -> str:
        """Its type in the log; text for a type that an application may want to drop."""
        return self.type if self.base < _FIRST_OWN_OID else "text"

    @property
    def is_exact(self) -> bool:
        """Whether values that are equal in the index are always one key."""
        return self.base in _EXACT | _FLOATING and self.collation is None

    @property
    def is_exact_in_log(self) -> bool:
        """Whether values that are equal in the log are always one key."""
        return self.stored == "text" or self.base in _EXACT | _FLOATING

    def shown(self, place: str) -> str:
        """Return SQL of a logged key; if it has several forms, the present one of its row."""
        logged = f"k.{place}"
        return f"coalesce(t.{quote(self.name)}, {logged})" if self.base in _FLOATING else logged

    def logged(self, value: str) -> str:
        """Return SQL that converts a table's value for the log."""
        return value if self.base < _FIRST_OWN_OID else f"{value}::text"

    def native(self, value: str) -> str:
        """Return SQL that converts a logged value so that the table's index finds it."""
        typed = value if self.base < _FIRST_OWN_OID else f"{value}::{self.type}"
        return f"({typed} collate {self.collation})" if self.collation else typed

    def same(self, left: str, right: str) -> str:
        """Return SQL that compares two values: equal, and one key."""
        equal = f"{left} {self.equals} {right}"
        return equal if self.is_exact else f"{equal} and {self.form(left)} = {self.form(right)}"

    def form(self, value: str) -> str:
        """Return SQL that tells apart how a value is written, and compares that by its bytes."""
        # As text, it has no blanks at its end.
        text = f"textin(bpcharout({value}))" if self.base == _BLANK_PADDED else f"{value}::text"
        return f'({text} collate "C")'


def columns_of(connection: Connection, oids: Collection[int]) -> dict[int, dict[str, LoggedColumn]]:
    """Read all columns of tables, by their oid and name."""
    found: dict[int, dict[str, LoggedColumn]] = {oid: {} for oid in oids}
    for oid, *column in connection.execute(_COLUMNS, {"oids": list(oids)}):
        found[oid][column[0]] = LoggedColumn(*column)
    return found


def primaries_of(connection: Connection, oids: Collection[int]) -> dict[int, str]:
    """Return the columns of tables' primary keys, as the catalogue writes them, by their oid."""
    return dict(connection.execute(_PRIMARY, (list(oids),)).fetchall())


@dataclass(frozen=True)
class TableLog:
    """The log of one table, and the columns it stores.

    Attributes:
        columns: In their order in the log.
        images: Whether it stores row images, or only the touched keys.
        whole: Whether these are all columns of the table.
        primary: The table's primary key as the catalogue writes it, if that is the key.
    """

    source: PostgresTable
    key: tuple[str, ...]
    columns: tuple[LoggedColumn, ...]
    images: bool
    whole: bool = False
    primary: str | None = None

    @property
    def name(self) -> str:
        """The name of the log table."""
        return log_name(self.source.oid)

    @property
    def table(self) -> str:
        """The quoted name of the logged table."""
        return qualified(self.source.schema)

    @cached_property
    def places(self) -> dict[str, str]:
        """The columns' names in the log."""
        return {column.name: f"c{place}" for place, column in enumerate(self.columns)}

    @cached_property
    def key_columns(self) -> tuple[LoggedColumn, ...]:
        """The columns of the key."""
        by_name = {column.name: column for column in self.columns}
        return tuple(by_name[name] for name in self.key)

    @cached_property
    def wanted(self) -> str:
        """A digest of everything that capture of this table consists of."""
        return hashlib.sha256("\n".join([*self.tables(), *self.triggers()]).encode()).hexdigest()

    def tables(self) -> list[str]:
        """Return the statements that create the log."""
        kept = "".join(f", {self.places[c.name]} {c.stored}" for c in self.columns)
        kept += ", misfit jsonb" if self.images else ""
        # One index, in which all rows of a statement stand together: others cost the application.
        return [
            f"create table {self.name}(seq bigint generated always as identity,"
            " xid xid8 not null default pg_current_xact_id(),"
            f' at timestamptz not null default clock_timestamp(), kind "char" not null{kept})',
            f"create index on {self.name}(xid)",
        ]

    def triggers(self) -> Iterator[str]:
        """Yield the statements that create the triggers, or repair them."""
        settings = ["search_path = pg_catalog, pg_temp", *(_BY_INDEX if self.images else _BY_HASH)]
        if any(column.base >= _FIRST_OWN_OID for column in self.columns):
            # A type's text depends on them.
            settings += [
                f"{name} = {literal(value)}"
                for name, value in SESSION_SETTINGS.items()
                if name != "client_encoding"
            ]
        yield (
            f"create or replace function {self._function}() returns trigger language plpgsql"
            f" security definer {' '.join(f'set {setting}' for setting in settings)}"
            f" as {literal(self._body())}"
        )
        # Nobody is to write to the log from a table of his own.
        yield f"revoke all on function {self._function}() from public"
        for event, referencing in _EVENTS.items():
            trigger = quote(f"_rhei_{event}")
            yield (
                f"create or replace trigger {trigger} after {event} on {self.table} {referencing}"
                f" for each statement execute function {self._function}()"
            )
            # Replication and bulk loads turn other triggers off.
            yield f"alter table {self.table} enable always trigger {trigger}"

    @property
    def _function(self) -> str:
        return f"{SCHEMA}.capture_{self.source.oid}"

    def _body(self) -> str:
        bodies = {
            "INSERT": self._inserted(),
            "UPDATE": self._updated(),
            "DELETE": self._deleted(),
            "TRUNCATE": [f"insert into {self.name}(kind) values ({literal(TRUNCATED)})"],
        }
        branches = " els".join(
            f"if tg_op = {literal(event)} then {' '.join(f'{text};' for text in statements)}"
            for event, statements in bodies.items()
        )
        logging = self._fitting(f"{branches} end if;")
        return (
            f"declare sentence text; begin {self._guard()} {self._with_old_catalogue(logging)}"
            f" {logging} return null; end"
        )

    def _fitting(self, logging: str) -> str:
        """Return SQL that logs rows in another form where one is too wide for the log.

        The log has columns of its own, and so less room in a row than the table. A block with an
        exception is a transaction within the transaction: only tables that need it pay for that.
        """
        if not self.images or sum(column.most_bytes for column in self.columns) <= _ROW_BYTES:
            return logging
        return f"begin {logging} exception when program_limit_exceeded then {self._misfit()} end;"

    def _with_old_catalogue(self, logging: str) -> str:
        """Return SQL for a transaction that began before the table's last change.

        It sees the catalogue of its start, and the present table.
        """
        names = sorted(column.name for column in self.columns)
        found = (
            'select array_agg(key order by key collate "C") from (select jsonb_object_keys('
            "to_jsonb(one)) as key from (select * from {0} limit 1) one) found"
        )
        checks = " els".join(
            f"if tg_op {events} then if ({found.format(rows)}) <> array[{_literals(names)}]"
            " then raise undefined_column; end if;"
            for events, rows in (
                ("in ('INSERT', 'UPDATE')", "_rhei_new"),
                ("= 'DELETE'", "_rhei_old"),
            )
        )
        check = f"{checks} end if;" if self.images and self.whole else ""
        return (
            "if current_setting('transaction_isolation') in ('repeatable read', 'serializable')"
            f" then begin {check} {logging}"
            f" exception when syntax_error_or_access_rule_violation then {_lost()} end;"
            " return null; end if;"
        )

    def _guard(self) -> str:
        """Return SQL that logs in another form if the table has changed."""
        schema = self.source.schema
        return (
            f"if to_regclass({literal(self.name)}) is null then return null; end if;"
            f"{self._unread_guard()}"
            f" if tg_table_schema <> {literal(schema.namespace or DEFAULT_NAMESPACE)}"
            f" or tg_table_name <> {literal(schema.relation)} or {self._is_otherwise()}"
            f" then {self._misfit()} return null; end if;"
        )

    def _unread_guard(self) -> str:
        """Return SQL for a table of which our user may not, or does not, see all rows any more.

        The application's statement would fail for it, or hidden rows would be logged as gone.
        """
        if not self.images:
            return ""
        return (
            " if not (has_schema_privilege(tg_table_schema, 'usage')"
            " and has_table_privilege(tg_relid, 'select')) or row_security_active(tg_relid)"
            f" then {_lost()} return null; end if;"
        )

    def _is_otherwise(self) -> str:
        """Return the condition that columns or key have changed."""
        known = sorted(self._named, key=lambda column: column.attribute)
        said = literal(" ".join(f"{c.name} {c.attribute} {c.declared}" for c in known))
        names = _literals([column.name for column in known])
        # Of a row that is kept whole, a column that it does not have yet is a part as well.
        chosen = "" if self.images and self.whole else f" and attname = any(array[{names}])"
        changed = (
            f"{said} is distinct from (select string_agg(concat_ws(' ', attname, attnum, atttypid),"
            " ' ' order by attnum) from pg_attribute where attrelid = tg_relid and attnum > 0"
            f" and not attisdropped{chosen})"
        )
        return f"{changed} or {self._is_of_another_key()}" if self.images else changed

    def _is_of_another_key(self) -> str:
        """Return the condition that the key may be shared now, or is another one."""
        numbers = ", ".join(str(column.attribute) for column in self.key_columns)
        unique = (
            "exists (select from pg_index u where u.indrelid = tg_relid and u.indisunique"
            " and u.indisvalid and u.indimmediate and u.indpred is null and u.indexprs is null"
            f" and array[{numbers}]::int2[] @> (u.indkey::int2[])[0:u.indnkeyatts - 1])"
        )
        # What is checked at commit only is captured for that, and may be checked sooner.
        is_unique = "true" if self.source.is_deferred else unique
        if self.primary is None:
            return f"not {is_unique}"
        return (
            "not exists (select from pg_index p where p.indrelid = tg_relid and p.indisprimary"
            f" and p.indkey::text = {literal(self.primary)} and (p.indimmediate or {is_unique}))"
        )

    def _misfit(self) -> str:
        if not self.images:
            return _lost()
        key = ",".join(str(column.attribute) for column in self.key_columns)
        return log_misfit("tg_relid", self.name, f"{{{key}}}", otherwise=_lost())

    @property
    def _named(self) -> Sequence[LoggedColumn]:
        """The columns that the triggers name."""
        return self.columns if self.images else self.key_columns

    def _inserted(self) -> list[str]:
        return [self._image() if self.images else self._touch("_rhei_new")]

    def _updated(self) -> list[str]:
        if self.images:
            return [*self._deleted(), self._image()]
        moved = f"not exists (select from _rhei_new n where {self._same('n', 'o')})"
        return [self._touch("_rhei_new"), f"{self._touch('_rhei_old')} where {moved}"]

    def _deleted(self) -> list[str]:
        if not self.images:
            return [self._touch("_rhei_old")]
        gone = f"not exists (select from {self.table} t where {self._same('t', 'o')})"
        # Of two rows that shared a key, one is left.
        left = f"{self.image_insert()} join _rhei_old o on {self._same('t', 'o')}"
        return [
            f"{self._keys(GONE, '_rhei_old')} where {gone}",
            *([left] if self.source.is_deferred else []),
        ]

    def _touch(self, rows: str) -> str:
        return self._keys(TOUCHED, rows)

    def _keys(self, kind: str, rows: str) -> str:
        places = ", ".join(self.places[name] for name in self.key)
        values = ", ".join(c.logged(f"o.{quote(c.name)}") for c in self.key_columns)
        return (
            f"insert into {self.name}(kind, {places})"
            f" select {literal(kind)}, {values} from {rows} o"
        )

    def _image(self) -> str:
        """Return SQL that logs the present rows: other triggers may have changed them again."""
        return f"{self.image_insert()} join _rhei_new n on {self._same('t', 'n')}"

    def image_insert(self) -> str:
        """Return the statement that logs present rows; a condition may follow it."""
        places = ", ".join(self.places.values())
        values = ", ".join(column.logged(f"t.{quote(column.name)}") for column in self.columns)
        return (
            f"insert into {self.name}(kind, {places}) select {literal(ROW)}, {values}"
            f" from {self.table} t"
        )

    def touch_insert(self, keys: str) -> str:
        """Return the statement that logs keys, given as SQL, as touched or with their rows.

        The first of those rows gives the types of the key's columns.
        """
        typed = f"select {listed(self.key)} from {self.table} where false"
        asked = f"({typed} union all {keys})"
        if not self.images:
            return self._touch(asked)
        gone = f"not exists (select from {self.table} t where {self._same('t', 'o')})"
        return (
            f"with rows as ({self.image_insert()} join {asked} n on {self._same('t', 'n')})"
            f" {self._keys(GONE, asked)} where {gone}"
        )

    def net_sql(self, names: Sequence[str], touched: str, entries: int) -> str:
        """Return SQL that selects `live` and columns of every touched key, each once.

        With the number of entries as a hint, the server looks up few keys by the table's index;
        its own statistics of a log that is pruned all the time are not useful.
        """
        keys = [(column, self.places[column.name]) for column in self.key_columns]
        apart = [place if c.is_exact_in_log else f"{place}, {c.form(place)}" for c, place in keys]
        on = " and ".join(
            column.same(f"t.{quote(column.name)}", column.native(f"k.{place}"))
            for column, place in keys
        )
        shown_keys = {column.name: column.shown(place) for column, place in keys}
        shown = ", ".join(shown_keys.get(name, f"t.{quote(name)}") for name in names)
        return (
            f"select t.{quote(self.key[0])} is distinct from null, {shown} from ("
            f"select {', '.join(place for _, place in keys)} from ({touched}) touched"
            f" group by {', '.join(apart)} limit {entries}) k left join {self.table} t on {on}"
        )

    def _same(self, left: str, right: str) -> str:
        """Return SQL that compares the keys of two rows of the table."""
        return " and ".join(
            column.same(f"{left}.{quote(column.name)}", f"{right}.{quote(column.name)}")
            for column in self.key_columns
        )


def refuse_too_many_columns(log: TableLog) -> None:
    """Refuse a log that the server cannot make.

    Raises:
        SchemaError: With the log's own columns, there are more than a table may have.
    """
    if log.images and len(log.columns) + _OWN_COLUMNS > _MOST_COLUMNS:
        raise SchemaError(
            f"its history needs a log of its {len(log.columns)} columns and {_OWN_COLUMNS} more,"
            f" and a table of PostgreSQL has at most {_MOST_COLUMNS}",
            table=log.source.schema.name,
            hint="mirror fewer of its 'columns', or without a history ('mode: destructive'), or"
            " declare 'capture: {method: logical}'",
        )


def log_name(relation: int) -> str:
    """Return the name of a table's log."""
    return f"{SCHEMA}.log_{relation}"


def remains(relation: int) -> Iterable[str]:
    """Yield the statements that remove the capture of a table."""
    yield f"drop table if exists {log_name(relation)}"
    yield f"drop function if exists {SCHEMA}.capture_{relation} cascade"
    for table in ("capture", "consumer", "broken"):
        yield f"delete from {SCHEMA}.{table} where relation = {relation}"


def _lost() -> str:
    """Return SQL that records a change of a table that no log contains."""
    return f"begin {note_misfit('tg_relid', lost=True)}; exception when others then null; end;"


def _literals(texts: Iterable[str]) -> str:
    return ", ".join(map(literal, texts))
