"""`rhei init`, `rhei query` as a shell, `rhei serve` as a process."""

import json
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import adbc_driver_flightsql.dbapi as flight_sql
import pytest
import yaml
from pyarrow import flight
from typer.testing import CliRunner

from rhei_pipeline import Settings
from rhei_pipeline.cli.init import starter
from rhei_pipeline.cli.logs import json_lines
from rhei_pipeline.cli.main import app
from rhei_pipeline.cli.repl import Shell
from rhei_pipeline.errors import SettingsError
from rhei_pipeline.model.log_context import one_cycle
from rhei_pipeline.server.flight.generated import flight_sql_pb2 as wire
from rhei_pipeline.server.flight.messages import pack
from rhei_pipeline.server.serve import access_from, tls_from
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World


def typed(lines: list[str]) -> Callable[[str], str]:
    given = iter(lines)

    def read(_prompt: str) -> str:
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    return read


def test_the_shell_answers_and_says_who_did(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["\\sync", "\\d", "\\d orders", "select count(*)", "from orders;", "selec;", "\\olap"]
    lines += ["select 1 as one;", "\\route select 2"]
    lines += ["\\auto", "\\route select * from orders", "\\nothing", "\\?", "\\q", "no;"]
    Shell(world.htap, typed(lines)).run()
    shown = capsys.readouterr()
    for text in ("orders", "status  string", "count(*)", "from olap: it aggregates", "asked for"):
        assert text in shown.out
    assert "olap: asked for" in shown.out
    assert "oltp: it reads rows of one table" in shown.out
    assert "SELEC is not a reading statement" in shown.err
    assert "no command" in shown.err


def test_the_shell_exports_watches_and_times(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world.htap.sync_now()
    monkeypatch.chdir(tmp_path)
    end = KeyboardInterrupt()
    pauses = iter([0.5, end, 0.1, end, 1_000_000_000, end])

    def sleep(seconds: float) -> None:
        pause = next(pauses)
        if isinstance(pause, BaseException):
            raise pause
        assert seconds == pause

    monkeypatch.setattr("rhei_pipeline.cli.watching.sleep", sleep)
    refused = ["\\watch", "\\route", "\\export x.csv"]
    asked = ["select id -- a; b", "from orders where status = ';'", "; select 7 as seven;"]
    more = ["\\export", "\\export x", "\\export none/x.csv", "\\export x.csv", "\\timing"]
    more += ["select 8 as eight;", "\\watch no", "\\watch 0.5", "\\watch nan", "\\watch 1e30"]
    more += ["\\route", "select 9 as nine"]
    Shell(world.htap, typed([*refused, *asked, *more])).run()
    shown = capsys.readouterr()
    assert Path("x.csv").read_text() == '"seven"\n7\n'
    assert "no rows" in shown.out
    assert re.search(r"1 row in [0-9.]+ ms from oltp", shown.out)
    assert "1 row from oltp" in shown.out
    assert shown.out.count("│     8 │") == 7
    assert "nine" in shown.out  # the last statement needs no semicolon
    for text in (
        *("ask something first", "such as '\\export orders.csv'", "end its name with .json"),
        *("such as '\\watch 5'", "No such file or directory"),
    ):
        assert text in " ".join(shown.err.split())


def test_a_command_is_one_in_the_midst_of_a_statement_too(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.run('create table "Odd ""name"(id integer primary key)')
    world.tables = [{"name": "orders"}, {"name": 'Odd "name'}]
    world.htap.sync_now()
    lines = ["exit", "\\x", "\\d ORDERS", '\\d "odd ""name"', "*/ select 3 as three;"]
    Shell(world.htap, typed(["/*", *lines, "select 4", "\\q", "select 5 as five;"])).run()
    shown = capsys.readouterr()
    assert "status  string" in shown.out
    assert "id  int64 (key)" in shown.out
    assert "three" in shown.out
    assert "five" not in shown.out
    assert not shown.err


def test_the_shell_knows_where_a_statement_ends(world: World) -> None:
    shell = Shell(world.htap)
    for text in ("select 1;", "\\d", "exit", "", "select ';';", "select 1; -- and so on", "a\n\\q"):
        assert shell.is_whole(text), text
    for text in ("select 1", "select ';", "select 1 /* ;", "select 1; select", "-- a;"):
        assert not shell.is_whole(text), text


def test_the_shell_completes_tables_columns_and_keywords(world: World) -> None:
    assert {"orders", "amount", "select"} <= set(Shell(world.htap).words())


def test_a_first_declaration_of_sqlite_works_as_it_is(world: World) -> None:
    world.run("create table loose(a, b)", "create table plain(k text primary key, v int)")
    odd = ["on", "1.0", "null", "a: b # c", 'ü "x\\y', "two\nlines\t"]
    for name in odd:
        quoted = name.replace('"', '""')
        world.run(f'create table "{quoted}"("{quoted}" text primary key)')
    before = datetime.now(UTC).date()
    text = starter(str(world.path)).text
    found = Settings(**yaml.safe_load(text))
    assert before <= found.schedule.snapshots_from <= datetime.now(UTC).date()
    tables = {table.name: (table.mode, table.primary_key) for table in found.tables or ()}
    assert tables == {
        "orders": ("temporal", ["id"]),
        "plain": ("destructive", ["k"]),
        **{name: ("destructive", [name]) for name in odd},
    }
    assert "loose: it has no primary key" in text
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert len(comments) > 10
    assert max(map(len, comments)) < 80


def test_a_first_declaration_of_postgres_keeps_the_password_out(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres()
    world.run("create table o (id integer primary key, v text)")
    written = starter(re.sub(r"://([^:@/]*):?@?", r"://\1:hidden@", world.dsn))
    text = written.text
    assert "hidden" not in text
    assert "hidden" in str(written.secret)
    assert yaml.safe_load(text)["tables"][0]["name"] == "o"


def test_init_does_not_overwrite(world: World, tmp_path: Path) -> None:
    output = tmp_path / "made" / "pipeline.yaml"
    arguments = ["init", str(world.path), "--output", str(output)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert Settings.load(output).sqlite_path == world.path
    assert CliRunner().invoke(app, arguments).exit_code == 2
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0


@pytest.mark.long
def test_serving_is_a_process_that_syncs_answers_and_ends(world: World, tmp_path: Path) -> None:
    config = tmp_path / "pipeline.yaml"
    config.write_text(
        f"source: {{path: {world.path}}}\nmirror: {{path: {tmp_path / 'm.duckdb'}}}\n"
        f"registry: {{path: {tmp_path / 'r.json'}}}\n"
    )
    command = [sys.executable, "-m", "rhei_pipeline.cli.main", "serve", "--config", str(config)]
    with subprocess.Popen(
        [*command, "--host", _of_ipv6(), "--port", "0", "--metrics-port", "0", "--log-json"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "RHEI_SERVE_TOKEN": "t0ken", "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        header = {"adbc.flight.sql.authorization_header": "Bearer t0ken"}
        with (
            flight_sql.connect(address, db_kwargs=header, autocommit=True) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("select count(*) as n from orders")
            assert cursor.fetchall() == [(3,)]
        said, page = process.stdout.readline().rsplit(maxsplit=1)
        assert said == "status page"
        with urllib.request.urlopen(page, timeout=30) as shown:  # noqa: S310
            assert b"orders" in shown.read()
        process.send_signal(signal.SIGTERM)
        _end_of(process)
    # What DuckDB's bindings print at the end of an interpreter is none of ours.
    assert process.returncode == 0


def _of_ipv6() -> str:
    """Return the loopback address of IPv6, where the machine has one: other tests use IPv4's."""
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return "::1"
    return "127.0.0.1"


@pytest.mark.long
def test_a_server_ends_whatever_its_clients_do(world: World, tmp_path: Path) -> None:
    """One waits for an answer that takes minutes, another takes none of its answer."""
    config = tmp_path / "pipeline.yaml"
    config.write_text(
        f"source: {{path: {world.path}}}\nmirror: {{path: {tmp_path / 'm.duckdb'}}}\n"
        f"registry: {{path: {tmp_path / 'r.json'}}}\n"
    )
    command = [sys.executable, "-m", "rhei_pipeline.cli.main", "serve", "--config", str(config)]
    with subprocess.Popen(
        [*command, "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        asking, met = threading.Event(), list[Exception]()

        def wait() -> None:
            asking.set()
            try:
                clients[0].do_get(_ticket("count(*)", 10**12)).read_all()
            except flight.FlightError as error:
                met.append(error)

        with flight.FlightClient(address) as one, flight.FlightClient(address) as other:
            clients = one, other
            taking = other.do_get(_ticket(f"i, '{'much text to send' * 20}' || i", 100_000))
            waiting = threading.Thread(target=wait)
            waiting.start()
            asking.wait()
            process.send_signal(signal.SIGTERM)
            _end_of(process)  # a query may take five minutes
            waiting.join(60)
            # An answer that was on its way already may be there whole; it is never short.
            with suppress(flight.FlightError):
                assert taking.read_all().num_rows == 100_000
    assert process.returncode == 0
    assert met


def _end_of(process: subprocess.Popen[str]) -> None:
    """Wait until a process ends; one that does not is killed, or the test would not end either."""
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def _ticket(columns: str, rows: int) -> flight.Ticket:
    """Return what asks for rows that any engine makes, so many."""
    sql = (
        "with recursive n(i) as (select 1 union all select i + 1 from n"
        f" where i < {rows}) select {columns} from n"
    )
    handle = secrets.token_bytes(8) + sql.encode()
    return flight.Ticket(pack(wire.TicketStatementQuery(statement_handle=handle)))


def test_an_open_server_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.yaml")
    found = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0", "--config", missing])  # noqa: S104
    assert isinstance(found.exception, SettingsError)
    assert "other machines" in str(found.exception)


def test_what_belongs_together_is_asked_for_together(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="belong together"):
        access_from({"RHEI_SERVE_USER": "ann"})
    with pytest.raises(SettingsError, match="belong together"):
        tls_from(tmp_path / "a.pem", None)
    with pytest.raises(SettingsError, match="cannot be read"):
        tls_from(tmp_path / "a.pem", tmp_path / "b.pem")
    secret = {"RHEI_SERVE_TOKEN": "t", "RHEI_SERVE_USER": "ann", "RHEI_SERVE_PASSWORD": "p"}
    for name in secret:
        for nothing in ("", " "):
            with pytest.raises(SettingsError, match=f"{name} is empty: anybody could connect"):
                access_from({**secret, name: nothing})
    assert access_from({}).is_open
    assert "secret" not in repr(access_from({"RHEI_SERVE_TOKEN": "secret"}))


def test_lines_of_one_cycle_carry_one_number() -> None:
    shown = json_lines()
    error = OSError("with a row's values")
    record = logging.LogRecord("rhei", logging.INFO, "", 0, "said %d", (1,), (OSError, error, None))
    record.created, record.table = 0.0, "orders"
    lines = []
    for _ in range(2):
        with one_cycle():
            lines += [json.loads(shown.format(record)) for _ in range(2)]
    assert lines[0]["cycle"] == lines[1]["cycle"] != lines[2]["cycle"]
    assert json.loads(shown.format(record)) == {
        "at": "1970-01-01T00:00:00+00:00",
        "level": "info",
        "logger": "rhei",
        "message": "said 1",
        "error": "OSError",
        "table": "orders",
    }
