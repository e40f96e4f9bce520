"""What may be done to a table between two syncs, as data, and how a sync must end then."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: How a cell may end. EITHER: equal, or named with a way out that works.
EQUAL, NAMED, EITHER = "equal", "named", "either"

#: What SQLite's and PostgreSQL's statements write differently.
WORDS = {
    "sqlite": {
        "{now}": "strftime('%Y-%m-%d %H:%M:%f', 'now')",
        "{int}": "integer",
        "{stamp}": "text",
        "{kept}": "virtual",
    },
    "postgres": {
        "{now}": "now()",
        "{int}": "int",
        "{stamp}": "timestamptz",
        "{kept}": "stored",
    },
}

_COLUMNS = (
    "id {int} primary key, code text not null unique, qty {int}, cost {int},"
    " price decimal(6, 2), note text, updated_at {stamp}, tail {int}"
)
#: The source, as each cell begins: `t` is what drifts, `other` is what must not suffer by it.
SOURCE = (
    f"create table t({_COLUMNS})",
    "insert into t values (1, 'a', 10, 100, 1.25, 'one', {now}, 1000), (2, 'b', 20, 200, 2.5,"
    " 'two', {now}, 2000), (3, 'c', 30, 300, null, null, {now}, null),"
    " (4, 'd', null, null, 0.75, '', {now}, 4000)",
    f"create table u({_COLUMNS})",
    "insert into u values (1, 'u', 7, 70, 7.25, 'seven', {now}, 7000), (8, 'v', 8, 80, 8.25,"
    " 'eight', {now}, 8000)",
    "create table other(id {int} primary key, v text, updated_at {stamp})",
    "insert into other values (1, 'a', {now}), (2, 'b', {now}), (3, 'c', {now})",
)
#: What is captured before anything drifts.
EARLIER = (
    "update t set qty = 11, price = 1.75, updated_at = {now} where id = 1",
    "update t set note = 'six', qty = 16, updated_at = {now} where id = 2",
    "insert into t values (5, 'e', 50, 500, 5.5, 'five', {now}, 5000)",
    "delete from t where id = 4",
    "update other set v = 'b2', updated_at = {now} where id = 2",
)
#: What no sync has seen yet when the table drifts: every one of these is a version.
PENDING = (
    "update t set qty = 21, price = 3.25, updated_at = {now} where id = 1",
    "update t set qty = 22, cost = 122, updated_at = {now} where id = 1",
    "insert into t values (9, 'i', 90, 900, 9.5, 'nine', {now}, 9000)",
    "update t set note = 'TWO', updated_at = {now} where id = 2",
    "delete from t where id = 9",
)
#: What the table beside goes through at the same time.
BESIDE = (
    "update other set v = v || '!', updated_at = {now} where id = 1",
    "insert into other values (9, 'i', {now})",
    "delete from other where id = 3",
)
_AFTER = (
    "insert into t(id, code, updated_at) values (50, 'z', {now})",
    "update t set code = 'aa', updated_at = {now} where id = 1",
    "delete from t where id = 3",
)
_INSERTED = _AFTER[:1]


@dataclass(frozen=True)
class Way:
    """A way out that an error names, and what is done when it is taken.

    Attributes:
        said: What the error's text matches where it names this way.
        sql: Statements in the source.
        declared: What is added to the table's declaration; the pipeline is opened again.
        begins_anew: The way is to give up the history so far: the mirror's table is dropped.
    """

    said: str
    sql: tuple[str, ...] = ()
    declared: Mapping[str, Any] = field(default_factory=dict)
    begins_anew: bool = False


@dataclass(frozen=True)
class Drift:
    """One thing that is done to a table.

    Attributes:
        sqlite, postgres: The statements, run in one transaction; none where there is no such thing.
        before: Statements run before the first sync.
        after: What the application writes once it is done.
        ends: How the sync that meets it must end.
        ends_in: The same where the capture's, the mode's or the source's name is this.
        ways: The ways out that may be named.
        also: Other tables that it touches.
        renames: The names that columns get, by those that they had; a history may follow them.
    """

    name: str
    sqlite: tuple[str, ...] = ()
    postgres: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = _AFTER
    ends: str = EQUAL
    ends_in: Mapping[str, str] = field(default_factory=dict)
    ways: tuple[Way, ...] = ()
    also: tuple[str, ...] = ()
    renames: Mapping[str, str] = field(default_factory=dict)


def _both(name: str, *statements: str, **others: Any) -> Drift:
    return Drift(name, sqlite=statements, postgres=statements, **others)


def _rebuilt(columns: str, rows: str) -> tuple[str, ...]:
    """Rebuild a table as SQLite's manual tells (lang_altertable.html, section 7)."""
    return (
        f"create table rebuilt({columns})",
        f"insert into rebuilt {rows}",
        "drop table t",
        "alter table rebuilt rename to t",
    )


