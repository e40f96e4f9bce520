"""A server that has few connections for the user: what needs more than one goes on with one."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import psycopg
import pytest

from rhei_pipeline.errors import (
    QueryError,
    RheiError,
    SourceBusyError,
    SourceError,
    SourceFullError,
    SourceUnreachableError,
)
from rhei_pipeline.sources.postgres import database
from rhei_pipeline.sources.postgres.database import PostgresDatabase
from rhei_pipeline.sources.postgres.logical import reader
from tests.support.fix_postgres import PostgresWorld

pytestmark = pytest.mark.turns

ROWS, BATCH = 200, 20
ROLE = "few_sessions"


@pytest.fixture
def few(make_postgres: Callable[..., PostgresWorld]) -> Iterator[Callable[..., PostgresWorld]]:
    """Make a world whose pipeline has a role of its own, which may have so many sessions."""
    worlds: list[PostgresWorld] = []

    def made(sessions: int, method: str) -> PostgresWorld:
        plain = make_postgres()
        dsn = psycopg.conninfo.make_conninfo(plain.dsn, user=ROLE)
        world = make_postgres(source={"dsn": dsn}, capture={"method": method}, batch_rows=BATCH)
        worlds.append(world)
        world.run(
            f"create role {ROLE} login replication connection limit {sessions}",
            f"grant create on database {world.app.info.dbname} to {ROLE}",
            "create table t(id int primary key, v int, w text)",
            f"insert into t select i, 0, repeat('w', 100) from generate_series(1, {ROWS}) i",
            f"alter table t owner to {ROLE}",
            f"grant create, usage on schema public to {ROLE}",
        )
        return world

    yield made
    for world in worlds:
        world.crash()
        world.run(
            f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = '{ROLE}'"
        )
        world.run(f"reassign owned by {ROLE} to current_user", f"drop owned by {ROLE}")
        world.run(f"drop role {ROLE}")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_FIRST_WAIT_SECONDS", 0.02)
    monkeypatch.setattr(reader, "STREAM_BYTES", 2**13)


@pytest.mark.parametrize(
    ("sessions", "method"), [(3, "logical"), (4, "logical"), (5, "logical"), (2, "trigger")]
)
def test_a_mirror_needs_no_more_sessions_than_there_are(
    few: Callable[..., PostgresWorld], sessions: int, method: str
) -> None:
    world = few(sessions, method)
    assert world.htap.sync_now().tables["t"].copied_rows == ROWS  # by several readers, if possible
    for change in ("where id = 1", "", "where id = 2"):  # the second one is read apart, if possible
        world.run(f"update t set v = v + 1 {change}")
        assert not world.htap.sync_now().errors
        world.assert_equal("t")


@pytest.mark.parametrize("method", ["logical", "trigger"])
def test_a_server_without_a_free_connection_is_named_until_it_has_one(
    few: Callable[..., PostgresWorld], method: str
) -> None:
    world = few(1, method)
    with pytest.raises(SourceFullError, match=r"no connection free: .*\(.*connection limit"):
        world.htap.sync_now()
    world.run(f"alter role {ROLE} connection limit 5")
    assert world.htap.sync_now().tables["t"].copied_rows == ROWS
    world.assert_equal("t")


@contextmanager
def refusing(code: str, words: str) -> Iterator[tuple[str, list[int]]]:
    """Answer every connection as a server does that is set to another language; count them."""
    fields = {b"S": "SCHWERWIEGEND", b"V": "FATAL", b"C": code, b"M": words}
    told = b"".join(name + text.encode() + b"\0" for name, text in fields.items()) + b"\0"
    asked: list[int] = []

    def answer(listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            with client:
                client.recv(4096)
                asked.append(1)  # before who asked can have heard
                client.sendall(b"E" + struct.pack("!i", len(told) + 4) + told)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        answering = threading.Thread(target=answer, args=(listening,))
        answering.start()
        where = f"host=127.0.0.1 port={listening.getsockname()[1]} user=u dbname=d"
        yield f"{where} sslmode=disable gssencmode=disable", asked
        listening.shutdown(socket.SHUT_RDWR)
    answering.join()


@pytest.mark.parametrize(
    ("code", "words", "kind", "tries"),
    [
        (
            "53300",
            "Verbindungslimit f\u00fcr Rolle \u00bbu\u00ab \u00fcberschritten",
            SourceFullError,
            7,
        ),
        ("28P01", "Passwort-Authentifizierung f\u00fcr Benutzer \u00bbu\u00ab", SourceError, 2),
        ("3D000", "Datenbank \u00bbd\u00ab existiert nicht", SourceError, 2),
        ("42501", "keine Berechtigung f\u00fcr Datenbank \u00bbd\u00ab", SourceError, 2),
        ("57P03", "das Datenbanksystem startet", SourceUnreachableError, 7),
        ("55000", "Datenbank akzeptiert keine Verbindungen", SourceUnreachableError, 7),
        ("54000", "zu viele Dateien", SourceUnreachableError, 7),
    ],
)
def test_what_a_server_refuses_is_known_whatever_its_language(
    code: str, words: str, kind: type[RheiError], tries: int
) -> None:
    """A refused connection is made once more, which has its code; for the same words only once."""
    with refusing(code, words) as (dsn, asked):
        with pytest.raises(kind, match=words) as met:
            PostgresDatabase(dsn)
        assert type(met.value) is kind
        assert len(asked) == tries


@pytest.mark.long
@pytest.mark.parametrize(
    ("shut", "opened", "kind", "told", "way"),
    [
        (
            "alter role {role} nologin",
            "alter role {role} login",
            SourceError,
            "not permitted to log in",
            "'alter role ... login'",
        ),
        (
            "alter role {role} connection limit 0",
            "alter role {role} connection limit 5",
            SourceFullError,
            "too many connections for role",
            "'alter role ... connection limit'",
        ),
        (
            "revoke connect on database {name} from public",
            "grant connect on database {name} to public",
            SourceError,
            "permission denied for database",
            "'grant connect on database ... to ...'",
        ),
    ],
)
def test_a_query_tells_why_its_user_is_shut_out_since_the_process_began(
    few: Callable[..., PostgresWorld],
    shut: str,
    opened: str,
    kind: type[RheiError],
    told: str,
    way: str,
) -> None:
    world = few(5, "trigger")
    how = {"role": ROLE, "name": world.app.info.dbname}
    dsn = psycopg.conninfo.make_conninfo(world.dsn, user=ROLE)
    with closing(PostgresDatabase(dsn, connect_timeout_seconds=2)) as source:
        source.query("select 1", ())
        world.run(shut.format(**how))
        world.run(
            f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = '{ROLE}'"
        )
        for ask in (
            lambda: source.query("select 1", ()),
            lambda: source.execute("update t set v = v"),
            source.default_zone,
        ):
            with pytest.raises(kind, match=told) as met:
                ask()
            assert type(met.value) is kind
            assert way in str(met.value.hint)
        world.run(opened.format(**how))
        assert source.query("select 1 as one", ()).to_pylist() == [{"one": 1}]


@pytest.mark.parametrize(
    ("shut", "opened", "kind"),
    [
        (
            "alter database {} allow_connections false",
            "alter database {} allow_connections true",
            SourceUnreachableError,
        ),
        (
            "revoke connect on database {} from public",
            "grant connect on database {} to public",
            SourceError,
        ),
    ],
)
def test_a_database_that_takes_no_connections_is_named_until_it_does(
    few: Callable[..., PostgresWorld], shut: str, opened: str, kind: type[RheiError]
) -> None:
    world = few(5, "trigger")
    name = world.app.info.dbname
    elsewhere = psycopg.conninfo.make_conninfo(world.dsn, dbname="postgres")
    dsn = psycopg.conninfo.make_conninfo(world.dsn, user=ROLE)
    with psycopg.connect(elsewhere, autocommit=True) as owner:
        owner.execute(shut.format(name).encode())
        try:
            with pytest.raises(kind) as met:
                PostgresDatabase(dsn)
            assert type(met.value) is kind
        finally:
            owner.execute(opened.format(name).encode())
    assert world.htap.sync_now().tables["t"].copied_rows == ROWS


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        *((code, SourceBusyError) for code in ("53100", "53200", "58030", "40001", "40P01")),
        *((code, QueryError) for code in ("54000", "55000")),
    ],
)
def test_what_a_server_lacks_is_not_taken_for_its_absence(
    make_postgres: Callable[..., PostgresWorld], code: str, kind: type[RheiError]
) -> None:
    world = make_postgres()
    world.run("create table t(id int primary key)")
    world.htap.sync_now()
    raised = f"do $$ begin raise exception 'voll' using errcode = '{code}'; end $$"
    with pytest.raises(kind, match="voll") as met:
        world.htap.execute(raised)
    assert type(met.value) is kind
    assert world.htap.execute("insert into t values (1)") == 1
