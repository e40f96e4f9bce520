"""No room, or no place, for what exceeds memory: the error names it, and nothing is lost."""

import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import MirrorError, SourceError
from rhei_pipeline.sources.postgres.logical import spool
from rhei_pipeline.sources.sqlite.database import SqliteDatabase, translate
from tests.support.fix_postgres import PostgresWorld


def test_a_log_that_finds_no_temporary_place_is_named_and_read_later(
    make_postgres: Callable[..., PostgresWorld], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(spool, "SPOOL_BYTES", 1_000)
    world = make_postgres(capture={"method": "logical"})
    world.run("create table t(id int primary key, v text)")
    world.htap.sync_now()
    world.run("insert into t select i, repeat('x', 100) from generate_series(1, 100) i")
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
        with pytest.raises(SourceError, match=r"table 't': .*temporary file.*TMPDIR"):
            world.htap.sync_now()
    assert world.htap.sync_now().inserted == 100
    world.assert_equal("t")


def test_sqlite_that_can_sort_nowhere_is_not_said_to_have_a_bad_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "app.db"
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    assert "is full, or the temporary directory" in str(translate(error, path))
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_GETTEMPPATH
    told = str(translate(error, path))
    assert "no temporary directory" in told
    assert "SQLITE_TMPDIR" in told
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("create table t(id integer primary key)")
    counted = "with recursive c(i) as (select 1 union all select i + 1 from c where i < 40000)"
    sorted_rows = f"{counted} select i from c order by hex(zeroblob(100)) || i"
    with closing(SqliteDatabase(path)) as database:
        assert database.query(sorted_rows).num_rows == 40_000


@pytest.mark.long
def test_a_mirror_in_memory_names_the_place_that_it_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".tmp").write_text("")  # a file where DuckDB would create a directory
    with sqlite3.connect("app.db") as application:
        application.execute("create table t(id integer primary key)")
        application.execute("insert into t values (1)")
    application.close()
    settings = Settings(
        source={"path": tmp_path / "app.db"},
        mirror={"path": ":memory:", "memory_limit": "64MiB"},
        registry={"path": tmp_path / "registry.json"},
    )
    sorted_rows = (
        "select count(*) from (select repeat(md5(x.range::text), 10) as s"
        " from t, range(400000) x order by s limit 399999)"
    )
    with HTAP(settings) as htap:
        htap.sync_now()
        with pytest.raises(MirrorError, match="working directory"):
            htap.query(sorted_rows, hint="olap")
        Path(".tmp").unlink()
        assert htap.query(sorted_rows, hint="olap").num_rows == 1