def _keyed(columns: str, key: str) -> tuple[str, ...]:
    return _rebuilt(f"{columns}, primary key ({key})", "select * from t")


_LOOSE = _COLUMNS.replace(" primary key", " not null")
_ALL = "id, code, qty, cost"
_REST = "note, updated_at, tail"
_DROPS_HISTORY = Way("rhei drop-table", begins_anew=True)
_TYPED = Way("'types'", declared={"types": {"price": "decimal(6,2)"}})
_KEPT = {"temporal": EITHER}
_TWICE = "alter table t add column twice {int} generated always as (qty * 2) {kept}"
_AGAIN = (
    "insert into t values (1, 'a2', 1, 1, 1, 'again', {now}, 1), (7, 'g', 7, 7, 7, '', {now}, 7)"
)

#: Stands for the statements that add a lost key again.
KEY_AGAIN = "{key again}"
_KEY_AGAIN = {
    "sqlite": _keyed(_LOOSE, "id"),
    "postgres": ("alter table t add primary key (id)",),
}

DRIFTS = (
    _both("add_null", "alter table t add column x {int}"),
    _both("add_default", "alter table t add column x {int} default 7"),
    _both("add_not_null", "alter table t add column x {int} not null default 7"),
    _both("drop", "alter table t drop column note"),
    _both("rename", "alter table t rename column note to remark", renames={"note": "remark"}),
    _both(
        "rename_and_drop",
        "alter table t rename column note to remark",
        "alter table t drop column remark",
    ),
    _both("drop_and_add", "alter table t drop column tail", "alter table t add column tail {int}"),
    _both(
        "drop_and_add_default",
        "alter table t drop column tail",
        "alter table t add column tail {int} default 7",
    ),
    _both(
        "drop_and_add_elsewhere",
        "alter table t drop column qty",
        "alter table t add column qty {int}",
    ),
    _both("rename_case", 'alter table t rename column note to "Note"'),
    _both(
        "swap_columns",
        "alter table t rename column qty to between_",
        "alter table t rename column cost to qty",
        "alter table t rename column between_ to cost",
    ),
    _both(
        "rename_table",
        "alter table t rename to moved",
        after=(),
        ends=NAMED,
        ways=(Way(r"\(.+\)", sql=("alter table moved rename to t",)),),
    ),
    _both(
        "drop_table",
        "drop table t",
        after=(),
        ends=NAMED,
        ways=(Way(r"\(.+\)", sql=(f"create table t({_COLUMNS})", _AGAIN)),),
    ),
    _both("recreate", "drop table t", f"create table t({_COLUMNS})", _AGAIN),
    _both(
        "recreate_otherwise",
        "drop table t",
        "create table t(id {int} primary key, code text, qty {int}, extra text,"
        " updated_at {stamp})",
        "insert into t values (1, 'a', 1, 'x', {now}), (7, 'g', 7, 'y', {now})",
    ),
    _both(
        "swap_tables",
        "alter table t rename to between_",
        "alter table u rename to t",
        "alter table between_ rename to u",
        also=("u",),
    ),
    Drift("truncate", sqlite=("delete from t",), postgres=("truncate t",)),
    Drift(
        "widen",
        sqlite=_rebuilt(_COLUMNS.replace("(6, 2)", "(10, 2)"), "select * from t"),
        postgres=(
            "alter table t alter column price type numeric(10, 2)",
            "alter table t alter column qty type bigint",
        ),
    ),
    Drift(
        "narrow",
        sqlite=_rebuilt(
            _COLUMNS.replace("(6, 2)", "(4, 1)"),
            f"select {_ALL}, round(price, 1), {_REST} from t",
        ),
        postgres=("alter table t alter column price type numeric(4, 1)",),
        ends_in=_KEPT,
        ways=(_TYPED, _DROPS_HISTORY),
    ),
    Drift(
        "retype",
        sqlite=_rebuilt(
            _COLUMNS.replace("qty {int}", "qty text"),
            f"select id, code, cast(qty as text), cost, price, {_REST} from t",
        ),
        postgres=("alter table t alter column qty type text",),
        ends_in=_KEPT,
        ways=(_DROPS_HISTORY,),
    ),
    Drift(
        "moments",
        before=("alter table t add column seen timestamp default '2026-01-05 12:30'",),
        postgres=(
            "alter table t alter seen type timestamptz using seen at time zone 'Asia/Tokyo'",
        ),
        renames={"seen": "_rhei_was_1_seen"},
    ),
    Drift("rewrite", postgres=("alter table t alter column qty type int using qty * 10",)),
    Drift(
        "key_wider",
        sqlite=_keyed(_LOOSE, "id, code"),
        postgres=("alter table t drop constraint t_pkey, add primary key (id, code)",),
        after=(*_AFTER, "insert into t(id, code, updated_at) values (1, 'one more', {now})"),
        ends_in=_KEPT,
        ways=(_DROPS_HISTORY,),
    ),
    Drift(
        "key_other",
        sqlite=_keyed(_LOOSE, "code"),
        postgres=("alter table t drop constraint t_pkey, add primary key (code)",),
        after=(*_AFTER, "insert into t(id, code, updated_at) values (1, 'one more', {now})"),
        ends_in=_KEPT,
        ways=(_DROPS_HISTORY,),
    ),
    _both(
        "key_renamed",
        "alter table t rename column id to ident",
        renames={"id": "ident"},
        after=(
            "insert into t(ident, code, updated_at) values (50, 'z', {now})",
            "update t set code = 'aa', updated_at = {now} where ident = 1",
            "delete from t where ident = 3",
        ),
        ends_in=_KEPT,
        ways=(_DROPS_HISTORY, Way("'primary_key'", declared={"primary_key": ["code"]})),
    ),
    Drift(
        "key_lost",
        sqlite=_rebuilt(_LOOSE, "select * from t"),
        postgres=("alter table t drop constraint t_pkey",),
        after=_INSERTED,  # with a publication, PostgreSQL itself refuses the others
        ends=NAMED,
        ways=(
            Way("add one", sql=(KEY_AGAIN,)),
            Way("'primary_key'", declared={"primary_key": ["code"]}),
        ),
    ),
    Drift("rebuild", sqlite=_rebuilt(_COLUMNS, "select * from t")),
    Drift(
        "set_schema",
        postgres=("create schema elsewhere", "alter table t set schema elsewhere"),
        after=(),
        ends=NAMED,
        ways=(Way(r"\(.+\)", sql=("alter table elsewhere.t set schema public",)),),
    ),
    _both("generated", _TWICE),
    Drift(
        "regenerated",
        before=(_TWICE,),
        sqlite=("alter table t drop column twice", _TWICE.replace("* 2", "* 3")),
        postgres=("alter table t alter column twice set expression as (qty * 3)",),
    ),
    Drift("identity_full", postgres=("alter table t replica identity full",)),
    Drift(
        "identity_nothing",
        postgres=("alter table t replica identity nothing",),
        after=_INSERTED,  # the same
        ends_in={"postgres_log": NAMED},
        ways=(Way("replica identity default", sql=("alter table t replica identity default",)),),
    ),
    Drift(
        "row_security",
        postgres=(
            "alter table t enable row level security",
            "alter table t force row level security",
            "create policy most on t using (id <> 2)",
        ),
        ends=NAMED,
        ways=(Way("row", sql=("alter table t no force row level security",)),),
    ),
)
BY_NAME = {drift.name: drift for drift in DRIFTS}


def written(source: str, *statements: str) -> list[str]:
    """Write statements in a source's own words."""
    found: list[str] = []
    for statement in statements:
        found += _KEY_AGAIN[source] if statement == KEY_AGAIN else [statement]
    return [_written(source, statement) for statement in found]


def _written(source: str, statement: str) -> str:
    for word, meant in WORDS[source].items():
        statement = statement.replace(word, meant)
    return statement
