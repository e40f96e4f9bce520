"""Databases of ICU and of the C library's locales; collations under which written keys differ."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest

from tests.support.fix_postgres import AnyServer, PostgresWorld, database

#: In the order of bytes, of ICU and of a C library's locale, these come in different orders.
_KEYS = ("a", "B", "ä", "Z", "z1", "é", "e\u0301clair", "Éa", "ß", "_x", "-y", "10", "9")
_LOOSE = (
    "create collation loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
)
#: ICU keeps its own order, whatever the C library's locale is.
_ICU = "locale_provider icu icu_locale 'en-US' locale 'C'"


def _libc() -> str:
    """Return a UTF-8 locale of this machine's C library; one that has an order, where there is."""
    command = ["/usr/bin/locale", "-a"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = [name for name in found.split() if name.lower().endswith(("utf8", "utf-8"))]
    ordered = sorted(names, key=lambda name: (name.startswith("C"), not name.startswith("en_US")))
    return f"locale '{(ordered or ['C'])[0]}'"


Make = Callable[..., PostgresWorld]


@pytest.fixture
def make_ordered(
    installed_server: AnyServer, make_worlds: Callable[[str], Make]
) -> Iterator[Callable[[str], Make]]:
    """Return what makes worlds over a database of a locale; drop it at the end."""
    with ExitStack() as stack:
        yield lambda locale: make_worlds(
            stack.enter_context(contextmanager(database)(installed_server, locale))
        )


_WAYS: dict[str, tuple[str, dict[str, Any], str, str | None]] = {
    "icu-logical": (_ICU, {"method": "logical"}, "temporal", None),
    "icu-trigger": (_ICU, {"method": "trigger"}, "temporal", None),
    "libc-trigger": (_libc(), {"method": "trigger"}, "destructive", "parquet"),
    "libc-polling": (_libc(), {"method": "polling"}, "destructive", None),
}


@pytest.mark.long
@pytest.mark.parametrize("way", _WAYS)
def test_keys_follow_the_source_in_whatever_order_it_keeps_them(
    way: str, make_ordered: Callable[[str], Make]
) -> None:
    locale, capture, mode, storage = _WAYS[way]
    names = ("loose", "plain", "folded", "pairs")
    polling = {"clock": "database", "deletes": "reconcile", "reconcile_seconds": 0}
    tables: list[dict[str, Any]] = [
        {"name": name, **({"polling": polling} if way == "libc-polling" else {})} for name in names
    ]
    world = make_ordered(locale)(
        capture=capture, mode=mode, storage=storage, tables=tables, batch_rows=3
    )
    stamped = "updated_at timestamptz not null default now()"
    world.run(
        _LOOSE,
        "create extension citext",
        f"create table folded(id citext primary key, v int, {stamped})",
        f"create table loose(id text collate loose primary key, v int, {stamped})",
        f"create table plain(id text primary key, v int, {stamped})",
        f"create table pairs(id text collate loose, n text, v int, {stamped}, primary key(id, n))",
        *(f"create index on {name}(updated_at)" for name in names),
    )
    for key in _KEYS:
        world.app.execute("insert into loose values (%s, 1)", (key,))
        world.app.execute("insert into plain values (%s, 1)", (key,))
        world.app.execute("insert into folded values (%s, 1)", (key,))
        world.app.execute("insert into pairs values (%s, 'x', 1), (%s, 'X', 1)", (key, key))
    rounds = [
        [],
        [f"update {name} set id = upper(id), v = 2, updated_at = now()" for name in names],
        [
            "delete from loose where id = 'b'",
            "insert into loose values ('b', 3)",
            "insert into loose values ('ÉA', 4) on conflict (id) do update set id = excluded.id,"
            " v = 4, updated_at = now()",
            "insert into plain values ('b', 3)",
            "delete from folded where id = 'b'",
            "insert into folded values ('b', 3)",
        ],
        ["begin", "delete from pairs", "insert into pairs values ('q', 'x', 5)", "commit"],
        ["update loose set v = 6, updated_at = now() where id = 'Z1'", "delete from plain"],
    ]
    for statements in rounds:
        world.run(*statements)
        world.htap.sync_now()
        for name in names:
            found = sorted(row["id"] for row in world.present(name))
            wanted = world.app.execute(f"select id from {name}".encode()).fetchall()
            assert found == sorted(key for (key,) in wanted), name
        world.assert_equal(*names)
        assert world.htap.verify().equal
    # What is equal is one key: it stands once.
    world.run("insert into loose values ('q', 1), ('r', 1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        world.run("insert into loose values ('Q', 2)")
    world.htap.sync_now()
    world.assert_equal("loose")
    world.htap.repair("loose")
    world.assert_equal("loose")


@pytest.mark.parametrize("locale", [_ICU, _libc()], ids=["icu", "libc"])
def test_an_order_is_asked_of_the_side_that_keeps_it(
    locale: str, make_ordered: Callable[[str], Make]
) -> None:
    world = make_ordered(locale)(tables=[{"name": "t"}])
    world.run(
        'create table t(id int primary key, v text, b text collate "C", d jsonb)',
        *(
            f"insert into t values ({n}, '{key}', '{key}', jsonb_build_object('k', '{key}'))"
            for n, key in enumerate(_KEYS)
        ),
    )
    world.htap.sync_now()
    for column in ("v", "b", "(d ->> 'k')"):
        for sql in (
            f"select min({column}) from t",
            f"select max({column}) from t",
            f"select count(*) from t where {column} > 'Z'",
        ):
            asked = world.htap.query(sql).to_pylist()
            assert asked == world.htap.query(sql, hint="oltp").to_pylist(), sql


@pytest.mark.long
@pytest.mark.parametrize("method", ["trigger", "logical", "polling"])
@pytest.mark.parametrize(
    ("column", "exact"),
    [("text collate loose", 'k collate "C"'), ("citext", "k text_ops"), ("folded", "k text_ops")],
)
def test_a_chosen_key_that_its_own_column_holds_equal_is_refused_until_it_is_unique_so(
    method: str, column: str, exact: str, make_ordered: Callable[[str], Make]
) -> None:
    """A copy goes on behind the key that it read last: one that is equal would be left out."""
    polling = {"clock": "database", "deletes": "reconcile", "reconcile_seconds": 0}
    table = {"name": "t", "primary_key": ["k"], "polling": polling}
    world = make_ordered(_ICU)(capture={"method": method}, tables=[table], batch_rows=1)
    world.run(
        _LOOSE,
        "create extension citext",
        "create domain folded as citext",
        f"create table t(k {column} not null, updated_at timestamptz default now())",
        f"create unique index exact on t({exact})",
        "alter table t replica identity full",
        "insert into t values ('a'), ('A')",
    )
    assert "no valid unique index" in world.htap.sync_now().errors["t"]
    world.run(
        """delete from t where k::text = 'A' collate "C" """, "create unique index loose on t(k)"
    )
    world.run("insert into t values ('b')")
    assert not world.htap.sync_now().errors
    world.run("update t set k = upper(k), updated_at = now()")
    world.htap.sync_now()
    world.assert_equal("t")
