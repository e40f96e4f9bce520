"""The command line as a daily tool: where it looks, what it takes, what it writes, what it says."""

import csv
import errno
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import IO

import duckdb
import polars as pl
import pytest
import yaml
from pyarrow import parquet
from rich.console import Console
from typer import BadParameter
from typer.testing import CliRunner, Result

from rhei_pipeline import Settings
from rhei_pipeline import open as rhei_open
from rhei_pipeline.cli import output
from rhei_pipeline.cli import rows as row_formats
from rhei_pipeline.cli.main import app
from rhei_pipeline.cli.rows import OutputFormat, RowWriter
from rhei_pipeline.errors import MirrorError, QueryError, RheiError, SchemaError, SettingsError
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.ways_out import FOLLOWED

HEAVY = {"dagster", "datafusion", "duckdb", "numpy", "psycopg", "pyarrow", "sqlglot", "yaml"}


@pytest.fixture
def project(world: World, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with its declaration in `config`; the command runs in a folder below."""
    world.crash()
    folder = world.directory / "project"
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "pipeline.yaml").write_text(
        f"source: {{path: {world.path}}}\nmirror: {{path: m.duckdb}}\n"
        "registry: {path: registry.json}\n"
    )
    (folder / "below" / "it").mkdir(parents=True)
    monkeypatch.chdir(folder / "below" / "it")
    monkeypatch.delenv("RHEI_CONFIG", raising=False)
    return folder


def rhei(*arguments: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="rhei", input=typed)


def done(*arguments: str, typed: str | None = None) -> str:
    found = rhei(*arguments, typed=typed)
    assert found.exit_code == 0, (found.output, found.exception)
    return found.stdout


@pytest.mark.long
def test_the_help_is_read_without_loading_an_engine() -> None:
    code = (
        "import sys; sys.argv = ['rhei', *sys.argv[1:]]\n"
        "from rhei_pipeline.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print(sorted(sys.modules))\n"
        "    raise\n"
    )
    for asked in ("-h", "--help", "--version"):
        shown = subprocess.run(
            [sys.executable, "-c", code, asked], capture_output=True, text=True, check=True
        ).stdout
        modules = set(re.findall(r"'([^']+)'", shown.splitlines()[-1]))
        assert "typer" in modules
        assert not HEAVY & modules
    assert re.match(r"rhei \d+\.\d+", shown)


def test_the_exit_codes_are_in_the_help() -> None:
    text = " ".join(done("--help").split())
    assert "1 failed, or something is wrong; 2 wrong usage; 3 done, but tables are left out" in text


def test_the_declaration_is_found_above_or_by_a_variable(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert json.loads(done("sync", "--json"))["inserted"] == 3
    assert (project / "m.duckdb").exists()
    monkeypatch.chdir(tmp_path)
    assert "cannot be read" in str(rhei("status").exception)
    monkeypatch.setenv("RHEI_CONFIG", str(project / "config" / "pipeline.yaml"))
    assert "orders" in done("status")


def test_variables_come_from_the_projects_env_file_unless_they_are_set(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / ".env").write_text("RHEI__MIRROR__PATH=by_env.duckdb\n")
    with monkeypatch.context() as inside:
        inside.setenv("RHEI__MIRROR__PATH", "set.duckdb")
        done("sync")
    assert (project / "set.duckdb").exists()
    # `delenv` has what the file sets taken back at the end of the test.
    monkeypatch.setenv("RHEI__MIRROR__PATH", "")
    monkeypatch.delenv("RHEI__MIRROR__PATH")
    done("sync")
    assert (project / "by_env.duckdb").exists()


@pytest.mark.long
def test_a_terminal_of_another_encoding_shows_the_numbers_of_what_it_lacks(
    project: Path, world: World
) -> None:
    world.run("update orders set status = 'für 😀' where id = 1")
    done("sync")
    sql = "select status from orders where id = 1"
    shown = subprocess.run(
        [sys.executable, "-m", "rhei_pipeline.cli.main", "query", sql],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "f\\xfcr \\U0001f600" in shown
    # A value that a program reads is whole, whatever the terminal's encoding is.
    assert json.loads(done("query", sql, "--json")) == [{"status": "für 😀"}]


def test_rows_are_written_in_each_format(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done("sync")
    sql = "select id, status, amount, x'00ff' as raw, null as empty from orders order by id"
    rows = json.loads(done("query", sql, "--json"))
    assert rows[0] == {
        "id": 1,
        "status": "new",
        "amount": 1.5,
        "raw": {"hex": "00ff"},
        "empty": None,
    }
    assert [json.loads(line) for line in done("query", sql, "--format", "ndjson").splitlines()] == (
        rows
    )
    for name in ("rows.csv", "rows.parquet", "rows.json", "rows.md"):
        done("query", sql, "--output", name)
    read = list(csv.DictReader(Path("rows.csv").read_text().splitlines()))
    assert [(row["id"], row["amount"], row["raw"]) for row in read] == [
        (str(row["id"]), format(row["amount"], "g"), "00ff") for row in rows
    ]
    assert parquet.read_table("rows.parquet").column("raw").to_pylist() == [b"\0\xff"] * 3
    assert json.loads(Path("rows.json").read_text()) == rows
    assert len(Path("rows.md").read_text().splitlines()) == 5
    nested = "select {'a': 1.50::decimal(3, 2), 'b': [null, 'x']} as s"
    assert '{"a": "1.50", "b": [null, "x"]}' in done("query", nested, "--hint", "olap")
    assert len(json.loads(done("query", sql, "--json", "--limit", "2"))) == 2
    assert len(json.loads(done("query", sql, "--json", "--limit", str(10**20)))) == 3
    piped = rhei("query", sql, "--format", "table", "--output", "rows.txt")
    assert piped.exit_code == 0
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(BadParameter, match=r"not text: give '--output FILE\.parquet'"):
        RowWriter.asked(OutputFormat.PARQUET, Path(), as_json=False, file=None, limit=None)
    assert rhei("query", sql, "--output", "rows.xyz").exit_code == 2
    assert rhei("query", sql, "--json", "--format", "csv").exit_code == 2


@pytest.mark.long
def test_no_file_of_the_pipeline_is_overwritten(project: Path, world: World) -> None:
    config = project / "config" / "pipeline.yaml"
    config.write_text(config.read_text() + "capture: {buffer: {path: buffer}}\n")
    done("sync")
    link = Path("link.csv")
    link.symlink_to(world.path)
    buffered = next(file for file in (project / "buffer").rglob("*") if file.is_file())
    kept = [world.path, config, *(project / n for n in ("m.duckdb", "m.duckdb.lock"))]
    (project / "0123.polled.json").write_text("{}")
    kept += [project / name for name in ("registry.json", "m.duckdb.last", "0123.polled.json")]
    kept += [buffered, link]
    lasting = [file for file in kept if file.name != "m.duckdb.lock"]
    before = [(file.stat().st_ino, file.stat().st_size) for file in lasting]
    sql = "select id from orders order by id"
    for file in kept:
        for command in (("query", sql), ("dead-letters",), ("as-of", "orders", "2026-11-01")):
            found = rhei(*command, "--output", str(file), "--format", "csv")
            assert "of this pipeline, and is not overwritten" in str(found.exception), file
    typed = f"{sql};\n\\export {project / 'registry.json'}\n"
    assert "belongs to the registry" in str(rhei("query", "-", typed=typed).exception)
    forced = rhei("init", str(world.path), "--output", str(world.path), "--force")
    assert (forced.exit_code, "is the source" in forced.output) == (2, True)
    assert [(file.stat().st_ino, file.stat().st_size) for file in lasting] == before
    done("query", sql, "--output", str(project / "registry.csv"))
    assert (project / "registry.csv").read_text() == '"id"\n1\n2\n3\n'
    done("init", str(world.path), "--output", str(project / "new.yaml"), "--force")


KILLED_AS_IT_WRITES = """
import os, pathlib
from rhei_pipeline.cli.written_file import whole_file
with whole_file(pathlib.Path("rows.csv")) as to:
    to.write(b"half a ro")
    to.flush()
    os.kill(os.getpid(), 9)
"""


@pytest.mark.long
def test_a_file_is_written_whole_or_not_at_all(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done("sync")
    sql = "select id from orders order by id"
    Path("rows.csv").write_text("as it was")
    Path("rows.csv").chmod(0o640)

    def fill_the_disk(_table: object, to: IO[bytes]) -> None:
        to.write(b"half a ro")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as inside:
        inside.setitem(row_formats._WRITERS, OutputFormat.CSV, fill_the_disk)
        failed = rhei("query", sql, "--output", "rows.csv")
    assert "'rows.csv' cannot be written: No space left" in str(failed.exception)
    assert Path("rows.csv").read_text() == "as it was"
    done("query", sql, "--output", "rows.csv")
    assert Path("rows.csv").read_text() == '"id"\n1\n2\n3\n'
    assert Path("rows.csv").stat().st_mode & 0o777 == 0o640
    subprocess.run([sys.executable, "-c", KILLED_AS_IT_WRITES], check=False)
    assert [file.name for file in Path().iterdir()] == ["rows.csv"]
    assert "No such file" in str(rhei("query", sql, "--output", "none/rows.csv").exception)
    Path("none").mkdir()
    done("query", sql, "--output", "none/rows.csv")
    os.mkfifo("pipe")
    read = "import sys; print(open('pipe').read(), end='')"
    reader = subprocess.Popen([sys.executable, "-c", read], stdout=subprocess.PIPE, text=True)
    done("query", sql, "--output", "pipe", "--format", "csv")
    assert reader.communicate()[0] == '"id"\n1\n2\n3\n'


def test_info_tells_what_is_there_without_source_or_secret(project: Path, world: World) -> None:
    done("sync")
    wal = world.path.with_name(f"{world.path.name}-wal")
    source = sum(file.stat().st_size for file in (world.path, wal) if file.exists())
    told = json.loads(done("info", "--json"))
    assert (told["version"], told["source"]["capture"]) == (version("rhei-pipeline"), "trigger")
    assert {"datafusion", "postgres"} <= {*told["extras"]}
    assert told["tables"] == [{"table": "orders", "mode": "destructive"}]
    sizes = {row["part"]: row["bytes"] for row in told["storage"]}
    assert sizes["registry"] >= (project / "registry.json").stat().st_size
    assert sizes["mirror"] >= (project / "m.duckdb").stat().st_size
    assert sizes["source"] >= source
    world.close()
    world.path.unlink()
    wal.unlink(missing_ok=True)
    shown = " ".join(done("info").split())
    assert all(word in shown for word in ("rhei ", "sqlite, capture by trigger: ", "orders"))
    config = project / "config" / "pipeline.yaml"
    config.write_text(
        "source: {kind: postgres, dsn: 'postgresql://me:hidden@127.0.0.1:1/shop'}\n"
        "mirror: {kind: datafusion, path: m}\nregistry: {path: registry.json}\n"
    )
    assert "postgres, capture by logical: 127.0.0.1:1/shop\n" in done("info")
    assert "hidden" not in done("info") + done("info", "--json")
    (project / "registry.json").write_text("{")
    broken = rhei("info", "--json")
    assert (broken.exit_code, json.loads(broken.stdout)["tables"]) == (1, [])
    assert "registry" in broken.stderr


@pytest.mark.long
def test_statements_come_from_a_file_or_standard_input(project: Path) -> None:
    done("sync")
    script = "-- two; of them\nselect ';' as a;\nselect count(*) as n\n  from orders"
    Path("two.sql").write_text(script)
    wanted = [[{"a": ";"}], [{"n": 3}]]
    for arguments, typed in (
        (("--file", "two.sql"), None),
        (("-",), script),
        ((), script),
    ):
        shown = done("query", *arguments, "--json", typed=typed)
        assert [json.loads(line) for line in shown.splitlines()] == wanted
    failed = rhei("query", "-", typed="select 1 as a; selec; select 2 as b")
    assert failed.exit_code == 1
    assert "│ 2 │" not in failed.stdout
    assert rhei("query", "select 1", "--file", "two.sql").exit_code == 2
    assert rhei("query", "--file", "none.sql").exit_code == 2
    for nothing in (("-",), ("",), (" ",)):
        assert rhei("query", *nothing, typed=" \n").exit_code == 2


def test_a_query_says_how_old_its_answer_may_be(project: Path, world: World) -> None:
    done("sync")
    world.run("insert into orders(id) values (4)")
    count = ("query", "select count(*) as n from orders", "--hint", "olap", "--json")
    assert json.loads(done(*count)) == [{"n": 3}]
    assert json.loads(done(*count, "--max-staleness", "0")) == [{"n": 4}]
    world.run("insert into orders(id) values (5)")
    script = ("query", "-", "--hint", "olap", "--json", "--max-staleness", "0")
    assert json.loads(done(*script, typed="select count(*) as n from orders")) == [{"n": 5}]
    assert rhei(*count, "--max-staleness", "-1").exit_code == 2
    assert rhei(*count, "--max-staleness", "nan").exit_code != 0
    assert rhei(*count, "--explain", "--max-staleness", "1").exit_code == 2
    assert json.loads(done(*count, "--explain"))["engine"] == "olap"
    of_cluster = rhei("query", "select 1", "--hint", "cluster", "--max-staleness", "1")
    assert "a cluster answers from what was published last" in str(of_cluster.exception)


def test_a_write_is_done_from_the_command_line(project: Path) -> None:
    assert done("execute", "update orders set status = 'paid' where id < 3") == "2 rows changed\n"
    assert json.loads(done("execute", "delete from orders where id = 3", "--json")) == {"rows": 1}
    shown = json.loads(done("query", "select status from orders", "--json"))
    assert shown == [{"status": "paid"}] * 2
    assert "1 row changed" in done("execute", "update orders set status = 'returning' where id = 1")
    more = "insert into orders(id) values (7), (8) returning id"
    assert json.loads(done("execute", more, "--json")) == [{"id": 7}, {"id": 8}]


def test_a_dry_run_says_what_is_pending_and_changes_nothing(project: Path, world: World) -> None:
    before = sorted(world.app.execute("select name from sqlite_master"))
    first = json.loads(done("sync", "--dry-run", "--json"))["pending"]
    assert [(each["table"], each["work"], each["rows"]) for each in first] == [
        ("orders", "copy", 3)
    ]
    assert sorted(world.app.execute("select name from sqlite_master")) == before
    assert not (project / "m.duckdb").exists()
    done("sync")
    world.run("update orders set status = 'sent' where id < 3")
    for _ in range(2):
        (found,) = json.loads(done("sync", "--dry-run", "--json"))["pending"]
        assert (found["work"], found["events"]) == ("apply changes", 2)
    assert "apply changes" in done("sync", "--dry-run", "--table", "orders")


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("alter table orders add column priority int default 3", "its columns have changed"),
        ("drop table _rhei_log_orders", "no longer tells what changed"),
    ],
)
def test_a_dry_run_does_not_say_that_nothing_is_pending_where_nobody_knows(
    project: Path, world: World, statement: str, why: str
) -> None:
    done("sync")
    world.run("update orders set status = 'sent' where id < 3", statement)
    answer = rhei("sync", "--dry-run", "--json")
    (found,) = json.loads(answer.stdout)["pending"]
    assert (found["work"], found["events"]) == ("not known", None)
    assert why in found["reason"]
    assert why in " ".join(answer.stderr.split())
    assert "not known" in done("sync", "--dry-run")
    done("sync")
    assert "nothing" in done("sync", "--dry-run")


@pytest.mark.long
def test_a_dry_run_says_what_would_be_left_out(project: Path, world: World) -> None:
    world.run("create table other(id integer primary key)", "insert into other values (1)")
    file = project / "m.duckdb"
    with duckdb.connect(str(file)) as opened:
        opened.execute("create table orders as select 42 as precious")
    before = file.read_bytes()
    for expected in ("copy", "nothing"):
        answer = rhei("sync", "--dry-run", "--json")
        works = {each["table"]: each["work"] for each in json.loads(answer.stdout)["pending"]}
        assert works == {"orders": "left out", "other": expected}
        assert "somebody else made" in answer.stderr
        assert answer.exit_code == 3
        if expected == "copy":
            assert file.read_bytes() == before
            rhei("sync")


def test_one_table_is_shown_of_a_sync_of_all(project: Path, world: World) -> None:
    world.run("create table other(id integer primary key)", "insert into other values (1)")
    found = json.loads(done("sync", "--table", "orders", "--json"))
    assert list(found["tables"]) == ["orders"]
    assert json.loads(done("query", "select count(*) as n from other", "--hint", "olap", "--json"))[
        0
    ] == {"n": 1}


@pytest.mark.parametrize(
    "command",
    [
        *(("sync", "--table"), ("copy", "--table"), ("verify", "--table")),
        *(("dead-letters", "--table"), ("dead-letters", "--replay", "--table")),
        *(("changes", "--table"), ("diff", "--from", "2026-01-01", "--table")),
        *(("repair",), ("drop-table", "--yes"), ("as-of",)),
    ],
    ids=" ".join,
)
def test_an_unknown_table_is_refused_with_the_nearest(
    project: Path, command: tuple[str, ...]
) -> None:
    done("sync", "-q")
    more = ("2026-01-01",) if command == ("as-of",) else ()
    found = rhei(*command, "ordrs", *more)
    assert found.exit_code == 1
    assert "did you mean 'orders'?" in str(found.exception)


def test_check_says_once_what_is_found_of_many_tables(
    project: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output.out, "width", 80)
    monkeypatch.setattr(output.out, "_force_terminal", True)
    world.run(*(f"create table t{n}(id integer primary key, v any_thing)" for n in range(7)))
    world.run(*(f"insert into t{n}(id, v) values (1, 'a'), (2, 3)" for n in range(7)))
    found = json.loads(rhei("check", "--json").stdout)["findings"]
    assert len([each for each in found if re.fullmatch(r"t\d", str(each["table"]))]) == 7
    shown = rhei("check").stdout
    assert shown.count("column 'v' has no clear type") == 1
    assert "t0, t1, t2, t3, t4 and 2 more" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_mistake_in_a_variable_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = {"source": {"kind": "postgres"}, "mirror": {"path": "m.duckdb"}}
    for variable, said in (
        ("RHEI__SOURCE__DNS", "RHEI__SOURCE__DNS; did you mean 'RHEI__SOURCE__DSN'?"),
        ("RHEI__SYNC__BATCH_ROW", "RHEI__SYNC__BATCH_ROW; did you mean 'RHEI__SYNC__BATCH_ROWS'?"),
        ("RHEI__SYNC__BATCH_ROWS", "environment variable RHEI__SYNC__BATCH_ROWS: input should be"),
    ):
        with monkeypatch.context() as inside, pytest.raises(SettingsError) as raised:
            inside.setenv(variable, "hidden")
            Settings(**declared)
        assert said in str(raised.value)
        assert "hidden" not in str(raised.value)
    # The same mistake in a file: the fields of its kind of source are known.
    with pytest.raises(SettingsError, match=r"'source.dns'; did you mean 'dsn'\?"):
        Settings(source={"kind": "postgres", "dns": "x"}, mirror={"path": "m.duckdb"})


def test_a_connection_string_that_cannot_be_read_says_so_without_the_secret(
    make_postgres: Callable[..., PostgresWorld], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    world = make_postgres()
    world.run("create table o (id integer primary key, v text)")
    place = re.sub(r"^.*?://[^@/]*@?", "", world.dsn)
    before = re.sub(r"(://[^:@/]*).*", r"\1", world.dsn)
    for password in ("hid@den", "hid/den", "hid:d@en", "hid%zzden"):
        found = rhei("init", f"{before}:{password}@{place}")
        assert found.exit_code == 1
        assert "write @ as %40" in str(found.exception)
        assert "hid" not in str(found.exception)
        assert "den" not in re.sub("hidden", "", str(found.exception))
    mode = rhei("init", f"{before}:hid%40den@{place}{'&' if '?' in place else '?'}sslmode=no")
    assert "use one of disable, allow, prefer" in str(mode.exception)
    # The same, as the refusals say; and the command that it names next works as it is.
    right = f"{before}:hid%40den@{place}{'&' if '?' in place else '?'}sslmode=disable"
    shown = done("init", right)
    with monkeypatch.context() as inside:  # where no list of processes shows it
        inside.setenv("RHEI__SOURCE__DSN", right)
        assert done("init", "--force") == shown
    assert Path(".env").stat().st_mode & 0o777 == 0o600
    declaration = Path("config/pipeline.yaml").read_text()
    assert "hid" not in declaration
    assert yaml.safe_load(declaration)["source"] == {"kind": "postgres"}
    monkeypatch.setenv("RHEI__SOURCE__DSN", "")
    monkeypatch.delenv("RHEI__SOURCE__DSN")
    (command,) = [line.strip() for line in shown.splitlines() if line.startswith("  rhei ")]
    assert "ready to sync" in done(*command.split()[1:])


def test_the_password_of_a_key_is_no_more_for_the_declaration_than_a_users(
    make_postgres: Callable[..., PostgresWorld], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    world = make_postgres()
    world.run("create table o (id integer primary key)")
    dsn = re.sub(r"(://[^:@/]*):[^@/]*@", r"\1@", world.dsn)
    shown = done("init", f"{dsn}{'&' if '?' in dsn else '?'}sslpassword=hidden&sslmode=disable")
    assert "hidden" not in shown + Path("config/pipeline.yaml").read_text()
    assert "sslpassword=hidden" in Path(".env").read_text()
    assert Path(".env").stat().st_mode & 0o777 == 0o600


def test_init_knows_what_it_cannot_serve(
    project: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url, name in (("mysql://shop@db/shop", "MySQL"), ("clickhouse://db", "'clickhouse'")):
        found = rhei("init", url)
        assert found.exit_code == 1
        assert name in str(found.exception)
        assert "postgresql://" in str(found.exception)
    shown = done("init", f"sqlite:////{world.path.relative_to('/')}")
    (command,) = [line.strip() for line in shown.splitlines() if line.startswith("  rhei ")]
    assert "ready to sync" in done(*command.split()[1:])


@pytest.mark.parametrize("is_terminal", [True, False], ids=["terminal", "file"])
def test_each_way_out_is_printed_whole(
    *, is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(width=80, force_terminal=is_terminal, highlight=False, record=True)
    monkeypatch.setattr(output, "err", console)
    ways = [*FOLLOWED, "pip install 'rhei-pipeline[postgres]'", "[bold]so[/] \\[x] [/none]"]
    for hint in ways:
        with console.capture() as captured:
            output.print_error(str(RheiError("it failed", hint=hint)))
        plain = re.sub(r"\x1b\[[0-9;]*m", "", captured.get())
        assert " ".join(hint.split()) in " ".join(plain.split())
        assert not is_terminal or max(map(len, plain.splitlines())) <= 80


def test_quiet_says_neither_notes_nor_progress_and_verbose_logs(
    project: Path, world: World
) -> None:
    world.run("update orders set amount = 'much' where id = 2")
    noted = rhei("sync")
    assert "'rhei dead-letters' says why" in noted.stderr
    world.run("update orders set amount = 'more' where id = 2")
    for arguments in (("-q", "sync"), ("sync", "--quiet")):
        assert rhei(*arguments).stderr == ""
    assert "rhei_pipeline" not in rhei("-v", "sync").stdout
    with sqlite3.connect(world.path) as connection:
        connection.execute("create table late(id integer primary key)")
    assert rhei("sync", "-v").exit_code in {0, 3}


def test_what_is_explained_is_what_answers(project: Path, world: World) -> None:
    done("sync")
    sql = "select status, count(*) as n from orders group by status"
    with rhei_open(project / "config" / "pipeline.yaml") as htap:
        htap.sync_now()
        assert "ago" in str(htap.explain_route(sql).freshness)
        htap.execute("update orders set status = 'own'")
        route = htap.explain_route(sql)
        assert route.engine == "olap"
        assert route.freshness == "the mirror syncs first, to show the last write"
        htap.execute("update orders set amount = 'much' where id = 2")
        htap.sync_now()
        route = htap.explain_route(sql)
        metadata = htap.query(sql).schema.metadata
    assert metadata[b"rhei.engine"].decode() == route.engine == "oltp"
    assert metadata[b"rhei.reason"].decode() == route.reason
    assert "'orders' has rows that cannot be mirrored" in route.reason
    told = json.loads(done("query", sql, "--explain", "--json"))
    assert told == {
        "engine": "oltp",
        "reason": route.reason,
        "freshness": "the source's present state",
    }
    # The mirror's own answer says what it lacks.
    missing = rhei("query", sql, "--hint", "olap")
    assert "'orders': 1 row may be missing" in " ".join(missing.stderr.split())
    of_mirror = json.loads(done("query", sql, "--hint", "olap", "--explain", "--json"))
    assert of_mirror["engine"] == "olap"


def test_python_takes_days_texts_and_names_of_types(make_world: Callable[..., World]) -> None:
    world = make_world(mode="temporal")
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    htap = world.htap
    htap.sync_now()
    now = datetime.now(UTC)
    tomorrow = (now + timedelta(days=1)).date()
    for instant in (now, now.isoformat(), tomorrow, tomorrow.isoformat()):
        assert htap.as_of("t", instant).to_pylist() == [{"id": 1}]
    assert htap.diff("t", now.isoformat(), tomorrow).num_rows == 0
    with pytest.raises(QueryError, match=r"no date or time \(such as '2026-11-01' or"):
        htap.as_of("t", "yesterday")
    with pytest.raises(QueryError, match="no time zone"):
        htap.as_of("t", "2026-11-01T12:00")
    htap.add_column("t", "price", "decimal(9,2)")
    htap.execute("update t set price = 1.25")
    htap.sync_now()
    assert htap.query("select price from t", hint="olap")["price"].to_pylist()[-1] == Decimal(
        "1.25"
    )
    with pytest.raises(SchemaError, match="unknown type 'number'"):
        htap.add_column("t", "other", "number")
    answer = htap.query("select id from t")
    assert pl.DataFrame(answer).to_dicts() == [{"id": 1}]
    assert duckdb.from_arrow(answer).project("id + 1").fetchall() == [(2,)]


def test_where_all_tables_are_left_out_each_command_says_why(project: Path, world: World) -> None:
    world.run("create table plain (id integer)")
    declared = project / "config" / "pipeline.yaml"
    declared.write_text(f"{declared.read_text('utf-8')}tables: [{{name: plain}}]\n", "utf-8")
    for asked in (["sync"], ["copy"], ["verify"], ["verify", "--max-rows", "5"]):
        found = rhei(*asked)
        assert found.exit_code == 3, (asked, found.output, found.exception)
        assert "table 'plain': it has no primary key" in found.output


def test_a_closed_object_says_so_and_a_notebook_shows_one_line(world: World) -> None:
    htap = world.htap
    htap.close()
    htap.close()
    for call in (
        lambda: htap.query("select 1"),
        lambda: htap.query("select 1", hint="oltp"),
        lambda: htap.execute("delete from orders"),
        htap.sync_now,
        lambda: htap.verify("orders"),
        lambda: htap.repair("orders"),
        htap.start_sync,
        lambda: htap.start_sync(0.1, metrics_port=0),
        lambda: htap.watch(print, print),
    ):
        with pytest.raises(MirrorError, match=r"closed \(open it again") as raised:
            call()
    assert raised.value._render_traceback_() == [f"MirrorError: {raised.value}"]
    assert not htap.holds
    assert htap.monitoring is None
    assert world.app.execute("select count(*) from orders").fetchone() == (3,)
